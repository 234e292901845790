"""Pieces of the page: figures, and the signs of its legends."""

from __future__ import annotations

from parity_tests.compare.plot import Style, mark

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
