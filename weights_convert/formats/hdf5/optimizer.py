"""The optimiser of a compiled Keras model: `optimizer/vars/<i>` beside the weights.

0 is the number of steps, 1 the learning rate (absent with a schedule), then the moments of every trainable
variable in the model's order: SGD's momentum m = -lr b, or Adam's m and v in turn. The class and the settings
are only in the `config.json` of a `.keras`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from weights_convert.errors import MismatchError
from weights_convert.formats.base import one_line, parse_metadata
from weights_convert.formats.hdf5.keras import KerasReader
from weights_convert.optimizer.state import (
    KINDS,
    Facts,
    Found,
    NoOptimizer,
    Part,
    Weight,
    is_step,
    refuse,
    said_by,
)

_START = "optimizer/vars/"
_OURS = {"SGD": "sgd", "Adam": "adam", "AdamW": "adamw"}
_SETTINGS = ("momentum", "beta_1", "beta_2", "epsilon")
_FLAGS = {  # keyword of the optimiser -> the algorithm that has no counterpart
    "nesterov": "Nesterov's momentum",
    "amsgrad": "AMSGrad",
    "use_ema": "moving averages (use_ema)",
    "gradient_accumulation_steps": "accumulated gradients",
    "loss_scale_factor": "a scaled loss",
}
_UNSEEN = {  # properties that a .weights.h5 does not show
    "sgd": ("nesterov=False", "no clipped gradients", "no decoupled weight decay"),
    "adam": ("no clipped gradients", "no decoupled weight decay"),
    "adamw": ("no clipped gradients",),
}
_CLIPPING = ("clipnorm", "clipvalue", "global_clipnorm")


def optimizer_of_keras(reader: KerasReader, weights: Sequence[Weight], facts: Facts) -> Found:
    """The optimiser in a `.weights.h5` or `.keras`.

    Raises:
        NoOptimizer: there is none.
        MismatchError: it has no counterpart, does not fit the weights, or the facts do not name its class.
    """
    names = [name for name in reader.tensors if name.startswith(_START)]
    if not names:
        raise NoOptimizer(
            f"{reader.path}: holds no state of an optimiser, expected {_START}0 of a compiled model"
        )
    where = f"{reader.path}: its optimiser"
    compiled = _compiled(reader)
    settings, kind = _configured(compiled, where, facts)
    rest, step, rate = _scalars(reader, where, sorted(names, key=_number))
    said, of_said = said_by(reader)
    kind = kind or facts.optimizer or said
    if kind == said:
        settings = {**of_said, **settings}
    of_kind = [name for name, one in KINDS.items() if len(rest) in (0, len(one.moments) * _count(weights))]
    if kind is None:
        known = " or ".join(f"optimizer={name}" for name in of_kind)
        raise MismatchError(
            f"{where} is of unknown class: a .weights.h5 has its {len(rest)} moments, but not its name; "
            f"give {known or 'the .keras file'} (--optimizer {known or '...'})"
        )
    if rate is not None and np.float32(settings.get("learning_rate", np.nan)) != np.float32(rate):
        settings["learning_rate"] = rate  # else the file has it rounded
    if rate is None and "learning_rate" not in facts.leave_out:
        raise MismatchError(
            f"{where} has a learning rate schedule, which has no counterpart in the other frameworks' files; "
            "give leave_out=learning_rate and the rate at the stop as learning_rate=..."
        )
    if kind == "sgd" and not rest:
        if settings.get("momentum"):
            raise MismatchError(f"{where} has a momentum, but no moments; save it after a step")
        settings["momentum"] = 0.0
    parts = _by_moment(reader, where, kind, rest, weights)
    shown = reader.config is not None or said is not None
    flags = () if shown else _UNSEEN[kind]
    others = _others(compiled.get("config", {}), rate)
    divisor = keras_factor if kind == "sgd" and parts else None
    return Found(where, kind, settings, step, parts, divisor, used=names, others=others, assumed=flags)


def keras_factor(settings: Mapping[str, float]) -> float:
    """The factor -lr from PyTorch's b to Keras's m."""
    return -settings["learning_rate"]


def _count(weights: Sequence[Weight]) -> int:
    return sum(len(weight.names) for weight in weights)


def _number(name: str) -> int:
    """The number of a variable; the reader has a limit for the number of names, not for their length."""
    text = name.removeprefix(_START)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1


def _scalars(reader: KerasReader, where: str, names: list[str]) -> tuple[list[str], int, float | None]:
    """The names of the moments, the step, and the learning rate."""
    if [_number(name) for name in names] != list(range(len(names))):
        raise MismatchError(f"{where} has {len(names)} variables that are not numbered from 0")
    infos = [reader.tensors[name] for name in names[:2]]
    if infos[0].shape != () or infos[0].dtype.kind not in "iu":
        raise MismatchError(
            f"{where} has {infos[0].dtype} {infos[0].shape} as its step, expected one integer"
        )
    step = int(reader.read(names[0]))
    if not is_step(step):
        raise MismatchError(f"{where} has {step} as its step, expected a count")
    if len(infos) < 2 or infos[1].shape != () or infos[1].dtype.kind not in "fV":
        return names[1:], step, None
    return names[2:], step, float(reader.read(names[1]))


def _by_moment(
    reader: KerasReader, where: str, kind: str, names: list[str], weights: Sequence[Weight]
) -> dict[str, dict[str, Part]]:
    """Moment -> name of a weight -> tensor; one weight after the other, each with all moments."""
    moments = KINDS[kind].moments
    if kind == "sgd" and not names:
        return {}
    flat = [(name, info) for w in weights for name, info in zip(w.names, w.infos, strict=True)]
    if len(names) != len(moments) * len(flat):
        raise MismatchError(
            f"{where} has {len(names)} moments, expected {len(moments) * len(flat)} as {KINDS[kind].title} "
            "of this network's trainable tensors"
        )
    found: dict[str, dict[str, Part]] = {moment: {} for moment in moments}
    for place, name in enumerate(names):
        weight, like = flat[place // len(moments)]
        info = reader.tensors[name]
        if info.shape != like.shape or info.dtype.kind not in "fV":
            raise MismatchError(
                f"{where} has {name} of shape {info.shape}, expected {like.shape} as a moment of {weight}"
            )
        found[moments[place % len(moments)]][weight] = Part(info, name, partial(reader.read, name))
    return found


def _compiled(reader: KerasReader) -> dict[str, Any]:
    """The optimiser in the config of a `.keras`, {} if there is none."""
    if reader.config is None:
        return {}
    compiled = parse_metadata(reader.config, reader.path, reader.limits, "config").get("compile_config")
    optimizer = compiled.get("optimizer") if isinstance(compiled, dict) else None
    config = optimizer.get("config") if isinstance(optimizer, dict) else None
    return optimizer if isinstance(optimizer, dict) and isinstance(config, dict) else {}


def _others(config: Mapping[str, Any], rate: float | None) -> list[str]:
    """The names of what the user may leave out: clipped gradients, a schedule."""
    clipped = [key for key in _CLIPPING if config.get(key) is not None]
    scheduled = rate is None or isinstance(config.get("learning_rate"), dict)
    return [*clipped, *(["learning_rate"] if scheduled else [])]


def _configured(optimizer: Mapping[str, Any], where: str, facts: Facts) -> tuple[dict[str, Any], str | None]:
    """The settings and the kind in the config of a `.keras`."""
    if not optimizer:
        return {}, None
    config = optimizer["config"]
    name, module = one_line(optimizer.get("class_name"), 60), one_line(optimizer.get("module"), 60)
    if name not in _OURS or module != "keras.optimizers" or optimizer.get("registered_name") is not None:
        raise MismatchError(f"{where} is {module}.{name}, expected Keras's own SGD, Adam or AdamW")
    for flag, what in _FLAGS.items():
        if config.get(flag):
            raise MismatchError(f"{where} has {what}, which has no counterpart")
    for key in _CLIPPING:
        if config.get(key) is not None:
            refuse(where, f"clipped gradients ({key})", key, facts)
    if isinstance(config.get("learning_rate"), dict):
        schedule = one_line(config["learning_rate"].get("class_name"), 60)
        refuse(where, f"the schedule {schedule}", "learning_rate", facts)
    decay, kind = config.get("weight_decay"), _OURS[name]
    if decay and kind == "sgd":
        raise MismatchError(
            f"{where} has weight_decay={one_line(decay, 20)}, decoupled from the momentum, which PyTorch's "
            "and TensorFlow 1's SGD cannot; add the decay to the loss instead"
        )
    settings = {key: config[key] for key in _SETTINGS if key in config and key in KINDS[kind].settings}
    if decay:
        settings["weight_decay"], kind = decay, "adamw"
    if facts.optimizer not in (None, kind):
        raise MismatchError(f"{where} is {kind}, not {facts.optimizer}")
    return settings, kind


def keras_variables(step: int, rate: np.ndarray | None) -> dict[str, np.ndarray]:
    """The first variables of a Keras optimiser: the step, and the rate unless a schedule computes it."""
    return {f"{_START}{n}": a for n, a in enumerate((np.array(step, np.int64), rate)) if a is not None}


def keras_moment(number: int) -> str:
    """The name of the variable with this number."""
    return f"{_START}{number}"
