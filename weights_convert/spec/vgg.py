"""VGG with batch normalisation as data, with or without attention after each ReLU."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Self

from weights_convert.errors import SpecError
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
    has_eca,
    set_fields,
)


@dataclass(frozen=True, kw_only=True)
class VGGSpec(Spec):
    """VGG (arXiv 1409.1556); the defaults are torchvision's `vgg16_bn`."""

    kind = "vgg"
    network = "VGG"
    head = "classifier.6"
    structure = ("depths", "widths", "attention")
    unseen = {  # noqa: RUF012
        "cbam_order": has_cbam,
        "cbam_spatial_input": has_cbam,
        "cbam_bn_momentum": has_cbam_bn,
        "eca_padding": has_eca,
        "bn_epsilon": lambda spec: spec.norm != "bias" or has_cbam_bn(spec),
        "bn_momentum": lambda spec: spec.norm != "bias",
        "dropout": lambda _: True,
    }

    depths: tuple[int, ...] = (2, 2, 3, 3, 3)  # convolutions of each stage; a 2x2 max-pool ends it
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)  # channels of each stage
    norm: str = "bias_bn"  # after each convolution, as in `ResNetSpec`
    pool_size: int = 7  # rows and columns of the adaptive average pool before the classifier
    head_width: int = 4096  # of the two hidden layers of the classifier
    eca_kernel_sizes: tuple[int, ...] | None = None  # one per stage; None: the paper's rule
    bn_momentum: float = 0.1
    dropout: float = 0.5
    num_classes: int = 1000
    head_bias: bool = True
    in_channels: int = 3

    def __post_init__(self) -> None:
        with as_spec_error():
            set_fields(self, checks.check_keywords(vars(self), self.kind))

    def tensors(self) -> Iterator[Parameter]:
        channels = self.in_channels
        for stage, first in enumerate(self.first_layers()):
            for number in range(self.depths[stage]):
                at = first + number * self.layers
                yield from conv_norm(
                    self.norm, f"features.{at}", f"features.{at + 1}", channels, self.widths[stage], 3
                )
                channels = self.widths[stage]
                prefix = f"features.{at + self.layers - 1}.{self.attention}."  # the ReLU's place
                eca_size = self.eca_kernel_sizes[stage] if self.eca_kernel_sizes else None
                yield from attention_tensors(self, prefix, channels, eca_size)
        yield from dense("classifier.0", channels * self.pool_size**2, self.head_width)
        yield from dense("classifier.3", self.head_width, self.head_width)
        if self.num_classes:
            yield from dense("classifier.6", self.head_width, self.num_classes, self.head_bias)

    def check_image(self, rows: int, columns: int) -> None:
        smallest = 2 ** len(self.depths)
        if min(rows, columns) < smallest:
            raise SpecError(f"images of {rows} x {columns}: expected at least {smallest} x {smallest}")

    def part(self, names: Collection[str]) -> Self:
        if not any(name.startswith("classifier.3.") for name in names):
            raise SpecError("a part of a VGG that ends before classifier_3, expected all but the last layer")
        return super().part(names)

    @property
    def layers(self) -> int:
        """Number of members of `features` per convolution: itself, its batch norm, the ReLU."""
        return 2 if self.norm == "bias" else 3

    def first_layers(self) -> Iterator[int]:
        """The number in `features` of each stage's first convolution."""
        number = 0
        for depth in self.depths:
            yield number
            number += depth * self.layers + 1  # and the max-pool

    @classmethod
    def widest(cls) -> list[Self]:
        return [
            cls(norm=norm, attention=kind, cbam_spatial_bias=True)
            for norm in ("bias_bn", "bias")
            for kind in ("cbam", "se", "eca")
        ]

    def stages(self) -> dict[str, tuple[str, ...]]:
        firsts = [*self.first_layers(), sum(self.depths) * self.layers + len(self.depths)]
        stages: dict[str, tuple[str, ...]] = {}
        for number, (first, end) in enumerate(itertools.pairwise(firsts), 1):
            stages[f"stage{number}"] = tuple(f"features.{layer}" for layer in range(first, end))
        return stages | {"pooled": (), "logits": ("classifier",)}

    def member_class(self, path: str) -> str:  # noqa: ARG002
        return "rectified"

    def norm_after(self, convolution: str) -> str:
        path, _, number = convolution.rpartition(".")
        return f"{path}.{int(number) + 1}" if number.isdigit() else super().norm_after(convolution)

    @property
    def input_channels(self) -> int:
        return self.in_channels
