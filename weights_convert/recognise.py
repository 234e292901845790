"""Infers the spec of a network from the names and shapes of its tensors.

Keywords that change a shape are inferred; the others (a stride, a padding, an epsilon) have their default and
are listed in `Inferred.assumed`. The inference tolerates missing and misshapen tensors, so that the
comparison with `parameters(spec)` can name each of them: if several tensors show a keyword, the majority
decides.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from weights_convert.checks import MOST_STAGES
from weights_convert.spec import (
    MODELS,
    MOST_CHANNELS,
    AttentionSpec,
    ResNetSpec,
    Spec,
    eca_kernel_size,
    hidden_channels,
    stem_widths,
)

Shapes = Mapping[str, tuple[int, ...]]
_MOST_GUESSES = 100  # of a width; an honest file gives one per stage
_BN_LEAVES = ("weight", "bias", "running_mean", "running_var")


class Inferred(NamedTuple):
    """A spec, and its keywords that no tensor shows."""

    spec: Spec
    assumed: tuple[str, ...]


def infer(shapes: Shapes) -> Inferred | None:
    """The spec of the network or attention block with these canonical names and shapes, or None.

    >>> from weights_convert.spec import model_spec, parameters
    >>> shapes = {p.name: p.shape for p in parameters(model_spec("se_resnet50", num_classes=4))}
    >>> found = infer(shapes)
    >>> found.spec == model_spec("se_resnet50", num_classes=4), found.assumed[:2]
    (True, ('stem_pool', 'stride_in'))
    """
    keywords = infer_resnet(shapes)
    if keywords is not None:
        spec = _complete(keywords)
        return Inferred(spec, _unseen(spec))
    keywords = _infer_attention_block(shapes)
    return (
        None if keywords is None else Inferred(AttentionSpec(**keywords), _unseen(AttentionSpec(**keywords)))
    )


def infer_resnet(shapes: Shapes) -> dict[str, Any] | None:
    """The keywords of `ResNetSpec` that shapes show; None without stages of blocks."""
    depths = _depths(shapes)
    if not depths:
        return None
    keywords: dict[str, Any] = {"depths": depths, "block": _block(shapes)}
    keywords |= _infer_stem(shapes) | _infer_norm(shapes) | _infer_widths(shapes, keywords["block"])
    keywords |= _infer_attention(shapes, depths) | _infer_projection(shapes, len(depths))
    if head := _first_axes(shapes, ("fc.bias", "fc.weight")):  # a bias is never transposed
        keywords["num_classes"] = _most(head)
    return keywords


def _most(values: Iterable[Any]) -> Any:
    """The most common value; the first one of equally common values."""
    return Counter(values).most_common(1)[0][0]


def _first_axes(shapes: Shapes, names: Iterable[str]) -> list[int]:
    """The lengths of the first axes of these tensors, if they exist."""
    return [shape[0] for name in names if (shape := shapes.get(name)) and shape[0]]


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


def _of_rank(shapes: Shapes, name: str, rank: int) -> tuple[int, ...] | None:
    shape = shapes.get(name)
    return shape if shape is not None and len(shape) == rank and all(shape) else None


def _infer_stem(shapes: Shapes) -> dict[str, Any]:
    keywords: dict[str, Any] = {}
    if kernel := _of_rank(shapes, "conv1.weight", 4):
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
    names = [f"conv{number}.weight", f"conv{number}.bias", *(f"bn{number}.{leaf}" for leaf in _BN_LEAVES)]
    kernel = _of_rank(shapes, after, 4)
    widths = _first_axes(shapes, names) + ([kernel[1]] if kernel else [])
    return _most(widths) if widths else None


_CONVOLUTION = re.compile(r"((?:layer\d+\.\d+\.)?conv\d|layer\d+\.\d+\.downsample\.0)\.(?:weight|bias)")


def _infer_norm(shapes: Shapes) -> dict[str, Any]:
    """`norm`, by the majority of convolutions: one missing tensor is an error, not a variant."""
    convs = {match[1] for name in shapes if (match := _CONVOLUTION.fullmatch(name))}
    biases = sum(f"{conv}.bias" in shapes for conv in convs)
    bns = sum(any(f"{_bn_after(conv)}.{leaf}" in shapes for leaf in _BN_LEAVES) for conv in convs)
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
            blocks.append((2 ** (int(match[2]) - 1), *(_of_rank(shapes, name, 4) for name in names)))
    if block == "basic":
        widths = [second[0] // scale for scale, _, second, _ in blocks if second and second[0] >= scale]
        return {"width": _most(widths)} if widths else {}
    whole = [
        (scale, first, second, third)
        for scale, first, second, third in blocks
        if first and second and third and third[0] >= 4 * scale
    ]
    if not whole:
        return {}
    width = _most(third[0] // (4 * scale) for scale, _, _, third in whole)
    groups = _most(max(first[0] // second[1], 1) for _, first, second, _ in whole)
    inner = [(width * scale, second[0]) for scale, _, second, _ in whole]  # planes, channels of the 3x3
    guesses = [max(-(-(channels // groups * 64) // planes), 1) for planes, channels in inner]
    guesses = list(dict.fromkeys(guesses))[:_MOST_GUESSES]

    def fits(guess: int) -> int:  # the last stage's guess is the finest
        return sum(planes * guess // 64 * groups == channels for planes, channels in inner)

    return {
        "width": width,
        "groups": groups,
        "width_per_group": max(guesses, key=fits),
        "reduce_first": _most(max(second[0] // first[0], 1) for _, first, second, _ in whole),
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
        keywords = _attention_keywords(kind, list(blocks.values()))
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
    return _most(sizes) if sizes else None


def _eca_rule(shapes: Shapes, stage: int) -> int | None:
    """The kernel size by the paper's rule for a stage's output channels."""
    for last in (3, 2):
        tensor = re.compile(rf"layer{stage}\.\d+\.(conv|bn){last}\.(weight|bias)")
        names = [name for name in shapes if tensor.fullmatch(name)]
        if channels := _first_axes(shapes, names):
            return eca_kernel_size(_most(channels))
    return None


def _attention_keywords(kind: str, blocks: list[dict[str, tuple[int, ...]]]) -> dict[str, Any]:
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
        kernels = [_of_rank(block, "spatial.conv.weight", 4) for block in blocks]
        if sizes := [kernel[2] for kernel in kernels if kernel and kernel[2] % 2]:
            keywords["cbam_kernel_size"] = _most(sizes)
    if kind in ("se", "cbam"):
        keywords |= _reduction({pair for block in blocks if (pair := _mlp_widths(kind, block))})
    return keywords


def _mlp_widths(kind: str, block: Shapes) -> tuple[int, int] | None:
    """(channels, hidden) of an attention MLP, by the majority of its tensors."""
    mlp = "channel." if kind == "cbam" else ""
    first, second = (_of_rank(block, f"{mlp}fc{number}.weight", 2) for number in (1, 2))
    channels = [*([first[1]] if first else []), *_first_axes(block, (f"{mlp}fc2.weight", f"{mlp}fc2.bias"))]
    hidden = [*([second[1]] if second else []), *_first_axes(block, (f"{mlp}fc1.weight", f"{mlp}fc1.bias"))]
    return (_most(channels), _most(hidden)) if channels and hidden else None


def _reduction(pairs: set[tuple[int, int]]) -> dict[str, Any]:
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


def _infer_projection(shapes: Shapes, stages: int) -> dict[str, Any]:
    for stage in range(2, stages + 1):
        if kernel := _of_rank(shapes, f"layer{stage}.0.downsample.0.weight", 4):
            return {"downsample_kernel": 3 if kernel[2] == 3 else 1}
    return {}


def _infer_attention_block(shapes: Shapes) -> dict[str, Any] | None:
    """The keywords of a single attention block."""
    if kernel := _of_rank(shapes, "conv.weight", 3):
        return {"attention": "eca"} | ({"eca_kernel_size": kernel[2]} if kernel[2] % 2 else {})
    for kind, mlp in (("se", "fc"), ("cbam", "channel.fc")):
        if any(re.fullmatch(rf"{re.escape(mlp)}[12]\.(weight|bias)", name) for name in shapes):
            widths = _mlp_widths(kind, shapes)
            channels = {"channels": widths[0]} if widths else {}
            return _attention_keywords(kind, [dict(shapes)]) | channels
    return None


def _complete(keywords: dict[str, Any]) -> ResNetSpec:
    """The spec with these keywords, and the named model's values for keywords that shapes do not show."""
    for row in MODELS.values():
        named = ResNetSpec(**row | {k: v for k, v in keywords.items() if k in ("num_classes", "in_channels")})
        if all(getattr(named, keyword) == value for keyword, value in keywords.items()):
            return named
    return ResNetSpec(**keywords)


def _has_bn(spec: Any) -> bool:
    after_convolutions = isinstance(spec, ResNetSpec) and spec.norm != "bias"
    return after_convolutions or (spec.attention == "cbam" and spec.cbam_bn)


_UNSEEN: dict[str, Callable[[Any], bool]] = {  # keyword -> whether it matters in this spec
    "stem_pool": lambda spec: isinstance(spec, ResNetSpec),
    "stride_in": lambda spec: isinstance(spec, ResNetSpec) and spec.block == "bottleneck",
    "downsample_pool": lambda spec: isinstance(spec, ResNetSpec),
    "relu_before_attention": lambda spec: isinstance(spec, ResNetSpec) and spec.attention != "none",
    "cbam_order": lambda spec: spec.attention == "cbam",
    "cbam_spatial_input": lambda spec: spec.attention == "cbam",
    "cbam_bn_momentum": lambda spec: spec.attention == "cbam" and spec.cbam_bn,
    "bn_epsilon": _has_bn,
    "bn_momentum": lambda spec: isinstance(spec, ResNetSpec) and spec.norm != "bias",
    "dropout": lambda spec: isinstance(spec, ResNetSpec),
    "channels": lambda spec: isinstance(spec, AttentionSpec) and spec.attention == "eca",
}


def _unseen(spec: Spec) -> tuple[str, ...]:
    return tuple(keyword for keyword in _UNSEEN if matters_unseen(keyword, spec))


def matters_unseen(keyword: str, spec: Spec) -> bool:
    """Whether a keyword changes the numbers of `spec` without leaving a trace in names and shapes."""
    return keyword in _UNSEEN and _UNSEEN[keyword](spec)


def spec_values(spec: Spec, keywords: tuple[str, ...]) -> str:
    """`stem_pool='pad1', stride_in='conv2'`: how a note shows keywords."""
    values = dataclasses.asdict(spec)
    return ", ".join(f"{keyword}={values[keyword]!r}" for keyword in keywords)
