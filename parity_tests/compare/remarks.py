"""Notes for the reader of a report: parts that were not compared, and the conditions of the comparison."""

from __future__ import annotations

from collections.abc import Mapping

from parity_tests.compare.coverage import Renamed
from parity_tests.compare.noise import capped
from parity_tests.compare.report import Report
from parity_tests.judge import tolerances
from parity_tests.watch.trace import Trace


def left_over(trace: Trace, traces: Mapping[str, Trace]) -> list[str]:
    """Notes on parts that were not compared."""
    notes = []
    for who, other in traces.items():
        if missing := [name for name in trace if name not in other]:
            notes.append(f"in the reference and not in {who}: {', '.join(missing)}")
        if extra := [name for name in other if name not in trace]:
            notes.append(f"in {who} and not in the reference: {', '.join(extra)}")
    if lost := [name for name, call in trace.items() if not tolerances.is_comparable(call.output)]:
        notes.append(f"the reference has no finite value at {', '.join(lost)}: nothing was compared there")
    return notes


def rounding_notes(report: Report) -> list[str]:
    """The third verdict: layers that compute in float32."""
    return [
        f"{who}: float32 rounding in layer {name}: {error:.1e}; the limits are those of float32"
        for who, layers in report.rounding.items()
        for name, error in layers.items()
    ]


def conditions(
    renamed: Mapping[str, Renamed], noise: Mapping[str, float] | None, dtype: str, train: bool
) -> list[str]:
    """Notes on the limits and on the runs of the models."""
    notes = []
    for who, run in renamed.items():
        if run.unstable:
            notes.append(f"{who} gives two outputs for one input, first at {next(iter(run.unstable))}")
    if noise is None:
        notes.append("no noise was measured (neither model is a torch module): the limits are fixed")
    elif over := capped(noise, dtype):
        more = f" and {len(over) - 3} more" if len(over) > 3 else ""
        notes.append(
            f"rounding alone moves {', '.join(over[:3])}{more} beyond the ceiling of every limit, "
            f"{tolerances.CEILING:.0e}"
        )
    if train:
        notes.append("dropout was off, so its rates were not compared")
    return notes
