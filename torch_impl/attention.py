"""Channel and spatial attention for CNNs in PyTorch: SE, CBAM, ECA.

SE:   Squeeze-and-Excitation Networks, https://arxiv.org/abs/1709.01507
CBAM: Convolutional Block Attention Module, https://arxiv.org/abs/1807.06521
ECA:  Efficient Channel Attention, https://arxiv.org/abs/1910.03151

Each block keeps the shape (N, C, H, W) and the dtype of its input, so it fits into any network. This file
depends only on torch. Read it beside the same file in `keras_impl` and `tf1_compat`.
"""

from __future__ import annotations

import math
from contextlib import suppress
from numbers import Integral, Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CBAM", "ECA", "ChannelAttention", "SpatialAttention", "SqueezeExcitation"]

_HIDDEN_RULES = ("floor", "multiple_of_8", "absolute")
_MOST = 2**31 - 1  # largest size


class SqueezeExcitation(nn.Module):
    """SE block, arXiv 1709.01507: x * sigmoid(W2 relu(W1 mean(x))), eq. 2-4.

    Input and output: (N, C, H, W).

    Args:
        channels: C of the input.
        reduction: r, the factor by which the hidden layer is narrower.
        hidden_rule: hidden width: C / r by "floor" or to a "multiple_of_8" (timm), or r itself ("absolute").
        bias: whether the two layers have biases (the paper's models: yes).

    Raises:
        ValueError: an argument is invalid, or the input has the wrong shape.

    Example:
        >>> SqueezeExcitation(64)(torch.zeros(2, 64, 7, 7)).shape
        torch.Size([2, 64, 7, 7])
    """

    def __init__(self, channels: int, reduction: int = 16, *, hidden_rule: str = "floor", bias: bool = True):
        super().__init__()
        channels = check_int("channels", channels)
        hidden, bias = hidden_channels(channels, reduction, hidden_rule), check_bool("bias", bias)
        self.fc1 = nn.Linear(channels, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, channels, bias=bias)

    def gate(self, x: Tensor) -> Tensor:
        """The factor of each channel, from 0 to 1: (N, C)."""
        check_input(x, self.fc1.in_features)
        z = x.mean((2, 3))  # (N, C), eq. 2: squeeze
        return torch.sigmoid(self.fc2(F.relu(self.fc1(z))))  # (N, C), eq. 3: excitation

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)[:, :, None, None]  # (N, C, H, W), eq. 4: scale


class ChannelAttention(nn.Module):
    """Channel gate of CBAM, arXiv 1807.06521 eq. 2: x * sigmoid(MLP(mean(x)) + MLP(max(x))).

    Input and output: (N, C, H, W).

    Args:
        channels, reduction, hidden_rule: as in `SqueezeExcitation`.
        bias: whether the shared MLP has biases (the authors' code: yes).

    Raises:
        ValueError: an argument is invalid, or the input has the wrong shape.

    Example:
        >>> ChannelAttention(64)(torch.zeros(2, 64, 7, 7)).shape
        torch.Size([2, 64, 7, 7])
    """

    def __init__(self, channels: int, reduction: int = 16, *, hidden_rule: str = "floor", bias: bool = True):
        super().__init__()
        channels = check_int("channels", channels)
        hidden, bias = hidden_channels(channels, reduction, hidden_rule), check_bool("bias", bias)
        self.fc1 = nn.Linear(channels, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, channels, bias=bias)

    def mlp(self, z: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(z)))

    def gate(self, x: Tensor) -> Tensor:
        """The factor of each channel, from 0 to 1: (N, C)."""
        check_input(x, self.fc1.in_features)
        # amax instead of adaptive_max_pool2d: amax splits the gradient among ties, as tf.reduce_max does
        return torch.sigmoid(self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3))))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)[:, :, None, None]


class SpatialAttention(nn.Module):
    """Spatial gate of CBAM, arXiv 1807.06521 eq. 3: sigmoid(BN(conv7x7([max(x); mean(x)]))), (N, 1, H, W).

    Input (N, C, H, W), output (N, 1, H, W): the gate itself, because CBAM's variants multiply different
    tensors with it.

    Args:
        kernel_size: odd.
        order: order of the two pooled maps, "max_mean" (the authors' code) or "mean_max".
        bn: whether a batch normalisation follows the convolution (the authors' code: yes).
        bn_momentum: weight of the new batch in its running statistics.
        bn_epsilon: added to the variance in that batch normalisation.
        bias: whether the convolution has a bias.

    Raises:
        ValueError: an argument is invalid, or the input has the wrong shape.

    Example:
        >>> SpatialAttention(kernel_size=3)(torch.zeros(2, 64, 7, 7)).shape
        torch.Size([2, 1, 7, 7])
    """

    def __init__(
        self,
        kernel_size: int = 7,
        *,
        order: str = "max_mean",
        bn: bool = True,
        bn_momentum: float = 0.01,
        bn_epsilon: float = 1e-5,
        bias: bool = False,
    ):
        super().__init__()
        self.order = check_choice("order", order, ("max_mean", "mean_max"))
        size, bias = check_odd("kernel_size", kernel_size), check_bool("bias", bias)
        self.conv = kaiming_normal(nn.Conv2d(2, 1, size, padding=size // 2, bias=bias))
        epsilon, momentum = check_float("bn_epsilon", bn_epsilon), check_float("bn_momentum", bn_momentum)
        self.bn = nn.BatchNorm2d(1, eps=epsilon, momentum=momentum) if check_bool("bn", bn) else None

    def gate(self, x: Tensor) -> Tensor:
        """The factor of each place, from 0 to 1: (N, 1, H, W)."""
        check_input(x)
        maps = [x.amax(1, keepdim=True), x.mean(1, keepdim=True)]
        if self.order == "mean_max":
            maps.reverse()
        gate = self.conv(torch.cat(maps, 1))  # (N, 2, H, W) -> (N, 1, H, W)
        if self.bn is not None:
            gate = self.bn(gate)
        return torch.sigmoid(gate)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x)


class CBAM(nn.Module):
    """Convolutional block attention module, arXiv 1807.06521 eq. 1: channel attention, then spatial.

    Input and output: (N, C, H, W).

    Args:
        channels, reduction, hidden_rule: as in `SqueezeExcitation`.
        mlp_bias: whether the channel MLP has biases.
        order, kernel_size, bn, bn_momentum, bn_epsilon: as in `SpatialAttention`.
        spatial_bias: whether the spatial convolution has a bias.
        spatial_input: input of the spatial gate, the channel-"refined" map (the paper) or the "input".

    Raises:
        ValueError: an argument is invalid, or the input has the wrong shape.

    Example:
        >>> CBAM(64, order="mean_max")(torch.zeros(2, 64, 7, 7)).shape
        torch.Size([2, 64, 7, 7])
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        *,
        hidden_rule: str = "floor",
        mlp_bias: bool = True,
        order: str = "max_mean",
        kernel_size: int = 7,
        bn: bool = True,
        bn_momentum: float = 0.01,
        bn_epsilon: float = 1e-5,
        spatial_bias: bool = False,
        spatial_input: str = "refined",
    ):
        super().__init__()
        self.spatial_input = check_choice("spatial_input", spatial_input, ("refined", "input"))
        mlp_bias, spatial_bias = check_bool("mlp_bias", mlp_bias), check_bool("spatial_bias", spatial_bias)
        self.channel = ChannelAttention(channels, reduction, hidden_rule=hidden_rule, bias=mlp_bias)
        self.spatial = SpatialAttention(
            kernel_size, order=order, bn=bn, bn_momentum=bn_momentum, bn_epsilon=bn_epsilon, bias=spatial_bias
        )

    def forward(self, x: Tensor) -> Tensor:
        refined = self.channel(x)
        return refined * self.spatial(refined if self.spatial_input == "refined" else x)


class ECA(nn.Module):
    """Efficient channel attention, arXiv 1910.03151 eq. 5: x * sigmoid(conv1d(mean(x))) across channels.

    Input and output: (N, C, H, W).

    Args:
        channels: C of the input.
        kernel_size: odd; None computes it from C by eq. 12.
        padding: beyond the first and last channel, "zeros" or "circular" (the channels form a ring).

    Raises:
        ValueError: an argument is invalid, or the input has the wrong shape.

    Example:
        >>> ECA(256).conv.kernel_size
        (5,)
    """

    def __init__(self, channels: int, kernel_size: int | None = None, padding: str = "zeros"):
        super().__init__()
        self.channels = check_int("channels", channels)
        size = eca_kernel_size(channels) if kernel_size is None else check_odd("kernel_size", kernel_size)
        mode = check_choice("padding", padding, ("zeros", "circular"))
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False, padding_mode=mode)

    def gate(self, x: Tensor) -> Tensor:
        """The factor of each channel, from 0 to 1: (N, C)."""
        check_input(x, self.channels)
        z = x.mean((2, 3))[:, None, :]  # (N, 1, C): the channels are the sequence
        return torch.sigmoid(self.conv(z))[:, 0, :]  # (N, C)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)[:, :, None, None]


# --------------------------------------------------------------------------------------------------
# Used by the blocks above


def check_choice(name: str, value: Any, choices: tuple) -> Any:
    """Return the entry of `choices` that equals `value` (Python's or NumPy's), or raise `ValueError`."""
    given = value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value
    for choice in choices:
        same_kind = isinstance(given, type(choice)) and isinstance(given, bool) == isinstance(choice, bool)
        if same_kind and given == choice:
            return choice
    raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, choices))}")


def check_bool(name: str, value: Any) -> bool:
    """Return a bool (Python's or NumPy's) as a Python bool, or raise `ValueError`."""
    return bool(check_choice(name, value, (True, False)))


def check_int(name: str, value: Any) -> int:
    """Return an int from 1 to 2 ** 31 - 1 (Python's or NumPy's) as a Python int, or raise `ValueError`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < 1:
        raise ValueError(f"{name}={value!r}: expected an int of at least 1")
    if int(value) > _MOST:
        raise ValueError(f"{name}={value!r}: expected an int of at most {_MOST}")
    return int(value)


def check_odd(name: str, value: Any) -> int:
    """Return an odd int as a Python int, or raise `ValueError`: frameworks pad even kernels differently."""
    if isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 0 and int(value) % 2:
        return check_int(name, value)
    raise ValueError(f"{name}={value!r}: expected an odd int of at least 1")


def check_float(name: str, value: Any) -> float:
    """Return a finite number of at least 0 (Python's or NumPy's) as a Python float, or raise `ValueError`."""
    with suppress(OverflowError):  # an int too large for a float
        if isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < math.inf:
            return float(value)
    raise ValueError(f"{name}={value!r}: expected a finite float of at least 0")


@torch.fx.wrap  # torch.fx records the call as one step: while it traces, shapes are unknown
def check_input(x: Tensor, channels: int | None = None) -> None:
    """Raise `ValueError` unless `x` is (N, C, H, W) with C = `channels` (None: any C)."""
    if torch.jit.is_tracing():  # a comparison of shapes would make it warn
        return
    if x.dim() != 4 or (channels is not None and x.shape[1] != channels):
        wanted = "C" if channels is None else str(channels)
        shape = ", ".join([str(size) for size in x.shape])
        raise ValueError(f"input of shape ({shape}), expected (N, {wanted}, H, W)")


def kaiming_normal(conv: nn.Conv2d) -> nn.Conv2d:
    """Give a convolution's kernel He's initial values (https://arxiv.org/abs/1502.01852, fan-out)."""
    # a module on the meta device gets its weights later; initialising it would import torch's compiler
    if not conv.weight.is_meta:
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def hidden_channels(channels: int, reduction: int, hidden_rule: str = "floor") -> int:
    """Hidden width of an attention MLP: C // r, C / r rounded to a multiple of 8, or r ("absolute")."""
    check_choice("hidden_rule", hidden_rule, _HIDDEN_RULES)
    reduction = check_int("reduction", reduction)
    if hidden_rule == "absolute":
        return reduction
    if hidden_rule == "multiple_of_8":
        return max(8, int(channels / reduction + 4) // 8 * 8)
    return max(1, channels // reduction)


def eca_kernel_size(channels: int) -> int:
    """ECA's kernel size by eq. 12 with gamma = 2 and b = 1: rounded up to odd, at least 3."""
    size = int(abs((math.log2(channels) + 1) / 2))
    return max(3, size if size % 2 else size + 1)
