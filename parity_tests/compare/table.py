"""A report as a table on a terminal: the verdict, then the layers around the first divergence."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity_tests.compare.report import Point, Report, Training


def show(console: Console, report: Report, *, rows: int = 20) -> None:
    """Print a report: at most `rows` layers, around the first divergence or with the largest errors."""

    def line(text: str, style: str = "") -> None:
        console.print(_plain(text, style), soft_wrap=True)

    divergence = report.first_divergence()
    extent = f" ({report.extent})" if report.extent else ""
    if divergence:
        line(f"NO PARITY: {report.title}: {divergence}{extent}", "bold red")
    elif report.accuracy and not report.holds:
        line(f"no verdict: {report.title}: {report.why_not()}", "bold yellow")
    elif not report.holds:
        line(f"NO PARITY: {report.title}: {report.why_not()}", "bold red")
    elif report.caveat:
        line(f"parity holds: {report.title}{extent}, but {report.caveat}", "bold yellow")
    elif report.accuracy:
        line(f"accuracy reached: {report.title}{extent}", "green")
    else:
        line(f"parity holds: {report.title}{extent}", "green")
    others = [(who, name) for who, name in report.culprits() if not divergence or who != divergence.candidate]
    if others:
        listed = ", ".join(f"{who} {name}" for who, name in others[:5])
        line(f"wrong by itself: {listed}{', ...' if len(others) > 5 else ''}", "bold red")
    if report.layers:
        first = divergence.point if divergence and divergence.kind == "layer" else None
        chosen = choose(report.layers, first, rows)
        table = _layers(report, chosen, first)
        if console.measure(table, options=console.options.update(width=10_000)).minimum > console.width:
            table = _layers(report, chosen, first, shapes=False)
        console.print(table, soft_wrap=True)  # nothing is cut off
        if len(chosen) < len(report.layers):
            which = "around the first divergence" if first else "nearest to their limits"
            line(f"{len(chosen)} of {len(report.layers)} layers, {which}")
    for who, sides in report.coverage.items():
        for side, found in sides.items():
            line(f"compared of the {side} ({report.reference if side == 'reference' else who}): {found}")
    if report.power:
        line(report.power.summary())
    if report.gradients:
        line(_gradients(report))
    if report.training:
        line(_training(report.training))


def choose(layers: Sequence[Point], first: str | None, rows: int) -> list[Point]:
    """Layers in execution order: a third before the first divergence; without one, the largest errors."""
    if len(layers) <= rows:
        return list(layers)
    if first is None:
        worst = sorted(range(len(layers)), key=lambda i: -layers[i].times_limit())[:rows]
        return [layers[i] for i in sorted(worst)]
    place = next(i for i, point in enumerate(layers) if point.name == first)
    start = min(max(place - rows // 3, 0), len(layers) - rows)
    return list(layers[start : start + rows])


def _layers(report: Report, points: Sequence[Point], first: str | None, *, shapes: bool = True) -> Table:
    """One row per point; only names may wrap, figures never."""
    has_isolated = any(error is not None for point in points for error in point.isolated.values())
    columns: list[tuple[str, list[Text]]] = []
    if shapes:
        columns.append(("shape", [Text("x".join(map(str, point.shape))) for point in points]))
    for candidate in (name for name in report.candidates if name not in report.pairs):  # the page shows pairs
        errors = [_error(point.errors.get(candidate), candidate in point.failures()) for point in points]
        columns.append((candidate, errors))
    columns.append(("limit", [_error(point.limit) for point in points]))
    if has_isolated:
        columns.append(("alone", [_isolated(point) for point in points]))
    table = Table(box=None, header_style="bold")
    table.add_column("point", overflow="fold")
    for title, cells in columns:
        name = _plain(title)
        widest = max(cell.cell_len for cell in (name, *cells))
        table.add_column(
            name, justify="left" if title == "shape" else "right", no_wrap=True, min_width=widest
        )
    for i, point in enumerate(points):
        name = _plain(point.name, "bold" if point.name == first else "")
        table.add_row(name, *(cells[i] for _, cells in columns))
    return table


def _isolated(point: Point) -> Text:
    """The largest error of the layer run alone, with the wrong candidates."""
    errors = [error for error in point.isolated.values() if error is not None]
    if not errors:
        return Text("-")
    worst = max(errors, key=lambda error: error if error < math.inf else math.inf)
    culprits = point.culprit_of()
    return _error(worst, bool(culprits)) + _plain("".join(f" {c}" for c in culprits), "bold red")


def _gradients(report: Report) -> str:
    count = len(report.gradients)
    failed = sum(bool(point.failures()) for point in report.gradients)
    worst = max(report.gradients, key=Point.times_limit)
    errors = ", ".join(f"{candidate} {error:.1e}" for candidate, error in worst.errors.items())
    state = f"{failed} of {count} beyond the limit" if failed else f"{count} within the limit"
    return f"gradients: {state}; worst {worst.name}: {errors}, limit {worst.limit:.1e}"


def _training(training: Training) -> str:
    """Whether the steps are within the limit, and the final error of every candidate."""
    count = len(training.learning_rates)
    failures = training.failures()
    if failures:
        candidate, kind, step = failures[0]
        state = f"{candidate} beyond the limit from step {step}, {kind}"
    else:
        checked = "all" if training.checked_steps >= count else f"the first {training.checked_steps}"
        state = f"{checked} within the limit"
    ends = []
    for candidate, kinds in training.errors.items():
        last = [errors[-1] for errors in kinds.values() if errors]
        if last:
            ends.append(f"{candidate} {max(last, key=lambda e: e if e < math.inf else math.inf):.1e}")
    ulp = f", one ulp alone {training.ulp[-1]:.1e}" if training.ulp else ""
    return (
        f"training: {count} steps in {training.dtype}, {state}; at the end {', '.join(ends)}{ulp}, "
        f"limit {training.limit:.1e}"
    )


def _error(error: float | None, wrong: bool = False) -> Text:
    if error is None:
        return Text("-")
    text = "0" if error == 0 else f"{error:.1e}"
    return Text(f"{text} !", "bold red") if wrong else Text(text)


def _plain(text: str, style: str = "") -> Text:
    """Plain text: no markup and no terminal escape sequences from names."""
    return Text("".join(c if c.isprintable() else repr(c)[1:-1] for c in text), style)
