"""Residual blocks in PyTorch: `BasicBlock` and `Bottleneck`, each with a place for attention.

ResNet: https://arxiv.org/abs/1512.03385   ResNeXt: https://arxiv.org/abs/1611.05431
Attention follows the last batch normalisation and precedes the addition: SE (1709.01507) fig. 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from .attention import CBAM, ECA, SqueezeExcitation
from .keywords import NORM_GROUPS, WITH_BIAS, stage_steps
from .layers import ACTIVATIONS, DilatedAveragePool, anti_aliasing_pool, conv2d, refuse_script
from .selective import SelectiveKernel, make_selective


class ResidualBlock(nn.Module):
    """Base class of `BasicBlock` and `Bottleneck`: relu(attention(branch(x)) + shortcut(x)).

    A subclass creates its convolutions, calls `add_attention_and_shortcut` and defines `branch`.

    Args:
        stride: 1 or 2.
        dilation: of the 3x3 convolutions.
        first_dilation: of the first 3x3 convolution; None for `dilation`.
        activation: "relu", "silu", "gelu", "leaky_relu" (slope 0.01) or "relu6", in place of each ReLU but
            the attention's.
        anti_aliasing: "none", or a pool in place of the stride, after the strided convolution's activation:
            "avg" (2x2 means) or "blur" (see `BlurPool2d`).
    """

    branch: Callable[[Tensor], Tensor]
    __prepare_scriptable__ = refuse_script

    def __init__(
        self,
        stride: int = 1,
        *,
        dilation: int = 1,
        first_dilation: int | None = None,
        activation: str = "relu",
        anti_aliasing: str = "none",
    ):
        super().__init__()
        self.activation = activation
        self.dilation, self.first_dilation = dilation, first_dilation or dilation
        self.sk: nn.Module | None = None
        self.aa: nn.Module | None = None
        if anti_aliasing != "none" and (stride > 1 or self.first_dilation != dilation):
            self.aa = anti_aliasing_pool(anti_aliasing, stride)

    def act(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](x)

    def act_and_pool(self, x: Tensor) -> Tensor:
        """The activation after the strided convolution, and the pool that carries its stride."""
        x = self.act(x)
        return x if self.aa is None else self.aa(x)

    def selective_kernel(self, **keywords: Any) -> SelectiveKernel:
        """Selective kernels in place of the strided 3x3 convolution, its norm and its activation."""
        own: dict[str, Any] = {"dilation": self.first_dilation, "activation": self.activation}
        return SelectiveKernel(**own, **keywords)

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
            relu_before_attention: whether an activation precedes the attention.
            downsample_kernel, downsample_pool: the projection of a strided or dilated block.
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
            reduces = stride > 1 or self.dilation > 1  # dilation stands for a stride
            if reduces and downsample_pool == "avg":
                plain = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
                self.downsample_pool = plain if stride > 1 else DilatedAveragePool()
                stride = 1
            kernel = downsample_kernel if reduces else 1
            dilation = self.first_dilation if kernel > 1 else 1
            conv = conv2d(inputs, outputs, kernel, stride, dilation=dilation, bias=bias)
            self.downsample = nn.Sequential(conv, norm(outputs))

    def shortcut(self, x: Tensor) -> Tensor:
        if self.downsample_pool is not None:
            x = self.downsample_pool(x)
        return x if self.downsample is None else self.downsample(x)

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if self.relu_before_attention:
            y = self.act(y)
        if self.attention is not None:
            y = self.get_submodule(self.attention)(y)
        return self.act(y + self.shortcut(x))


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions, arXiv 1512.03385 fig. 5 left.

    Input and output: (N, inputs, H, W), (N, planes, H / stride, W / stride).

    Args:
        inputs: channels of the input.
        planes: channels of the output.
        stride: of the first convolution.
        norm: channels -> batch normalisation.
        bias: whether the convolutions have biases.
        selective: keywords of a `SelectiveKernel` in place of the first convolution; None for none.
        dilation, first_dilation, activation, anti_aliasing: see `ResidualBlock`.
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
        selective: Mapping[str, Any] | None = None,
        dilation: int = 1,
        first_dilation: int | None = None,
        activation: str = "relu",
        anti_aliasing: str = "none",
        **keywords: Any,
    ):
        super().__init__(
            stride,
            dilation=dilation,
            first_dilation=first_dilation,
            activation=activation,
            anti_aliasing=anti_aliasing,
        )
        conv, first = partial(conv2d, bias=bias), 1 if self.aa else stride
        if selective is None:
            self.conv1, self.bn1 = conv(inputs, planes, 3, first, dilation=self.first_dilation), norm(planes)
        else:
            self.sk = self.selective_kernel(
                inputs=inputs, outputs=planes, stride=stride, norm=norm, bias=bias, **selective
            )
        self.conv2, self.bn2 = conv(planes, planes, 3, dilation=dilation), norm(planes)
        self.add_attention_and_shortcut(inputs, planes, stride, norm=norm, bias=bias, **keywords)

    def branch(self, x: Tensor) -> Tensor:
        y = self.act_and_pool(self.bn1(self.conv1(x))) if self.sk is None else self.sk(x)
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
        selective: keywords of a `SelectiveKernel` in place of the 3x3; None for none.
        dilation, first_dilation, activation, anti_aliasing: see `ResidualBlock`.
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
        selective: Mapping[str, Any] | None = None,
        dilation: int = 1,
        first_dilation: int | None = None,
        activation: str = "relu",
        anti_aliasing: str = "none",
        **keywords: Any,
    ):
        super().__init__(
            stride,
            dilation=dilation,
            first_dilation=first_dilation,
            activation=activation,
            anti_aliasing=anti_aliasing,
        )
        width, outputs = int(planes * width_per_group / 64) * groups, planes * self.expansion
        first, conv = width // reduce_first, partial(conv2d, bias=bias)
        stride1, stride2 = (stride, 1) if stride_in == "conv1" else (1, stride)
        if self.aa:
            stride1 = stride2 = 1
        self.conv1, self.bn1 = conv(inputs, first, 1, stride1), norm(first)
        if selective is None:
            self.conv2 = conv(first, width, 3, stride2, groups, dilation=self.first_dilation)
            self.bn2 = norm(width)
        else:
            self.sk = self.selective_kernel(
                inputs=first, outputs=width, stride=stride2, groups=groups, norm=norm, bias=bias, **selective
            )
        self.conv3, self.bn3 = conv(width, outputs, 1), norm(outputs)
        self.add_attention_and_shortcut(inputs, outputs, stride, norm=norm, bias=bias, **keywords)

    def branch(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv1(x)))
        y = self.act_and_pool(self.bn2(self.conv2(y))) if self.sk is None else self.sk(y)
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
        module = ECA(channels, None if sizes is None else sizes[stage], c["eca_padding"])
    else:
        return None
    return c["attention"], module


def make_norm(c: Mapping[str, Any]) -> Callable[[int], nn.Module]:
    """Function from channels to the norm layer after a convolution, from the keywords of `ResNet`."""
    if c["norm"] == "bias":
        return nn.Identity
    if c["norm"] == "gn":
        return partial(nn.GroupNorm, NORM_GROUPS, eps=c["bn_epsilon"])
    return partial(nn.BatchNorm2d, eps=c["bn_epsilon"], momentum=c["bn_momentum"])


def make_head(inputs: int, num_classes: int, bias: bool) -> nn.Module:
    """Return the classifier, which without classes does nothing."""
    return nn.Linear(inputs, num_classes, bias) if num_classes else nn.Identity()


def make_stage(inputs: int, stage: int, c: Mapping[str, Any]) -> nn.Sequential:
    """The blocks of one stage, which counts from 0."""
    block: Any = {"basic": BasicBlock, "bottleneck": Bottleneck}[c["block"]]
    names = ["relu_before_attention", "downsample_kernel", "downsample_pool", "activation", "anti_aliasing"]
    if block is Bottleneck:
        names += ["groups", "width_per_group", "reduce_first", "stride_in"]
    keywords = {name: c[name] for name in names} | {"norm": make_norm(c), "bias": c["norm"] in WITH_BIAS}
    keywords["selective"] = make_selective(c)
    planes = c["width"] * 2**stage
    outputs = planes * block.expansion
    stride, first_dilation, dilation = stage_steps(stage, c)
    blocks = []
    for _ in range(c["depths"][stage]):
        keywords |= {"first_dilation": first_dilation, "dilation": dilation}
        blocks.append(block(inputs, planes, stride, attention=make_attention(outputs, stage, c), **keywords))
        inputs, stride, first_dilation = outputs, 1, dilation
    return nn.Sequential(*blocks)
