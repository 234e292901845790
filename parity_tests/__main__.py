"""The main job on the command line: `parity` and `python -m parity_tests [MODEL | CHECKPOINT ...]`.

Exit 0: parity holds. 1: a difference was found. 2: bad usage or bad input.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from weights_convert import Checkpoint, load, model_spec
from weights_convert.commandline import Parser, check_json_target, write_json
from weights_convert.errors import SpecError, WeightsConvertError, nearest
from weights_convert.spec import MODELS, ResNetSpec

if TYPE_CHECKING:
    from rich.console import Console

    from parity_tests.harness import Result

FRAMEWORKS = ("torch", "keras", "tf1")
DTYPES = ("float64", "float32")


def parser() -> Parser:
    root = Parser(prog="parity", description=__doc__.splitlines()[0])
    root.add_argument(
        "what",
        nargs="*",
        default=["se_resnext50_32x4d"],
        metavar="MODEL | CHECKPOINT",
        help="a model's name (with random weights) or a file; by default se_resnext50_32x4d",
    )
    root.add_argument("--frameworks", nargs="+", choices=FRAMEWORKS, default=FRAMEWORKS)
    root.add_argument("--dtype", choices=DTYPES, help="by default both")
    root.add_argument("--images", metavar="DIR", type=Path, help="photographs; by default the project's own")
    root.add_argument("--json", metavar="FILE", help="the differences for a machine; - for stdout")
    root.add_argument("--train-steps", metavar="N", help="not in this version")
    root.add_argument("--report", metavar="FILE.html", help="not in this version")
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run the main job; its exit code."""
    try:
        return _run(parser().parse_args(argv))
    except WeightsConvertError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        return 130


def _run(arguments: argparse.Namespace) -> int:
    for option in ("train_steps", "report"):
        if getattr(arguments, option) is not None:
            raise SpecError(f"--{option.replace('_', '-')} is not in this version")
    check_json_target(arguments.json)
    sources = [_source(what) for what in arguments.what]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported
    _check_installed(arguments.frameworks)

    from rich.console import Console
    from rich.status import Status

    from parity_tests.harness import prove
    from parity_tests.photographs import OWN, photographs

    console = Console(stderr=arguments.json == "-", highlight=False, soft_wrap=True)
    results = []
    for what, source in zip(arguments.what, sources, strict=True):
        checkpoint = source()
        spec = checkpoint.spec
        assert isinstance(spec, ResNetSpec)  # _source takes no other
        images = photographs(arguments.images or OWN, spec)
        dtypes = [arguments.dtype] if arguments.dtype else DTYPES
        with Console(stderr=True).status(what) as status:

            def say(step: str, what: str = what, status: Status = status) -> None:
                status.update(f"{what}: {step}")

            result = prove(
                what,
                checkpoint,
                images,
                frameworks=arguments.frameworks,
                dtypes=dtypes,
                say=say,
            )
        _show(console, result)
        results.append(result)
    write_json(arguments.json, [result.to_json() for result in results])
    return 0 if all(result.holds for result in results) else 1


def _source(what: str) -> Callable[[], Checkpoint]:
    """What makes a named model's random weights, or gives a file's own; bad input is refused at once."""
    if what in MODELS:
        from parity_tests.synthetic import weights

        return partial(weights, model_spec(what))
    if not Path(what).exists() and os.sep not in what and "." not in what:
        raise SpecError(f"{what}: neither a model nor a file{nearest(what, MODELS)}")
    checkpoint = load(what)
    if not isinstance(checkpoint.spec, ResNetSpec):
        raise SpecError(f"{what}: holds {checkpoint.describe()}, expected a whole network")
    return lambda: checkpoint


def _check_installed(frameworks: Sequence[str]) -> None:
    import importlib.util

    for framework in ("torch", *frameworks):  # torch measures the float32 noise
        module = "tensorflow" if framework == "tf1" else framework
        if importlib.util.find_spec(module) is None:
            raise SpecError(
                f"{framework} is not installed: pip install .[{framework}], or choose --frameworks"
            )


def _show(console: Console, result: Result) -> None:
    """The table of a `harness.Result`, and the verdict."""
    from rich.table import Table

    batch, _, height, width = result.images
    console.print(f"{result.name}: {result.parameters:,} parameters, {batch} images of {height}x{width}")
    keys = list(result.rows[0].errors)
    frameworks = list(dict.fromkeys(framework for _, framework in keys))
    table = Table(box=None, header_style="bold")
    for title in ("dtype", "point", "shape"):
        table.add_column(title, no_wrap=True)
    for title in (*frameworks, "limit"):
        table.add_column(title, justify="right", no_wrap=True)
    for dtype in result.rows[0].limits:
        for row in result.rows:
            cells = [dtype, row.point, "x".join(map(str, row.shape))]
            for framework in frameworks:
                error = f"{row.errors[dtype, framework]:.1e}"
                failed = (dtype, framework) in row.failures()
                cells.append(f"[bold red]{error} ![/]" if failed else error)
            table.add_row(*cells, f"{row.limits[dtype]:.1e}")
    console.print(table)
    console.print(f"files: {', '.join(f'{suffix} {size:,}' for suffix, size in result.files.items())} bytes")
    if result.not_equal:
        console.print(f"weights: {len(result.not_equal)} tensors are not the same bits:", style="bold red")
        for line in result.not_equal[:20]:
            console.print(f"  {line}", markup=False)
    else:
        console.print("weights: the same bits in every file and every framework")
    verdict = (
        "parity holds" if result.holds else f"NO PARITY: {result.first_divergence() or 'weights differ'}"
    )
    console.print(f"{verdict} ({result.seconds:.0f} s)", markup=False)


if __name__ == "__main__":
    sys.exit(main())
