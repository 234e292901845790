"""Residual networks as data: ResNet v1.5, ResNeXt, SE-ResNet(Xt), SENet-154, CBAM-, ECA- and SK-ResNet."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Self

from weights_convert.errors import SpecError
from weights_convert.spec import checks
from weights_convert.spec.attention import attention_tensors
from weights_convert.spec.base import (
    Parameter,
    Spec,
    as_spec_error,
    batch_norm,
    changed,
    conv_norm,
    dense,
    has_cbam,
    has_cbam_bn,
    has_eca,
    set_fields,
)

_BLOCK = re.compile(r"layer(\d{1,9})\.(\d{1,9})\.")
BLOCK_CLASSES = {"basic": "basic_block", "bottleneck": "bottleneck"}  # Keras's names in lists


@dataclass(frozen=True, kw_only=True)
class ResNetSpec(Spec):
    """A residual network (ResNet v1.5, ResNeXt, SENet-154) with or without attention in its blocks."""

    kind = "resnet"
    network = "ResNet"
    head = "fc"
    structure = ("block", "depths", "width", "groups", "width_per_group", "reduce_first", "attention")
    unseen = {  # noqa: RUF012
        "stem_pool": lambda spec: spec.stem_pool != "conv",
        "strides": lambda _: True,
        "dilations": lambda _: True,
        "activation": lambda _: True,
        "anti_aliasing": lambda _: True,
        "global_pool": lambda spec: spec.global_pool != "catavgmax",
        "stride_in": lambda spec: spec.block == "bottleneck",
        "downsample_pool": lambda _: True,
        "relu_before_attention": lambda spec: spec.attention != "none",
        "cbam_order": has_cbam,
        "cbam_spatial_input": has_cbam,
        "cbam_bn_momentum": has_cbam_bn,
        "eca_padding": has_eca,
        # the half of the channels, or all of them in twice as many groups
        "sk_split": lambda spec: spec.attention == "sk" and (spec.sk_split or spec.groups % 2 == 0),
        "bn_epsilon": lambda spec: spec.norm != "bias" or has_cbam_bn(spec),
        "bn_momentum": lambda spec: spec.norm in ("bn", "bias_bn"),
        "dropout": lambda _: True,
    }

    block: str = "bottleneck"
    depths: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64  # channels of layer1's 3x3 convolution; doubled in each further stage
    groups: int = 1
    width_per_group: int = 64  # ResNeXt: 4 means that layer1's 3x3 has 4 channels a group
    reduce_first: int = 1  # SENet-154: 2 halves the first 1x1 convolution
    stem: str = "7x7"
    stem_width: int = 64  # the deep stems end with twice as many
    stem_pool: str | None = None  # None: "none" with the "3x3" stem, else "pad1"
    strides: tuple[int, ...] | None = None  # of the stages; None: 1, 2, 2 ...
    dilations: tuple[int, ...] | None = None  # of the stages' 3x3 convolutions; None: 1
    stride_in: str = "conv2"
    downsample_kernel: int = 1  # of the strided or dilated projections; layer1's is 1x1
    downsample_pool: str = "none"
    norm: str = "bn"  # after each convolution; "bias": batch normalisation folded into the convolution
    activation: str = "relu"
    anti_aliasing: str = "none"
    relu_before_attention: bool = False
    sk_min_hidden: int = 32  # SK's L: the hidden layer has max(C // reduction, L) channels
    sk_split: bool = False  # each of SK's convolutions reads one half of the channels
    eca_kernel_sizes: tuple[int, ...] | None = None  # one per stage; None: the paper's rule
    bn_momentum: float = 0.1
    global_pool: str = "avg"
    dropout: float = 0.0
    num_classes: int = 1000
    head_bias: bool = True
    in_channels: int = 3

    def __post_init__(self) -> None:
        with as_spec_error():
            checked = checks.check_keywords(vars(self), self.kind)
        if checked["stem_pool"] is None:
            checked["stem_pool"] = "none" if checked["stem"] == "3x3" else "pad1"
        stages = len(checked["depths"])
        for keyword, default in (("strides", (1, *[2] * (stages - 1))), ("dilations", (1,) * stages)):
            if checked[keyword] is None:
                checked[keyword] = default
        set_fields(self, checked)

    def tensors(self) -> Iterator[Parameter]:
        add, channels = partial(conv_norm, self.norm), self.in_channels
        for number, outputs in enumerate(stem_widths(self.stem, self.stem_width), 1):
            kernel = 7 if self.stem == "7x7" else 3
            yield from add(f"conv{number}", f"bn{number}", channels, outputs, kernel)
            channels = outputs
        if self.stem_pool == "conv":
            yield from add("pool_conv", "pool_bn", channels, channels, 3)
        for stage, depth in enumerate(self.depths):
            stride, _, dilation = checks.stage_steps(stage, vars(self))
            planes = self.width * 2**stage
            outputs = planes * (4 if self.block == "bottleneck" else 1)
            inner = planes * self.width_per_group // 64 * self.groups
            for index in range(depth):
                prefix = f"layer{stage + 1}.{index}."
                reduces = index == 0 and (stride > 1 or dilation > 1)
                if self.block == "bottleneck":
                    first = inner // self.reduce_first
                    yield from add(f"{prefix}conv1", f"{prefix}bn1", channels, first, 1)
                    yield from self._strided(prefix, 2, first, inner)
                    yield from add(f"{prefix}conv3", f"{prefix}bn3", inner, outputs, 1)
                else:
                    yield from self._strided(prefix, 1, channels, planes)
                    yield from add(f"{prefix}conv2", f"{prefix}bn2", planes, planes, 3)
                eca_size = self.eca_kernel_sizes[stage] if self.eca_kernel_sizes else None
                yield from attention_tensors(self, f"{prefix}{self.attention}.", outputs, eca_size)
                if (index == 0 and stride > 1) or channels != outputs:
                    kernel = self.downsample_kernel if reduces else 1
                    yield from add(
                        f"{prefix}downsample.0", f"{prefix}downsample.1", channels, outputs, kernel
                    )
                channels = outputs
        if self.num_classes:
            pooled = channels * (2 if self.global_pool == "catavgmax" else 1)
            yield from dense("fc", pooled, self.num_classes, self.head_bias)

    def _strided(self, prefix: str, number: int, inputs: int, outputs: int) -> Iterator[Parameter]:
        """The 3x3 convolution that has a block's stride, or the selective kernels in its place."""
        add = partial(conv_norm, self.norm)
        if self.attention != "sk":
            yield from add(f"{prefix}conv{number}", f"{prefix}bn{number}", inputs, outputs, 3, self.groups)
            return
        inputs = inputs // 2 if self.sk_split else inputs
        yield from add(f"{prefix}sk.conv1", f"{prefix}sk.bn1", inputs, outputs, 3, self.groups)
        yield from add(f"{prefix}sk.conv2", f"{prefix}sk.bn2", inputs, outputs, 3, self.groups)
        hidden = max(outputs // self.reduction, self.sk_min_hidden)
        yield from dense(f"{prefix}sk.fc1", outputs, hidden, self.norm != "bn", "sk_dense")
        if self.norm != "bias":
            yield from batch_norm(f"{prefix}sk.bn", hidden)
        yield from dense(f"{prefix}sk.fc2", hidden, 2 * outputs, False, "sk_dense")

    @classmethod
    def widest(cls) -> list[Self]:
        return [
            cls(stem="deep", stem_pool="conv", norm="bias_bn", attention=kind, cbam_spatial_bias=True)
            for kind in ("cbam", "se", "eca", "sk")
        ]

    @classmethod
    def like(cls, name: str) -> Parameter | None:
        return super().like(_BLOCK.sub("layer1.0.", name, count=1))

    def part(self, names: Collection[str]) -> Self:
        blocks = [tuple(map(int, found.groups())) for name in names if (found := _BLOCK.match(name))]
        depths: list[int] = []
        while of_stage := [index for stage, index in blocks if stage == len(depths) + 1]:
            depths.append(max(of_stage) + 1)
        if not depths:
            raise SpecError(
                "a part of a residual network that ends before its first block, expected layer1_0 too"
            )
        of_stages = ("strides", "dilations", "eca_kernel_sizes")
        fewer = {name: sizes[: len(depths)] for name in of_stages if (sizes := getattr(self, name))}
        return changed(super().part(names), {"depths": tuple(depths), **fewer})

    def stages(self) -> dict[str, tuple[str, ...]]:
        numbers = range(1, 1 + len(stem_widths(self.stem, self.stem_width)))
        stem = tuple(f"{layer}{number}" for number in numbers for layer in ("conv", "bn"))
        stem += ("pool_conv", "pool_bn") if self.stem_pool == "conv" else ()
        layers = {f"layer{stage}": (f"layer{stage}",) for stage in range(1, 1 + len(self.depths))}
        return {"stem": stem, **layers, "pooled": (), "logits": ("fc",)}

    def member_class(self, path: str) -> str:  # noqa: ARG002
        return BLOCK_CLASSES[self.block]

    def norm_after(self, convolution: str) -> str:
        if convolution.endswith("downsample.0"):
            return f"{convolution[:-1]}1"
        if convolution.endswith("sk.fc1"):
            return f"{convolution[:-3]}bn"
        return convolution.replace("conv", "bn")

    def concerns(self, keyword: str) -> bool:
        if keyword == "relu_before_attention":
            return self.attention != "none"
        if keyword == "stem_pool":  # networks for small images have no pool
            return self.stem != "3x3" and self.stem_pool != "conv"
        if keyword == "global_pool":
            return self.global_pool != "catavgmax"
        return self.block == "bottleneck" if keyword == "stride_in" else super().concerns(keyword)

    @property
    def input_channels(self) -> int:
        return self.in_channels

    @property
    def image_size(self) -> int:
        return 32 if self.stem == "3x3" else 224


def stem_widths(stem: str, width: int) -> tuple[int, ...]:
    """The channels of each convolution of a stem.

    >>> stem_widths("7x7", 64), stem_widths("deep", 64), stem_widths("deep_tiered", 32)
    ((64,), (64, 64, 128), (24, 32, 64))
    """
    if stem == "deep":
        return width, width, 2 * width
    if stem == "deep_tiered":
        return 3 * (width // 4), width, 2 * width
    return (width,)
