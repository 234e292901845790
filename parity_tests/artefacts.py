"""The job of `--artifact`: a checkpoint's torch network against a file that was exported from it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from parity_tests.commands import Outcome, Sources, images_of, progress
from parity_tests.quiet_start import start

if TYPE_CHECKING:
    from rich.console import Console

    from parity_tests.compare.report import Report
    from parity_tests.watch.exported.base import Exported
    from weights_convert import Checkpoint


def against_artifact(arguments: argparse.Namespace, console: Console, sources: Sources) -> Outcome:
    """Compare one network with an exported file, layer by layer where the file shows layers."""
    from parity_tests.watch.exported.kinds import needs, opened

    start(["torch", *(["tf1"] if needs(arguments.artifact, "tensorflow") else [])])
    from parity_tests.compare.layers import compare_models
    from parity_tests.compare.table import show
    from parity_tests.watch.build import torch_module

    what, source = next(iter(sources.items()))
    with progress(what, arguments.quiet) as say:
        say(f"reading {arguments.artifact}")
        artefact = opened(arguments.artifact)
        checkpoint = source()
        images = images_of(arguments, checkpoint, _size(artefact, checkpoint))
        say("torch against the artefact")
        model = torch_module(checkpoint.spec, checkpoint, "float32")
        title = f"{what} and {arguments.artifact.name}"
        report = compare_models(model, artefact, images, title=title, top1=arguments.top1)
    show(console, report)
    for note in report.notes:
        console.print(f"note: {note}", markup=False)
    if arguments.report:
        from parity_tests.page.page import write_page

        write_page([report], arguments.report)
        console.print(f"report: {arguments.report}", markup=False)
    return _good(report, arguments), [report.to_json()]


def _size(artefact: Exported, checkpoint: Checkpoint) -> int | None:
    """The size of the images that the artefact was exported for, if it takes no other."""
    spec: Any = checkpoint.spec
    shape = artefact.inputs[0].shape if artefact.inputs else None
    if shape is None or len(shape) != 4:
        return None
    sides = shape[2:] if shape[1] == spec.input_channels else shape[1:3]
    return sides[0] if sides[0] == sides[1] else None


def _good(report: Report, arguments: argparse.Namespace) -> bool:
    """Whether the report holds and every tensor has power; float32 notices no small change of an epsilon."""
    weak = report.power.without_power() if report.power else []
    return report.holds and (arguments.allow_no_power or all(item.is_setting for item in weak))
