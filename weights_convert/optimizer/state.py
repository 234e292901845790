"""`TrainingState`: an optimiser between two frameworks, in PyTorch's terms and by canonical names.

SGD with momentum mu and coupled weight decay wd (https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html):

    g = dL/dw + wd w        b = mu b + g        w = w - lr b

Adam (arXiv 1412.6980, algorithm 1) with the same g, and AdamW (1711.05101) with w = w - lr wd w instead:

    m = beta_1 m + (1 - beta_1) g        v = beta_2 v + (1 - beta_2) g^2
    w = w - lr m / (1 - beta_1^t) / (sqrt(v / (1 - beta_2^t)) + epsilon)

Keras and TensorFlow 1 add epsilon to sqrt(v) itself: theirs is PyTorch's times sqrt(1 - beta_2^t).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from weights_convert.errors import MismatchError, SourceError, SpecError, nearest
from weights_convert.formats.base import Reader, TensorInfo, one_line


class Kind(NamedTuple):
    """One optimiser: its name, its moments, and its settings beside the learning rate."""

    title: str
    moments: tuple[str, ...]
    settings: tuple[str, ...]


_ADAM = ("beta_1", "beta_2", "epsilon", "weight_decay")
KINDS = {
    "sgd": Kind("SGD", ("b",), ("momentum", "weight_decay")),
    "adam": Kind("Adam", ("m", "v"), _ADAM),
    "adamw": Kind("AdamW", ("m", "v"), _ADAM),
}
_BELOW = {  # setting -> the upper limit, which it does not reach; all are at least 0
    "learning_rate": math.inf,
    "next_learning_rate": math.inf,
    "momentum": 1.0,
    "weight_decay": math.inf,
    "beta_1": 1.0,
    "beta_2": 1.0,
    "epsilon": math.inf,
}
_OTHER_FACTS = ("optimizer", "step", "schedule", "leave_out")
_USUAL = {  # names that other optimisers use -> ours
    "lr": "learning_rate",
    "eps": "epsilon",
    "wd": "weight_decay",
    "decay": "weight_decay",
    "beta1": "beta_1",
    "beta2": "beta_2",
    "betas": "beta_1",
    "steps": "step",
    "global_step": "step",
    "iterations": "step",
    "class": "optimizer",
    "kind": "optimizer",
}
MOST_STEPS = 2**53


class NoOptimizer(MismatchError):
    """A file without the state of an optimiser."""


class Weight(NamedTuple):
    """A trainable tensor of the network: its canonical name, and its parts in the file."""

    canonical: str
    names: tuple[str, ...]
    infos: tuple[TensorInfo, ...]


class Part(NamedTuple):
    """One tensor of an optimiser in a file, in the file's layout."""

    info: TensorInfo
    name: str
    read: Callable[[], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The user's statements on a training, which a file may lack.

    Attributes:
        optimizer: a key of `KINDS`.
        settings: the learning rate at the stop, the momentum and so on.
        next_learning_rate: the rate of the next step; None for the rate at the stop.
        schedule: whether a Keras destination has a schedule: its file then has no rate.
        leave_out: names of states that are left out: a scheduler, a moving average.
        origin: the argument or option with these statements, for messages.
    """

    optimizer: str | None = None
    settings: Mapping[str, float] = field(default_factory=dict)
    next_learning_rate: float | None = None
    step: int | None = None
    schedule: bool = False
    leave_out: tuple[str, ...] = ()
    origin: str = "carry"


def facts_of(carry: bool | Mapping[str, Any] | Facts, origin: str = "carry") -> Facts:
    """The facts in the argument `carry` of `convert`.

    Args:
        origin: the argument or option with these statements, for messages.

    Raises:
        SpecError: an unknown name, or an invalid value.

    >>> facts_of({"optimizer": "sgd", "momentum": 0.9}).settings
    {'momentum': 0.9}
    """
    if isinstance(carry, Facts):
        return carry
    given = dict(carry) if isinstance(carry, Mapping) else {}
    known = (*_OTHER_FACTS, *_BELOW)
    for name in given:
        if name not in known:
            usual = _USUAL.get(str(name).lower())
            hint = f"; did you mean {usual!r}?" if usual else nearest(str(name), known)
            raise SpecError(f"{origin}: unknown {name!r}, expected {', '.join(known)}{hint}")
    kind, step, left = given.get("optimizer"), given.get("step"), given.get("leave_out", ())
    if kind is not None and kind not in KINDS:
        raise SpecError(f"{origin}: optimizer={kind!r}, expected one of {', '.join(KINDS)}")
    if step is not None and not is_step(step):
        raise SpecError(f"{origin}: step={step!r}, expected a whole number from 0")
    schedule = given.get("schedule", False)
    if not isinstance(schedule, bool):
        raise SpecError(f"{origin}: schedule={schedule!r}, expected True or False")
    names = left.split(",") if isinstance(left, str) else left
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise SpecError(f"{origin}: leave_out={left!r}, expected a list of names")
    settings = {}
    for name in _BELOW:
        if name in given:
            if not is_setting(name, given[name]):
                raise SpecError(
                    f"{origin}: {name}={given[name]!r}, expected a number from 0 to {_BELOW[name]:g}"
                )
            settings[name] = float(given[name])
    following = settings.pop("next_learning_rate", None)
    return Facts(
        optimizer=kind,
        settings=settings,
        next_learning_rate=following,
        step=step,
        schedule=schedule,
        leave_out=tuple(names),
        origin=origin,
    )


def is_setting(name: str, value: Any) -> bool:
    """Whether a value is possible for a setting."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _BELOW[name]


def is_step(value: Any) -> bool:
    """Whether a value is a count of steps."""
    return type(value) is int and 0 <= value < MOST_STEPS


@dataclass
class Found:
    """An optimiser as a file holds it.

    Attributes:
        where: the file and the optimiser's place in it, for messages.
        kind: a key of `KINDS`.
        settings: those that the file holds.
        moments: moment -> name of a weight in the file -> tensor.
        divisor: by which the file's moments are PyTorch's, of the settings; None for 1.
        used: names of the reader's other contents that are carried.
        others: names of those that are not, and that the user may leave out.
        assumed: properties that such a file does not show, one text each.
    """

    where: str
    kind: str
    settings: dict[str, float]
    step: int | None
    moments: dict[str, dict[str, Part]]
    divisor: Callable[[Mapping[str, float]], float] | None = None
    used: Iterable[str] = ()
    others: Iterable[str] = ()
    assumed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """An optimiser in PyTorch's terms.

    Attributes:
        path: the file, for messages.
        settings: those known; the learning rate is that at the stop.
        next_learning_rate: the rate of the next step, if known.
        schedule: whether a Keras destination computes its rate by a schedule.
        step: None if the file does not show it.
        moments: moment -> canonical name -> `Part` in PyTorch's layout; none of SGD without momentum.
        used: names of the source's contents that are carried, in `Checkpoint.left_out`.
        assumed: properties that the file does not show, one text each.
    """

    path: str
    kind: str
    settings: Mapping[str, float]
    next_learning_rate: float | None
    step: int | None
    moments: Mapping[str, Mapping[str, Part]]
    schedule: bool = False
    used: frozenset[str] = frozenset()
    assumed: tuple[str, ...] = ()

    def describe(self) -> str:
        """For `inspect`: the optimiser, its settings and its step."""
        known = [f"{name}={value:g}" for name, value in self.settings.items()]
        count = sum(map(len, self.moments.values()))
        steps = "step unknown" if self.step is None else f"step {self.step:,}"
        return f"{KINDS[self.kind].title}: {', '.join([*known, steps])}, {count} moments"


def said_by(reader: Reader) -> tuple[str | None, dict[str, float]]:
    """The kind and the settings that this project wrote into a file's metadata, if it wrote them.

    Raises:
        SourceError: they are no settings.
    """
    said = reader.said("optimizer", dict) or {}
    kind = next((kind for kind in KINDS if kind == said.get("kind")), None)
    if kind is None:
        return None, {}
    settings = {name: said[name] for name in ("learning_rate", *KINDS[kind].settings) if name in said}
    for name, value in settings.items():
        if not is_setting(name, value):
            found = one_line(repr(value), 40)
            raise SourceError(f"{reader.path}: its metadata has {found} as {name} of the optimiser")
    return kind, settings


def settled(found: Found, facts: Facts) -> tuple[dict[str, float], int | None]:
    """The settings and the step of a file and of the user's facts together.

    Raises:
        MismatchError: they contradict each other, or a value is impossible.
    """
    kind = KINDS[found.kind]
    for name, value in found.settings.items():
        if not is_setting(name, value):
            shown = one_line(repr(value), 40)
            raise MismatchError(
                f"{found.where} has {name}={shown}, expected a number from 0 to {_BELOW[name]:g}"
            )
    for name, given in [*facts.settings.items(), ("step", facts.step)]:
        held = found.step if name == "step" else found.settings.get(name)
        if name not in ("learning_rate", "step", *kind.settings):
            raise SpecError(f"{facts.origin}: {name} is no setting of {kind.title}")
        if given is not None and held is not None and given != held:
            raise MismatchError(f"{found.where} has {name}={held!r}, not {given!r}; omit {name}")
    step = found.step if found.step is not None else facts.step
    known = {**facts.settings, **found.settings}
    return {name: known[name] for name in ("learning_rate", *kind.settings) if name in known}, step


def refuse(where: str, what: str, name: str, facts: Facts) -> None:
    """Raise `MismatchError` for a state without a counterpart, unless the user leaves it out by its name."""
    if name not in facts.leave_out:
        raise MismatchError(
            f"{where} has {what}, which has no counterpart in the other frameworks' files; "
            f"give leave_out={name} (--optimizer leave_out={name}) to go on without it"
        )


def check_left_out(path: str, others: Iterable[str], facts: Facts) -> None:
    """Raise `SpecError` if the user leaves out what the file does not hold."""
    there = list(others)
    for name in facts.leave_out:
        if name not in there:
            listed = one_line(", ".join(sorted(there))) or "nothing to leave out"
            raise SpecError(
                f"{facts.origin}: leave_out={name!r} names nothing in {path}, which has {listed}"
                f"{nearest(name, there)}"
            )
