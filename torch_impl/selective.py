"""Selective kernels in PyTorch: two 3x3 convolutions, weighted channel by channel.

Selective Kernel Networks: https://arxiv.org/abs/1903.06586
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import ACTIVATIONS, conv2d


class SelectiveKernel(nn.Module):
    """SK convolution, arXiv 1903.06586: a1 * u1 + a2 * u2, in place of a block's 3x3 convolution.

    u1 and u2 are act(BN(conv(x))) with a 3x3 and a 3x3 of twice the dilation, which stands for the 5x5;
    z = relu(BN(W1 mean(u1 + u2))), eq. 1-4; a1 and a2 are the softmax of W2 z over the two, eq. 5.

    Input and output: (N, inputs, H, W), (N, outputs, H / stride, W / stride).

    Args:
        inputs, outputs: channels.
        stride, groups, dilation: of the first convolution.
        reduction, min_hidden: W1 has max(outputs // reduction, min_hidden) rows (the paper's r and L).
        split: whether each convolution reads one half of the channels (timm's basic and bottleneck blocks
            without groups), instead of all.
        activation: "relu", "silu", "gelu" or "leaky_relu", after the convolutions.
        norm: channels -> batch normalisation.
        bias: whether the convolutions and W1 have biases.

    Example:
        >>> import torch
        >>> SelectiveKernel(64, 128, 2)(torch.zeros(2, 64, 8, 8)).shape
        torch.Size([2, 128, 4, 4])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 1,
        groups: int = 1,
        *,
        dilation: int = 1,
        reduction: int = 16,
        min_hidden: int = 32,
        split: bool = False,
        activation: str = "relu",
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        bias: bool = False,
    ):
        super().__init__()
        self.stride, self.split, self.activation = stride, split, activation
        inputs = inputs // 2 if split else inputs
        self.conv1 = conv2d(inputs, outputs, 3, stride, groups, dilation=dilation, bias=bias)
        self.bn1 = norm(outputs)
        # of the two strides and dilations only one is above 1: `forward` takes every other pixel instead
        self.conv2 = conv2d(inputs, outputs, 3, 1, groups, dilation=2 * dilation // stride, bias=bias)
        self.bn2 = norm(outputs)
        hidden = max(outputs // reduction, min_hidden)
        self.fc1, self.bn = nn.Linear(outputs, hidden, bias=bias), norm(hidden)
        self.fc2 = nn.Linear(hidden, 2 * outputs, bias=False)

    def act(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](x)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, 1) if self.split else (x, x)
        x2 = x2[:, :, :: self.stride, :: self.stride]
        u1 = self.act(self.bn1(self.conv1(x1)))  # (N, C, H, W)
        u2 = self.act(self.bn2(self.conv2(x2)))
        z = self.fc1((u1 + u2).mean((2, 3)))  # (N, hidden)
        z = F.relu(self.bn(z[:, :, None, None]))[:, :, 0, 0]
        a = self.fc2(z).unflatten(1, (2, -1)).softmax(1)[:, :, :, None, None]  # (N, 2, C, 1, 1)
        return a[:, 0] * u1 + a[:, 1] * u2


def make_selective(c: Mapping[str, Any]) -> dict[str, Any] | None:
    """The keywords of a block's selective kernels, from those of `ResNet`; None without them."""
    names = {"reduction": "reduction", "min_hidden": "sk_min_hidden", "split": "sk_split"}
    return {name: c[of] for name, of in names.items()} if c["attention"] == "sk" else None
