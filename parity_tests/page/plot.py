"""Drawings for the page as SVG text: curves along the steps, a histogram, and shared elements.

Colours are CSS classes, so that one drawing serves light mode, dark mode and print. Units are pixels; y grows
downwards.
"""

from __future__ import annotations

import html
import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from parity_tests.compare.report import Histogram

WIDTH, LEFT, RIGHT = 1120, 56, 10  # a full-width drawing and its margins
TOP = 24  # for the line of text about the point under the mouse
EDGE = 22  # height of the strips for 0 and for infinity and NaN


@dataclass(frozen=True)
class Style:
    """The look of one framework in all drawings: a colour (CSS class), and a shape to read without colour."""

    css: str
    shape: int


def number(value: float | None) -> str:
    """A short text for a number."""
    if value is None:
        return "-"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return "0" if value == 0 else f"{value:.1e}"


def escape(value: object) -> str:
    """Any text escaped for HTML; unprintable characters appear as in Python's repr."""
    visible = (c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in str(value))
    return html.escape("".join(visible))


def shorten(name: str, length: int) -> str:
    """Both ends of a name that is too long: the front names the stage, the end the layer."""
    return name if len(name) <= length else f"{name[: (length - 1) // 3]}…{name[-(2 * (length - 1) // 3) :]}"


class LogAxis:
    """Heights by powers of ten; zero lies at the bottom edge, infinity and NaN at the top edge."""

    def __init__(self, values: Iterable[float], top: float, bottom: float) -> None:
        values = list(values)
        exponents = [math.log10(value) for value in values if 0 < value < math.inf]
        self.low = math.floor(min(exponents, default=-16))
        self.high = math.floor(max(exponents, default=-1)) + 1  # leaves room above
        self.edges: list[tuple[float, str]] = []
        if any(not value < math.inf for value in values):
            self.edges.append((top + EDGE / 2, "∞, NaN"))
            top += EDGE
        if any(value == 0 for value in values):
            self.edges.append((bottom - EDGE / 2, "0"))
            bottom -= EDGE
        self.top, self.bottom = top, bottom

    def __call__(self, value: float) -> float:
        if not value < math.inf:
            return self.top - EDGE / 2
        if value <= 0:
            return self.bottom + EDGE / 2
        part = (math.log10(value) - self.low) / (self.high - self.low)
        return self.bottom - part * (self.bottom - self.top)

    def on_scale(self, value: float) -> bool:
        return 0 < value < math.inf

    def ticks(self) -> list[tuple[float, str]]:
        step = math.ceil((self.high - self.low) / 8)
        # by proportion, because 10.0**-324 is 0
        height = (self.bottom - self.top) / (self.high - self.low)
        return self.edges + [
            (self.bottom - (exponent - self.low) * height, f"1e{exponent}")
            for exponent in range(self.low, self.high + 1, step)
        ]


class LinearAxis:
    """Proportional heights; infinity and NaN lie at the top edge."""

    def __init__(self, values: Iterable[float], top: float, bottom: float) -> None:
        values = list(values)
        finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        spread = max(finite) - min(finite) or abs(finite[0]) or 1.0
        self.step = 10 ** math.floor(math.log10(spread / 2))
        self.step *= next(k for k in (1, 2, 5, 10, 20) if spread / (self.step * k) <= 6)
        self.low = math.floor(min(finite) / self.step) * self.step
        self.high = max(math.ceil(max(finite) / self.step) * self.step, self.low + self.step)
        self.edges: list[tuple[float, str]] = []
        if len(finite) < len(values):
            self.edges.append((top + EDGE / 2, "∞, NaN"))
            top += EDGE
        self.top, self.bottom = top, bottom

    def __call__(self, value: float) -> float:
        if not math.isfinite(value):
            return self.top - EDGE / 2
        return self.bottom - (value - self.low) / (self.high - self.low) * (self.bottom - self.top)

    def on_scale(self, value: float) -> bool:
        return math.isfinite(value)

    def ticks(self) -> list[tuple[float, str]]:
        count = round((self.high - self.low) / self.step)
        values = [self.low + i * self.step for i in range(count + 1)]
        return self.edges + [(self(value), f"{value:.6g}") for value in values]


Axis = LogAxis | LinearAxis


def px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


CORNERS = (  # of the marks besides the circle, for a circle's radius of 1
    ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    ((0, -1.2), (1.15, 0.8), (-1.15, 0.8)),
    ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    ((0, 1.2), (1.15, -0.8), (-1.15, -0.8)),
)


def mark(shape: int, x: float, y: float, r: float) -> str:
    """The outline of a mark: circle, square, triangle, diamond, triangle upside down, circle, ..."""
    shape %= len(CORNERS) + 1
    if shape == 0:
        arc = f"a{px(r)} {px(r)} 0 1 0"
        return f"M{px(x - r)} {px(y)}{arc} {px(2 * r)} 0{arc} {px(-2 * r)} 0z"
    return polyline((x + r * right, y + r * down) for right, down in CORNERS[shape - 1]) + "z"


def polyline(points: Iterable[tuple[float, float] | None]) -> str:
    """A path through the points, interrupted at every None."""
    pen, parts = "M", []
    for point in points:
        if point is None:
            pen = "M"
            continue
        parts.append(f"{pen}{px(point[0])} {px(point[1])}")
        pen = "L"
    return "".join(parts)


def frame(width: float, height: float, label: str, parts: Iterable[str]) -> str:
    body = "\n".join(filter(None, parts))
    box = f'viewBox="0 0 {px(width)} {px(height)}"'
    return f'<svg {box} role="group" aria-label="{escape(label)}">\n{body}\n</svg>'


def grid(axis: Axis, left: float, right: float) -> str:
    """Horizontal lines with their values."""
    edges = {label for _, label in axis.edges}
    return "".join(
        f'<path class="{"edge" if label in edges else "grid"}" d="M{px(left)} {px(y)}H{px(right)}"/>'
        f'<text class="tick end" x="{px(left - 6)}" y="{px(y + 4)}">{label}</text>'
        for y, label in axis.ticks()
    )


def slots(
    texts: Sequence[tuple[str, str]], left: float, width: float, top: float, bottom: float, start: int
) -> str:
    """Areas that show a hairline, a line of text and a tooltip under the mouse or the focus.

    The tab key reaches the first one, the arrow keys the others.
    """
    return "".join(
        f'<g class="slot" tabindex="{0 if i == start else -1}"><title>{escape(full)}</title>'
        f'<rect x="{px(left + i * width)}" y="{px(top)}" width="{px(max(width, 0.5))}" '
        f'height="{px(bottom - top)}"/><text x="{px(left)}" y="{px(top - 8)}">{escape(brief)}</text></g>'
        for i, (brief, full) in enumerate(texts)
    )


@dataclass
class Line:
    """One curve along the steps."""

    name: str
    values: Sequence[float]
    css: str
    shape: int | None = None  # of its marks; None: a line only
    dash: str = ""  # coinciding lines are dashed in turns, so that all are visible
    failed: frozenset[int] = frozenset()  # steps, from 1


def step_plot(
    lines: Sequence[Line],
    label: str,
    *,
    width: float = WIDTH,
    height: float = 260,
    axis: type[LogAxis] | type[LinearAxis] = LogAxis,
    limit: float | None = None,
    checked: int = 0,
    range_of: Iterable[float] = (),
    extra: Sequence[str] = (),
) -> str:
    """Curves along the steps of a training.

    Args:
        limit: drawn over the first `checked` steps, to which it applies.
        range_of: further values for the axis, so that several plots share one range.
        extra: a text for each step's tooltip.
    """
    count = max(len(line.values) for line in lines)
    right, bottom = width - RIGHT, TOP + height
    slot = (right - LEFT) / count
    values = [value for line in lines for value in line.values]
    y: Axis = axis([*values, *range_of, *([] if limit is None else [limit])], TOP, bottom)

    def at(step: float) -> float:
        return LEFT + (step - 0.5) * slot

    parts = [grid(y, LEFT, right)]
    if limit is not None and checked:
        end = px(LEFT + min(checked, count) * slot)
        parts.append(f'<path class="beyond" d="M{LEFT} {TOP}H{end}V{px(y(limit))}H{LEFT}z"/>')
        parts.append(f'<path class="limit" d="M{LEFT} {px(y(limit))}H{end}"/>')
    every = math.ceil(count / (width / 80))
    for step in range(1, count + 1):
        if step == 1 or step % every == 0:
            parts.append(f'<text class="tick middle" x="{px(at(step))}" y="{px(bottom + 15)}">{step}</text>')
    for line in lines:
        places = [(at(i), y(value)) if y.on_scale(value) else None for i, value in enumerate(line.values, 1)]
        marks = []
        for i, value in enumerate(line.values, 1):
            wrong = i in line.failed
            few = count <= 40 and line.shape is not None
            if few or wrong or not y.on_scale(value):
                shape = mark(line.shape or 0, at(i), y(value), 3.4 if wrong else 2.6)
                marks.append(f'<path class="mark{" failed" if wrong else ""}" d="{shape}"/>')
        curve = f'<path class="curve"{line.dash} d="{polyline(places)}"/>'
        parts.append(f'<g class="{line.css}">{curve}{"".join(marks)}</g>')
    stride = math.ceil(count / 200)  # steps per slot; its text describes the last one
    texts = []
    for step in range(stride, count + stride, stride):
        step = min(step, count)
        found = [f"{line.name} {_value(line.values[step - 1])}" for line in lines if step <= len(line.values)]
        more = [extra[step - 1]] if step <= len(extra) else []
        texts.append(("   ".join([f"step {step}", *found]), "\n".join([f"step {step}", *found, *more])))
    parts.append(slots(texts, LEFT, slot * stride, TOP, bottom, 0))
    return frame(width, bottom + 22, label, parts)


def _value(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) and abs(value) >= 0.01 else number(value)


def histogram_plot(histogram: Histogram, style: Style, label: str) -> str:
    """Number of elements by size of difference; equal elements are apart at the left."""
    bars: list[tuple[int, str]] = [(histogram.zeros, "equal")]
    edges = [f"{10**edge:.1e}" if -300 < edge < 300 else f"1e{edge:g}" for edge in histogram.edges]
    bars += [
        (count, f"{low} to {high}")
        for count, (low, high) in zip(histogram.counts, pairwise(edges), strict=True)
    ]
    bottom, right = TOP + 180.0, WIDTH - RIGHT
    y = LogAxis([1, *(count for count, _ in bars if count)], TOP, bottom - 4)
    slot = (right - LEFT) / (len(bars) + 1)

    def left(i: int) -> float:  # an empty slot between the equal ones and the others
        return LEFT + (i + (i > 0)) * slot

    parts = [grid(y, LEFT, right).replace("1e0<", "1<")]
    parts.append(f'<text class="tick middle" x="{px(left(0) + slot / 2)}" y="{px(bottom + 15)}">equal</text>')
    low, high = histogram.edges[0], histogram.edges[-1]
    every = math.ceil((high - low) / 14)
    for exponent in range(math.ceil(low / every) * every, math.floor(high) + 1, every):
        i = min(bisect_right(histogram.edges, exponent), len(histogram.edges) - 1)
        start, end = histogram.edges[i - 1], histogram.edges[i]
        x = left(i) + slot * (exponent - start) / (end - start)
        parts.append(
            f'<path class="grid" d="M{px(x)} {px(bottom)}v4"/>'
            f'<text class="tick middle" x="{px(x)}" y="{px(bottom + 15)}">1e{exponent}</text>'
        )
    shapes = "".join(
        f'<rect class="bar" x="{px(left(i) + 1)}" y="{px(y(count))}" width="{px(max(slot - 2, 0.5))}" '
        f'height="{px(bottom - y(count))}"><title>{escape(f"{text}: {count:,} elements")}</title></rect>'
        for i, (count, text) in enumerate(bars)
        if count
    )
    parts.append(f'<g class="{style.css}">{shapes}</g>')
    return frame(WIDTH, bottom + 22, label, parts)
