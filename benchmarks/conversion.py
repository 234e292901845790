"""Conversion: `weights-convert` as a whole process, against the usual way (`usual_way.py`) and `cp`.

Includes start-up, reading back the output, and hashing. Files are in the page cache at the start.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.timing import measure, run

PYTHON = sys.executable
CONVERT = [PYTHON, "-m", "weights_convert", "convert"]
MODEL = "se_resnext50_32x4d"
# source, destination, and whether to measure the usual way too
WAYS = [
    (".pth", ".weights.h5", True),
    (".weights.h5", ".pth", True),
    (".pth", ".ckpt", True),
    (".pth", ".safetensors", False),
    (".safetensors", ".pth", False),
    (".pth", ".npz", False),
]
# Written by separate processes, because the measuring process must stay small, see `timing`.
MAKE = """
import sys
from parity_tests.judge.synthetic import weights
from weights_convert import model_spec, save
save(weights(model_spec(sys.argv[1])), sys.argv[2])
"""
MAKE_LARGE = """
import sys
import numpy as np
from weights_convert import Checkpoint, ResNetSpec, parameters, save
from weights_convert.checkpoint import Tensor
from weights_convert.formats.base import TensorInfo
gigabytes = float(sys.argv[1])
if gigabytes < 8:  # many tensors, of at most 38 MB: 0.29 GB and 17.9 MB a block
    spec = ResNetSpec(width=128, depths=(3, 4, max(1, round((gigabytes - 0.285) / 0.0179)), 3))
else:  # large ones, of at most 604 MB: 4.6 GB and 0.286 GB a block
    spec = ResNetSpec(width=512, depths=(3, 4, round((gigabytes - 4.6) / 0.286), 3))
def tensor(name, shape, role):
    dtype = np.dtype(np.int64 if role == "count" else np.float32)
    def read():
        random = np.random.default_rng([len(name), *shape])
        return np.array(7) if role == "count" else random.random(shape, np.float32)
    return Tensor(TensorInfo(shape, dtype), name, read)
save(Checkpoint({p.name: tensor(*p) for p in parameters(spec)}, spec), sys.argv[2])
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=7, help="counted runs of each command")
    parser.add_argument("--folder", type=Path, help="folder for the files; default: a temporary folder")
    parser.add_argument("--gigabytes", type=float, nargs="*", default=[1.0], help="synthetic checkpoints")
    parser.add_argument("--only", choices=list(PARTS), nargs="*", default=list(PARTS))


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        report = {}
        for part in arguments.only:
            for name, figures in PARTS[part](Path(folder), arguments):
                report[name] = figures
                for command, values in figures.items():
                    print(f"{name:<34} {command:<12} {in_words(values)}", flush=True)
        return report


def in_words(values: dict[str, Any]) -> str:
    seconds = values["seconds"]
    low, high = seconds["quartile_1"], seconds["quartile_3"]
    text = f"{seconds['median']:.2f} s ({low:.2f} to {high:.2f}), {values['peak'] / 2**20:.0f} MiB"
    if ratio := values.get("times_first"):
        text += f", {ratio['median']:.2f} times ({ratio['quartile_1']:.2f} to {ratio['quartile_3']:.2f})"
    if "bytes" in values:
        text += f", {values['bytes'] / 1e6 / seconds['median']:.0f} MB/s"
    return text


def remove(*paths: Path) -> None:
    for path in paths:
        for file in [path, *path.parent.glob(f"{path.name}.*")]:
            file.unlink(missing_ok=True)


Figures = Iterator[tuple[str, dict[str, Any]]]


@contextmanager
def made(model: str, folder: Path) -> Iterator[Path]:
    path = folder / f"{model}.pth"
    run([PYTHON, "-c", MAKE, model, str(path)])
    yield path
    path.unlink(missing_ok=True)


def ways(folder: Path, arguments: argparse.Namespace) -> Figures:
    """All conversions of the medium network."""
    with made(MODEL, folder) as first:
        for source, target, usual in WAYS:
            src, dst = folder / f"src{source}", folder / f"dst{target}"
            run([*CONVERT, str(first), str(src)])
            commands = {
                "here": [*CONVERT, str(src), str(dst)],
                "cp": ["cp", str(src), str(dst)],
            }
            if usual:
                way = [PYTHON, "-m", "benchmarks.usual_way", MODEL, str(src), str(dst)]
                commands["usual way"] = way
            yield f"{source} to {target}", measure(commands, arguments.runs, partial(remove, dst))
            remove(src, dst)


def sizes(folder: Path, arguments: argparse.Namespace) -> Figures:
    """Time and memory by file size, from 110 and 460 MB to synthetic files of gigabytes."""
    for model in (MODEL, "senet154"):
        with made(model, folder) as src:
            yield from _there_and_back(model, src, arguments.runs)
    for gigabytes in arguments.gigabytes:
        needed = 2.2e9 * gigabytes
        if shutil.disk_usage(folder).free < needed:
            print(f"{gigabytes} GB: skipped, it needs {needed / 1e9:.0f} GB of disk", file=sys.stderr)
            continue
        src = folder / "large.pth"
        run([PYTHON, "-c", MAKE_LARGE, str(gigabytes), str(src)])
        yield from _there_and_back(f"{gigabytes:g} GB", src, arguments.runs if gigabytes < 2 else 1)


def _there_and_back(name: str, src: Path, runs: int) -> Figures:
    size = src.stat().st_size
    for target in (".ckpt", ".safetensors", ".weights.h5"):
        dst = src.with_name(f"{name}{target}")
        figures = measure({"here": [*CONVERT, str(src), str(dst)]}, runs, partial(remove, dst))
        figures["here"]["bytes"] = size
        yield f"{name} to {target}", figures
        if target != ".weights.h5":
            remove(dst)
    src.unlink()
    figures = measure({"here": [*CONVERT, str(dst), str(src)]}, runs, partial(remove, src))
    figures["here"]["bytes"] = size
    yield f"{name} back to .pth", figures
    remove(src, dst)


def start(folder: Path, arguments: argparse.Namespace) -> Figures:
    """Commands that read little, to measure start-up."""
    with made(MODEL, folder) as src:
        inspect = [PYTHON, "-m", "weights_convert", "inspect", str(src)]
        numpy = [PYTHON, "-c", "import numpy"]
        help_ = [PYTHON, "-m", "weights_convert", "--help"]
        yield "inspect", measure({"inspect": inspect, "numpy": numpy, "--help": help_}, arguments.runs)


PARTS = {"ways": ways, "sizes": sizes, "start": start}
