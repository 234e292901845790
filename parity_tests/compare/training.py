"""Training steps in each framework with its own optimiser, compared with PyTorch's after every step.

Stochastic gradient descent with momentum mu and coupled weight decay wd, PyTorch's definition:

    g = dL/dw + wd w        b = mu b + g        w = w - lr b,   b = 0 at first

L is the mean cross-entropy, plus 0.4 times that of an auxiliary head; batch normalisation is in train mode,
dropout is off. Differences:

    Keras   m = mu m - lr g,  w = w + m. Thus m = -lr b only while lr is constant: when lr drops, the slots
            are multiplied by lr_new / lr_old. `weight_decay=` is decoupled (w = w - lr wd w, without the
            momentum); instead wd w is added to the gradient. On Keras's TensorFlow backend.
    TF1     The update is PyTorch's. There is no weight decay: wd w is added to the gradient. The updates of
            the running statistics are in UPDATE_OPS and run in the same `session.run`, before the step.

Keras and TF1 cast learning rate and momentum to float32, even for float64 variables; in float64 only values
that are exact in float32 give the same training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from parity_tests.compare import networks
from parity_tests.compare.networks import REFERENCE, Arrays
from parity_tests.compare.report import Training
from parity_tests.judge import tolerances
from parity_tests.watch.build import keras_model, tf1_graph, torch_module
from weights_convert import Checkpoint, SpecError, load_into
from weights_convert.checkpoint import in_memory
from weights_convert.spec import is_count


class Step(NamedTuple):
    """The state after one step; the arrays are not copies and change with the next step."""

    loss: float  # of the batch, before the update
    parameters: Arrays
    statistics: Arrays
    momentum: Arrays  # b above


@dataclass(frozen=True)
class Recipe:
    """Settings of a training: the learning rate of each step, momentum, coupled weight decay, dtype."""

    learning_rates: list[float]
    momentum: float
    weight_decay: float
    dtype: str


def train(
    checkpoint: Checkpoint,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    steps: int = 20,
    learning_rate: float = 2**-5,
    momentum: float = 0.875,
    weight_decay: float = 2**-13,
    drop_after: int | None = None,
    drop: float = 8,
    frameworks: Sequence[str] = networks.FRAMEWORKS,
    dtype: str = "float64",
) -> Training:
    """Train the same network on the same batch in each framework and compare after every step.

    This compares the loss (relative to the highest so far), every parameter, every running statistic of batch
    normalisation and every momentum buffer. In float64 the limit applies to all steps. In float32
    trajectories diverge suddenly, in torch alone too (see `Training.ulp`): only the first step of a network
    of a few blocks has a limit.

    Args:
        checkpoint: of a network.
        images: (N, C, H, W), the batch of every step.
        labels: (N,), integers.
        steps: number of steps.
        learning_rate, drop_after, drop: the rate is divided by `drop` after `drop_after` steps; None: half.
        momentum, weight_decay: mu and wd above.
        frameworks: frameworks to train; torch is always the reference.
        dtype: "float64" or "float32".

    Raises:
        SpecError: not a network, invalid labels, an unknown framework or dtype, or a learning rate or
            momentum that is not exact in float32.
    """
    spec, checkpoint = networks.check(checkpoint, frameworks, dtype)
    drop_after = steps // 2 if drop_after is None else drop_after
    rates = [learning_rate / (drop if step >= drop_after else 1) for step in range(steps)]
    recipe = Recipe(rates, momentum, weight_decay, dtype)
    networks.check_labels(labels, images, spec.num_classes)
    check_exact(recipe)
    sources = {REFERENCE: checkpoint, **dict.fromkeys(networks.candidates_of(frameworks), checkpoint)}
    sources[_ULP] = moved(checkpoint, dtype)
    losses: dict[str, list[float]] = {name: [] for name in sources if name != _ULP}
    errors: dict[str, dict[str, list[float]]] = {name: {} for name in sources if name != REFERENCE}
    worst: dict[str, dict[str, str]] = {name: {} for name in errors}
    with ExitStack() as stack:
        runs = {
            name: stack.enter_context(closing(RUNNERS[name](source, images, labels, recipe)))
            for name, source in sources.items()
        }
        for _ in range(steps):
            after = {name: next(run) for name, run in runs.items()}
            for name in losses:
                losses[name].append(after[name].loss)
            highest = max(losses[REFERENCE])
            for name in errors:
                for kind, (found, tensor) in compared(after[name], after[REFERENCE], highest).items():
                    errors[name].setdefault(kind, []).append(found)
                    worst[name][kind] = tensor
    ulp, _ = errors.pop(_ULP), worst.pop(_ULP)
    limit, checked = tolerances.FLOAT64_TRAINING, steps
    if dtype == "float32":
        limit, checked = tolerances.FLOAT32_SHALLOW_GRADIENT if networks.is_shallow(spec) else math.inf, 1
    return Training(
        learning_rates=rates,
        losses=losses,
        errors=errors,
        worst=worst,
        ulp=[max(kinds) for kinds in zip(*ulp.values(), strict=True)],
        limit=limit,
        dtype=dtype,
        checked_steps=checked,
    )


def check_exact(recipe: Recipe) -> None:
    """Raise `SpecError` for a recipe that the frameworks cannot share."""
    if not recipe.learning_rates:
        raise SpecError("steps=0: expected at least one")
    values = [("learning rate", rate) for rate in sorted(set(recipe.learning_rates), reverse=True)]
    for name, value in [*values, ("momentum", recipe.momentum)]:
        if recipe.dtype == "float64" and float(np.float32(value)) != value:
            raise SpecError(
                f"{name} {value!r} is not exact in float32, and Keras and TF1 would train with"
                f" {float(np.float32(value))!r}; expected a value that is exact, such as 0.125 or 0.875"
            )


def moved(checkpoint: Checkpoint, dtype: str) -> Checkpoint:
    """The checkpoint with the largest weight of the first convolution one ulp of `dtype` further from 0."""
    name = next(iter(checkpoint))
    array = checkpoint[name].astype(dtype)
    largest = np.unravel_index(np.abs(array).argmax(), array.shape)
    array[largest] = np.nextafter(array[largest], np.copysign(np.inf, array[largest]), dtype=array.dtype)
    tensors = checkpoint.tensors | {name: in_memory(array, name)}
    return checkpoint.derived(tensors, checkpoint.spec, f"{name} moved by one ulp")


def compared(step: Step, reference: Step, highest: float) -> dict[str, tuple[float, str]]:
    """Kind -> error and name of the worst tensor, for the kinds that the reference has.

    The loss is relative to the `highest` so far: near 0 it is the difference of two nearly equal logits, with
    their rounding.
    """
    losses = (np.array([one.loss, highest]) for one in (step, reference))
    worst = {"loss": (tolerances.relative_error(*losses), "loss")}
    for kind in ("parameters", "statistics", "momentum"):
        actual, wanted = getattr(step, kind), getattr(reference, kind)
        if wanted:  # empty without batch normalisation or without momentum
            worst[kind] = max((networks.error(name, actual, wanted), name) for name in wanted)
    return worst


# --------------------------------------------------------------------------------------------------
# The frameworks: each yields after every step


def split(arrays: Arrays) -> tuple[Arrays, Arrays]:
    """Parameters and running statistics."""
    kinds = ("running_mean", "running_var")
    statistics = {name: a for name, a in arrays.items() if name.rpartition(".")[2] in kinds}
    return {name: a for name, a in arrays.items() if name not in statistics}, statistics


def _torch(checkpoint: Checkpoint, images: np.ndarray, labels: np.ndarray, recipe: Recipe) -> Iterator[Step]:
    import torch

    model = torch_module(checkpoint.spec, checkpoint, recipe.dtype).train()
    x, y = torch.from_numpy(images.astype(recipe.dtype)), torch.from_numpy(labels.astype(np.int64))
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.0, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    for rate in recipe.learning_rates:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = networks.torch_loss(model(x), y)
        loss.backward()
        optimizer.step()
        arrays = {n: v.numpy() for n, v in model.state_dict().items() if not is_count(n)}
        buffers = {n: optimizer.state[p].get("momentum_buffer") for n, p in model.named_parameters()}
        momentum = {name: buffer.numpy() for name, buffer in buffers.items() if buffer is not None}
        yield Step(loss.item(), *split(arrays), momentum)


def with_decay(gradients: list[Any], variables: list[Any], weight_decay: float) -> list[Any]:
    """dL/dw + wd w: coupled weight decay, which enters the momentum."""
    return [g + weight_decay * w for g, w in zip(gradients, variables, strict=True)]


def rescale(slots: list[Any], ratio: float) -> None:
    """Convert Keras's m = -lr b to a new learning rate, `ratio` times the old one."""
    for slot in slots:
        slot.assign(slot.value * ratio)


def _keras(checkpoint: Checkpoint, images: np.ndarray, labels: np.ndarray, recipe: Recipe) -> Iterator[Step]:
    import keras
    import tensorflow as tf

    model = keras_model(checkpoint.spec, checkpoint, recipe.dtype)
    x, previous = networks.channels_last(images, recipe.dtype), recipe.learning_rates[0]
    spec, names = checkpoint.spec, networks.trainable(checkpoint)
    canonical, known = networks.to_canonical(spec), networks.keras_variables(spec, model)
    variables = [known[name] for name in names]
    optimizer = keras.optimizers.SGD(previous, momentum=float(recipe.momentum))
    optimizer.build(variables)
    for rate in recipe.learning_rates:
        if rate != previous:
            rescale(optimizer.momentums, rate / previous)
        optimizer.learning_rate, previous = rate, rate
        with tf.GradientTape() as tape:
            loss = networks.keras_loss(model(x, training=True), labels)
        values = [variable.value for variable in variables]
        optimizer.apply(with_decay(tape.gradient(loss, values), values, recipe.weight_decay), variables)
        arrays = {name: canonical(name, variable.numpy()) for name, variable in known.items()}
        slots = zip(names, optimizer.momentums, strict=bool(recipe.momentum))
        momentum = {name: canonical(name, slot.numpy()) / -rate for name, slot in slots}
        yield Step(float(loss), *split(arrays), momentum)


def _tf1(checkpoint: Checkpoint, images: np.ndarray, labels: np.ndarray, recipe: Recipe) -> Iterator[Step]:
    import tensorflow.compat.v1 as tf

    canonical, x = networks.to_canonical(checkpoint.spec), networks.channels_last(images, recipe.dtype)
    graph, _, _, end_points = tf1_graph(checkpoint.spec, recipe.dtype, train=True, images=x)
    # default graph only while building: other frameworks run between the steps
    with graph.as_default():
        rate = tf.placeholder(recipe.dtype, ())
        known = networks.tf1_variables(checkpoint.spec, graph)
        loss = networks.tf1_loss(networks.outputs_of(end_points), labels)
        variables = [known[name] for name in networks.trainable(checkpoint)]
        optimizer = tf.train.MomentumOptimizer(rate, recipe.momentum)
        gradients = with_decay(tf.gradients(loss, variables), variables, recipe.weight_decay)
        # read every variable before writing any
        with tf.control_dependencies([loss, *gradients, *tf.get_collection(tf.GraphKeys.UPDATE_OPS)]):
            step = optimizer.apply_gradients(zip(gradients, variables, strict=True))
        initialize = tf.variables_initializer(optimizer.variables())
        slots = {name: optimizer.get_slot(known[name], "momentum") for name in networks.trainable(checkpoint)}
    with closing(tf.Session(graph=graph)) as session:  # `with session` would make its graph the default
        load_into(session, checkpoint)
        session.run(initialize)
        for learning_rate in recipe.learning_rates:
            value, _ = session.run([loss, step], {rate: learning_rate})
            arrays, buffers = session.run([known, slots])
            arrays = {name: canonical(name, array) for name, array in arrays.items()}
            momentum = {name: canonical(name, array) for name, array in buffers.items()}
            yield Step(float(value), *split(arrays), momentum)


_ULP = "one ulp"  # the reference with one changed weight
Runner = Callable[[Any, np.ndarray, np.ndarray, Recipe], Any]
RUNNERS: dict[str, Runner] = {"torch": _torch, "keras": _keras, "tf1": _tf1, _ULP: _torch}
