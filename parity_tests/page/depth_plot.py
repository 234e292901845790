"""The first drawing of the page: the errors of every point along the depth of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

from parity_tests.compare.report import Point
from parity_tests.page.plot import (
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    LogAxis,
    Style,
    escape,
    frame,
    grid,
    mark,
    number,
    polyline,
    px,
    shorten,
    slots,
)

NAMED = 56  # with more points the names below the field are omitted
HEIGHT, LETTERS = 300.0, 30  # of the field; of a name


def depth_plot(
    points: Sequence[Point],
    candidates: Sequence[str],
    styles: Mapping[str, Style],
    label: str,
    first: tuple[str, str] | None = None,
) -> str:
    """The error of every point in order, with noise, limit and, as hollow marks, the layer run alone.

    Args:
        first: (candidate, point) of the first divergence.
    """
    field, names = _Field(points), [point.name for point in points]
    begin = names.index(first[1]) if first and first[1] in names else None
    parts = [grid(field.y, LEFT, WIDTH - RIGHT), *field.limit_and_noise(), *field.stages()]
    if field.named:
        parts += field.names()
    if begin is not None:
        parts.append(field.first(begin))
    for place, candidate in enumerate(candidates):
        parts.append(field.candidate(candidate, styles[candidate], place, len(candidates)))
    texts = [_describe(point, candidates) for point in points]
    parts.append(slots(texts, LEFT, field.slot, TOP, field.bottom, begin or 0))
    return frame(WIDTH, field.height, label, parts)


class _Field:
    """The layout of the drawing, and a method for each of its elements."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.points = points
        self.slot = (WIDTH - LEFT - RIGHT) / len(points)
        self.named = len(points) <= NAMED
        longest = max(len(shorten(point.name, LETTERS)) for point in points)
        self.bottom = TOP + HEIGHT
        self.height = self.bottom + (min(longest * 6.2 + 12, 200) if self.named else 20)
        self.radius = min(3.4, max(1.3, self.slot * 0.35))
        values = [value for p in points for value in (*p.errors.values(), *p.isolated.values(), p.limit)]
        values += [point.noise for point in points]
        self.y = LogAxis([value for value in values if value is not None], TOP, self.bottom)

    def at(self, i: int, part: float = 0.5) -> float:
        return LEFT + (i + part) * self.slot

    def stairs(self, value_of: Callable[[Point], float | None]) -> list[tuple[float, float] | None]:
        steps: list[tuple[float, float] | None] = []
        for i, point in enumerate(self.points):
            value = value_of(point)
            steps += [None] if value is None else [(self.at(i, x), self.y(value)) for x in (0, 1)]
        return steps

    def limit_and_noise(self) -> Iterator[str]:
        """The area beyond the limit, and the noise as an area at the bottom."""
        ceiling = [step for step in self.stairs(lambda point: point.limit) if step]
        yield f'<path class="beyond" d="{polyline(ceiling)}V{TOP}H{LEFT}z"/>'
        for known, run in groupby(self.stairs(lambda point: point.noise), key=lambda step: step is not None):
            ground = [step for step in run if step]
            if known:
                foot = f"V{px(self.bottom)}H{px(ground[0][0])}z"
                yield f'<path class="noise" d="{polyline(ground)}{foot}"/>'
        yield f'<path class="limit" d="{polyline(ceiling)}"/>'

    def stages(self) -> Iterator[str]:
        """Lines between the stages; names of the stages if the points have none."""
        for stage, start, end in stages([point.name for point in self.points]):
            if start:
                yield f'<path class="stage" d="M{px(self.at(start, 0))} {TOP}V{px(self.bottom)}"/>'
            if not self.named and (end - start) * self.slot > len(stage) * 6.5 + 4:
                middle = (self.at(start, 0) + self.at(end, 0)) / 2
                place = f'x="{px(middle)}" y="{px(self.bottom + 15)}"'
                yield f'<text class="tick middle" {place}>{escape(stage)}</text>'

    def names(self) -> Iterator[str]:
        for i, point in enumerate(self.points):
            place = f"translate({px(self.at(i) + 4)} {px(self.bottom + 8)}) rotate(-90)"
            yield f'<text class="tick end" transform="{place}">{escape(shorten(point.name, LETTERS))}</text>'

    def first(self, i: int) -> str:
        """The line at the first divergence, with its name on the side with more room."""
        x, late, point = self.at(i), i > len(self.points) / 2, self.points[i]
        height = max(self.y(point.limit) - 8, TOP + 14)
        return (
            f'<path class="first" d="M{px(x)} {TOP}V{px(self.bottom)}"/>'
            f'<text class="first{" end" if late else ""}" x="{px(x - 6 if late else x + 6)}" '
            f'y="{px(height)}">first: {escape(shorten(point.name, 48))}</text>'
        )

    def candidate(self, name: str, style: Style, place: int, count: int) -> str:
        """The marks of one candidate, connected by a line."""
        # candidates are shifted, so that equal errors do not hide each other
        shift = 0.5 + (place - (count - 1) / 2) * min(0.8, 9 / self.slot) / max(count, 2)
        thread = polyline(
            (self.at(i, shift), self.y(point.errors[name]))
            if name in point.errors and self.y.on_scale(point.errors[name])
            else None
            for i, point in enumerate(self.points)
        )
        marks = "".join([*self._isolated(name, style, shift), *self._errors(name, style, shift)])
        css = style.css + (" dense" if self.radius < 2 else "")
        return f'<g class="{css}"><path class="thread" d="{thread}"/>{marks}</g>'

    def _isolated(self, name: str, style: Style, shift: float) -> Iterator[str]:
        for i, point in enumerate(self.points):
            error = point.isolated.get(name)
            if error is None:
                continue
            wrong, x, y = not error <= point.limit, self.at(i, shift), self.y(error)
            shape = mark(style.shape, x, y, self.radius + 1.2)
            yield f'<path class="hollow{" culprit" if wrong else ""}" d="{shape}"/>'
            if wrong:
                yield f'<path class="ring" d="{mark(0, x, y, self.radius + 5)}"/>'

    def _errors(self, name: str, style: Style, shift: float) -> Iterator[str]:
        for i, point in enumerate(self.points):
            if name in point.errors:
                error = point.errors[name]
                failed = not error <= point.limit
                radius = self.radius + 1 if failed else self.radius
                shape = mark(style.shape, self.at(i, shift), self.y(error), radius)
                yield f'<path class="mark{" failed" if failed else ""}" d="{shape}"/>'


def stages(names: Sequence[str]) -> list[tuple[str, int, int]]:
    """(label, first, last + 1) of consecutive points whose names begin alike.

    >>> stages(["conv1", "layer1.0.conv1", "layer1.0.bn1", "layer2.0.conv1"])
    [('conv1', 0, 1), ('layer1', 1, 3), ('layer2', 3, 4)]
    >>> stages(["net.blocks.0.a", "net.blocks.0.b", "net.blocks.1.a", "net.pool", "net.fc"])
    [('net.blocks', 0, 3), ('net.pool … net.fc', 3, 5)]
    """
    found: list[tuple[str, int, int]] = []
    for depth in (1, 2, 3):
        runs, start = [], 0
        for label, group in groupby(".".join(name.split(".")[:depth]) for name in names):
            end = start + len(list(group))
            runs.append((label, start, end))
            start = end
        if not found or len(runs) <= 24:
            found = runs
        if len(found) >= 3:
            break
    merged = []
    # consecutive single layers, such as a stem's, form one stage
    for single, neighbours in groupby(found, key=lambda run: run[2] - run[1] == 1):
        runs = list(neighbours)
        if single and len(runs) > 1:
            runs = [(f"{runs[0][0]} … {runs[-1][0]}", runs[0][1], runs[-1][2])]
        merged += runs
    return merged


def _describe(point: Point, candidates: Sequence[str]) -> tuple[str, str]:
    """A short and a full description."""
    size = "x".join(map(str, point.shape)) or "scalar"
    errors = [f"{c} {number(point.errors[c])}" for c in candidates if c in point.errors]
    brief = "   ".join([shorten(point.name, 60), *errors[:5], f"limit {number(point.limit)}"])
    lines = [f"{point.name}  {size}"]
    for candidate in candidates:
        if candidate in point.errors:
            line = f"{candidate}: {number(point.errors[candidate])}"
            if point.isolated.get(candidate) is not None:
                line += f", alone {number(point.isolated[candidate])}"
            if candidate in point.failures():
                line += "  BEYOND THE LIMIT"
            if candidate in point.culprit_of():
                line += "  WRONG BY ITSELF"
            lines.append(line)
    lines.append(f"limit {number(point.limit)}, noise {number(point.noise)}")
    return brief, "\n".join(lines)
