"""The result of a comparison as plain data for a terminal, a page or a machine: layers, gradients, training.

`errors` are max |candidate - reference| / max |reference| of a tensor (`tolerances.relative_error`), infinite
where shapes differ or only one side is NaN. A point fails if its error exceeds its `limit`, a fixed multiple
of the rounding noise measured at that point.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from parity_tests.compare.accuracy import Accuracy
from parity_tests.compare.power.result import Power
from parity_tests.judge.tolerances import CEILING

SCHEMA = 2  # of `Report.to_json`; documented in docs/report.md


@dataclass
class Point:
    """One compared tensor: a layer's output or a gradient.

    Attributes:
        name: canonical, such as "layer1.0.bn2"; for a gradient the parameter, "input" or "layer1".
        shape: in PyTorch's layout.
        errors: candidate -> error.
        limit: the largest accepted error.
        noise: the rounding noise measured here, relative like the errors; None if it was not measured.
        isolated: candidate -> error of the layer run alone on the reference's input. It is large for a layer
            that is wrong itself, small for a layer that only inherits an error. None: it cannot run alone.
    """

    name: str
    shape: tuple[int, ...]
    errors: dict[str, float]
    limit: float
    noise: float | None = None
    isolated: dict[str, float | None] = field(default_factory=dict)

    def failures(self) -> list[str]:
        """The candidates that exceed the limit; NaN exceeds every limit."""
        return [
            who for who, error in self.errors.items() if not (error <= self.limit and math.isfinite(error))
        ]

    def culprit_of(self) -> list[str]:
        """The candidates whose layer is wrong even on the reference's input."""
        return [c for c, error in self.isolated.items() if error is not None and not error <= self.limit]

    def times_limit(self, candidate: str | None = None) -> float:
        """The error of one candidate, or the largest error, in multiples of the limit; infinite for NaN."""
        errors = [error for name, error in self.errors.items() if candidate in (None, name)]
        worst = max((error if error < math.inf else math.inf for error in errors), default=0.0)
        if worst == 0:
            return 0.0
        return worst / self.limit if self.limit > 0 else math.inf


@dataclass
class Coverage:
    """How much of one model was compared, each as (compared, total), and the names that were not.

    Attributes:
        points: outputs of layers and of the model, for each call.
        outputs: outputs of the model.
        tensors: weights of the layers.
        parameters: numbers in these weights.
        statistics: running statistics after a step in train mode; (0, 0) in eval mode.
        left_out: outputs, layers with weights and statistics that were not compared: parity does not hold.
        ignored: the same, but allowed by the caller.
    """

    points: tuple[int, int]
    outputs: tuple[int, int]
    tensors: tuple[int, int]
    parameters: tuple[int, int]
    statistics: tuple[int, int]
    left_out: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = ("points", "outputs", "tensors", "parameters", "statistics")
        counts = [(kind, *getattr(self, kind)) for kind in kinds]
        text = ", ".join(f"{done:,} of {total:,} {kind}" for kind, done, total in counts if total)
        return text + (f"; ignored {', '.join(self.ignored)}" if self.ignored else "")


@dataclass
class Histogram:
    """The differences of one tensor by size: `counts[i]` are between 10^edges[i] and 10^edges[i+1]."""

    point: str
    candidate: str
    edges: list[float]
    counts: list[int]
    zeros: int  # exactly equal


@dataclass
class Training:
    """Training steps of each framework with its own optimiser, against the reference.

    Attributes:
        learning_rates: of each step.
        losses: framework -> loss at each step, the reference included.
        errors: candidate -> kind ("loss", "parameters", "statistics", "momentum") -> the worst tensor's
            error after each step.
        worst: candidate -> kind -> the name of the worst tensor after the last step.
        ulp: the error in the reference alone after changing one weight by one ulp, for each step. If it grows
            as fast as the errors, the training is chaotic and no port can do better.
        limit: the largest accepted error.
        dtype: "float64" or "float32".
    """

    learning_rates: list[float]
    losses: dict[str, list[float]]
    errors: dict[str, dict[str, list[float]]]
    worst: dict[str, dict[str, str]]
    ulp: list[float]
    limit: float
    dtype: str
    checked_steps: int  # number of steps that the limit applies to: all in float64, the first in float32

    def failures(self) -> list[tuple[str, str, int]]:
        """(candidate, kind, step) of every error beyond the limit, sorted by step, counted from 1."""
        return sorted(
            (
                (candidate, kind, step)
                for candidate, kinds in self.errors.items()
                for kind, errors in kinds.items()
                for step, error in enumerate(errors[: self.checked_steps], 1)
                if not error <= self.limit
            ),
            key=lambda found: found[2],
        )


@dataclass
class Divergence:
    """The first difference."""

    candidate: str
    point: str
    error: float
    limit: float
    kind: str = "layer"  # or "gradient", "training"
    culprits: list[str] = field(default_factory=list)  # layers that differ even on the reference's input

    def __str__(self) -> str:
        text = (
            f"{self.candidate} differs first at {self.kind} {self.point}: {self.error:.1e}, "
            f"limit {self.limit:.1e}"
        )
        if self.culprits:
            text += f"; wrong by itself: {', '.join(self.culprits[:5])}"
        return text


@dataclass
class Report:
    """The result of one comparison.

    Attributes:
        title: of the report.
        reference: the framework or model of the reference.
        candidates: frameworks or models; "tf1-keras" is one candidate against another.
        dtype: "float64" or "float32".
        mode: "eval" or "train".
        images: shape of the input.
        layers: outputs in execution order.
        gradients: with respect to the input, the stages and every parameter.
        training: None without training steps.
        histogram: of the worst layer.
        environment: versions, flags and the CPU.
        notes: for the reader.
        coverage: candidate -> "reference" or "candidate" -> how much of it was compared.
        ceiling: the largest limit of a layer.
        power: the smallest noticed changes; None if parity does not hold.
        pairing: candidate -> layer of the reference -> its counterpart of another name, and how it was found.
        rounding: candidate -> layer -> its error, where float32 arithmetic in the layer explains every
            difference in float64; the limits are those of float32 then.
        outputs_only: the candidates of which only outputs were compared: no layers and no weights.
        accuracy: quantised candidates -> figures; they have no limits and no verdict of equality.
    """

    title: str
    reference: str
    candidates: list[str]
    dtype: str
    mode: str = "eval"
    images: tuple[int, ...] = ()
    layers: list[Point] = field(default_factory=list)
    gradients: list[Point] = field(default_factory=list)
    training: Training | None = None
    histogram: Histogram | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    coverage: dict[str, dict[str, Coverage]] = field(default_factory=dict)
    ceiling: float = CEILING
    power: Power | None = None
    pairing: dict[str, dict[str, tuple[str, str]]] = field(default_factory=dict)
    rounding: dict[str, dict[str, float]] = field(default_factory=dict)
    outputs_only: list[str] = field(default_factory=list)
    accuracy: dict[str, Accuracy] = field(default_factory=dict)

    @property
    def pairs(self) -> list[str]:
        """The candidates that are pairs of others: "tf1-keras"."""
        return [name for name in self.candidates if "-" in name and {*name.split("-")} <= {*self.candidates}]

    @property
    def holds(self) -> bool:
        """Whether everything was compared and no error exceeds its limit; otherwise see `why_not`."""
        return self.why_not() is None

    def why_not(self) -> str | None:
        """The reason why parity does not hold, in one line; None if it holds."""
        divergence = self.first_divergence()
        if divergence is not None:
            return str(divergence)
        for who, found in self.accuracy.items():
            if not found.enough:
                lack = "state top1= for a verdict"
                if found.agree is None:
                    lack = "an output is no classes, which top1= judges"
                elif found.wanted:
                    lack = f"wanted {found.wanted:.1%}"
                return f"no verdict of equality for {who} in {found}; {lack}"
        if self.accuracy:
            return None
        if not self.judged():
            left = self._left_out()
            return f"nothing was compared{': ' + left if left else ''}"
        for point in self.layers:
            if not math.isfinite(point.limit):
                return f"the limit at {point.name} is {point.limit}, which every error is below"
        if left := self._left_out():
            return f"not everything was compared: {left}; allow exceptions with ignore=[...]"
        return None

    @property
    def caveat(self) -> str:
        """ "without power for: ..." if some change of 1 % would stay unnoticed, else ""."""
        return self.power.caveat() if self.power and self.holds else ""

    @property
    def extent(self) -> str:
        """ "only outputs were compared" or the accuracy, for the verdict; "" for layers and weights."""
        if self.accuracy:
            return "; ".join(f"{who}, {found}" for who, found in self.accuracy.items())
        return "only outputs were compared, no layers and no weights" if self.outputs_only else ""

    def judged(self) -> bool:
        """Whether anything was compared with a limit."""
        points = [p for p in (*self.layers, *self.gradients) if p.errors and p.limit < math.inf]
        steps = self.training is not None and self.training.errors and self.training.limit < math.inf
        return bool(points or steps)

    def _left_out(self) -> str:
        """The names in `left_out` of all coverages, as text."""
        parts = []
        for who, sides in self.coverage.items():
            for side, found in sides.items():
                if found.left_out:
                    more = f" and {len(found.left_out) - 5} more" if len(found.left_out) > 5 else ""
                    owner = self.reference if side == "reference" else who
                    parts.append(f"{', '.join(found.left_out[:5])}{more} of the {side} ({owner})")
        return "; ".join(dict.fromkeys(parts))

    def culprits(self) -> list[tuple[str, str]]:
        """(candidate, layer) for every layer that is wrong by itself; only the innermost layers."""
        wrong = [(candidate, point.name) for point in self.layers for candidate in point.culprit_of()]
        return [
            (who, name)
            for who, name in wrong
            if not any(who == other and inner.startswith(f"{name}.") for other, inner in wrong)
        ]

    def first_divergence(self) -> Divergence | None:
        """The first layer in execution order that exceeds its limit, else a gradient, else a step."""
        for kind, points in (("layer", self.layers), ("gradient of", self.gradients)):
            for point in points:
                for candidate in point.failures():
                    if candidate in self.accuracy:
                        continue
                    culprits = [name for who, name in self.culprits() if who == candidate]
                    return Divergence(
                        candidate, point.name, point.errors[candidate], point.limit, kind, culprits
                    )
        for candidate, kind, step in self.training.failures() if self.training else []:
            assert self.training is not None  # it has failures
            error = self.training.errors[candidate][kind][step - 1]
            return Divergence(candidate, f"{step}, {kind}", error, self.training.limit, "training step")
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; infinity and NaN, which JSON lacks, become the strings "inf" and "nan"."""
        divergence = self.first_divergence()
        facts = {
            "schema": SCHEMA,
            "holds": self.holds,
            "why_not": self.why_not(),
            "first_divergence": str(divergence) if divergence else None,
            "culprits": self.culprits(),
            **asdict(self),
            "power": self.power.to_json() if self.power else None,
            "accuracy": {who: found.to_json() for who, found in self.accuracy.items()},
        }
        return {key: _plain(value) for key, value in facts.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
