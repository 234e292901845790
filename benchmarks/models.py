"""Whole models: SE-ResNeXt-50 at 224 here, in stock Keras, timm, pytorchcv, ONNX Runtime and OpenVINO.

Every contender is a separate process; they take steps in turn (A B A B ...), so that ratios hold when the
machine's speed drifts. Peers that are not installed are skipped.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from benchmarks.contenders import KEPT
from benchmarks.timing import spread

GFLOP = 8.51  # of one image: multiplications and additions of SE-ResNeXt-50 at 224 (torch's FlopCounterMode)
SGEMM_GFLOP = 2 * 3000**3 / 1e9
PAUSE = 0.2  # seconds before each step, because idle thread pools of the others spin for a while


class Part(NamedTuple):
    """One table of contenders; the others are compared with the first."""

    contenders: Sequence[str]
    train: bool
    batch: int
    dtype: str = "float32"
    kept: bool = False  # memory kept for all: otherwise the history of a process's heap changes times by 10 %


# Not all at once, because each takes one to two gigabytes.
TORCH = [
    *("torch", "torch, channels_last", "torch, folded", "torch, optimized"),
    *("torch, memory kept", "torch, optimized, memory kept", "timm", "sgemm"),
]
ENGINES = [
    *("torch", "torch, optimized", "keras", "keras, optimized", "tf1", "tf1, optimized"),
    *("ONNX Runtime", "OpenVINO", "sgemm"),
]
LAYOUTS = ("torch", "timm", "pytorchcv")
LAST = tuple(f"{name}, channels_last" for name in LAYOUTS)
PARTS = {
    "torch-inference-1": Part(TORCH, train=False, batch=1),
    "torch-inference-8": Part(TORCH, train=False, batch=8),
    "inference-1": Part(ENGINES, train=False, batch=1),
    "inference-8": Part(ENGINES, train=False, batch=8),
    "eager-inference-1": Part(("keras", "keras, eager"), train=False, batch=1),
    "eager-inference-8": Part(("keras", "keras, eager"), train=False, batch=8),
    "training": Part(("torch", "torch, channels_last", "keras", "tf1", "sgemm"), train=True, batch=8),
    "training-eager": Part(("keras, eager", "torch"), train=True, batch=8),
    "training-1": Part(("torch", "keras", "tf1"), train=True, batch=1),
    "stock-inference-1": Part(("keras", "stock Keras"), train=False, batch=1),
    "stock-inference-8": Part(("keras", "stock Keras"), train=False, batch=8),
    "stock-training": Part(("keras", "stock Keras"), train=True, batch=8),
    "peers-eval": Part(LAYOUTS, train=False, batch=8, kept=True),
    "peers-eval-channels_last": Part(LAST, train=False, batch=8, kept=True),
    "peers-train": Part(LAYOUTS, train=True, batch=8, kept=True),
    "peers-train-channels_last": Part(LAST, train=True, batch=8, kept=True),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=list(PARTS), nargs="*", default=list(PARTS))
    parser.add_argument("--runs", type=int, default=11, help="counted steps of each contender")
    parser.add_argument("--seconds", type=float, default=120, help="time limit of a part")


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    report = {}
    for name in arguments.only:
        report[name] = figures = measure(PARTS[name], arguments.runs, arguments.seconds)
        for contender, values in figures.items():
            print(f"{name:<28} {contender:<26} {in_words(values)}", flush=True)
    return report


def in_words(values: dict[str, Any]) -> str:
    if "left_out" in values:
        return f"left out: {values['left_out']}"
    ms, ratio = values["seconds"]["median"] * 1e3, values["ratio"]
    low, high = ratio["quartile_1"], ratio["quartile_3"]
    rate = f", {values['gflops']:.0f} GFLOP/s" if "gflops" in values else ""
    return f"{ms:.1f} ms, {ratio['median']:.2f} times ({low:.2f} to {high:.2f}) of {values['steps']}{rate}"


def measure(part: Part, runs: int, seconds: float) -> dict[str, Any]:
    """Each contender's seconds, and their ratios to the first one's, pair by pair."""
    report: dict[str, Any] = {}
    with ExitStack() as stack:
        workers: dict[str, subprocess.Popen[str]] = {}
        for name in part.contenders:  # sequentially, because building uses every core
            try:
                workers[name] = stack.enter_context(_worker(name, part))
            except RuntimeError as error:
                report[name] = {"left_out": str(error)}
        found: dict[str, list[float]] = {name: [] for name in workers}
        start = time.perf_counter()
        for number in range(runs):
            if number >= 3 and time.perf_counter() - start > seconds:
                break
            for name, worker in workers.items():
                time.sleep(PAUSE)
                found[name].append(_ask(worker))
    first = found[part.contenders[0]]
    for name, times in found.items():
        ratios = [one / ours for one, ours in zip(times, first, strict=True)]
        report[name] = {"seconds": spread(times), "ratio": spread(ratios), "steps": len(times)}
        if not part.train:
            work = SGEMM_GFLOP if name == "sgemm" else GFLOP * part.batch
            report[name]["gflops"] = work / report[name]["seconds"]["median"]
    return report


@contextmanager
def _worker(name: str, part: Part) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.contenders", name, "train" if part.train else "forward"]
    with subprocess.Popen(
        [*command, str(part.batch), part.dtype],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            **(KEPT if part.kept or "memory kept" in name else {}),
        },
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            if process.stdout.readline().strip() != "ready":
                lines = process.stderr.read().strip().splitlines()
                raise RuntimeError(lines[-1] if lines else f"exit code {process.wait()}")
            yield process
        finally:
            process.kill()


def _ask(process: subprocess.Popen[str]) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    print("step", file=process.stdin, flush=True)
    return float(process.stdout.readline())
