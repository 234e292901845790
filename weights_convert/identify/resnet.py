"""Infers a residual network from the names and shapes of its tensors.

Depths and widths are free, so no table of models has them all. Keywords that change a shape are inferred; the
others have their default. Missing and misshapen tensors are tolerated: if several tensors show a keyword, the
majority decides, and the comparison with `parameters(spec)` names each mismatch.
"""

from __future__ import annotations

import re
from typing import Any

from weights_convert.identify.attention import attention_keywords
from weights_convert.identify.selective import infer_selective
from weights_convert.identify.votes import (
    BN_LEAVES,
    Inferred,
    Shapes,
    first_axes,
    inferred,
    most,
    of_rank,
)
from weights_convert.spec import (
    MODELS,
    ResNetSpec,
    changed,
    eca_kernel_size,
    model_spec,
    stem_widths,
)
from weights_convert.spec.checks import MOST_STAGES

_MOST_GUESSES = 100  # of a width; an honest file gives one per stage


def infer(shapes: Shapes) -> Inferred | None:
    """The residual network with these canonical names and shapes, or None.

    >>> from weights_convert.spec import parameters
    >>> shapes = {p.name: p.shape for p in parameters(model_spec("se_resnet50", num_classes=4))}
    >>> found = infer(shapes)
    >>> found.spec == model_spec("se_resnet50", num_classes=4), found.assumed[:2]
    (True, ('stem_pool', 'strides'))
    """
    keywords = infer_keywords(shapes)
    return None if keywords is None else inferred(_complete(keywords))


def _complete(keywords: dict[str, Any]) -> ResNetSpec:
    """The spec with these keywords, and the named model's values for keywords that shapes do not show."""
    head = {k: v for k, v in keywords.items() if k in ("num_classes", "in_channels", "head_bias")}
    shown = {k: v for k, v in keywords.items() if k not in head}
    for name, row in MODELS.items():
        if row.kind is ResNetSpec:
            named = model_spec(name)
            if all(getattr(named, keyword) == value for keyword, value in shown.items()):
                return changed(named, head)
    return ResNetSpec(**keywords)


def infer_keywords(shapes: Shapes) -> dict[str, Any] | None:
    """The keywords of `ResNetSpec` that shapes show; None without stages of blocks."""
    depths = _depths(shapes)
    if not depths:
        return None
    keywords: dict[str, Any] = {"depths": depths, "block": _block(shapes)}
    selective, shapes = infer_selective(shapes, depths, keywords["block"])
    keywords |= _infer_stem(shapes) | _infer_norm(shapes) | _infer_widths(shapes, keywords["block"])
    keywords |= selective or _infer_attention(shapes, depths)
    keywords |= _infer_projection(shapes, len(depths))
    return keywords | _infer_head(shapes, depths, keywords)


def _infer_head(shapes: Shapes, depths: tuple[int, ...], keywords: dict[str, Any]) -> dict[str, Any]:
    """The classifier: its classes, its bias, and whether it reads means and maxima."""
    if not {"fc.bias", "fc.weight"} & shapes.keys():
        return {"num_classes": 0}
    head: dict[str, Any] = {}
    if classes := first_axes(shapes, ("fc.bias", "fc.weight")):  # a bias is never transposed
        head["num_classes"] = most(classes)
    if "fc.bias" not in shapes:
        head["head_bias"] = False
    kernel = of_rank(shapes, "fc.weight", 2)
    expansion = 4 if keywords["block"] == "bottleneck" else 1
    channels = keywords.get("width", 0) * 2 ** (len(depths) - 1) * expansion
    if kernel and channels and kernel[1] == 2 * channels:
        head["global_pool"] = "catavgmax"
    return head


def _depths(shapes: Shapes) -> tuple[int, ...]:
    found: dict[int, int] = {}
    for name in shapes:
        if match := re.match(r"layer(\d{1,9})\.(\d{1,9})\.", name):
            stage, index = int(match[1]), int(match[2])
            found[stage] = max(found.get(stage, 0), index + 1)
    whole = len(found) <= MOST_STAGES and sorted(found) == list(range(1, len(found) + 1))
    return tuple(found[stage] for stage in sorted(found)) if whole else ()


def _block(shapes: Shapes) -> str:
    bottlenecks = sum(1 for name in shapes if re.fullmatch(r"layer\d+\.\d+\.conv3\.weight", name))
    return "bottleneck" if 2 * bottlenecks > sum(_depths(shapes)) else "basic"


def _infer_stem(shapes: Shapes) -> dict[str, Any]:
    keywords: dict[str, Any] = {}
    if not {"pool_conv.weight", "pool_bn.weight"}.isdisjoint(shapes):
        keywords["stem_pool"] = "conv"
    if kernel := of_rank(shapes, "conv1.weight", 4):
        keywords["in_channels"] = kernel[1]
        keywords["stem"] = "7x7" if kernel[2] == 7 else "3x3"
    if not {"conv3.weight", "conv3.bias", "bn3.weight"}.isdisjoint(shapes):
        return keywords | _infer_deep_stem(shapes)
    if width := _stem_width(shapes, 1, "layer1.0.conv1.weight"):
        keywords["stem_width"] = width
    return keywords


def _infer_deep_stem(shapes: Shapes) -> dict[str, Any]:
    """`stem` and `stem_width`, by the majority of its three convolutions."""
    after = ("conv2.weight", "conv3.weight", "layer1.0.conv1.weight")
    found = [_stem_width(shapes, number, name) for number, name in enumerate(after, 1)]
    first, second, third = found
    widths = [width for width in (second, first, third and third // 2) if width]
    guesses = [(stem, width) for stem in ("deep", "deep_tiered") for width in widths]
    if not guesses:
        return {"stem": "deep"}

    def fits(guess: tuple[str, int]) -> int:
        return sum(a == b for a, b in zip(stem_widths(*guess), found, strict=True))

    stem, width = max(guesses, key=fits)
    return {"stem": stem, "stem_width": width}


def _stem_width(shapes: Shapes, number: int, after: str) -> int | None:
    """The channels of a convolution of the stem, by the majority of its tensors and the next kernel."""
    names = [f"conv{number}.weight", f"conv{number}.bias", *(f"bn{number}.{leaf}" for leaf in BN_LEAVES)]
    kernel = of_rank(shapes, after, 4)
    widths = first_axes(shapes, names) + ([kernel[1]] if kernel else [])
    return most(widths) if widths else None


_CONVOLUTION = re.compile(r"((?:layer\d+\.\d+\.)?conv\d|layer\d+\.\d+\.downsample\.0)\.(?:weight|bias)")


def _infer_norm(shapes: Shapes) -> dict[str, Any]:
    """`norm`, by the majority of convolutions: one missing tensor is an error, not a variant."""
    convs = {match[1] for name in shapes if (match := _CONVOLUTION.fullmatch(name))}
    biases = sum(f"{conv}.bias" in shapes for conv in convs)
    bns = sum(any(f"{_bn_after(conv)}.{leaf}" in shapes for leaf in BN_LEAVES) for conv in convs)
    if 2 * biases <= len(convs):
        return {"norm": "bn"}
    return {"norm": "bias_bn" if 2 * bns > len(convs) else "bias"}


def _bn_after(conv: str) -> str:
    """The name of the batch normalisation that follows a convolution."""
    return f"{conv[:-1]}1" if conv.endswith("downsample.0") else f"{conv[:-5]}bn{conv[-1]}"


def _infer_widths(shapes: Shapes, block: str) -> dict[str, Any]:
    """`width` and its divisors, by the majority of blocks."""
    blocks = []  # width relative to layer1, and the kernels' shapes
    for name in shapes:
        if match := re.fullmatch(r"(layer(\d{1,9})\.\d{1,9}\.)conv2\.weight", name):
            names = [f"{match[1]}conv{number}.weight" for number in (1, 2, 3)]
            blocks.append((2 ** (int(match[2]) - 1), *(of_rank(shapes, name, 4) for name in names)))
    if block == "basic":
        widths = [second[0] // scale for scale, _, second, _ in blocks if second and second[0] >= scale]
        return {"width": most(widths)} if widths else {}
    whole = [
        (scale, first, second, third)
        for scale, first, second, third in blocks
        if first and second and third and third[0] >= 4 * scale
    ]
    if not whole:
        return {}
    width = most(third[0] // (4 * scale) for scale, _, _, third in whole)
    groups = most(max(first[0] // second[1], 1) for _, first, second, _ in whole)
    inner = [(width * scale, second[0]) for scale, _, second, _ in whole]  # planes, channels of the 3x3
    guesses = [max(-(-(channels // groups * 64) // planes), 1) for planes, channels in inner]
    guesses = list(dict.fromkeys(guesses))[:_MOST_GUESSES]

    def fits(guess: int) -> int:  # the last stage's guess is the finest
        return sum(planes * guess // 64 * groups == channels for planes, channels in inner)

    return {
        "width": width,
        "groups": groups,
        "width_per_group": max(guesses, key=fits),
        "reduce_first": most(max(second[0] // first[0], 1) for _, first, second, _ in whole),
    }


def _infer_attention(shapes: Shapes, depths: tuple[int, ...]) -> dict[str, Any]:
    for kind in ("se", "cbam", "eca"):
        blocks: dict[str, dict[str, tuple[int, ...]]] = {}
        for name in shapes:
            prefix, mark, rest = name.partition(f".{kind}.")
            if mark and re.fullmatch(r"layer\d+\.\d+", prefix):
                blocks.setdefault(prefix, {})[rest] = shapes[name]
        if 2 * len(blocks) <= sum(depths):  # none, or stray tensors that the comparison names later
            continue
        keywords = attention_keywords(kind, list(blocks.values()))
        if kind == "eca":
            stages = range(1, len(depths) + 1)
            sizes = tuple(_eca_size(shapes, stage) for stage in stages)
            by_rule = sizes == tuple(_eca_rule(shapes, stage) for stage in stages)
            keywords["eca_kernel_sizes"] = None if by_rule or None in sizes else sizes
        return keywords
    return {"attention": "none"}


def _eca_size(shapes: Shapes, stage: int) -> int | None:
    kernels = (shapes[n] for n in shapes if re.fullmatch(rf"layer{stage}\.\d+\.eca\.conv\.weight", n))
    sizes = [kernel[2] for kernel in kernels if len(kernel) == 3 and kernel[2] % 2]
    return most(sizes) if sizes else None


def _eca_rule(shapes: Shapes, stage: int) -> int | None:
    """The kernel size by the paper's rule for a stage's output channels."""
    for last in (3, 2):
        tensor = re.compile(rf"layer{stage}\.\d+\.(conv|bn){last}\.(weight|bias)")
        names = [name for name in shapes if tensor.fullmatch(name)]
        if channels := first_axes(shapes, names):
            return eca_kernel_size(most(channels))
    return None


def _infer_projection(shapes: Shapes, stages: int) -> dict[str, Any]:
    for stage in range(2, stages + 1):
        if kernel := of_rank(shapes, f"layer{stage}.0.downsample.0.weight", 4):
            return {"downsample_kernel": 3 if kernel[2] == 3 else 1}
    return {}
