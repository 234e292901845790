"""A report as one HTML page: it loads nothing from elsewhere, and equal reports give equal bytes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from parity_tests.compare.report import Point, Report
from parity_tests.page.depth_plot import depth_plot
from parity_tests.page.parts import coverage, entry, figure, key, many, power, swatch
from parity_tests.page.plot import Style, escape, histogram_plot, mark, number, shorten
from parity_tests.page.training import training_cells, training_figures
from weights_convert.commandline import write_report

FIXED = {"torch": Style("k0", 0), "keras": Style("k1", 1), "tf1": Style("k2", 2)}  # the same in every report
COLOURS = 7
WORST = 20  # rows of the table
CLOSE = 12  # points shown on either side of the first divergence
OPEN = 3  # with more reports, those that hold are folded

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{css}</style>
</head>
<body>
<header>
<h1>{heading}</h1>
<ul class="verdicts">
{verdicts}
</ul>
</header>
{sections}
<script>
// in a drawing, the arrow keys go from point to point
document.addEventListener("keydown", event => {{
  const slot = event.target.closest && event.target.closest(".slot");
  const step = {{ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling"}}[event.key];
  const next = slot && step && slot[step];
  if (next && next.classList.contains("slot")) {{ next.focus(); event.preventDefault(); }}
}});
</script>
</body>
</html>
"""


def write_page(reports: Sequence[Report], path: str | Path) -> None:
    """Write the reports as one HTML file.

    Raises:
        WriteError: the file cannot be written.
    """
    # names of users' models may hold invalid text, such as a lone surrogate
    write_report(path, page(reports).encode("utf-8", "xmlcharrefreplace"))


def page(reports: Sequence[Report]) -> str:
    """The HTML of these reports."""
    styles = _styles(reports)
    differ = sum(not report.holds for report in reports)
    if len(reports) == 1:
        heading = "Parity report"
    else:
        heading = f"Parity report: {many(len(reports), 'comparison')}, {differ or 'none'} " + (
            "differs" if differ == 1 else "differ"
        )
    verdicts = (_verdict(report, f"report{i}") for i, report in enumerate(reports, 1))
    sections = (
        _section(report, f"report{i}", styles, unfold=len(reports) <= OPEN or not report.holds)
        for i, report in enumerate(reports, 1)
    )
    state = (
        "parity holds"
        if not differ
        else "differs"
        if len(reports) == 1
        else f"{differ} of {len(reports)} differ"
    )
    return PAGE.format(
        title=escape(f"{reports[0].title}: {state}" if len(reports) == 1 else f"Parity report: {state}"),
        css=_css(),
        heading=heading,
        verdicts="\n".join(verdicts),
        sections="\n".join(sections),
    )


@cache
def _css() -> str:
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def _styles(reports: Iterable[Report]) -> dict[str, Style]:
    """Name -> colour and shape, the same on the whole page; those of the three frameworks are fixed."""
    names = dict.fromkeys(
        name
        for report in reports
        for name in (*report.candidates, *(report.training.losses if report.training else ()))
        if name in report.candidates or name != report.reference
    )
    free = range(len(FIXED), COLOURS)
    others = (name for name in names if name not in FIXED)
    slots = (free[i % len(free)] for i in itertools.count())
    return FIXED | {name: Style(f"k{slot}", slot) for name, slot in zip(others, slots, strict=False)}


def _verdict(report: Report, anchor: str) -> str:
    """One line: title, verdict and, if parity does not hold, the reason."""
    divergence, why_not = report.first_divergence(), report.why_not()
    state, word = ("differs", "✗ no parity") if why_not else ("holds", "✓ parity holds")
    if report.caveat:
        state, word = "weak", f"✓ parity holds, but {escape(report.caveat)}"
    if report.accuracy:
        state, word = ("weak", "no verdict of equality") if why_not else ("holds", "✓ accuracy reached")
    if not (report.layers or report.gradients or report.training):
        word = "nothing compared"
    text = f'<a href="#{anchor}">{escape(report.title)}</a>'
    text += f": {escape(why_not or _amount(report))}"
    if report.extent and not (report.accuracy and why_not):
        text += f" ({escape(report.extent)})"
    others = [(who, name) for who, name in report.culprits() if not divergence or who != divergence.candidate]
    if others:
        text += f"; wrong by itself: {_names(f'{who} {shorten(name, 60)}' for who, name in others)}"
    return f'<li class="{state}"><strong>{word}</strong> <span>{text}</span></li>'


def _amount(report: Report) -> str:
    """How much was compared."""
    parts = [
        many(len(points), what)
        for points, what in ((report.layers, "layer"), (report.gradients, "gradient"))
        if points
    ]
    if report.training:
        parts.append(many(len(report.training.learning_rates), "training step"))
    return (
        f"{', '.join(parts) or 'nothing'}; {', '.join(c for c in report.candidates if c not in report.pairs)}"
    )


def _names(names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return escape(", ".join(names[:most]) + more)


def _section(report: Report, anchor: str, styles: Mapping[str, Style], *, unfold: bool) -> str:
    divergence = report.first_divergence()
    first = (divergence.candidate, divergence.point) if divergence else None
    size = f", input {'x'.join(map(str, report.images))}" if report.images else ""
    compared = ", ".join(name for name in report.candidates if name not in report.pairs)
    parts = [
        f"<details{' open' if unfold else ''}>",
        f"<summary><h2>{escape(report.title)}</h2></summary>",
        f'<p id="{anchor}" class="quiet">{escape(compared)} against '
        f"{escape(report.reference)}, {escape(report.dtype)}, {escape(report.mode)} mode{escape(size)}</p>",
        _summary(report, styles),
    ]
    if report.layers:
        place = first if divergence and divergence.kind == "layer" else None
        parts.append("<h3>Error of every layer, in order of execution</h3>")
        parts.append(_legend(report, styles, report.layers))
        parts.append(_depth(report.layers, report, styles, "layers", place))
        near = _close(report.layers, place)
        if near:
            parts.append("<h3>The same around the first divergence</h3>")
            parts.append(_depth(near, report, styles, "close", place))
    if report.gradients:
        place = first if divergence and divergence.kind.startswith("gradient") else None
        points = by_depth(report.gradients, [point.name for point in report.layers])
        parts.append("<h3>Error of every gradient, from the input to the output</h3>")
        parts.append(
            '<p class="quiet">Gradients are computed from right to left: an error starts at the rightmost '
            "wrong gradient.</p>"
        )
        parts.append(_depth(points, report, styles, "gradients", place))
        near = _close(points, place)
        if near:
            parts.append("<h3>The same around the first gradient that differs</h3>")
            parts.append(_depth(near, report, styles, "close", place))
    if report.training and report.training.learning_rates:
        parts += training_figures(report.training, report, styles)
    if report.histogram:
        found = report.histogram
        style = styles.get(found.candidate, Style("ref", 0))
        parts.append(f"<h3>The differences in {escape(found.point)}, {escape(found.candidate)}</h3>")
        total = sum(found.counts) + found.zeros
        parts.append(
            f'<p class="quiet">The worst layer: how many of its {total:,} elements differ by how much; '
            f"{found.zeros:,} are exactly equal. Logarithmic both ways.</p>"
        )
        parts.append(figure("histogram", histogram_plot(found, style, f"differences in {found.point}")))
    parts += _worst(report)
    if report.environment:
        parts.append("<h3>Environment</h3>")
        rows = (f"<dt>{escape(key)}</dt><dd>{escape(_fact(v))}</dd>" for key, v in report.environment.items())
        parts.append(f"<dl>{''.join(rows)}</dl>")
    parts += coverage(report)
    parts += power(report)
    if report.notes:
        parts.append("<h3>Notes</h3>")
        parts.append(f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in report.notes)}</ul>")
    parts.append("</details>")
    return "\n".join(part for part in parts if part)


def _fact(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_fact(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_fact, value))
    return str(value)


def by_depth(gradients: Sequence[Point], layers: Sequence[str]) -> list[Point]:
    """Sort gradients in the order of the forward pass, the input first.

    A parameter has the place of its layer, a stage the place of its last layer; others follow their
    predecessor in the list.
    """
    last = {}
    for rank, name in enumerate(layers):
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            last[".".join(parts[:length])] = rank
    ranks, rank = [], -1
    for point in gradients:
        parts = point.name.split(".")
        fronts = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
        rank = next((last[front] for front in fronts if front in last), rank)
        ranks.append(-2 if point.name == "input" else rank)
    order = sorted(range(len(gradients)), key=lambda i: ranks[i])  # stable
    return [gradients[i] for i in order]


def _close(points: Sequence[Point], first: tuple[str, str] | None) -> list[Point]:
    """The points around the first divergence, if the whole drawing is too dense to read."""
    names = [point.name for point in points]
    if not first or first[1] not in names or len(points) <= 4 * CLOSE:
        return []
    middle = names.index(first[1])
    start = min(max(middle - CLOSE, 0), len(points) - 2 * CLOSE - 1)
    return list(points[start : start + 2 * CLOSE + 1])


def _depth(
    points: Sequence[Point],
    report: Report,
    styles: Mapping[str, Style],
    kind: str,
    first: tuple[str, str] | None,
) -> str:
    label = {"layers": "error per layer", "gradients": "error per gradient", "close": "close-up"}[kind]
    return figure(kind, depth_plot(points, report.candidates, styles, label, first))


def _legend(report: Report, styles: Mapping[str, Style], points: Sequence[Point]) -> str:
    entries = [swatch(styles[name]) + escape(name) for name in report.candidates]
    if any(error is not None for point in points for error in point.isolated.values()):
        hollow = f'<path class="hollow culprit" d="{mark(0, 7, 7, 4.5)}"/>'
        entries.append(key(hollow, "ref") + "hollow: the layer alone, on the reference's input")
    if any(point.culprit_of() for point in points):
        entries.append(key(f'<path class="ring" d="{mark(0, 7, 7, 5.5)}"/>') + "wrong by itself")
    if any(point.failures() for point in points):
        failed = f'<path class="mark failed" d="{mark(0, 7, 7, 4.5)}"/>'
        entries.append(key(failed, "ref") + "beyond the limit")
    entries.append(key('<path class="limit" d="M0 7H14"/>') + "limit")
    if any(point.noise is not None for point in points):
        entries.append(key('<path class="noise" d="M0 2H14V12H0z"/>') + "measured rounding noise")
    return f'<p class="quiet">{"".join(map(entry, entries))}</p>'


def _cells(points: Sequence[Point], candidate: str) -> Iterator[str]:
    """Cells of the summary: the number of points within the limit, and the worst point."""
    mine = [point for point in points if candidate in point.errors]
    if not mine:
        yield "<td>-</td><td></td>"
        return
    failed = sum(candidate in point.failures() for point in mine)
    worst = max(mine, key=lambda point: point.times_limit(candidate))
    css = ' class="wrong"' if failed else ""
    yield f"<td{css}>{len(mine) - failed:,} of {len(mine):,}</td>"
    ratio = worst.times_limit(candidate)
    times = f"{ratio:.2g} {'times' if ratio > 1 else 'of'} the limit"
    yield f'<td class="name">{number(worst.errors[candidate])}, {times}, in {escape(worst.name)}</td>'


def _summary(report: Report, styles: Mapping[str, Style]) -> str:
    """One row per candidate; its mark is the legend of all drawings below."""
    kinds = [
        (title, points)
        for title, points in (("layers", report.layers), ("gradients", report.gradients))
        if points
    ]
    titles = [cell for title, _ in kinds for cell in (f"{title} within the limit", "worst")]
    training = report.training
    if training:
        titles += ["training within the limit", "worst at the end"]
    rows = []
    for name in report.candidates:
        cells = [f"<td>{swatch(styles[name])}{escape(name)}</td>"]
        for _, points in kinds:
            cells += _cells(points, name)
        if training:
            cells += training_cells(training, name)
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th>{title}</th>" for title in ["candidate", *titles])
    return f'<div class="scroll"><table class="summary"><tr>{head}</tr>{"".join(rows)}</table></div>'


def _worst(report: Report) -> list[str]:
    """The table of the worst points: first those that are wrong by themselves, then by error / limit."""
    points = [("layer", point) for point in report.layers]
    points += [("gradient", point) for point in report.gradients]
    if not points:
        return []
    worst = sorted(points, key=lambda found: (not found[1].culprit_of(), -found[1].times_limit()))[:WORST]
    isolated = [c for c in report.candidates if any(p.isolated.get(c) is not None for _, p in worst)]
    noticed = report.power.of_layers() if report.power else {}
    titles = [
        *report.candidates,
        "limit",
        "noise",
        *(["noticed"] if noticed else []),
        *(f"{candidate} alone" for candidate in isolated),
        "times limit",
    ]
    head = "<th></th><th>point</th><th>shape</th>" + "".join(
        f'<th class="r">{escape(title)}</th>' for title in titles
    )
    rows = []
    for kind, point in worst:
        cells = [f'<td class="quiet">{kind}</td><td class="name">{escape(point.name)}</td>']
        cells.append(f'<td class="shape">{"x".join(map(str, point.shape))}</td>')
        for candidate in report.candidates:
            wrong = " wrong" if candidate in point.failures() else ""
            cells.append(f'<td class="r{wrong}">{number(point.errors.get(candidate))}</td>')
        cells.append(f'<td class="r">{number(point.limit)}</td><td class="r">{number(point.noise)}</td>')
        if noticed:
            cells.append(f'<td class="r">{number(noticed.get(point.name))}</td>')
        for candidate in isolated:
            wrong = " wrong" if candidate in point.culprit_of() else ""
            cells.append(f'<td class="r{wrong}">{number(point.isolated.get(candidate))}</td>')
        cells.append(f'<td class="r">{point.times_limit():.2g}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    count = f"{len(worst)} of {len(points):,} points" if len(worst) < len(points) else "all points"
    return [
        f'<h3>The worst: {count}</h3>\n<div class="scroll"><table class="worst"><tr>{head}</tr>'
        f"{''.join(rows)}</table></div>"
    ]
