"""Shared by the comparisons of gradients and of training: names, axes and loss in each framework."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from parity_tests.judge import tolerances
from weights_convert import (
    Checkpoint,
    SpecError,
    import_order,  # noqa: F401  (before any framework)
    parameters,
)
from weights_convert.errors import nearest
from weights_convert.layouts import LAYOUTS
from weights_convert.spec import Spec

REFERENCE = "torch"
FRAMEWORKS = ("torch", "keras", "tf1")
AUX_WEIGHT = 0.4  # of an auxiliary head's loss, as in torchvision's training
Arrays = dict[str, np.ndarray]


def check(checkpoint: Checkpoint, frameworks: Iterable[str], dtype: str) -> tuple[Any, Checkpoint]:
    """The network's spec without dropout and a checkpoint that has it; `SpecError` for anything else."""
    spec = spec_of(checkpoint)
    if spec.num_classes < 2:
        raise SpecError("received a network of one class, whose loss is always 0; expected 2 classes or more")
    for framework in frameworks:
        if framework not in FRAMEWORKS:
            known = ", ".join(FRAMEWORKS)
            raise SpecError(
                f"unknown framework {framework!r}{nearest(framework, FRAMEWORKS)}; expected one of {known}"
            )
    if dtype not in ("float32", "float64"):
        raise SpecError(f"dtype={dtype!r}: expected float64 or float32")
    if spec.dropout:  # random numbers differ between frameworks
        spec = dataclasses.replace(spec, dropout=0.0)
        checkpoint = checkpoint.derived(checkpoint.tensors, spec, "dropout is off")
    return spec, checkpoint


def spec_of(checkpoint: Checkpoint) -> Any:
    if not checkpoint.spec.network:
        raise SpecError(f"the checkpoint is {checkpoint.describe()}, expected a whole network")
    return checkpoint.spec


def check_labels(labels: np.ndarray, images: np.ndarray, classes: int) -> None:
    """Raise `SpecError` unless the labels are one class of the network per image."""
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise SpecError(
            f"labels {labels.dtype} {labels.shape}, expected integers ({len(images)},), one per image"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise SpecError(f"labels from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}")


def is_shallow(spec: Any) -> bool:
    return spec.blocks <= tolerances.SHALLOW_BLOCKS


def candidates_of(frameworks: Iterable[str]) -> list[str]:
    return [framework for framework in frameworks if framework != REFERENCE]


def seeded_labels(number: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, 3]).integers(classes, size=number)


def trainable(checkpoint: Checkpoint) -> list[str]:
    """The canonical names of the parameters, in PyTorch's order."""
    return [parameter.name for parameter in parameters(checkpoint.spec) if parameter.trainable]


def error(name: str, actual: Arrays, reference: Arrays) -> float:
    """`tolerances.relative_error`; for a bias relative to its layer's weight, if that is larger.

    The next batch normalisation removes the value that a bias adds to a channel, unless a ReLU lies between
    them. The terms of the bias's gradient then cancel in part, or fully for a convolution's bias right before
    batch statistics. The rest is rounding; its scale is the weight's gradient, which sums the same terms with
    factors near 1.
    """
    found, own = tolerances.relative_error(actual[name], reference[name]), reference[name]
    layer = reference.get(f"{name.removesuffix('bias')}weight")
    if not name.endswith(".bias") or layer is None or found == 0 or actual[name].shape != own.shape:
        return found
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        difference = np.abs(actual[name].astype(np.float64) - own).max()
    scale = max(np.abs(own).max(), np.abs(layer).max())
    return float(difference / scale) if np.isfinite(difference) and scale else found


def channels_last(images: np.ndarray, dtype: str) -> np.ndarray:
    return images.astype(dtype).transpose(0, 2, 3, 1)


def to_canonical(spec: Spec) -> Callable[[str, np.ndarray], np.ndarray]:
    """A function of name and array of Keras or TF1: an end point or a parameter in PyTorch's axes."""
    stored = {parameter.name: LAYOUTS["tf1"].stored(parameter) for parameter in parameters(spec)}

    def canonical(name: str, array: np.ndarray) -> np.ndarray:
        if name in stored:  # by role, not by rank
            return stored[name].to_canonical(array)
        return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array

    return canonical


def keras_variables(spec: Spec, model: Any) -> dict[str, Any]:
    """Canonical name -> variable of a Keras network; after the model's name, its paths are TF1's names."""
    variables = {variable.path.partition("/")[2]: variable for variable in model.weights}
    return {name: variables[path] for name, path in LAYOUTS["tf1"].names(spec).items() if path}


def loss_of(outputs: Any, cross_entropy: Callable[[Any], Any]) -> Any:
    """The loss of a network's logits; of a tuple plus `AUX_WEIGHT` times that of the auxiliary head's."""
    if not isinstance(outputs, tuple):
        return cross_entropy(outputs)
    logits, auxiliary = outputs
    return cross_entropy(logits) + AUX_WEIGHT * cross_entropy(auxiliary)


def outputs_of(points: Mapping[str, Any]) -> Any:
    """The logits among a network's end points, as a tuple with those of an auxiliary head."""
    return (points["logits"], points["aux_logits"]) if "aux_logits" in points else points["logits"]


def torch_loss(outputs: Any, labels: Any) -> Any:
    from torch.nn.functional import cross_entropy

    return loss_of(outputs, lambda logits: cross_entropy(logits, labels))


def keras_loss(outputs: Any, labels: np.ndarray) -> Any:
    return loss_of(outputs, lambda logits: _keras_cross_entropy(logits, labels))


def _keras_cross_entropy(logits: Any, labels: np.ndarray) -> Any:
    import keras

    # keras.losses.SparseCategoricalCrossentropy would compute in floatx, float32
    losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    return keras.ops.mean(losses)


def tf1_variables(spec: Spec, graph: Any) -> dict[str, Any]:
    """Canonical name -> variable of the only network in a graph, without slots and counters."""
    variables = {variable.op.name: variable for variable in graph.get_collection("variables")}
    return {name: variables[path] for name, path in LAYOUTS["tf1"].names(spec).items() if path}


def tf1_loss(outputs: Any, labels: np.ndarray) -> Any:
    import tensorflow.compat.v1 as tf

    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits
    return loss_of(outputs, lambda logits: tf.reduce_mean(cross_entropy(labels=labels, logits=logits)))
