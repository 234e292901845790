"""The jobs of the command line: the main job, layers and training, sweeps, recorded runs."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from parity_tests.quiet_start import start
from weights_convert import Checkpoint
from weights_convert.errors import SpecError

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from parity_tests.compare.power.result import Power
    from parity_tests.compare.report import Report
    from parity_tests.harness import Result

DTYPES = ("float64", "float32")
_OWN_PHOTOGRAPHS = 2  # of four: the other two add a third to the time and show nothing new
_ACCEPT = "--allow-no-power accepts that"

Sources = dict[str, Callable[[], Checkpoint]]
Outcome = tuple[bool, list[dict[str, Any]]]


def prove(arguments: argparse.Namespace, console: Console, sources: Sources) -> Outcome:
    """The main job; after a difference it compares layer by layer to name the layer."""
    from parity_tests import harness
    from parity_tests.compare.investigate import investigate
    from parity_tests.compare.table import show

    # imports run in parallel with the judge and the files: 0.93 of the sequential time
    threading.Thread(target=start, args=(arguments.frameworks,)).start()
    results = []
    for what, source in sources.items():
        checkpoint = source()
        images = images_of(arguments, checkpoint)
        with progress(what, arguments.quiet) as say:
            result = harness.prove(
                what,
                checkpoint,
                images,
                frameworks=arguments.frameworks,
                dtypes=_dtypes(arguments),
                say=say,
            )
        _show(console, result)
        results.append(result)
        if (failing := result.failing()) is not None:
            framework, dtype = failing
            with progress(what, arguments.quiet) as say:
                report = investigate(
                    f"{what}, {dtype}, layer by layer",
                    checkpoint,
                    images[:1],
                    frameworks=[framework],
                    dtype=dtype,
                    gradients=False,
                    say=say,
                )
            if report.layers:  # none if only the reference, torch in float64, was requested
                show(console, report, rows=8)
    return _good(results, arguments), [result.to_json() for result in results]


def _good(results: Iterable[Result | Report], arguments: argparse.Namespace) -> bool:
    """Whether parity holds and the comparison would have noticed a difference."""
    return all(result.holds and (arguments.allow_no_power or not result.caveat) for result in results)


def _look_closer(arguments: argparse.Namespace, console: Console, sources: Sources) -> Outcome:
    """Compare layers, gradients and training; print a table and write a page if requested."""
    start(["torch", *arguments.frameworks])
    from parity_tests.compare.investigate import investigate
    from parity_tests.compare.power.result import best_of
    from parity_tests.compare.table import show
    from parity_tests.judge.photographs import dithered

    reports = []
    for what, source in sources.items():
        checkpoint = source()
        images = dithered(images_of(arguments, checkpoint, checkpoint.spec.small_image_size))
        powers: list[Power] = []
        for dtype in _dtypes(arguments):
            if dtype == "float64" and list(arguments.frameworks) == ["torch"]:
                continue  # the reference itself
            with progress(what, arguments.quiet) as say:
                report = investigate(
                    f"{what}, {dtype}",
                    checkpoint,
                    images,
                    frameworks=arguments.frameworks,
                    dtype=dtype,
                    gradients=bool(arguments.report or arguments.train_steps),
                    train_steps=arguments.train_steps,
                    say=say,
                )
            if report.power:
                powers.append(report.power)
                report.power = best_of(powers)  # float32 cannot notice every epsilon that float64 notices
            show(console, report)
            reports.append(report)
    if not reports:
        raise SpecError("torch in float64 is the reference: choose another --dtype or --frameworks")
    if arguments.report:
        from parity_tests.page.page import write_page

        write_page(reports, arguments.report)
        console.print(f"report: {arguments.report}", markup=False)
    return _good(reports, arguments), [report.to_json() for report in reports]


def _sweep(arguments: argparse.Namespace, console: Console, sources: Sources) -> Outcome:
    """Print the error under every switch; there is no verdict."""
    from dataclasses import asdict

    from rich.table import Table

    from parity_tests.compare.sweep import sweep

    facts = []
    for what, source in sources.items():
        checkpoint = source()
        images = images_of(arguments, checkpoint)
        with progress(what, arguments.quiet) as say:
            costs = sweep(checkpoint, images, arguments.frameworks, say)
        table = Table(
            "framework", "switch", "float32", "float64", "", box=None, header_style="bold", title=what
        )
        for cost in costs:
            errors = [f"{e:.1e}" if e is not None else "-" for e in (cost.float32, cost.float64)]
            table.add_row(cost.framework, cost.switch, *errors, cost.reason)
        console.print(table)
        facts.append({"name": what, "images": images.shape, "costs": [asdict(cost) for cost in costs]})
    return True, facts


def _dump(arguments: argparse.Namespace, console: Console, sources: Sources) -> Outcome:
    """Record torch's float64 run of one network."""
    start(["torch"])
    from parity_tests.compare.dumps import write_dump
    from parity_tests.compare.layers import torch_noise
    from parity_tests.watch.build import torch_module
    from parity_tests.watch.open import tracer_of

    what, source = next(iter(sources.items()))
    checkpoint = source()
    images = images_of(arguments, checkpoint, checkpoint.spec.small_image_size)
    with progress(what, arguments.quiet) as say:
        say("torch in float64, layer by layer")
        model = torch_module(checkpoint.spec, checkpoint, "float64")
        tracer = tracer_of(model, "float64")
        trace = tracer.trace(images)
        noise = {dtype: torch_noise(model, images, dtype) for dtype in DTYPES}
        write_dump(arguments.dump, images, trace, noise, tracer.weighted(), what)
    console.print(f"recorded {len(trace)} layers of {what} in {arguments.dump}", markup=False)
    return True, [{"name": what, "dump": str(arguments.dump), "layers": len(trace)}]


def _against(arguments: argparse.Namespace, console: Console, sources: Sources) -> Outcome:
    """Compare one network with a recorded run."""
    start(arguments.frameworks)
    from contextlib import ExitStack

    from parity_tests.compare.dumps import read_dump
    from parity_tests.compare.investigate import live
    from parity_tests.compare.layers import compare_tracers
    from parity_tests.compare.power.result import best_of
    from parity_tests.compare.table import show

    what, source = next(iter(sources.items()))
    checkpoint, dump, reports = source(), read_dump(arguments.against), []
    powers: list[Power] = []
    for dtype in _dtypes(arguments):
        with ExitStack() as stack, progress(what, arguments.quiet) as say:
            say(f"against {arguments.against}, {dtype}")
            tracers = {
                framework: stack.enter_context(live(framework, checkpoint.spec, checkpoint, dtype)).tracer
                for framework in arguments.frameworks
            }
            title = f"{what} against {arguments.against}, {dtype}"
            report = compare_tracers(dump, tracers, dump.images, noise=dump.noise.get(dtype), title=title)
        if report.power:
            powers.append(report.power)
            report.power = best_of(powers)
        show(console, report)
        reports.append(report)
    if arguments.report:
        from parity_tests.page.page import write_page

        write_page(reports, arguments.report)
    return _good(reports, arguments), [report.to_json() for report in reports]


JOBS = {  # the first option in use decides
    "sweep": _sweep,
    "dump": _dump,
    "against": _against,
    "layers": _look_closer,
    "train_steps": _look_closer,
    "report": _look_closer,
}


def images_of(arguments: argparse.Namespace, checkpoint: Checkpoint, size: int | None = None) -> np.ndarray:
    """Photographs of the requested size, else of `size`, else of the network's default size."""
    from parity_tests.judge.photographs import OWN, photographs

    spec = checkpoint.spec
    most = None if arguments.images else _OWN_PHOTOGRAPHS
    return photographs(arguments.images or OWN, spec, arguments.size or size, most)


def _dtypes(arguments: argparse.Namespace) -> tuple[str, ...]:
    return (arguments.dtype,) if arguments.dtype else DTYPES


@contextmanager
def progress(what: str, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show the current step and the elapsed time on a terminal, unless `quiet`."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    console = Console(stderr=True)
    if quiet or not console.is_terminal:  # rich ends even a disabled progress with an empty line
        yield lambda _: None
        return
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda step: progress.update(task, description=f"{what}: {step}")


def _show(console: Console, result: Result) -> None:
    """Print a `harness.Result` as a table with the verdict."""
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
        console.print(f"weights: {len(result.not_equal)} tensors differ in their bits:", style="bold red")
        for line in result.not_equal[:20]:
            console.print(f"  {line}", markup=False)
    else:
        console.print("weights: the same bits in every file and every framework")
    if result.power:
        console.print(result.power.summary(), markup=False)
    if not result.holds:
        verdict = f"NO PARITY: {result.first_divergence() or 'weights differ'}"
    else:
        verdict = f"parity holds, but {result.caveat}; {_ACCEPT}" if result.caveat else "parity holds"
    console.print(f"{verdict} ({result.seconds:.0f} s)", markup=False)
