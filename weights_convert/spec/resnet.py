"""Residual networks as data: ResNet v1.5, ResNeXt, SE-ResNet(Xt), SENet-154, CBAM-ResNet, ECA-ResNet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Self

from weights_convert.spec import checks
from weights_convert.spec.attention import attention_tensors
from weights_convert.spec.base import (
    Parameter,
    Spec,
    as_spec_error,
    conv_norm,
    dense,
    has_cbam,
    has_cbam_bn,
    set_fields,
)

_BLOCK = re.compile(r"layer\d{1,9}\.\d{1,9}\.")
BLOCK_CLASSES = {"basic": "basic_block", "bottleneck": "bottleneck"}  # Keras's names in lists


@dataclass(frozen=True, kw_only=True)
class ResNetSpec(Spec):
    """A residual network (ResNet v1.5, ResNeXt, SENet-154) with or without attention in its blocks."""

    kind = "resnet"
    network = "ResNet"
    head = "fc"
    structure = ("block", "depths", "width", "groups", "width_per_group", "reduce_first", "attention")
    unseen = {  # noqa: RUF012
        "stem_pool": lambda _: True,
        "stride_in": lambda spec: spec.block == "bottleneck",
        "downsample_pool": lambda _: True,
        "relu_before_attention": lambda spec: spec.attention != "none",
        "cbam_order": has_cbam,
        "cbam_spatial_input": has_cbam,
        "cbam_bn_momentum": has_cbam_bn,
        "bn_epsilon": lambda spec: spec.norm != "bias" or has_cbam_bn(spec),
        "bn_momentum": lambda spec: spec.norm != "bias",
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
    stride_in: str = "conv2"
    downsample_kernel: int = 1  # of the strided projections; layer1's is 1x1
    downsample_pool: str = "none"
    norm: str = "bn"  # after each convolution; "bias": batch normalisation folded into the convolution
    relu_before_attention: bool = False
    eca_kernel_sizes: tuple[int, ...] | None = None  # one per stage; None: the paper's rule
    bn_momentum: float = 0.1
    dropout: float = 0.0
    num_classes: int = 1000
    in_channels: int = 3

    def __post_init__(self) -> None:
        with as_spec_error():
            checked = checks.check_keywords(vars(self), self.kind)
        if checked["stem_pool"] is None:
            checked["stem_pool"] = "none" if checked["stem"] == "3x3" else "pad1"
        set_fields(self, checked)

    def tensors(self) -> Iterator[Parameter]:
        add, channels = partial(conv_norm, self.norm), self.in_channels
        for number, outputs in enumerate(stem_widths(self.stem, self.stem_width), 1):
            kernel = 7 if self.stem == "7x7" else 3
            yield from add(f"conv{number}", f"bn{number}", channels, outputs, kernel)
            channels = outputs
        for stage, depth in enumerate(self.depths):
            planes = self.width * 2**stage
            outputs = planes * (4 if self.block == "bottleneck" else 1)
            inner = planes * self.width_per_group // 64 * self.groups
            for index in range(depth):
                prefix = f"layer{stage + 1}.{index}."
                strided = stage > 0 and index == 0
                if self.block == "bottleneck":
                    first = inner // self.reduce_first
                    yield from add(f"{prefix}conv1", f"{prefix}bn1", channels, first, 1)
                    yield from add(f"{prefix}conv2", f"{prefix}bn2", first, inner, 3, self.groups)
                    yield from add(f"{prefix}conv3", f"{prefix}bn3", inner, outputs, 1)
                else:
                    yield from add(f"{prefix}conv1", f"{prefix}bn1", channels, planes, 3)
                    yield from add(f"{prefix}conv2", f"{prefix}bn2", planes, planes, 3)
                eca_size = self.eca_kernel_sizes[stage] if self.eca_kernel_sizes else None
                yield from attention_tensors(self, f"{prefix}{self.attention}.", outputs, eca_size)
                if strided or channels != outputs:
                    kernel = self.downsample_kernel if strided else 1
                    yield from add(
                        f"{prefix}downsample.0", f"{prefix}downsample.1", channels, outputs, kernel
                    )
                channels = outputs
        if self.num_classes:
            yield from dense("fc", channels, self.num_classes)

    @classmethod
    def widest(cls) -> list[Self]:
        return [
            cls(stem="deep", norm="bias_bn", attention=kind, cbam_spatial_bias=True)
            for kind in ("cbam", "se", "eca")
        ]

    @classmethod
    def like(cls, name: str) -> Parameter | None:
        return super().like(_BLOCK.sub("layer1.0.", name, count=1))

    def stages(self) -> dict[str, tuple[str, ...]]:
        numbers = range(1, 1 + len(stem_widths(self.stem, self.stem_width)))
        stem = tuple(f"{layer}{number}" for number in numbers for layer in ("conv", "bn"))
        layers = {f"layer{stage}": (f"layer{stage}",) for stage in range(1, 1 + len(self.depths))}
        return {"stem": stem, **layers, "pooled": (), "logits": ("fc",)}

    def member_class(self, path: str) -> str:  # noqa: ARG002
        return BLOCK_CLASSES[self.block]

    def norm_after(self, convolution: str) -> str:
        if convolution.endswith("downsample.0"):
            return f"{convolution[:-1]}1"
        return convolution.replace("conv", "bn")

    def concerns(self, keyword: str) -> bool:
        if keyword == "relu_before_attention":
            return self.attention != "none"
        if keyword == "stem_pool":  # networks for small images have no pool
            return self.stem != "3x3"
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
