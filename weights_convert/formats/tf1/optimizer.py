"""The optimiser in a TF1 checkpoint: a slot beside every trainable variable.

`<variable>/Momentum` is PyTorch's b. `<variable>/Adam` and `/Adam_1` are m and v; `beta1_power` is
beta_1^(t+1) after t steps. The learning rate and the other settings are in the graph, not in the checkpoint.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import partial

import numpy as np

from weights_convert.errors import MismatchError
from weights_convert.formats.base import Reader, TensorInfo, one_line
from weights_convert.optimizer.state import Facts, Found, NoOptimizer, Part, Weight, is_step, refuse, said_by

MOMENTS = {"sgd": {"b": "Momentum"}, "adam": {"m": "Adam", "v": "Adam_1"}}
MOMENTS["adamw"] = MOMENTS["adam"]
GLOBAL_STEP = "global_step"
POWERS = {"beta_1": "beta1_power", "beta_2": "beta2_power"}
_AVERAGES = ("ExponentialMovingAverage", "biased", "local_step")
_NEAR = 1e-6  # relative difference of a power in float32, for each step
_SMALLEST = 1e-30  # powers below are not compared


def optimizer_of_tf1(reader: Reader, weights: Sequence[Weight], facts: Facts) -> Found:
    """The optimiser in the slots of a checkpoint.

    Raises:
        NoOptimizer: there are none.
        MismatchError: they are of an optimiser without a counterpart, or incomplete.
    """
    where = f"{reader.path}: its optimiser"
    flat = [(name, info) for w in weights for name, info in zip(w.names, w.infos, strict=True)]
    slots = _slots(reader, [name for name, _ in flat])
    averages = [one for one in _AVERAGES if any(name.endswith(f"/{one}") for name in reader.tensors)]
    for average in averages:
        refuse(f"{reader.path}: it", f"moving averages (.../{average})", average, facts)
    slots = {slot: names for slot, names in slots.items() if slot not in _AVERAGES}
    if not slots:
        return _without_slots(reader, where, facts, averages)
    kind = next((kind for kind, row in MOMENTS.items() if {*row.values()} == {*slots}), None)
    if kind is None:
        named = one_line(", ".join(sorted(slots)))
        raise MismatchError(
            f"{where} has the slots {named}, which have no counterpart: expected Momentum, or Adam and Adam_1"
        )
    if facts.optimizer in MOMENTS and MOMENTS[facts.optimizer] == MOMENTS[kind]:
        kind = facts.optimizer
    if facts.optimizer not in (None, kind):
        raise MismatchError(f"{where} is {kind}, not {facts.optimizer}")
    said, settings = said_by(reader)
    if said in MOMENTS and MOMENTS[said] == MOMENTS[kind] and facts.optimizer in (None, said):
        kind = said
    else:
        settings = {}
    moments, used = {}, []
    for moment, slot in MOMENTS[kind].items():
        moments[moment] = {name: _part(reader, where, name, slot, info) for name, info in flat}
        used += [part.name for part in moments[moment].values()]
    step, others = _step(reader, where, kind, settings | dict(facts.settings))
    assumed = ("nesterov=False",) if kind == "sgd" and not settings else ()
    used += others
    return Found(where, kind, settings, step, moments, used=used, others=averages, assumed=assumed)


def _without_slots(reader: Reader, where: str, facts: Facts, averages: list[str]) -> Found:
    """SGD without momentum, as this project's metadata or the user says: `GradientDescentOptimizer`."""
    said, settings = said_by(reader)
    settings = settings if facts.optimizer in (None, said) else {}
    if (facts.optimizer or said) != "sgd" or {**facts.settings, **settings}.get("momentum") != 0:
        raise NoOptimizer(
            f"{reader.path}: holds no state of an optimiser, expected slots such as .../Momentum; of SGD "
            "without momentum give optimizer=sgd and momentum=0 (--optimizer optimizer=sgd ...)"
        )
    step, used = _step(reader, where, "sgd", {})
    return Found(where, "sgd", {**settings, "momentum": 0.0}, step, {}, used=used, others=averages)


def _slots(reader: Reader, variables: Sequence[str]) -> dict[str, list[str]]:
    """Name of a slot -> the tensors below trainable variables."""
    known = {*variables}
    found: dict[str, list[str]] = {}
    for name in reader.tensors:
        variable, _, slot = name.rpartition("/")
        if variable in known:
            found.setdefault(slot, []).append(name)
    return found


def _part(reader: Reader, where: str, variable: str, slot: str, like: TensorInfo) -> Part:
    name = f"{variable}/{slot}"
    info = reader.tensors.get(name)
    if info is None:
        raise MismatchError(
            f"{where} has no {one_line(name)}: expected the slots of every trainable variable"
        )
    if info.shape != like.shape:
        raise MismatchError(f"{where} has {one_line(name)} of shape {info.shape}, unlike its variable")
    return Part(info, name, partial(reader.read, name))


def _step(reader: Reader, where: str, kind: str, settings: dict[str, float]) -> tuple[int | None, list[str]]:
    """The number of steps, and the names of the tensors that show it."""
    names = [name for name in reader.tensors if re.fullmatch(rf"(.*/)?{GLOBAL_STEP}", name)]
    steps = {_scalar(reader, where, name) for name in names}
    step = int(next(iter(steps))) if len(steps) == 1 else None
    if step is not None and not is_step(step):
        raise MismatchError(f"{where} has {step} as its step, expected a count")
    used = list(names)
    for beta, leaf in POWERS.items() if kind != "sgd" else ():
        powers = [name for name in reader.tensors if re.fullmatch(rf"(.*/)?{leaf}(_\d+)?", name)]
        if len(powers) != 1:
            raise MismatchError(f"{where} has {len(powers)} tensors {leaf}, expected one: of one Adam")
        used += powers
        value, known = _scalar(reader, where, powers[0]), settings.get(beta)
        if known is None or not 0 < known < 1 or not _SMALLEST < value < 1:
            continue
        count = round(math.log(value) / math.log(known)) - 1
        if step is None:
            step = count if is_step(count) else 0
        if not math.isclose(known ** (step + 1), value, rel_tol=_NEAR * (step + 1)):
            raise MismatchError(
                f"{where} has {powers[0]}={value:g}, expected {beta}^{step + 1}={known ** (step + 1):g} "
                f"after {step} steps: another {beta}, or a step that is not Adam's"
            )
    return step, used


def _scalar(reader: Reader, where: str, name: str) -> float:
    info = reader.tensors[name]
    if info.shape != () or info.dtype.kind not in "iuf":
        raise MismatchError(f"{where} has {one_line(name)} of shape {info.shape}, expected one number")
    value = float(reader.read(name))
    if not math.isfinite(value):
        raise MismatchError(f"{where} has {one_line(name)}={value}, expected a number")
    return value


def tf1_scalars(step: int, betas: dict[str, float], dtype: np.dtype) -> dict[str, np.ndarray]:
    """The step, and the powers of Adam's betas."""
    powers = {POWERS[name]: np.array(beta ** (step + 1), dtype) for name, beta in betas.items()}
    return {GLOBAL_STEP: np.array(step, np.int64), **powers}
