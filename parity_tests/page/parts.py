"""Pieces of the page: figures, and the signs of its legends."""

from __future__ import annotations

import math

from parity_tests.compare.power.result import THRESHOLD
from parity_tests.compare.report import Report
from parity_tests.page.plot import Style, escape, mark, number

WEAKEST = 8  # rows of the table of the weakest items
CURVE = '<path class="curve" d="M0 7H14"/>'  # for a legend


def many(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def figure(kind: str, svg: str, caption: str = "") -> str:
    caption = f"<figcaption>{caption}</figcaption>\n" if caption else ""
    return f'<figure class="{kind}">\n{caption}{svg}\n</figure>'


def key(content: str, css: str = "") -> str:
    css = f' class="{css}"' if css else ""
    return f'<svg class="key" viewBox="0 0 14 14" aria-hidden="true"><g{css}>{content}</g></svg>'


def entry(content: str) -> str:
    return f'<span class="legend">{content}</span>'


def swatch(style: Style) -> str:
    return key(f'<path class="mark" d="{mark(style.shape, 7, 7, 4.5)}"/>', style.css)


def coverage(report: Report) -> list[str]:
    """How much of each model was compared, and the names that were not."""
    lines = []
    for who, sides in report.coverage.items():
        for side, found in sides.items():
            owner = report.reference if side == "reference" else who
            left = f"; not compared: {', '.join(found.left_out)}" if found.left_out else ""
            lines.append(f"<li>{escape(f'{side} ({owner}): {found}{left}')}</li>")
    return ["<h3>Coverage</h3>", f"<ul>{''.join(lines)}</ul>"] if lines else []


def power(report: Report) -> list[str]:
    """The smallest changes noticed: the summary, and a table of the weakest items."""
    if not report.power:
        return []
    parts = ["<h3>Power</h3>", f"<p>{escape(report.power.summary())}</p>"]
    if not report.power.items:
        return parts
    head = (
        "<tr><th>weakest</th><th></th><th>smallest change noticed</th><th>where</th>"
        "<th>single elements that could be 0 unseen</th></tr>"
    )
    rows = []
    for item in report.power.weakest(WEAKEST):
        smallest = "none" if item.smallest == math.inf else number(item.smallest)
        unseen = "" if item.unseen is None else f"{item.unseen:,} of {item.elements or 0:,}"
        wrong = " wrong" if not item.smallest <= THRESHOLD else ""
        rows.append(
            f'<tr><td class="name">{escape(item.name)}</td><td class="quiet">{escape(item.kind)}</td>'
            f'<td class="r{wrong}">{smallest}</td><td class="name">{escape(item.point)}</td>'
            f'<td class="r">{unseen}</td></tr>'
        )
    table = f'<div class="scroll"><table class="weakest">{head}{"".join(rows)}</table></div>'
    return [*parts, table]
