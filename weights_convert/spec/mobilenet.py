"""MobileNetV1 as data, with or without attention after each pointwise convolution."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from weights_convert.spec import checks
from weights_convert.spec.attention import attention_tensors
from weights_convert.spec.base import (
    Parameter,
    as_spec_error,
    conv_norm,
    dense,
    has_cbam,
    has_cbam_bn,
    has_eca,
    set_fields,
)
from weights_convert.spec.staged import StagedSpec


@dataclass(frozen=True, kw_only=True)
class MobileNetSpec(StagedSpec):
    """MobileNetV1 (arXiv 1704.04861); the defaults are PyTorch's padding and ReLU."""

    kind = "mobilenet"
    network = "MobileNet"
    unit = "separable"
    structure = ("depths", "widths", "stem_width", "attention")
    unseen = {  # noqa: RUF012
        "stride_padding": lambda _: True,
        "activation": lambda _: True,
        "cbam_order": has_cbam,
        "cbam_spatial_input": has_cbam,
        "cbam_bn_momentum": has_cbam_bn,
        "eca_padding": has_eca,
        "bn_epsilon": lambda spec: spec.norm != "bias" or has_cbam_bn(spec),
        "bn_momentum": lambda spec: spec.norm != "bias",
        "dropout": lambda _: True,
    }

    depths: tuple[int, ...] = (1, 2, 2, 6, 2)  # units of each stage; the first of stage 2 and later strides
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)  # channels of each stage
    stem_width: int = 32
    stride_padding: str = "pad1"
    norm: str = "bn"  # after each convolution, as in `ResNetSpec`
    activation: str = "relu"
    eca_kernel_sizes: tuple[int, ...] | None = None  # one per stage; None: the paper's rule
    bn_momentum: float = 0.1
    dropout: float = 0.0
    num_classes: int = 1000
    head_bias: bool = True
    in_channels: int = 3

    def __post_init__(self) -> None:
        with as_spec_error():
            set_fields(self, checks.check_keywords(vars(self), self.kind))

    def tensors(self) -> Iterator[Parameter]:
        add, channels = partial(conv_norm, self.norm), self.stem_width
        yield from add("conv1", "bn1", self.in_channels, channels, 3)
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            eca_size = self.eca_kernel_sizes[stage] if self.eca_kernel_sizes else None
            for index in range(depth):
                unit = f"stage{stage + 1}.{index}"
                yield from add(f"{unit}.conv1", f"{unit}.bn1", channels, channels, 3, channels, "depthwise")
                yield from add(f"{unit}.conv2", f"{unit}.bn2", channels, width, 1)
                yield from attention_tensors(self, f"{unit}.{self.attention}.", width, eca_size)
                channels = width
        if self.num_classes:
            yield from dense("fc", channels, self.num_classes, self.head_bias, "head_dense")
