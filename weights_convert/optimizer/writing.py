"""Adds the optimiser of a source to the plan of a conversion, in the terms of the destination's framework."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from weights_convert.errors import DestinationError, MismatchError
from weights_convert.formats.base import TensorInfo
from weights_convert.formats.hdf5.optimizer import keras_factor, keras_moment, keras_variables
from weights_convert.formats.tf1.optimizer import MOMENTS as SLOTS
from weights_convert.formats.tf1.optimizer import tf1_scalars
from weights_convert.formats.torch.training import STATE_DICT, moment_name, open_training, write_training
from weights_convert.layouts import Stored
from weights_convert.optimizer.reading import in_float64
from weights_convert.optimizer.state import KINDS, Part, TrainingState
from weights_convert.plan import Move, Plan
from weights_convert.spec import parameters

WITHOUT_MOMENTUM = "sgd without momentum"
_PLAIN = Stored(None, False)
_EPSILON = (  # crossing between PyTorch and the other two
    "Keras and TensorFlow 1 add Adam's epsilon before the bias correction: in step t theirs is PyTorch's "
    "times sqrt(1 - beta_2^t) (docs/training.md)"
)


class Target(NamedTuple):
    """How one framework's files hold an optimiser.

    Attributes:
        needs: the settings that a file holds, or that its numbers depend on, by kind.
        add: adds the moments and the other facts to a plan.
        goes_on: kind -> the call that goes on, for the user; `WITHOUT_MOMENTUM` where SGD's is another.
        exact: whether the framework loads a moment only in the dtype of its weight.
    """

    needs: Callable[[TrainingState], tuple[str, ...]]
    add: Callable[[Plan, TrainingState, Mapping[str, float], int], None]
    goes_on: Mapping[str, str]
    exact: bool = False


def carry(plan: Plan, state: TrainingState) -> list[str]:
    """Add the optimiser to a plan; returns lines on what is assumed, and on formulas that differ.

    Raises:
        DestinationError: the container holds no optimiser.
        MismatchError: a setting is missing that the destination needs.
    """
    target = TARGETS.get(plan.container.name)
    if target is None or plan.family != plan.container.own_family:
        raise DestinationError(
            f"{plan.destination}: a {plan.family} file in {plan.container.name} holds no optimiser, "
            "expected .pth, .weights.h5 or .ckpt in their own layouts; omit --with-optimizer"
        )
    settings = {**state.settings}
    if state.next_learning_rate is not None:
        settings["learning_rate"] = state.next_learning_rate
    if missing := [name for name in target.needs(state) if name not in settings]:
        listed = ", ".join(f"{name}=..." for name in missing)
        options = " ".join(f"--optimizer {name}=..." for name in missing)
        raise MismatchError(
            f"{state.path}: does not hold {', '.join(missing)} of its {KINDS[state.kind].title}; "
            f"give {listed} ({options})"
        )
    lines = _cautions(plan, state)
    target.add(plan, state, settings, state.step or 0)
    plan.training = state
    facts = {"kind": state.kind, **settings}
    plan.metadata["optimizer"] = facts
    names = ("learning_rate", *KINDS[state.kind].settings)
    shown = {name: f"{settings[name]:.7g}" if name in settings else "..." for name in names}
    call = target.goes_on[state.kind]
    if not state.moments:
        call = target.goes_on.get(WITHOUT_MOMENTUM, call)
    plan.notes.append(f"go on with {call.format(**shown)}, step {state.step or 0:,}")
    return lines


def _cautions(plan: Plan, state: TrainingState) -> list[str]:
    """Lines on what is assumed, and on formulas that differ."""
    lines = []
    if state.step is None:
        lines.append(f"{state.path}: holds no count of steps, 0 is written; set step=N (--optimizer step=N)")
    if state.assumed:
        what = "does not show these properties of its optimiser, assumed"
        lines.append(f"{state.path}: {what}: {', '.join(state.assumed)}")
    if state.kind != "sgd" and (plan.checkpoint.format == "torch") != (plan.container.name == "torch"):
        lines.append(f"{plan.destination}: {_EPSILON}")
    return lines


def _scalar(plan: Plan, name: str, array: np.ndarray) -> None:
    info = TensorInfo(array.shape, array.dtype)
    plan.carried.append(Move(f"({name})", name, name, _PLAIN, info, info, read=lambda: array))


def _moments(
    plan: Plan, state: TrainingState, named: Callable[[int, int, str, str], str], factor: float | None = None
) -> None:
    """The moments, each with the layout of its weight in the destination.

    Args:
        named: (number of the weight, of the moment, the moment, the weight in the destination) -> name.
    """
    by_name = {move.canonical: move for move in plan.moves}
    trained = [p.name for p in parameters(plan.checkpoint.spec) if p.trainable and p.name in by_name]
    for number, name in enumerate(trained):
        weight = by_name[name]
        for place, (moment, parts) in enumerate(state.moments.items()):
            part = parts[name]
            dtype = _dtype(plan, weight, part)
            if factor is not None:
                dtype = np.promote_types(dtype, np.float32)  # a small rate times float16 would be 0
            target = TensorInfo(weight.stored.shape(part.info.shape), dtype)
            read = part.read if factor is None else partial(_times, part, factor, dtype)
            plan.carried.append(
                Move(
                    f"{moment} of {name}", part.name, named(number, place, moment, weight.target_name),
                    weight.stored, part.info, target, read=read,
                )
            )  # fmt: skip


def _dtype(plan: Plan, weight: Move, part: Part) -> np.dtype:
    """The dtype of a moment in the destination: in half precision the smallest of Adam's v would become 0.

    Raises:
        MismatchError: the framework needs half precision, and the moment has more.
    """
    asked, held = weight.target.dtype, part.info.dtype
    if not TARGETS[plan.container.name].exact:
        return held if weight.source.dtype == asked else np.promote_types(asked, np.float32)
    if asked.itemsize < 4 and asked != held:
        raise MismatchError(
            f"{plan.destination}: {part.name} is {held.name}, but TensorFlow 1 restores slots only in the "
            f"dtype of the weights, {asked.name}, in which small values become 0; use --dtype float32"
        )
    return asked


def _times(part: Part, factor: float, dtype: np.dtype) -> np.ndarray:
    return in_float64(np.multiply, part.read(), factor, dtype)


def _float_dtype(plan: Plan) -> np.dtype:
    """The dtype of single numbers beside the weights: theirs, but at least float32."""
    dtypes = {move.target.dtype for move in plan.moves}
    return np.dtype(np.float64 if np.dtype(np.float64) in dtypes else np.float32)


# --------------------------------------------------------------------------------------------------
# torch: {"state_dict": ..., "optimizer": ..., "step": ...}


def _of_torch(state: TrainingState) -> tuple[str, ...]:
    return ("learning_rate", *KINDS[state.kind].settings)


def _add_torch(plan: Plan, state: TrainingState, settings: Mapping[str, float], step: int) -> None:
    for move in plan.moves:
        move.target_name = f"{STATE_DICT}{move.target_name}"
    _moments(plan, state, lambda number, _place, moment, _: moment_name(state.kind, number, moment))
    if state.kind != "sgd":
        count = len({move.target_name.split(".")[2] for move in plan.carried})
        array = np.array(step, np.float32 if step < 2**24 else np.float64)
        for number in range(count):
            _scalar(plan, moment_name(state.kind, number, "step"), array)
    write = partial(write_training, kind=state.kind, settings=dict(settings), step=step, count=_trained(plan))
    plan.container = dataclasses.replace(plan.container, write=write, open=open_training)


def _trained(plan: Plan) -> int:
    names = {move.canonical for move in plan.moves}
    return sum(p.trainable and p.name in names for p in parameters(plan.checkpoint.spec))


# --------------------------------------------------------------------------------------------------
# keras: optimizer/vars/0 ...


def _of_keras(state: TrainingState) -> tuple[str, ...]:  # noqa: ARG001
    return ("learning_rate",)


def _add_keras(plan: Plan, state: TrainingState, settings: Mapping[str, float], step: int) -> None:
    rate = None if state.schedule else np.array(settings["learning_rate"], _float_dtype(plan))
    scalars = keras_variables(step, rate)
    for name, array in scalars.items():
        _scalar(plan, name, array)
    first, count = len(scalars), len(state.moments)
    factor = keras_factor(settings) if state.kind == "sgd" and state.moments else None
    if factor == 0:
        raise MismatchError(
            f"{state.path}: its optimiser goes on with learning_rate=0, by which its momentum cannot be "
            "divided; give a rate above 0 as next_learning_rate=... (--optimizer next_learning_rate=...)"
        )
    _moments(plan, state, lambda number, place, *_: keras_moment(first + count * number + place), factor)


# --------------------------------------------------------------------------------------------------
# tf1: VARIABLE/Momentum ..., global_step


def _of_tf1(state: TrainingState) -> tuple[str, ...]:
    return tuple(name for name in KINDS[state.kind].settings if name.startswith("beta"))


def _add_tf1(plan: Plan, state: TrainingState, settings: Mapping[str, float], step: int) -> None:
    betas = {name: settings[name] for name in _of_tf1(state)}
    for name, array in tf1_scalars(step, betas, _float_dtype(plan)).items():
        _scalar(plan, name, array)
    slots = SLOTS[state.kind]
    _moments(plan, state, lambda _number, _place, moment, weight: f"{weight}/{slots[moment]}")


_TORCH_ADAM = "lr={learning_rate}, betas=({beta_1}, {beta_2}), eps={epsilon}, weight_decay={weight_decay}"
_COUPLED = ", and {weight_decay} w added to the gradient of w"
_EPSILON_OF = ", PyTorch's epsilon {epsilon}"
TARGETS = {
    "torch": Target(
        _of_torch,
        _add_torch,
        {
            "sgd": "torch.optim.SGD(lr={learning_rate}, momentum={momentum}, weight_decay={weight_decay})",
            "adam": f"torch.optim.Adam({_TORCH_ADAM})",
            "adamw": f"torch.optim.AdamW({_TORCH_ADAM})",
        },
    ),
    "keras": Target(
        _of_keras,
        _add_keras,
        {
            "sgd": "keras.optimizers.SGD({learning_rate}, momentum={momentum})" + _COUPLED,
            "adam": "keras.optimizers.Adam({learning_rate}, {beta_1}, {beta_2})" + _EPSILON_OF + _COUPLED,
            "adamw": "keras.optimizers.AdamW({learning_rate}, {weight_decay}, {beta_1}, {beta_2})"
            + _EPSILON_OF,
        },
    ),
    "tf1": Target(
        _of_tf1,
        _add_tf1,
        {
            "sgd": "tf.train.MomentumOptimizer({learning_rate}, {momentum})" + _COUPLED,
            WITHOUT_MOMENTUM: "tf.train.GradientDescentOptimizer({learning_rate})" + _COUPLED,
            "adam": "tf.train.AdamOptimizer({learning_rate}, {beta_1}, {beta_2})" + _EPSILON_OF + _COUPLED,
            "adamw": "tf.train.AdamOptimizer({learning_rate}, {beta_1}, {beta_2})"
            + _EPSILON_OF
            + ", and w times 1 - {learning_rate} {weight_decay} before each step",
        },
        exact=True,
    ),
}
