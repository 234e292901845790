"""The part of the page about training: losses, and how errors grow from step to step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from parity_tests.compare.report import Report, Training
from parity_tests.page.parts import CURVE, entry, figure, key, many
from parity_tests.page.plot import Line, LinearAxis, LogAxis, Style, escape, number, step_plot

PAIR = 552  # width of a drawing in a pair


def training_cells(training: Training, name: str) -> Iterator[str]:
    """Two cells of the summary: the steps within the limit, and the largest error at the end."""
    first = next((found for found in training.failures() if found[0] == name), None)
    steps = many(training.checked_steps, "step")
    if first:
        yield f'<td class="wrong">not from step {first[2]}, {escape(first[1])}</td>'
    else:
        yield f"<td>{steps}</td>"
    ends = [(errors[-1], kind) for kind, errors in training.errors.get(name, {}).items() if errors]
    if not ends:
        yield "<td></td>"
        return
    error, kind = max(ends, key=lambda end: end[0] if end[0] < math.inf else math.inf)
    tensor = training.worst.get(name, {}).get(kind)
    yield f'<td class="name">{number(error)} in {escape(kind)}{f", {escape(tensor)}" if tensor else ""}</td>'


def training_figures(training: Training, report: Report, styles: Mapping[str, Style]) -> list[str]:
    """The losses, the growth of the errors, and a note on steps without a limit."""
    steps, checked = len(training.learning_rates), training.checked_steps
    parts = [*_losses(training, report, styles), *_growth(training, report, styles)]
    if checked < steps:
        parts.append(
            f'<p class="quiet">Only the first {many(checked, "step")} '
            f"{'is' if checked == 1 else 'are'} held to the limit.</p>"
        )
    return parts


def _rates(training: Training) -> list[str]:
    """A text for each step."""
    return [f"learning rate {rate:g}" for rate in training.learning_rates]


def _losses(training: Training, report: Report, styles: Mapping[str, Style]) -> Iterator[str]:
    rates = training.learning_rates
    low, high = min(rates), max(rates)
    rate = f"learning rate {high:g}" if low == high else f"learning rate {rates[0]:g} to {rates[-1]:g}"
    yield f"<h3>Loss over {many(len(rates), 'step')} of training, {escape(training.dtype)}, {rate}</h3>"
    lines = _loss_lines(training, report, styles)
    if any(line.values for line in lines):
        values = [value for losses in training.losses.values() for value in losses if math.isfinite(value)]
        wide = bool(values) and min(values) > 0 and max(values) > 100 * min(values)
        axis = LogAxis if wide else LinearAxis
        keys = (entry(key(CURVE, line.css) + escape(line.name)) for line in lines)
        svg = step_plot(lines, "loss", axis=axis, height=200, extra=_rates(training))
        yield figure("loss", svg, "".join(keys))


def _loss_lines(training: Training, report: Report, styles: Mapping[str, Style]) -> list[Line]:
    """Lines of the losses, the reference broad and pale below the others."""
    lines = []
    same = [name for name in report.candidates if _coincide(training.losses, name, report.reference)]
    for name, losses in sorted(training.losses.items(), key=lambda item: item[0] != report.reference):
        style = styles.get(name)
        if name == report.reference:
            lines.append(Line(name, losses, f"{style.css if style else 'ref'} under"))
        elif style and len(same) > 1 and name in same:
            dashes = f'"9 {9 * (len(same) - 1)}" stroke-dashoffset="{-9 * same.index(name)}"'
            lines.append(Line(name, losses, style.css, None, f" stroke-dasharray={dashes}"))
        elif style:
            lines.append(Line(name, losses, style.css, style.shape))
    return lines


def _growth(training: Training, report: Report, styles: Mapping[str, Style]) -> Iterator[str]:
    yield "<h3>How the errors grow from step to step</h3>"
    yield (
        f'<p class="quiet">{key(CURVE, "ulp")}The effect of changing one weight by one ulp in '
        f"{escape(report.reference)} alone: if it grows as fast, the training is chaotic and no port "
        "can do better.</p>"
    )
    kinds = list(dict.fromkeys(kind for errors in training.errors.values() for kind in errors))
    everything = [v for errors in training.errors.values() for values in errors.values() for v in values]
    figures = []
    for kind in kinds:
        svg = step_plot(
            _growth_lines(training, report, styles, kind),
            f"error of {kind} per step",
            width=PAIR,
            height=190,
            limit=training.limit,
            checked=training.checked_steps,
            range_of=[*everything, *training.ulp],
            extra=_rates(training),
        )
        figures.append(figure("growth", svg, escape(kind)))
    yield f'<div class="pair">{"".join(figures)}</div>'


def _growth_lines(training: Training, report: Report, styles: Mapping[str, Style], kind: str) -> list[Line]:
    lines = [Line("one ulp", training.ulp, "ulp")] if training.ulp else []
    for name in report.candidates:
        if errors := training.errors.get(name, {}).get(kind):
            failed = frozenset(step for who, what, step in training.failures() if (who, what) == (name, kind))
            lines.append(Line(name, errors, styles[name].css, styles[name].shape, failed=failed))
    return lines


def _coincide(losses: Mapping[str, Sequence[float]], name: str, reference: str) -> bool:
    """Whether one curve hides the other."""
    mine, others = losses.get(name, []), losses.get(reference, [])
    finite = [value for value in others if math.isfinite(value)]
    spread = max(finite, default=0) - min(finite, default=0)
    return len(mine) == len(others) and all(
        abs(a - b) <= spread / 100 for a, b in zip(mine, others, strict=True) if math.isfinite(b)
    )
