"""The main job on the command line: `parity` and `python -m parity_tests [MODEL | CHECKPOINT ...]`.

Exit 0: parity holds. 1: found a difference, or could not have noticed one. 2: bad usage or bad input.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from parity_tests.artefacts import against_artifact
from parity_tests.commands import DTYPES, JOBS, prove
from parity_tests.quiet_start import python_stderr_apart
from weights_convert import Checkpoint, __version__, load, model_spec
from weights_convert.commandline import (
    HTML,
    JSON,
    Parser,
    add_quiet,
    add_reading_options,
    check_target,
    checkpoint_file,
    exit_code,
    positive,
    reading,
    write_json,
)
from weights_convert.errors import SpecError, nearest
from weights_convert.frameworks import PACKAGES
from weights_convert.spec import MODELS

FRAMEWORKS = ("torch", "keras", "tf1")


def parser() -> Parser:
    root = Parser(prog="parity", description=__doc__.splitlines()[0])
    root.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    root.add_argument(
        "what",
        nargs="*",
        default=["se_resnext50_32x4d"],
        metavar="MODEL | CHECKPOINT",
        type=checkpoint_file,
        help="a model's name (random weights) or a file; default: se_resnext50_32x4d",
    )
    root.add_argument("--frameworks", nargs="+", choices=FRAMEWORKS, default=FRAMEWORKS)
    root.add_argument("--dtype", choices=DTYPES, help="default: both")
    root.add_argument("--images", metavar="DIR", type=Path, help="photographs; default: the project's own")
    root.add_argument(
        "--size",
        type=positive,
        metavar="N",
        help="size of the images; default: 224, with layers 64, CIFAR 32",
    )
    root.add_argument("--json", metavar="FILE", help="write the differences as JSON; - for stdout")
    root.add_argument("--layers", action="store_true", help="compare every layer and name the wrong ones")
    root.add_argument(
        "--train-steps",
        metavar="N",
        type=positive,
        default=0,
        help="compare layers, gradients and N training steps",
    )
    root.add_argument("--report", metavar="FILE.html", type=Path, help="write layers and gradients as a page")
    root.add_argument(
        "--allow-no-power",
        action="store_true",
        help="exit 0 although a tensor or setting could change by 1 %% unnoticed",
    )
    root.add_argument("--sweep", action="store_true", help="accuracy with oneDNN, XLA, threads ... switched")
    root.add_argument("--dump", metavar="FILE", type=Path, help="record a run for later comparison")
    root.add_argument("--against", metavar="FILE", type=Path, help="compare with a recorded run")
    root.add_argument(
        "--artifact",
        metavar="FILE",
        type=Path,
        help="compare torch with an exported file: ONNX, SavedModel, LiteRT, TorchScript, .pt2, OpenVINO",
    )
    root.add_argument(
        "--top1",
        metavar="SHARE",
        type=_share,
        help="of a quantised --artifact: the smallest accepted share of images with the same class",
    )
    add_reading_options(root)
    add_quiet(root)
    return root


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a share above 0 and at most 1, such as 0.99")
    return share


def main(argv: Sequence[str] | None = None) -> int:
    """Run the main job and return its exit code."""
    with python_stderr_apart():
        return exit_code(lambda: _run(parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    _check_options(arguments)
    if (arguments.dump or arguments.against or arguments.artifact) and len(arguments.what) > 1:
        raise SpecError("--dump, --against and --artifact take one model or checkpoint")
    sources = [_source(what, reading(arguments)) for what in arguments.what]
    _check_installed(() if arguments.artifact else arguments.frameworks, torch=arguments.against is None)

    from rich.console import Console

    to_stderr = arguments.json == "-"
    console = Console(stderr=to_stderr, quiet=arguments.quiet, highlight=False, soft_wrap=True)
    jobs = {"artifact": against_artifact, **JOBS}
    job = next((job for option, job in jobs.items() if getattr(arguments, option)), prove)
    holds, facts = job(arguments, console, dict(zip(arguments.what, sources, strict=True)))
    write_json(arguments.json, facts)
    return 0 if holds else 1


_TARGETS = {"json": JSON, "report": HTML, "dump": ()}  # option -> first bytes of a file it may replace
_TAKES = {  # the other options that an option uses; the rest are refused
    "sweep": ("images", "size"),
    "dump": ("images", "size"),
    "against": ("dtype", "report", "allow_no_power"),
    "artifact": ("images", "size", "report", "allow_no_power"),
}
_OPTIONS = ("images", "size", "dtype", "layers", "train_steps", "report", "allow_no_power")


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuse options without effect, and targets that would replace an input or each other."""
    for option, takes in _TAKES.items():
        if getattr(arguments, option):
            others = (*_OPTIONS, *_TAKES)
            given = [o for o in others if getattr(arguments, o) and o != option and o not in takes]
            if given:
                raise SpecError(f"--{option} does not go with --{given[0].replace('_', '-')}")
    if arguments.top1 and not arguments.artifact:
        raise SpecError("--top1 goes with --artifact")
    files = [*arguments.what, *filter(None, [arguments.against, arguments.artifact])]
    for name, begins in _TARGETS.items():
        if (target := getattr(arguments, name)) is not None:
            check_target(target, *files, begins=begins)
            files.append(target)


def _source(what: str, options: dict[str, Any]) -> Callable[[], Checkpoint]:
    """Return a function that creates a model's random weights or returns a file's; check the input now."""
    if what in MODELS:
        from parity_tests.judge.synthetic import weights

        of_files = ("model", "family", "key", "scope", "ema")
        if given := [name for name in of_files if options[name] not in (None, False)]:
            option = "--from" if given[0] == "family" else f"--{given[0]}"
            raise SpecError(f"{option} applies to a file, but {what} is a model; omit {option}")
        return partial(weights, model_spec(what, **options["settings"]))
    if not Path(what).exists() and os.sep not in what and "." not in what:
        raise SpecError(f"{what}: neither a model nor a file{nearest(what, MODELS)}")
    checkpoint = load(what, **options)
    checkpoint.close_when_dropped()
    if not checkpoint.spec.network:
        raise SpecError(f"{what}: holds {checkpoint.describe()}, expected a whole network")
    return lambda: checkpoint


def _check_installed(frameworks: Sequence[str], *, torch: bool) -> None:
    for module, package in {"PIL": "pillow", "safetensors": "safetensors"}.items():  # photographs, dumps
        if importlib.util.find_spec(module) is None:
            raise SpecError(f"{module} is not installed: pip install {package}")
    for framework in (*(["torch"] if torch else []), *frameworks):  # torch measures the float32 noise
        if importlib.util.find_spec(_module(framework)) is None:
            raise SpecError(
                f"{framework} is not installed: pip install {PACKAGES[framework]}, or choose --frameworks"
            )


def _module(framework: str) -> str:
    return "tensorflow" if framework == "tf1" else framework


if __name__ == "__main__":
    sys.exit(main())
