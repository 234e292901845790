"""Whole processes, measured in turn: A B A B ..., so that a machine whose speed drifts slows both.

Only ratios of pairs are worth quoting. Peak memory is `ru_maxrss`, mapped files included. Linux counts the
starting process into it, so whoever calls this must be small itself: no NumPy, no weights.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Run(NamedTuple):
    """One finished process."""

    seconds: float
    cpu: float  # of all its threads
    peak: int  # bytes


class Failed(RuntimeError):
    """A measured command that ended with an error, and the end of what it said."""


def run(command: Sequence[str]) -> Run:
    """Run a command to its end; its output is thrown away.

    Raises:
        Failed: it ended with an error.
    """
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise Failed(f"{' '.join(command)}: exit code {process.returncode}\n{said[-2000:]}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "quartile_1": low, "quartile_3": high}


def measure(
    commands: dict[str, Sequence[str]], runs: int, before: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Run several commands in turn, each once to warm up and then `runs` times.

    Args:
        commands: name -> command.
        runs: at least two.
        before: called before each command, unmeasured; such as removing what it is to write.

    Returns:
        name -> seconds, cpu (median and quartiles) and peak (bytes, the largest), and for every command but
        the first `times_first`: how many times as long as the first it took, pair by pair.
    """
    found: dict[str, list[Run]] = {name: [] for name in commands}
    for number in range(runs + 1):
        for name, command in commands.items():
            before()
            one = run(command)
            if number:
                found[name].append(one)
    report: dict[str, Any] = {}
    first = next(iter(found.values()))
    for name, done in found.items():
        report[name] = {
            "seconds": spread([one.seconds for one in done]),
            "cpu": spread([one.cpu for one in done]),
            "peak": max(one.peak for one in done),
        }
        if done is not first:
            ratios = [one.seconds / ours.seconds for one, ours in zip(done, first, strict=True)]
            report[name]["times_first"] = spread(ratios)
    return report
