"""What network is in a file: the spec inferred from the names and shapes of its tensors.

Everything that leaves a trace in a shape is read from it; what leaves none takes the default, and
`Inferred.assumed` says so (a stride, a padding, an epsilon). The inference is tolerant of missing and
misshapen tensors, so that the comparison with `parameters(spec)` afterwards can name each of them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from weights_convert.spec import (
    MODELS,
    AttentionSpec,
    ResNetSpec,
    Spec,
    eca_kernel_size,
    hidden_channels,
)

Shapes = Mapping[str, tuple[int, ...]]


class Inferred(NamedTuple):
    """A spec, and the keywords in it that no tensor shows."""

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
    """The keywords of `ResNetSpec` that shapes show; None where there are no stages of blocks."""
    depths = _depths(shapes)
    if not depths:
        return None
    keywords: dict[str, Any] = {"depths": depths, "block": _block(shapes)}
    keywords |= _infer_stem(shapes) | _infer_widths(shapes, keywords["block"])
    keywords |= _infer_attention(shapes, len(depths)) | _infer_projection(shapes, len(depths))
    if len(head := shapes.get("fc.weight", shapes.get("fc.bias", ()))) > 0:
        keywords["num_classes"] = head[0]
    return keywords


def _depths(shapes: Shapes) -> tuple[int, ...]:
    found: dict[int, int] = {}
    for name in shapes:
        if match := re.match(r"layer(\d+)\.(\d+)\.", name):
            stage, index = int(match[1]), int(match[2])
            found[stage] = max(found.get(stage, 0), index + 1)
    return (
        tuple(found[stage] for stage in sorted(found))
        if sorted(found) == list(range(1, len(found) + 1))
        else ()
    )


def _block(shapes: Shapes) -> str:
    bottlenecks = sum(1 for name in shapes if re.fullmatch(r"layer\d+\.\d+\.conv3\.weight", name))
    return "bottleneck" if 2 * bottlenecks > sum(_depths(shapes)) else "basic"


def _of_rank(shapes: Shapes, name: str, rank: int) -> tuple[int, ...] | None:
    shape = shapes.get(name)
    return shape if shape is not None and len(shape) == rank and all(shape) else None


def _infer_stem(shapes: Shapes) -> dict[str, Any]:
    keywords: dict[str, Any] = {}
    if kernel := _of_rank(shapes, "conv1.weight", 4):
        keywords |= {"stem_width": kernel[0], "in_channels": kernel[1]}
        keywords["stem"] = "7x7" if kernel[2] == 7 else "3x3"
    if "conv3.weight" in shapes or "bn3.weight" in shapes:
        keywords["stem"] = "deep"
    return keywords


def _infer_widths(shapes: Shapes, block: str) -> dict[str, Any]:
    """`width` and what divides it, from the first block whose kernels are all there."""
    for name in shapes:
        match = re.fullmatch(r"layer(\d+)\.(\d+)\.conv2\.weight", name)
        if match is None:
            continue
        prefix, scale = name.removesuffix("conv2.weight"), 2 ** (int(match[1]) - 1)
        second = _of_rank(shapes, name, 4)
        if block == "basic" and second:
            return {"width": second[0] // scale}
        first = _of_rank(shapes, f"{prefix}conv1.weight", 4)
        third = _of_rank(shapes, f"{prefix}conv3.weight", 4)
        if not (first and second and third) or third[0] < 4 * scale:
            continue
        planes = third[0] // 4
        inner, groups = second[0], max(first[0] // second[1], 1)
        return {
            "width": planes // scale,
            "groups": groups,
            "width_per_group": max(inner // groups * 64 // planes, 1),
            "reduce_first": max(inner // first[0], 1),
        }
    return {}


def _infer_attention(shapes: Shapes, stages: int) -> dict[str, Any]:
    for kind in ("se", "cbam", "eca"):
        marks = [name for name in shapes if re.match(rf"layer\d+\.\d+\.{kind}\.", name)]
        if not marks:
            continue
        blocks = {}
        for name in marks:
            prefix, _, rest = name.partition(f".{kind}.")
            blocks.setdefault(prefix, {})[rest] = shapes[name]
        keywords = _attention_keywords(kind, list(blocks.values()))
        if kind == "eca":
            sizes = tuple(_eca_size(shapes, stage) for stage in range(1, stages + 1))
            keywords["eca_kernel_sizes"] = None if any(size is None for size in sizes) else sizes
            if sizes == tuple(_eca_rule(shapes, stage) for stage in range(1, stages + 1)):
                keywords["eca_kernel_sizes"] = None
        return keywords
    return {"attention": "none"}


def _eca_size(shapes: Shapes, stage: int) -> int | None:
    sizes = [shapes[name] for name in shapes if re.fullmatch(rf"layer{stage}\.\d+\.eca\.conv\.weight", name)]
    return sizes[0][-1] if sizes and len(sizes[0]) == 3 and sizes[0][-1] % 2 else None


def _eca_rule(shapes: Shapes, stage: int) -> int | None:
    """The kernel size that the paper's rule gives for a stage's output channels."""
    for name in shapes:
        if re.fullmatch(rf"layer{stage}\.\d+\.bn3\.weight", name) and shapes[name]:
            return eca_kernel_size(shapes[name][0])
    for name in shapes:
        if re.fullmatch(rf"layer{stage}\.\d+\.bn2\.weight", name) and shapes[name]:
            return eca_kernel_size(shapes[name][0])
    return None


def _attention_keywords(kind: str, blocks: list[dict[str, tuple[int, ...]]]) -> dict[str, Any]:
    """The keywords that the tensors of attention blocks of one kind show."""

    def shown(leaf: str) -> bool:  # by most blocks: one missing tensor is an error to report, not a variant
        return 2 * sum(leaf in block for block in blocks) > len(blocks)

    keywords: dict[str, Any] = {"attention": kind}
    if kind == "se":
        keywords["se_bias"] = shown("fc1.bias") or shown("fc2.bias")
    if kind == "cbam":
        keywords["cbam_mlp_bias"] = shown("channel.fc1.bias") or shown("channel.fc2.bias")
        keywords["cbam_spatial_bias"] = shown("spatial.conv.bias")
        keywords["cbam_bn"] = shown("spatial.bn.weight")
        for block in blocks:
            kernel = _of_rank(block, "spatial.conv.weight", 4)
            if kernel and kernel[2] % 2:
                keywords["cbam_kernel_size"] = kernel[2]
                break
    if kind in ("se", "cbam"):
        fc1 = "fc1.weight" if kind == "se" else "channel.fc1.weight"
        pairs = {(shape[1], shape[0]) for block in blocks if (shape := _of_rank(block, fc1, 2))}
        keywords |= _reduction(pairs)
    return keywords


def _reduction(pairs: set[tuple[int, int]]) -> dict[str, Any]:
    """The rule and the reduction that give every (channels, hidden) pair; the paper's 16 where it fits."""
    guesses = [16, *sorted({channels // hidden for channels, hidden in pairs}, reverse=True)]
    fits = {
        (rule, reduction): sum(
            hidden_channels(channels, reduction, rule) == hidden for channels, hidden in pairs
        )
        for rule in ("floor", "multiple_of_8")
        for reduction in guesses
        if reduction
    }
    if not pairs:
        return {}
    rule, reduction = max(fits, key=lambda guess: fits[guess])  # the first of equals
    return {"hidden_rule": rule, "reduction": reduction}


def _infer_projection(shapes: Shapes, stages: int) -> dict[str, Any]:
    for stage in range(2, stages + 1):
        if kernel := _of_rank(shapes, f"layer{stage}.0.downsample.0.weight", 4):
            return {"downsample_kernel": 3 if kernel[2] == 3 else 1}
    return {}


def _infer_attention_block(shapes: Shapes) -> dict[str, Any] | None:
    """The keywords of an attention block standing alone."""
    marks = {"se": "fc1.weight", "cbam": "channel.fc1.weight", "eca": "conv.weight"}
    for kind, mark in marks.items():
        rank = 3 if kind == "eca" else 2
        if shape := _of_rank(shapes, mark, rank):
            keywords = _attention_keywords(kind, [dict(shapes)])
            return keywords | ({"eca_kernel_size": shape[-1]} if kind == "eca" else {"channels": shape[1]})
    return None


def _complete(keywords: dict[str, Any]) -> ResNetSpec:
    """The spec with these keywords, and with the named model's values for what shapes do not show."""
    for row in MODELS.values():
        named = ResNetSpec(**row | {k: v for k, v in keywords.items() if k in ("num_classes", "in_channels")})
        if all(getattr(named, keyword) == value for keyword, value in keywords.items()):
            return named
    return ResNetSpec(**keywords)


_UNSEEN: dict[str, Callable[[Any], bool]] = {  # keyword -> whether it matters in this spec
    "stem_pool": lambda spec: isinstance(spec, ResNetSpec),
    "stride_in": lambda spec: isinstance(spec, ResNetSpec) and spec.block == "bottleneck",
    "downsample_pool": lambda spec: isinstance(spec, ResNetSpec),
    "relu_before_attention": lambda spec: isinstance(spec, ResNetSpec) and spec.attention != "none",
    "cbam_order": lambda spec: spec.attention == "cbam",
    "cbam_spatial_input": lambda spec: spec.attention == "cbam",
    "cbam_bn_momentum": lambda spec: spec.attention == "cbam" and spec.cbam_bn,
    "bn_epsilon": lambda spec: isinstance(spec, ResNetSpec) or spec.attention == "cbam",
    "bn_momentum": lambda spec: isinstance(spec, ResNetSpec),
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
