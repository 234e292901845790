"""Inception-v3 as data, with or without attention after each module."""

from __future__ import annotations

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
from weights_convert.spec.inception_table import Branch, convolutions, width_of
from weights_convert.spec.inception_v3_table import AUX_INPUT, MODULES, aux_of, check_image, network_of


@dataclass(frozen=True, kw_only=True)
class InceptionV3Spec(Spec):
    """Inception-v3 (arXiv 1512.00567); the defaults are torchvision's without the auxiliary head."""

    kind = "inception_v3"
    network = "InceptionV3"
    head = "fc"
    structure = ("width_multiplier", "attention")
    parts = ({"aux_head": False}, {"aux_head": True})
    unseen = {  # noqa: RUF012
        "last_pool": lambda _: True,
        "count_padding": lambda _: True,
        "transform_input": lambda _: True,
        "cbam_order": has_cbam,
        "cbam_spatial_input": has_cbam,
        "cbam_bn_momentum": has_cbam_bn,
        "eca_padding": has_eca,
        "bn_epsilon": lambda spec: spec.norm != "bias" or has_cbam_bn(spec),
        "bn_momentum": lambda spec: spec.norm != "bias",
        "dropout": lambda _: True,
    }

    width_multiplier: float = 1.0  # factor of every width
    last_pool: str = "avg"  # of the last module
    count_padding: bool = True  # whether average pools divide by 9 at the edge too
    transform_input: bool = False  # whether images normalised for ImageNet are first normalised with 0.5
    aux_head: bool = False  # whether there is an auxiliary classifier
    norm: str = "bn"  # after each convolution, as in `ResNetSpec`
    eca_kernel_sizes: tuple[int, ...] | None = None  # one per module; None: the paper's rule
    bn_epsilon: float = 1e-3
    bn_momentum: float = 0.1
    dropout: float = 0.5
    num_classes: int = 1000
    head_bias: bool = True
    in_channels: int = 3

    def __post_init__(self) -> None:
        with as_spec_error():
            set_fields(self, checks.check_keywords(vars(self), self.kind))

    @property
    def heads(self) -> tuple[str, ...]:
        return (self.head, "AuxLogits.fc") if self.aux_head else (self.head,)

    def tensors(self) -> Iterator[Parameter]:
        table = network_of(vars(self))
        yield from self._chain("", table.stem, self.in_channels)
        channels = width_of([table.stem], self.in_channels)
        for number, (name, branches) in enumerate(table.modules):
            for steps in branches:
                yield from self._chain(f"{name}.", steps, channels)
            channels = width_of(branches, channels)
            eca_size = self.eca_kernel_sizes[number] if self.eca_kernel_sizes else None
            yield from attention_tensors(self, f"{name}.{self.attention}.", channels, eca_size)
            if name == AUX_INPUT and self.aux_head:
                yield from self._chain("AuxLogits.", aux_of(vars(self)), channels)
                yield from self._classifier("AuxLogits.fc", width_of([aux_of(vars(self))], channels))
        yield from self._classifier("fc", channels)

    def _chain(self, prefix: str, steps: Branch, channels: int) -> Iterator[Parameter]:
        for conv, inputs in convolutions(steps):
            unit = f"{prefix}{conv.name}"
            yield from conv_norm(
                self.norm, f"{unit}.conv", f"{unit}.bn", inputs or channels, conv.width, conv.kernel
            )

    def _classifier(self, name: str, channels: int) -> Iterator[Parameter]:
        if self.num_classes:
            yield from dense(name, channels, self.num_classes, self.head_bias, role="head_dense")

    def norm_after(self, convolution: str) -> str:
        return convolution.removesuffix("conv") + "bn"

    def check_image(self, rows: int, columns: int) -> None:
        with as_spec_error():
            check_image(self.aux_head, rows, columns)

    def part(self, names: Collection[str]) -> Self:
        if not any(name.startswith(f"{MODULES[-1]}.") for name in names):
            raise SpecError(
                f"a part of an Inception network that ends before {MODULES[-1]}, expected {MODULES[-1]} too"
            )
        return super().part(names)

    @classmethod
    def widest(cls) -> list[Self]:
        return [
            cls(norm=norm, attention=kind, cbam_spatial_bias=True, aux_head=True)
            for norm in ("bias_bn", "bias")
            for kind in ("cbam", "se", "eca")
        ]

    def stages(self) -> dict[str, tuple[str, ...]]:
        stem = tuple(conv.name for conv, _ in convolutions(network_of(vars(self)).stem))
        modules = {name: (name,) for name in MODULES}
        aux = {"aux_logits": ("AuxLogits",)} if self.aux_head else {}
        return {"stem": stem, **modules, "pooled": (), "logits": ("fc",), **aux}

    @property
    def blocks(self) -> int:
        return len(MODULES)

    @property
    def input_channels(self) -> int:
        return self.in_channels

    @property
    def image_size(self) -> int:
        return 299

    @property
    def small_image_size(self) -> int:
        return self.image_size if self.aux_head else 139  # the last maps have 3 x 3 values
