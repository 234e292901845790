"""Measures whole processes in turn (A B A B ...), so that drifts of the machine's speed affect both.

Only ratios of pairs are worth quoting. Peak memory is `ru_maxrss`, mapped files included. Linux includes the
parent process, so the caller must be small: no NumPy, no weights.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Run(NamedTuple):
    """One finished process."""

    seconds: float
    cpu: float  # of all its threads
    peak: int  # bytes


class Failed(RuntimeError):
    """A measured command that failed, with the end of its output."""


def run(command: Sequence[str]) -> Run:
    """Run a command and discard its output.

    Raises:
        Failed: the command failed.
    """
    # with cached bytecode, as for an installed package
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        errors="replace",
    ) as process:
        assert process.stderr is not None
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise Failed(f"{' '.join(command)}: exit code {process.returncode}\n{errors[-2000:]}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles; for one value, that value."""
    at_least_two = [*values] * 2 if len(values) == 1 else values
    low, median, high = statistics.quantiles(at_least_two, n=4, method="inclusive")
    return {"median": median, "quartile_1": low, "quartile_3": high}


def measure(
    commands: Mapping[str, Sequence[str]], runs: int, before: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Run several commands in turn, `runs` times, after one warm-up if `runs` is more than 1.

    Args:
        commands: name -> command.
        before: called before each command, not measured, for example to remove its output.

    Returns:
        name -> seconds, cpu (median and quartiles) and peak (largest, in bytes), and for every command except
        the first `times_first`: the ratio of its time to the first one's, pair by pair.
    """
    found: dict[str, list[Run]] = {name: [] for name in commands}
    for number in range(-1 if runs > 1 else 0, runs):
        for name, command in commands.items():
            before()
            one = run(command)
            if number >= 0:
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
