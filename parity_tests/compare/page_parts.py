"""Pieces of the page: figures, and the signs of its legends."""

from __future__ import annotations

from parity_tests.compare.plot import Style, escape, mark
from parity_tests.compare.report import Report

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
    """How much of each model was compared, and what was not."""
    lines = []
    for who, sides in report.coverage.items():
        for side, found in sides.items():
            owner = report.reference if side == "reference" else who
            left = f"; not compared: {', '.join(found.left_out)}" if found.left_out else ""
            lines.append(f"<li>{escape(f'{side} ({owner}): {found}{left}')}</li>")
    return ["<h3>What was compared</h3>", f"<ul>{''.join(lines)}</ul>"] if lines else []
