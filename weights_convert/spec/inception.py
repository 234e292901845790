"""BN-Inception as data, with or without attention after each module."""

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
from weights_convert.spec.inception_table import (
    Branch,
    check_image,
    convolutions,
    module_count,
    network_of,
    width_of,
)


@dataclass(frozen=True, kw_only=True)
class InceptionSpec(Spec):
    """BN-Inception (arXiv 1502.03167); the defaults are the SENet authors' Caffe network."""

    kind = "inception"
    network = "Inception"
    head = "fc"
    structure = ("width_multiplier", "attention")
    unseen = {  # noqa: RUF012
        "reduction_pool": lambda _: True,
        "last_pool": lambda _: True,
        "count_padding": lambda _: True,
        "cbam_order": has_cbam,
        "cbam_spatial_input": has_cbam,
        "cbam_bn_momentum": has_cbam_bn,
        "eca_padding": has_eca,
        "bn_epsilon": lambda spec: spec.norm != "bias" or has_cbam_bn(spec),
        "bn_momentum": lambda spec: spec.norm != "bias",
        "dropout": lambda _: True,
    }

    width_multiplier: float = 1.0  # factor of every width
    reduction_pool: str = "ceil"  # padding of the max-pools with stride 2
    last_pool: str = "max"  # of the last module
    count_padding: bool = True  # whether average pools divide by 9 at the edge too
    norm: str = "bn"  # after each convolution, as in `ResNetSpec`
    eca_kernel_sizes: tuple[int, ...] | None = None  # one per module; None: the paper's rule
    bn_momentum: float = 0.1
    dropout: float = 0.0
    num_classes: int = 1000
    head_bias: bool = True
    in_channels: int = 3

    def __post_init__(self) -> None:
        with as_spec_error():
            set_fields(self, checks.check_keywords(vars(self), self.kind))

    def tensors(self) -> Iterator[Parameter]:
        table = network_of(vars(self))
        yield from self._chain("stem", table.stem, self.in_channels)
        channels = width_of([table.stem], self.in_channels)
        for number, (name, branches) in enumerate(table.modules):
            for place, steps in enumerate(branches, 1):
                yield from self._chain(f"{name}.branch{place}", steps, channels)
            channels = width_of(branches, channels)
            eca_size = self.eca_kernel_sizes[number] if self.eca_kernel_sizes else None
            yield from attention_tensors(self, f"{name}.{self.attention}.", channels, eca_size)
        if self.num_classes:
            yield from dense("fc", channels, self.num_classes, self.head_bias)

    def _chain(self, prefix: str, steps: Branch, channels: int) -> Iterator[Parameter]:
        for conv, inputs in convolutions(steps):
            unit = f"{prefix}.{conv.name}"
            yield from conv_norm(
                self.norm, f"{unit}.conv", f"{unit}.bn", inputs or channels, conv.width, conv.kernel
            )

    def check_image(self, rows: int, columns: int) -> None:
        with as_spec_error():
            check_image(self.model_kwargs(), rows, columns)

    def part(self, names: Collection[str]) -> Self:
        last = network_of(vars(self)).modules[-1].name
        if not any(name.startswith(f"{last}.") for name in names):
            raise SpecError(f"a part of an Inception network that ends before {last}, expected {last} too")
        return super().part(names)

    @classmethod
    def widest(cls) -> list[Self]:
        return [
            cls(norm=norm, attention=kind, cbam_spatial_bias=True)
            for norm in ("bias_bn", "bias")
            for kind in ("cbam", "se", "eca")
        ]

    def stages(self) -> dict[str, tuple[str, ...]]:
        names = ("stem", *(row.name for row in network_of(vars(self)).modules))
        return {name: (name,) for name in names} | {"pooled": (), "logits": ("fc",)}

    @property
    def blocks(self) -> int:
        return module_count()

    @property
    def input_channels(self) -> int:
        return self.in_channels
