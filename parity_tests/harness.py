"""The main job: writes one set of weights to every container and compares the frameworks that load them.

    weights -> .pth -> .safetensors, .npz, .weights.h5, .ckpt -> torch, Keras, TF1 -> differences per stage

The NumPy judge computes the reference in float64. See `tolerances` for the limits.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from parity_tests.compare.power.result import Power
from parity_tests.judge import numpy_reference, tolerances
from parity_tests.watch.build import RUNNERS, SUFFIXES, Points, same_bits, torch_module
from weights_convert import Checkpoint, convert, load, save
from weights_convert.examine import diff
from weights_convert.formats import FORMATS
from weights_convert.spec import Spec, count_parameters

CONTAINERS = tuple(container.suffixes[0] for container in FORMATS.values())


@dataclass
class Row:
    """One point of the network, with the limit per dtype and each framework's error."""

    point: str
    shape: tuple[int, ...]
    limits: dict[str, float]
    errors: dict[tuple[str, str], float]  # (dtype, framework)
    finite: bool = True  # whether the reference has a finite value there

    def failures(self) -> list[tuple[str, str]]:
        """(dtype, framework) of every error beyond its limit; infinity and NaN exceed every limit."""
        return [key for key, error in self.errors.items() if not error <= self.limits[key[0]] < math.inf]


@dataclass
class Result:
    """The result of the main job for one network."""

    name: str
    parameters: int
    images: tuple[int, ...]
    rows: list[Row] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)  # suffix -> bytes
    not_equal: list[str] = field(default_factory=list)  # weights or files whose bits differ
    power: Power | None = None  # None if parity does not hold
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        compared = any(row.errors for row in self.rows)
        return compared and not self.not_equal and not any(row.failures() for row in self.rows)

    @property
    def caveat(self) -> str:
        """ "without power for: ..." if some change of 1 % would stay unnoticed, else ""."""
        return self.power.caveat() if self.power and self.holds else ""

    def failing(self) -> tuple[str, str] | None:
        """(framework, dtype) of the first point that exceeds its limit."""
        found = next((key for row in self.rows for key in row.failures()), None)
        return None if found is None else (found[1], found[0])

    def first_divergence(self) -> str | None:
        """The first point in execution order that exceeds its limit."""
        for row in self.rows:
            for dtype, framework in row.failures():
                error, limit = row.errors[dtype, framework], row.limits[dtype]
                if not row.finite:
                    return f"nothing was compared at {row.point}: the reference has no finite value there"
                return f"{framework} in {dtype} differs at {row.point}: {error:.1e}, limit {limit:.1e}"
        return None

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return {
            "name": self.name,
            "parameters": self.parameters,
            "images": self.images,
            "holds": self.holds,
            "first_divergence": self.first_divergence(),
            "not_equal": self.not_equal,
            "power": self.power.to_json() if self.power else None,
            "files": self.files,
            "seconds": round(self.seconds, 2),
            "points": [
                {
                    "point": row.point,
                    "shape": row.shape,
                    "limits": row.limits,
                    "errors": {
                        f"{framework} {dtype}": error
                        if math.isfinite(error)
                        else None  # JSON has no infinity
                        for (dtype, framework), error in row.errors.items()
                    },
                }
                for row in self.rows
            ],
        }


def prove(
    name: str,
    checkpoint: Checkpoint,
    images: np.ndarray,
    *,
    frameworks: Sequence[str] = tuple(RUNNERS),
    dtypes: Sequence[str] = ("float64", "float32"),
    say: Callable[[str], None] | None = None,
) -> Result:
    """Run the main job for one checkpoint.

    Args:
        name: of the result.
        checkpoint: of a network, in memory or in a file.
        images: (N, C, H, W).
        frameworks, dtypes: to run.
        say: called with the current step.
    """
    started, say = time.perf_counter(), say or (lambda _: None)
    spec = checkpoint.spec
    torch_runs: dict[str, Points] = {}
    result = Result(name, count_parameters(spec), images.shape)
    say("the NumPy judge, float64")
    reference = numpy_reference.network(images, checkpoint, spec)
    result.rows = [
        Row(point, array.shape, {}, {}, tolerances.is_comparable(array)) for point, array in reference.items()
    ]
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        say("writing every container")
        files = write_all(checkpoint, Path(folder), result)
        wide = Path(folder) / "float64"
        for dtype in dtypes:
            for framework in frameworks:
                say(f"{framework}, {dtype}")
                own = files[SUFFIXES[framework]]
                if framework == "tf1" and dtype == "float64":  # its Saver does not cast
                    wide.mkdir(exist_ok=True)
                    own = convert(own, wide / own.name, dtype=dtype, assume=True).destination
                outcome = RUNNERS[framework](spec, own, images, dtype)
                if framework == "torch":
                    torch_runs[dtype] = outcome.points
                result.not_equal += [
                    f"{framework} {dtype}: {tensor}" for tensor in same_bits(checkpoint, outcome.state, dtype)
                ]
                for row in result.rows:
                    error = tolerances.relative_error(outcome.points[row.point], reference[row.point])
                    row.errors[dtype, framework] = error
    if "float32" in dtypes:
        say("float32 noise: torch against itself")
        noise = _noise(spec, checkpoint, images, torch_runs)
    else:
        noise = {}
    for row in result.rows:
        all_limits = {"float64": tolerances.FLOAT64}
        if noise:
            all_limits["float32"] = tolerances.float32_limit(noise[row.point])
        row.limits = {dtype: all_limits[dtype] for dtype in dtypes}
    if result.holds:
        say("power: the smallest changes noticed")
        result.power = _power(spec, checkpoint, images, result.rows)
    result.seconds = time.perf_counter() - started
    return result


def write_all(checkpoint: Checkpoint, folder: Path, result: Result) -> dict[str, Path]:
    """Write every container, each converted from the previous one, and compare the last with the first."""
    files: dict[str, Path] = {}
    previous: Path | None = None
    for suffix in CONTAINERS:
        path = folder / f"weights{suffix}"
        plan = save(checkpoint, path) if previous is None else convert(previous, path, assume=True)
        files[suffix] = previous = path
        result.files[suffix] = sum(file.stat().st_size for file in plan.container.files(path))
    assert previous is not None  # CONTAINERS is not empty
    with load(previous, assume=True) as last:  # assumptions were reported for the original file
        result.not_equal += [
            f"{previous.suffix}: {line['tensor']} {line['what']}" for line in diff(checkpoint, last)
        ]
    return files


def _power(spec: Spec, checkpoint: Checkpoint, images: np.ndarray, rows: Sequence[Row]) -> Power:
    """The smallest change of each setting that the stages would notice; tensors are compared as bits."""
    from parity_tests.compare.power.measure import measure_stage_power

    limits = {row.point: min(row.limits.values()) for row in rows if row.errors}
    model = torch_module(spec, checkpoint, "float64")
    # one image: it notices as much as several and takes a fraction of the time
    return measure_stage_power(model, images[:1], limits, spec.stages(), bit_for_bit=[*checkpoint])


def _noise(
    spec: Spec, checkpoint: Checkpoint, images: np.ndarray, runs: dict[str, Points]
) -> dict[str, float]:
    """The rounding noise at each point: torch's float32 against torch's float64 with the same weights."""
    for dtype in ("float32", "float64"):
        if dtype not in runs:
            runs[dtype] = RUNNERS["torch"](spec, checkpoint, images, dtype).points
    return {
        point: tolerances.relative_error(single, runs["float64"][point])
        for point, single in runs["float32"].items()
    }
