"""The tensors of SE, CBAM and ECA blocks, in a network and as single blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from weights_convert.spec import checks
from weights_convert.spec.base import (
    AttentionOptions,
    Parameter,
    Spec,
    as_spec_error,
    batch_norm,
    dense,
    has_cbam,
    has_cbam_bn,
    has_eca,
    set_fields,
)


@dataclass(frozen=True, kw_only=True)
class AttentionSpec(Spec):
    """A single attention block: its tensors have the network's names without the prefix.

    >>> from weights_convert.spec import parameters
    >>> [parameter.name for parameter in parameters(AttentionSpec(attention="se", channels=64))]
    ['fc1.weight', 'fc1.bias', 'fc2.weight', 'fc2.bias']
    """

    kind = "attention"
    unseen = {  # noqa: RUF012
        "cbam_order": has_cbam,
        "cbam_spatial_input": has_cbam,
        "cbam_bn_momentum": has_cbam_bn,
        "bn_epsilon": has_cbam_bn,
        "eca_padding": has_eca,
        "channels": has_eca,
    }

    attention: str = "se"
    channels: int = 64
    eca_kernel_size: int | None = None

    def __post_init__(self) -> None:
        with as_spec_error():
            checked = {name: _CHECKS[name](name, value) for name, value in vars(self).items()}
        set_fields(self, checked)

    def tensors(self) -> Iterator[Parameter]:
        return attention_tensors(self, "", self.channels, self.eca_kernel_size)

    @classmethod
    def widest(cls) -> list[Self]:
        return [cls(attention=kind, cbam_spatial_bias=True) for kind in ("cbam", "se", "eca")]

    @property
    def input_channels(self) -> int:
        return self.channels


def _odd_or_none(name: str, value: Any) -> int | None:
    return None if value is None else checks.check_odd(name, value)


_CHECKS = checks.CHECKS | {
    "attention": partial(checks.check_choice, choices=("se", "cbam", "eca")),
    "channels": checks.check_int,
    "eca_kernel_size": _odd_or_none,
}


def hidden_channels(channels: int, reduction: int, rule: str = "floor") -> int:
    """The hidden width of an attention MLP.

    >>> [hidden_channels(64, 16, rule) for rule in ("floor", "multiple_of_8", "absolute")]
    [4, 8, 16]
    """
    if rule == "absolute":
        return reduction
    if rule == "multiple_of_8":
        return max(8, int(channels / reduction + 4) // 8 * 8)
    return max(1, channels // reduction)


def eca_kernel_size(channels: int) -> int:
    """ECA's kernel size, arXiv 1910.03151 eq. 12 with gamma 2 and b 1: rounded up to odd, at least 3.

    >>> [eca_kernel_size(channels) for channels in (64, 128, 256, 512, 1024, 2048)]
    [3, 5, 5, 5, 5, 7]
    """
    size = int(abs((math.log2(channels) + 1) / 2))
    return max(3, size if size % 2 else size + 1)


def attention_tensors(
    options: AttentionOptions, prefix: str, channels: int, eca_size: int | None = None
) -> Iterator[Parameter]:
    """The tensors of a block with these options; `prefix` is "layer1.0.se.", or "" for a single block."""
    hidden = hidden_channels(channels, options.reduction, options.hidden_rule)
    role = f"{options.attention}_dense" if prefix else "dense"
    if options.attention == "se":
        yield from dense(f"{prefix}fc1", channels, hidden, options.se_bias, role)
        yield from dense(f"{prefix}fc2", hidden, channels, options.se_bias, role)
    elif options.attention == "cbam":
        yield from dense(f"{prefix}channel.fc1", channels, hidden, options.cbam_mlp_bias, role)
        yield from dense(f"{prefix}channel.fc2", hidden, channels, options.cbam_mlp_bias, role)
        yield Parameter(f"{prefix}spatial.conv.weight", (1, 2, *[options.cbam_kernel_size] * 2), "conv2d")
        if options.cbam_spatial_bias:
            yield Parameter(f"{prefix}spatial.conv.bias", (1,), "bias")
        if options.cbam_bn:
            yield from batch_norm(f"{prefix}spatial.bn", 1)
    elif options.attention == "eca":
        yield Parameter(f"{prefix}conv.weight", (1, 1, eca_size or eca_kernel_size(channels)), "conv1d")
