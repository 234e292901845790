"""Residual blocks in PyTorch: `BasicBlock` and `Bottleneck`, each with a place for attention.

ResNet: https://arxiv.org/abs/1512.03385   ResNeXt: https://arxiv.org/abs/1611.05431
Attention follows the last batch normalisation and precedes the addition: SE (1709.01507) fig. 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .attention import CBAM, ECA, SqueezeExcitation, kaiming_normal


def conv2d(
    inputs: int, outputs: int, kernel_size: int, stride: int = 1, groups: int = 1, *, bias: bool = False
) -> nn.Conv2d:
    """A convolution padded by k // 2 on each side, by default without bias."""
    conv = nn.Conv2d(inputs, outputs, kernel_size, stride, kernel_size // 2, groups=groups, bias=bias)
    return kaiming_normal(conv)


class ResidualBlock(nn.Module):
    """Base class of `BasicBlock` and `Bottleneck`: relu(attention(branch(x)) + shortcut(x)).

    A subclass creates its convolutions, calls `add_attention_and_shortcut` and defines `branch`.
    """

    branch: Callable[[Tensor], Tensor]

    def add_attention_and_shortcut(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        *,
        attention: tuple[str, nn.Module] | None = None,
        relu_before_attention: bool = False,
        downsample_kernel: int = 1,
        downsample_pool: str = "none",
        norm: Callable[[int], nn.Module],
        bias: bool,
    ) -> None:
        """Add the layers that follow the branch.

        Args:
            inputs, outputs: channels of the block's input and output.
            stride: 1 or 2.
            attention: name in the block and module, such as ("se", SqueezeExcitation(256)).
            relu_before_attention: whether a ReLU precedes the attention.
            downsample_kernel, downsample_pool: the projection of a strided block.
            norm: channels -> batch normalisation.
            bias: whether the projection's convolution has a bias.
        """
        self.relu_before_attention = relu_before_attention
        self.attention: str | None = None
        if attention is not None:
            self.attention, module = attention
            self.add_module(self.attention, module)
        self.downsample = self.downsample_pool = None
        if stride > 1 or inputs != outputs:
            if stride > 1 and downsample_pool == "avg":
                self.downsample_pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
            kernel = downsample_kernel if stride > 1 else 1
            conv = conv2d(inputs, outputs, kernel, 1 if self.downsample_pool else stride, bias=bias)
            self.downsample = nn.Sequential(conv, norm(outputs))

    def shortcut(self, x: Tensor) -> Tensor:
        if self.downsample_pool is not None:
            x = self.downsample_pool(x)
        return x if self.downsample is None else self.downsample(x)

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if self.relu_before_attention:
            y = F.relu(y, inplace=True)
        if self.attention is not None:
            y = self.get_submodule(self.attention)(y)
        return F.relu(y + self.shortcut(x), inplace=True)


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions, arXiv 1512.03385 fig. 5 left.

    Input and output: (N, inputs, H, W), (N, planes, H / stride, W / stride).

    Args:
        inputs: channels of the input.
        planes: channels of the output.
        stride: of the first convolution.
        norm: channels -> batch normalisation.
        bias: whether the convolutions have biases.
        keywords: of `ResidualBlock.add_attention_and_shortcut`.

    Example:
        >>> import torch
        >>> block = BasicBlock(64, 128, 2, attention=("se", SqueezeExcitation(128)))
        >>> block(torch.zeros(2, 64, 8, 8)).shape
        torch.Size([2, 128, 4, 4])
    """

    expansion = 1

    def __init__(
        self,
        inputs: int,
        planes: int,
        stride: int = 1,
        *,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        bias: bool = False,
        **keywords: Any,
    ):
        super().__init__()
        self.conv1, self.bn1 = conv2d(inputs, planes, 3, stride, bias=bias), norm(planes)
        self.conv2, self.bn2 = conv2d(planes, planes, 3, bias=bias), norm(planes)
        self.add_attention_and_shortcut(inputs, planes, stride, norm=norm, bias=bias, **keywords)

    def branch(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.bn2(self.conv2(y))


class Bottleneck(ResidualBlock):
    """1x1, 3x3 (in groups: ResNeXt), 1x1 convolutions, arXiv 1512.03385 fig. 5 right.

    Input and output: (N, inputs, H, W), (N, 4 * planes, H / stride, W / stride).

    Args:
        inputs: channels of the input.
        planes: nominal width; the output has four times as many channels.
        stride: of the convolution named by `stride_in`: "conv1" (the 1x1) or "conv2" (the 3x3).
        groups, width_per_group: the 3x3 has int(planes * width_per_group / 64) * groups channels.
        reduce_first: factor by which the first 1x1 is narrower than the 3x3 (SENet-154: 2).
        norm: channels -> batch normalisation.
        bias: whether the convolutions have biases.
        keywords: of `ResidualBlock.add_attention_and_shortcut`.

    Example:
        >>> import torch
        >>> block = Bottleneck(256, 128, 2, groups=32, width_per_group=4)
        >>> block(torch.zeros(2, 256, 8, 8)).shape
        torch.Size([2, 512, 4, 4])
    """

    expansion = 4

    def __init__(
        self,
        inputs: int,
        planes: int,
        stride: int = 1,
        *,
        groups: int = 1,
        width_per_group: int = 64,
        reduce_first: int = 1,
        stride_in: str = "conv2",
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        bias: bool = False,
        **keywords: Any,
    ):
        super().__init__()
        width, outputs = int(planes * width_per_group / 64) * groups, planes * self.expansion
        first = width // reduce_first
        stride1, stride2 = (stride, 1) if stride_in == "conv1" else (1, stride)
        self.conv1, self.bn1 = conv2d(inputs, first, 1, stride1, bias=bias), norm(first)
        self.conv2, self.bn2 = conv2d(first, width, 3, stride2, groups, bias=bias), norm(width)
        self.conv3, self.bn3 = conv2d(width, outputs, 1, bias=bias), norm(outputs)
        self.add_attention_and_shortcut(inputs, outputs, stride, norm=norm, bias=bias, **keywords)

    def branch(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return self.bn3(self.conv3(y))


def make_attention(channels: int, stage: int, c: Mapping[str, Any]) -> tuple[str, nn.Module] | None:
    """Name and layer of a block's attention, from the keywords of `ResNet`."""
    if c["attention"] == "se":
        module: nn.Module = SqueezeExcitation(
            channels, c["reduction"], hidden_rule=c["hidden_rule"], bias=c["se_bias"]
        )
    elif c["attention"] == "cbam":
        module = CBAM(
            channels,
            c["reduction"],
            hidden_rule=c["hidden_rule"],
            mlp_bias=c["cbam_mlp_bias"],
            order=c["cbam_order"],
            kernel_size=c["cbam_kernel_size"],
            bn=c["cbam_bn"],
            bn_momentum=c["cbam_bn_momentum"],
            bn_epsilon=c["bn_epsilon"],
            spatial_bias=c["cbam_spatial_bias"],
            spatial_input=c["cbam_spatial_input"],
        )
    elif c["attention"] == "eca":
        sizes = c["eca_kernel_sizes"]
        module = ECA(channels, None if sizes is None else sizes[stage])
    else:
        return None
    return c["attention"], module


def make_norm(c: Mapping[str, Any]) -> Callable[[int], nn.Module]:
    """Function from channels to the norm layer after a convolution, from the keywords of `ResNet`."""
    if c["norm"] == "bias":
        return nn.Identity
    return partial(nn.BatchNorm2d, eps=c["bn_epsilon"], momentum=c["bn_momentum"])


def make_head(inputs: int, num_classes: int) -> nn.Module:
    """Return the classifier, which without classes does nothing."""
    return nn.Linear(inputs, num_classes) if num_classes else nn.Identity()


def make_stage(inputs: int, stage: int, c: Mapping[str, Any]) -> nn.Sequential:
    """The blocks of one stage. `stage` counts from 0; every stage but the first halves the resolution."""
    block: Any = {"basic": BasicBlock, "bottleneck": Bottleneck}[c["block"]]
    names = ["relu_before_attention", "downsample_kernel", "downsample_pool"]
    if block is Bottleneck:
        names += ["groups", "width_per_group", "reduce_first", "stride_in"]
    keywords = {name: c[name] for name in names} | {"norm": make_norm(c), "bias": c["norm"] != "bn"}
    planes = c["width"] * 2**stage
    outputs = planes * block.expansion
    blocks = []
    for index in range(c["depths"][stage]):
        stride = 2 if stage > 0 and index == 0 else 1
        attention = make_attention(outputs, stage, c)
        blocks.append(block(inputs, planes, stride, attention=attention, **keywords))
        inputs = outputs
    return nn.Sequential(*blocks)
