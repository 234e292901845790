"""What a reader of a report should know: what was not compared, and under which conditions the rest was."""

from __future__ import annotations

from collections.abc import Mapping

from parity_tests.compare.coverage import Renamed
from parity_tests.compare.noise import capped
from parity_tests.judge import tolerances
from parity_tests.watch.trace import Trace


def left_over(trace: Trace, traces: Mapping[str, Trace]) -> list[str]:
    """What was not compared, or could not be."""
    notes = []
    for who, other in traces.items():
        if missing := [name for name in trace if name not in other]:
            notes.append(f"in the reference and not in {who}: {', '.join(missing)}")
        if extra := [name for name in other if name not in trace]:
            notes.append(f"in {who} and not in the reference: {', '.join(extra)}")
    if lost := [name for name, call in trace.items() if not tolerances.is_comparable(call.output)]:
        notes.append(f"the reference has no finite value at {', '.join(lost)}: nothing was compared there")
    return notes


def conditions(
    renamed: Mapping[str, Renamed], noise: Mapping[str, float] | None, dtype: str, train: bool
) -> list[str]:
    """What a reader should know of the limits and of how the models were run."""
    notes = []
    for who, run in renamed.items():
        if run.unstable:
            notes.append(f"{who} gives two outputs for one input, first at {next(iter(run.unstable))}")
    if noise is None:
        notes.append("no noise was measured (neither model is torch's): fixed limits")
    elif over := capped(noise, dtype):
        more = f" and {len(over) - 3} more" if len(over) > 3 else ""
        notes.append(
            f"rounding alone moves {', '.join(over[:3])}{more} by more than the ceiling of every limit, "
            f"{tolerances.CEILING:.0e}, allows"
        )
    if train:
        notes.append("dropout was off, so its rates were not compared")
    return notes
