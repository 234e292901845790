"""Gradients of one loss in each framework, the same weights in each, against PyTorch's.

    L = mean over n of -log softmax(logits[n])[y[n]],  y: seeded labels
    g = dL / d(input), dL / d(stem), dL / d(layer1) ... dL / d(logits), dL / d(every trainable parameter)

The cross-entropy, not a linear projection of the logits: it is what is trained with, and its gradient
depends on everything before it, the last bias included. Names are canonical, arrays in PyTorch's layout.
Keras runs on its TensorFlow backend.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from parity_tests import tolerances
from parity_tests.compare.report import Point
from weights_convert import Checkpoint, SpecError, load_into, parameters
from weights_convert.errors import nearest
from weights_convert.layouts import LAYOUTS, role_of
from weights_convert.spec import ResNetSpec

REFERENCE = "torch"
Arrays = dict[str, np.ndarray]


def gradients(
    checkpoint: Checkpoint,
    images: np.ndarray,
    *,
    frameworks: Sequence[str] = ("torch", "keras", "tf1"),
    dtype: str = "float64",
    train: bool = True,
) -> list[Point]:
    """The gradients of every framework but torch against torch's float64 ones; dropout is off.

    In float64 every point has a limit. In float32 only nets of a few blocks have one; for deeper ones the
    limit is infinite, and what remains to be said is the error beside `Point.noise`: torch's own float32
    against its float64, which is what the errors are taken against too.

    Args:
        checkpoint: of a network.
        images: (N, C, H, W).
        frameworks: whose gradients to compare; torch is the reference whether or not it is among them.
        dtype: "float64" or "float32".
        train: whether batch normalisation uses the batch's statistics (else the running ones).

    Returns:
        The points: "input", the end points in order, then the parameters in PyTorch's order.

    Raises:
        SpecError: not a network, or of one class only; an unknown framework or dtype.
        MismatchError: the weights do not fit into `dtype`.
    """
    spec, checkpoint = check(checkpoint, frameworks, dtype)
    labels = seeded_labels(len(images), spec.num_classes)
    reference = RUNNERS[REFERENCE](checkpoint, images, labels, "float64", train)
    found = {f: RUNNERS[f](checkpoint, images, labels, dtype, train) for f in candidates_of(frameworks)}
    noise: Arrays = {}
    if dtype == "float32":
        noise = RUNNERS[REFERENCE](checkpoint, images, labels, dtype, train)
    names = (*(name for name in reference if role_of(name) is None), *trainable(spec))
    points = []
    for name in names:
        floor = error(name, noise, reference) if noise else None
        errors = {f: error(name, arrays, reference) for f, arrays in found.items()}
        points.append(Point(name, reference[name].shape, errors, limit(name, spec, floor), floor))
    return points


def limit(name: str, spec: ResNetSpec, noise: float | None) -> float:
    """What an error may be at a point, in float32 where there is a noise: the reasons are in `tolerances`."""
    if noise is not None:
        shallow = max(tolerances.FLOAT32_SHALLOW_GRADIENT, tolerances.float32_limit(noise))
        return shallow if is_shallow(spec) else math.inf
    inside_cbam = spec.attention == "cbam" and name != "input"
    return tolerances.FLOAT64_CBAM_GRADIENT if inside_cbam else tolerances.FLOAT64_GRADIENT


def is_shallow(spec: ResNetSpec) -> bool:
    return sum(spec.depths) <= tolerances.SHALLOW_BLOCKS


def notes(checkpoint: Checkpoint, dtype: str) -> list[str]:
    """What a reader of the figures should know."""
    spec, lines = spec_of(checkpoint), []
    if spec.dropout:
        lines.append(f"gradients and training: dropout is off here, the network has {spec.dropout}")
    kink = "rounding can put a value near 0 on the other side of a ReLU, which changes gradients by a jump"
    if dtype == "float32" and is_shallow(spec):
        lines.append(f"float32 gradients and training: {kink}; rare in a net of {sum(spec.depths)} blocks")
    elif dtype == "float32":
        lines.append(
            f"float32 gradients and training of {sum(spec.depths)} blocks are held to no limit: {kink},"
            " in torch alone as well (the noise and the one-ulp change are shown beside the errors)"
        )
    return lines


# --------------------------------------------------------------------------------------------------
# What training needs too


def check(checkpoint: Checkpoint, frameworks: Iterable[str], dtype: str) -> tuple[ResNetSpec, Checkpoint]:
    """The network's spec without dropout and a checkpoint that has it; `SpecError` for what cannot be."""
    spec = spec_of(checkpoint)
    if spec.num_classes < 2:
        raise SpecError("the cross-entropy of one class is 0 everywhere; expected a network of 2 or more")
    for framework in frameworks:
        if framework not in RUNNERS:
            known = ", ".join(RUNNERS)
            raise SpecError(
                f"there is no framework {framework!r}{nearest(framework, RUNNERS)}; known: {known}"
            )
    if dtype not in ("float32", "float64"):
        raise SpecError(f"dtype={dtype!r}: expected float64 or float32")
    if spec.dropout:  # each framework draws its own random numbers
        spec = dataclasses.replace(spec, dropout=0.0)
        checkpoint = checkpoint.derived(checkpoint.tensors, spec, "dropout is off")
    return spec, checkpoint


def spec_of(checkpoint: Checkpoint) -> ResNetSpec:
    if not isinstance(checkpoint.spec, ResNetSpec):
        raise SpecError(f"the checkpoint is {checkpoint.describe()}, expected a whole network")
    return checkpoint.spec


def candidates_of(frameworks: Iterable[str]) -> list[str]:
    return [framework for framework in frameworks if framework != REFERENCE]


def seeded_labels(number: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, 3]).integers(classes, size=number)


def trainable(spec: ResNetSpec) -> list[str]:
    return [parameter.name for parameter in parameters(spec) if parameter.trainable]


def error(name: str, actual: Arrays, reference: Arrays) -> float:
    """`tolerances.relative_error`; of a bias relative to its layer's weight where that is larger.

    What a bias adds to a channel, the next batch normalisation takes out again as far as no ReLU lies
    between them. The terms of its gradient then cancel, in part or to nothing (a convolution's bias right
    before batch statistics), and what is left is rounding, large or small only beside the weight's
    gradient, which sums the same terms with factors near 1.
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


def canonical(name: str, array: np.ndarray) -> np.ndarray:
    """An end point's or a parameter's array of Keras or TF1, in PyTorch's axes: by role, not by rank."""
    if role_of(name) is None:
        return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array
    return LAYOUTS["tf1"].to_canonical(name, array)


def keras_variables(model: Any) -> dict[str, Any]:
    """Canonical name -> variable of a network: below the model's name, paths are TF1's."""
    parse = LAYOUTS["tf1"].parse
    return {str(parse(v.path.partition("/")[2])): v for v in model.weights if "seed_generator" not in v.path}


def keras_loss(logits: Any, labels: np.ndarray) -> Any:
    import keras

    # the function, not the class: that computes in floatx, which is float32
    losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    return keras.ops.mean(losses)


def tf1_variables(graph: Any) -> dict[str, Any]:
    """Canonical name -> variable of the one network in a graph; slots and counters are passed over."""
    variables = {LAYOUTS["tf1"].parse(v.op.name): v for v in graph.get_collection("variables")}
    return {name: variable for name, variable in variables.items() if name is not None}


def tf1_loss(logits: Any, labels: np.ndarray) -> Any:
    import tensorflow.compat.v1 as tf

    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))


# --------------------------------------------------------------------------------------------------
# The frameworks


def _torch(checkpoint: Checkpoint, images: np.ndarray, labels: np.ndarray, dtype: str, train: bool) -> Arrays:
    import torch

    import torch_impl

    model = torch_impl.ResNet(**spec_of(checkpoint).model_kwargs()).to(getattr(torch, dtype)).train(train)
    load_into(model, checkpoint)
    x = torch.from_numpy(images.astype(dtype)).requires_grad_()
    points = {"input": x, **model.forward_features(x)}
    loss = torch.nn.functional.cross_entropy(points["logits"], torch.from_numpy(labels))
    wanted = points | dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(wanted.values()))
    return {name: gradient.numpy() for name, gradient in zip(wanted, found, strict=True)}


def _keras(checkpoint: Checkpoint, images: np.ndarray, labels: np.ndarray, dtype: str, train: bool) -> Arrays:
    import tensorflow as tf

    import keras_impl

    model = keras_impl.ResNet(**spec_of(checkpoint).model_kwargs(), dtype=dtype)
    load_into(model, checkpoint)
    x, variables = tf.constant(channels_last(images, dtype)), keras_variables(model)
    with tf.GradientTape() as tape:
        tape.watch(x)
        points = {"input": x, **model.forward_features(x, training=train)}
        loss = keras_loss(points["logits"], labels)
    wanted = points | {name: variables[name].value for name in trainable(spec_of(checkpoint))}
    found = tape.gradient(loss, wanted)
    return {name: canonical(name, gradient.numpy()) for name, gradient in found.items()}


def _tf1(checkpoint: Checkpoint, images: np.ndarray, labels: np.ndarray, dtype: str, train: bool) -> Arrays:
    import tensorflow.compat.v1 as tf

    import tf1_compat

    with tf.Graph().as_default() as graph, tf.Session() as session:
        x = tf.placeholder(dtype, (None, None, None, images.shape[1]))
        logits, end_points = tf1_compat.resnet(x, train, **spec_of(checkpoint).model_kwargs())
        variables = tf1_variables(graph)
        wanted = {"input": x, **end_points} | {
            name: variables[name] for name in trainable(spec_of(checkpoint))
        }
        found = tf.gradients(tf1_loss(logits, labels), list(wanted.values()))
        load_into(session, checkpoint)
        values = session.run(found, {x: channels_last(images, dtype)})
    return {name: canonical(name, value) for name, value in zip(wanted, values, strict=True)}


Runner = Callable[[Any, np.ndarray, np.ndarray, str, bool], Arrays]
RUNNERS: dict[str, Runner] = {"torch": _torch, "keras": _keras, "tf1": _tf1}
