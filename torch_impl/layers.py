"""Convolution, activations and pooling in PyTorch, and the refusal of `torch.jit.script`.

Arrays are (N, C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import kaiming_normal

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": partial(F.relu, inplace=True),
    "silu": partial(F.silu, inplace=True),
    "gelu": F.gelu,  # x Phi(x), with the exact error function
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.01, inplace=True),
    "relu6": partial(F.relu6, inplace=True),  # min(max(x, 0), 6)
}


def conv2d(
    inputs: int,
    outputs: int,
    kernel_size: int | tuple[int, int],
    stride: int = 1,
    groups: int = 1,
    *,
    dilation: int = 1,
    padding: str = "pad1",
    bias: bool = False,
) -> nn.Conv2d:
    """A convolution padded by dilation * (k // 2) on each side, or not ("valid"); by default without bias."""
    sizes = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    rows, columns = (0 if padding == "valid" else dilation * (size // 2) for size in sizes)
    conv = nn.Conv2d(inputs, outputs, sizes, stride, (rows, columns), dilation, groups, bias)
    return kaiming_normal(conv)


def depthwise_conv2d(
    channels: int, kernel_size: int, stride: int = 1, *, padding: str = "pad1", bias: bool = False
) -> nn.Conv2d:
    """A convolution of each channel with its own kernel; `padding` as in `strided_conv2d`."""
    conv = strided_conv2d(channels, channels, kernel_size, stride, channels, padding=padding, bias=bias)
    if not conv.weight.is_meta:  # He's initial values; `kaiming_normal` counts the outputs of all groups
        nn.init.normal_(conv.weight, std=(2 / kernel_size**2) ** 0.5)
    return conv


def strided_conv2d(
    inputs: int,
    outputs: int,
    kernel_size: int,
    stride: int = 1,
    groups: int = 1,
    *,
    padding: str = "pad1",
    bias: bool = False,
) -> nn.Conv2d:
    """`conv2d` whose stride of 2 pads by k // 2 on each side ("pad1"), or as `EndPaddedConv2d`."""
    if stride == 1 or padding == "pad1":
        return conv2d(inputs, outputs, kernel_size, stride, groups, bias=bias)
    return kaiming_normal(EndPaddedConv2d(inputs, outputs, kernel_size, stride, groups, padding, bias))


class EndPaddedConv2d(nn.Conv2d):
    """A convolution of stride 2 with more zeros at the end than at the beginning.

    Its `rule` is "same", TensorFlow's padding, which depends on the size, or "end": k // 2 zeros at the end.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int, stride: int, groups: int, rule: str, bias: bool
    ):
        super().__init__(inputs, outputs, kernel_size, stride, groups=groups, bias=bias)
        self.rule = rule

    def forward(self, x: Tensor) -> Tensor:
        half = self.kernel_size[0] // 2
        top, left = (x.shape[2] % 2, x.shape[3] % 2) if self.rule == "same" else (0, 0)
        return super().forward(F.pad(x, (left * half, half, top * half, half)))


class Activation(nn.Module):
    """One of `ACTIVATIONS` as a module."""

    def __init__(self, activation: str):
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](x)


class MaxPoolSame(nn.Module):
    """Max-pool 3x3, stride 2, with TensorFlow's SAME padding, which pads even sizes at the end only."""

    def forward(self, x: Tensor) -> Tensor:
        top, left = x.shape[2] % 2, x.shape[3] % 2
        return F.max_pool2d(F.pad(x, (left, 1, top, 1), value=float("-inf")), 3, 2)


STEM_POOLS: dict[str, Callable[[], nn.Module]] = {
    "pad1": partial(nn.MaxPool2d, 3, 2, padding=1),
    "ceil": partial(nn.MaxPool2d, 3, 2, ceil_mode=True),
    "same": MaxPoolSame,
    "none": nn.Identity,
}


class BlurPool2d(nn.Module):
    """The filter (1, 2, 1) / 4 along both axes, then every `stride`-th value; edges are mirrored.

    Zhang, "Making Convolutional Networks Shift-Invariant Again", https://arxiv.org/abs/1904.11486.
    """

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.avg_pool2d(F.avg_pool2d(x, 2, 1), 2, self.stride)  # two means of pairs are (1, 2, 1) / 4


def anti_aliasing_pool(rule: str, stride: int) -> nn.Module:
    """The pool that carries the stride of a convolution: "avg" or "blur"."""
    return BlurPool2d(stride) if rule == "blur" else nn.AvgPool2d(stride)


class DilatedAveragePool(nn.Module):
    """Means of 2x2 squares, stride 1; a row and a column of zeros at the end keep the size, and count."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 2, 1)


def shuffle_channels(x: Tensor, groups: int, view: str) -> Tensor:
    """Transpose the channels of (N, C, H, W), seen as (groups, C / groups) or, "groups_last", the reverse.

    ShuffleNet: https://arxiv.org/abs/1707.01083, section 3.1.

    Example:
        >>> x = torch.arange(6).view(1, 6, 1, 1)
        >>> [shuffle_channels(x, 3, view).flatten().tolist() for view in ("groups_first", "groups_last")]
        [[0, 2, 4, 1, 3, 5], [0, 3, 1, 4, 2, 5]]
    """
    n, channels, rows, columns = x.shape
    first = groups if view == "groups_first" else channels // groups
    return x.view(n, first, -1, rows, columns).transpose(1, 2).reshape(n, channels, rows, columns)


def pool_globally(x: Tensor, rule: str) -> Tensor:
    """(N, C, H, W) -> (N, C): mean ("avg"), maximum ("max") or half their sum ("avgmax").

    "catavgmax" is the mean followed by the maximum: (N, 2 C).
    """
    if rule == "avg":
        return x.mean((2, 3))
    if rule == "max":
        return x.amax((2, 3))
    mean, maximum = x.mean((2, 3)), x.amax((2, 3))
    return torch.cat((mean, maximum), 1) if rule == "catavgmax" else 0.5 * mean + 0.5 * maximum


def refuse_script(module: nn.Module) -> None:
    """Raise `TypeError`. As the method `__prepare_scriptable__`: `torch.jit.script` calls it first."""
    raise TypeError(
        f"torch.jit.script cannot compile {type(module).__name__}; use torch.jit.trace(model.eval(), images) "
        "or torch.export.export(model.eval(), (images,))"
    )
