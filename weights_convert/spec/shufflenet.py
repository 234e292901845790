"""ShuffleNetV1 as data, with or without attention in each unit."""

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
class ShuffleNetSpec(StagedSpec):
    """ShuffleNetV1 (arXiv 1707.01083); the defaults are the paper's network with three groups."""

    kind = "shufflenet"
    network = "ShuffleNet"
    first_stage = 2
    unit = "shuffle_unit"
    structure = ("depths", "widths", "stem_width", "groups", "attention")
    unseen = {  # noqa: RUF012
        "shuffle_after": lambda spec: spec.groups > 1,
        "shuffle_view": lambda spec: spec.groups > 1,
        "concat_order": lambda _: True,
        "count_padding": lambda _: True,
        "attention_on": has_eca,
        "cbam_order": has_cbam,
        "cbam_spatial_input": has_cbam,
        "cbam_bn_momentum": has_cbam_bn,
        "eca_padding": has_eca,
        "bn_epsilon": lambda spec: spec.norm != "bias" or has_cbam_bn(spec),
        "bn_momentum": lambda spec: spec.norm != "bias",
        "dropout": lambda _: True,
    }

    depths: tuple[int, ...] = (4, 8, 4)  # units of each stage, from stage 2; the first has stride 2
    widths: tuple[int, ...] = (240, 480, 960)  # channels of each stage
    stem_width: int = 24
    groups: int = 3  # of the 1x1 convolutions but the first, and of the shuffle
    shuffle_after: str = "conv1"
    shuffle_view: str = "groups_first"
    concat_order: str = "branch_shortcut"
    count_padding: bool = True
    norm: str = "bn"  # after each convolution, as in `ResNetSpec`
    attention_on: str = "branch"
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
            inner = checks.inner_width(width)
            for index in range(depth):
                unit = f"stage{stage + 2}.{index}"
                groups = self.groups if stage or index else 1
                branch = width if index else width - channels
                yield from add(f"{unit}.conv1", f"{unit}.bn1", channels, inner, 1, groups)
                yield from add(f"{unit}.conv2", f"{unit}.bn2", inner, inner, 3, inner, "depthwise")
                yield from add(f"{unit}.conv3", f"{unit}.bn3", inner, branch, 1, self.groups)
                gated = branch if self.attention_on == "branch" else width
                yield from attention_tensors(self, f"{unit}.{self.attention}.", gated, eca_size)
                channels = width
        if self.num_classes:
            yield from dense("fc", channels, self.num_classes, self.head_bias)

    def concerns(self, keyword: str) -> bool:
        return self.attention != "none" if keyword == "attention_on" else super().concerns(keyword)
