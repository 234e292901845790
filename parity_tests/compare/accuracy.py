"""Accuracy of a quantised artefact: figures, because no limit of rounding fits it.

top-1   in how many of the inputs both models choose the same class
error   max |candidate - reference| of the outputs, also in steps of the output's quantisation
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from parity_tests.judge import tolerances
from weights_convert.errors import SpecError


@dataclass
class Accuracy:
    """How near a quantised artefact comes to the reference.

    Attributes:
        precision: "int8", "float16" or "bfloat16".
        agree, inputs: the inputs with the same largest output, and all; None if an output is no classes.
        error: the largest difference of an output; infinite for another shape.
        relative: the same, relative to the largest output of the reference.
        step: the quantisation step of the output; None if the artefact states none.
        wanted: the smallest accepted share of equal classes; None if the caller states none.
    """

    precision: str
    agree: int | None
    inputs: int
    error: float
    relative: float
    step: float | None = None
    wanted: float | None = None

    @property
    def top1(self) -> float | None:
        """The share of inputs with the same class."""
        return None if self.agree is None or not self.inputs else self.agree / self.inputs

    @property
    def enough(self) -> bool:
        """Whether the caller stated a share of equal classes, and the artefact reaches it."""
        return self.wanted is not None and self.top1 is not None and self.top1 >= self.wanted

    def __str__(self) -> str:
        top1 = f"top-1 agrees on {self.agree} of {self.inputs} inputs, " if self.agree is not None else ""
        steps = f"{self.error / self.step:.1f} quantisation steps, " if self.step else ""
        size = f"{steps}{self.relative:.1%} of the largest output"
        return f"{self.precision}: {top1}largest error {self.error:.2g} ({size})"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "top1": self.top1}


def worst(outputs: Sequence[Accuracy]) -> Accuracy:
    """The figures of several outputs as one: the fewest equal classes, the largest relative error.

    Example:
        >>> worst([Accuracy("int8", 4, 4, 0.1, 0.01), Accuracy("int8", 1, 4, 0.02, 0.02)])
        Accuracy(precision='int8', agree=1, inputs=4, error=0.02, relative=0.02, step=None, wanted=None)
    """
    agreeing = [found.agree for found in outputs if found.agree is not None]
    agree = min(agreeing) if len(agreeing) == len(outputs) else None
    return replace(max(outputs, key=lambda found: found.relative), agree=agree)


def check_top1(top1: float | None) -> None:
    if top1 is not None and not (isinstance(top1, (int, float)) and 0 < top1 <= 1):
        raise SpecError(f"top1={top1!r}: expected a share above 0 and at most 1, such as 0.99")


def accuracy_of(
    precision: str, step: float, found: np.ndarray, wanted: np.ndarray, top1: float | None
) -> Accuracy:
    """The figures of one output.

    Args:
        precision, step: of the artefact, see `Exported`.
        found, wanted: the outputs of the artefact and of the reference.
        top1: the share of equal classes that the caller demands.
    """
    classes = found.shape == wanted.shape and wanted.ndim == 2 and wanted.shape[1] > 1
    agree = int((found.argmax(1) == wanted.argmax(1)).sum()) if classes else None
    relative = tolerances.relative_error(found, wanted)
    scale = float(np.abs(tolerances.widened(wanted)).max(initial=0.0))
    return Accuracy(precision, agree, len(wanted), relative * scale, relative, step or None, top1)
