"""Infers selective kernels in a residual network from names and shapes, by the majority of blocks."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from weights_convert.identify.votes import Shapes, most, of_rank

_KERNEL = re.compile(r"(layer\d{1,9}\.\d{1,9}\.)sk\.conv1\.weight")
_MIN_HIDDEN, _REDUCTIONS = (32, 16, 8), (16, 8)  # the paper's value first, and timm's


class _Block(NamedTuple):
    prefix: str
    kernel: tuple[int, ...]  # of the first of the two convolutions
    inputs: int | None  # channels of the input of the selective kernels
    hidden: int | None  # channels of the hidden layer


def infer_selective(shapes: Shapes, depths: tuple[int, ...], block: str) -> tuple[dict[str, Any], Shapes]:
    """The keywords of selective kernels, and the shapes with one plain convolution in their place.

    No keywords and unchanged shapes if fewer than half of the blocks have them.
    """
    blocks = list(_blocks(shapes, block))
    if 2 * len(blocks) <= sum(depths):
        return {}, shapes
    split = most(b.inputs == 2 * b.kernel[1] for b in blocks)
    plain = {name: shape for name, shape in shapes.items() if ".sk." not in name}
    number = 2 if block == "bottleneck" else 1
    for b in blocks:
        channels = b.kernel[1] * (2 if split else 1)
        plain[f"{b.prefix}conv{number}.weight"] = (b.kernel[0], channels, *b.kernel[2:])
    return {"attention": "sk", "sk_split": split} | _hidden(blocks), plain


def _blocks(shapes: Shapes, block: str) -> list[_Block]:
    found = []
    for name in shapes:
        if (match := _KERNEL.fullmatch(name)) and (kernel := of_rank(shapes, name, 4)):
            prefix = match[1]
            first = of_rank(shapes, f"{prefix}sk.fc1.weight", 2)
            inputs = _inputs(shapes, block, prefix)
            found.append(_Block(prefix, kernel, inputs, first[0] if first else None))
    return found


def _inputs(shapes: Shapes, block: str, prefix: str) -> int | None:
    """The channels of the convolution that selective kernels replace."""
    if block == "basic" and (projection := of_rank(shapes, f"{prefix}downsample.0.weight", 4)):
        return projection[1]
    number = 1 if block == "bottleneck" else 2  # a basic block without a projection keeps its channels
    kernel = of_rank(shapes, f"{prefix}conv{number}.weight", 4)
    return kernel[0] if kernel else None


def _hidden(blocks: list[_Block]) -> dict[str, Any]:
    """The reduction and the least width that explain most hidden layers."""
    pairs = {(b.kernel[0], b.hidden) for b in blocks if b.hidden}
    if not pairs:
        return {}
    ratios = sorted({channels // hidden for channels, hidden in pairs if hidden <= channels}, reverse=True)
    least = min(hidden for _, hidden in pairs)
    guesses = [(r, n) for n in (*_MIN_HIDDEN, least) for r in (*_REDUCTIONS, *ratios)]

    def fits(guess: tuple[int, int]) -> int:
        return sum(max(channels // guess[0], guess[1]) == hidden for channels, hidden in pairs)

    reduction, least = max(guesses, key=fits)  # the first of equals
    return {"reduction": reduction, "sk_min_hidden": least}
