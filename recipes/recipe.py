"""The settings of a training, the same for the three frameworks: from a TOML file, options, or both."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weights_convert.errors import SourceError, SpecError, nearest

SCHEDULES = ("step", "one-cycle", "constant")
_WARM_UP, _FIRST, _LAST = (
    0.3,
    1 / 25,
    1e-4,
)  # of one-cycle: part of the steps, of the highest rate, of the first


def _setting(default: Any, text: str, **choices: Any) -> Any:
    return field(default=default, metadata={"help": text} | choices)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of one training.

    SGD with momentum mu and coupled weight decay wd (PyTorch's definition, in every framework):

        g = dL/dw + wd w        b = mu b + g        w = w - lr b

    L is the mean cross-entropy of a batch. An epoch has `len(pictures) // batch_size` steps: the rest of the
    shuffled pictures is left out.

    Example:
        >>> Recipe(learning_rate=0.5, drop_every=10, drop_factor=0.25).rate(step=150, steps_per_epoch=10)
        0.125
    """

    model: str = _setting("se_resnet20", "the architecture (weights-convert list models)")
    epochs: int = _setting(20, "number of passes over the training pictures")
    batch_size: int = _setting(128, "pictures per step")
    learning_rate: float = _setting(0.1, "of SGD; the highest of one-cycle")
    momentum: float = _setting(0.9, "of SGD")
    weight_decay: float = _setting(5e-4, "of SGD, on every trainable tensor, coupled")
    schedule: str = _setting("step", "of the learning rate", choices=SCHEDULES)
    drop_every: int = _setting(30, "epochs after which `step` multiplies the rate")
    drop_factor: float = _setting(0.1, "the factor of `step`")
    label_smoothing: float = _setting(0.0, "share of the target that all classes have in common")
    mixup: float = _setting(0.0, "alpha of mixup (arXiv 1710.09412); 0 is off")
    augment: bool = _setting(True, "random crops and flips")
    size: int | None = _setting(None, "rows and columns of the pictures of a folder")
    seed: int = _setting(0, "of the initial weights, the order of pictures and the augmentation")
    dtype: str = _setting("float32", "of the network", choices=("float32", "float64"))

    def __post_init__(self) -> None:
        limits = {
            "epochs": (1, 10**6),
            "batch_size": (2, 10**6),
            "learning_rate": (0, math.inf),
            "momentum": (0, 1),
            "weight_decay": (0, math.inf),
            "drop_every": (1, 10**6),
            "drop_factor": (0, 1),
            "label_smoothing": (0, 1),
            "mixup": (0, math.inf),
            "seed": (0, 2**31),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise SpecError(f"{name}={getattr(self, name)!r}: expected a number from {low} to {high}")
        for one in dataclasses.fields(self):
            choices = one.metadata.get("choices")
            if choices and getattr(self, one.name) not in choices:
                value = getattr(self, one.name)
                raise SpecError(f"{one.name}={value!r}: expected one of {', '.join(choices)}")

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step, from 0."""
        if self.schedule == "constant":
            return self.learning_rate
        if self.schedule == "step":
            return self.learning_rate * self.drop_factor ** (step // steps_per_epoch // self.drop_every)
        steps = self.epochs * steps_per_epoch  # PyTorch's OneCycleLR
        peak, first = max(_WARM_UP * steps - 1, 1), self.learning_rate * _FIRST
        if step <= peak:
            return _cosine(first, self.learning_rate, step / peak)
        return _cosine(self.learning_rate, first * _LAST, (step - peak) / (steps - 1 - peak))


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2


def read_recipe(path: str | Path | None, given: Mapping[str, Any]) -> Recipe:
    """The recipe of a TOML file with the settings in `given` in the place of its own.

    Raises:
        SourceError: the file cannot be read or is no TOML.
        SpecError: an unknown setting or an invalid value.
    """
    settings = _toml(Path(path)) if path is not None else {}
    fields = {one.name: one for one in dataclasses.fields(Recipe)}
    for name, value in settings.items():
        if name not in fields:
            raise SpecError(f"{path}: there is no setting {name!r}{nearest(name, fields)}")
        _check_type(f"{path}: {name}", value, str(fields[name].type))
    return Recipe(**(settings | dict(given)))


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SourceError(f"{path}: is no TOML file ({error})") from None


def _check_type(where: str, value: Any, annotation: str) -> None:
    kinds: dict[str, Any] = {"int": int, "float": (int, float), "str": str, "bool": bool, "int | None": int}
    if not isinstance(value, kinds[annotation]) or (annotation != "bool" and isinstance(value, bool)):
        raise SpecError(f"{where} = {value!r}: expected {annotation.partition(' ')[0]}")
