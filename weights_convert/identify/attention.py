"""Infers attention blocks from names and shapes: single ones, and in networks by the majority of blocks."""

from __future__ import annotations

import re
from typing import Any

from weights_convert.identify.votes import Inferred, Shapes, first_axes, inferred, most, of_rank
from weights_convert.spec import AttentionSpec, hidden_channels
from weights_convert.spec.checks import MOST_STAGES

MOST_CHANNELS = 2**16  # of an attention inferred from shapes


def infer(shapes: Shapes) -> Inferred | None:
    """The single attention block with these names and shapes, or None."""
    keywords = _keywords(shapes)
    return None if keywords is None else inferred(AttentionSpec(**keywords))


def _keywords(shapes: Shapes) -> dict[str, Any] | None:
    """The keywords of a single attention block."""
    if kernel := of_rank(shapes, "conv.weight", 3):
        return {"attention": "eca"} | ({"eca_kernel_size": kernel[2]} if kernel[2] % 2 else {})
    for kind, mlp in (("se", "fc"), ("cbam", "channel.fc")):
        if any(re.fullmatch(rf"{re.escape(mlp)}[12]\.(weight|bias)", name) for name in shapes):
            widths = _mlp_widths(kind, shapes)
            channels = {"channels": widths[0]} if widths else {}
            return attention_keywords(kind, [dict(shapes)]) | channels
    return None


def attention_keywords(kind: str, blocks: list[dict[str, tuple[int, ...]]]) -> dict[str, Any]:
    """The keywords that the tensors of attention blocks of one kind show."""

    def shown(*leaves: str) -> bool:  # by the majority: one missing tensor is an error, not a variant
        return 2 * sum(any(leaf in block for leaf in leaves) for block in blocks) > len(blocks)

    keywords: dict[str, Any] = {"attention": kind}
    if kind == "se":
        keywords["se_bias"] = shown("fc1.bias", "fc2.bias")
    if kind == "cbam":
        keywords["cbam_mlp_bias"] = shown("channel.fc1.bias", "channel.fc2.bias")
        keywords["cbam_spatial_bias"] = shown("spatial.conv.bias")
        keywords["cbam_bn"] = shown(*(f"spatial.bn.{leaf}" for leaf in ("weight", "bias", "running_var")))
        kernels = [of_rank(block, "spatial.conv.weight", 4) for block in blocks]
        if sizes := [kernel[2] for kernel in kernels if kernel and kernel[2] % 2]:
            keywords["cbam_kernel_size"] = most(sizes)
    if kind in ("se", "cbam"):
        keywords |= reduction({pair for block in blocks if (pair := _mlp_widths(kind, block))})
    return keywords


def _mlp_widths(kind: str, block: Shapes) -> tuple[int, int] | None:
    """(channels, hidden) of an attention MLP, by the majority of its tensors."""
    mlp = "channel." if kind == "cbam" else ""
    first, second = (of_rank(block, f"{mlp}fc{number}.weight", 2) for number in (1, 2))
    channels = [*([first[1]] if first else []), *first_axes(block, (f"{mlp}fc2.weight", f"{mlp}fc2.bias"))]
    hidden = [*([second[1]] if second else []), *first_axes(block, (f"{mlp}fc1.weight", f"{mlp}fc1.bias"))]
    return (most(channels), most(hidden)) if channels and hidden else None


def reduction(pairs: set[tuple[int, int]]) -> dict[str, Any]:
    """The rule and the reduction that explain most (channels, hidden) pairs; the paper's 16 if possible.

    A constant hidden width ("absolute") only if no reduction explains it.
    """
    pairs = set(sorted(pair for pair in pairs if max(pair) <= MOST_CHANNELS)[:MOST_STAGES])
    if not pairs:
        return {}

    def fits(guess: tuple[str, int]) -> int:
        rule, reduction = guess
        return sum(hidden_channels(channels, reduction, rule) == hidden for channels, hidden in pairs)

    ratios = sorted({channels // hidden for channels, hidden in pairs if hidden <= channels}, reverse=True)
    guesses = [(rule, reduction) for rule in ("floor", "multiple_of_8") for reduction in (16, *ratios)]
    if max(map(fits, guesses)) < len(pairs):  # rounding hides the ratio
        widest = max(channels for channels, _ in pairs)
        guesses += [(rule, n) for rule in ("floor", "multiple_of_8") for n in range(1, widest + 1)]
        guesses += [("absolute", hidden) for _, hidden in sorted(pairs)]
    rule, reduction = max(guesses, key=fits)  # the first of equals
    return {"hidden_rule": rule, "reduction": reduction}
