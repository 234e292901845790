"""Residual blocks in Keras 3: `BasicBlock` and `Bottleneck`, each with a place for attention.

ResNet: https://arxiv.org/abs/1512.03385   ResNeXt: https://arxiv.org/abs/1611.05431
Attention follows the last batch normalisation and precedes the addition: SE (1709.01507) fig. 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras

from .attention import CBAM, ECA, SqueezeExcitation, keep_frozen
from .keywords import stage_steps
from .layers import anti_aliasing_pool, average_pool, build_chain, dilated_average_pool, pooled_shape
from .parts import Block
from .selective import SelectiveKernel, make_selective


class ResidualBlock(Block):
    """Base class of `BasicBlock` and `Bottleneck`: relu(attention(branch(x)) + shortcut(x)).

    A subclass creates its convolutions, calls `add_attention_and_shortcut` and defines `branch`.

    Args:
        stride: 1 or 2.
        dilation: of the 3x3 convolutions.
        first_dilation: of the first 3x3 convolution; None for `dilation`.
        anti_aliasing: "none", or a pool in place of the stride, after the strided convolution's activation:
            "avg" (2x2 means) or "blur" (see `blur_pool`).
        keywords: of `Block`; the activation is in place of each ReLU but the attention's.
    """

    branch: Callable[[Any, bool | None], Any]
    branch_layers: Callable[[], tuple[keras.layers.Layer, ...]]

    def __init__(
        self,
        stride: int = 1,
        *,
        dilation: int = 1,
        first_dilation: int | None = None,
        anti_aliasing: str = "none",
        **keywords: Any,
    ):
        super().__init__(**keywords)
        self.sk: keras.layers.Layer | None = None
        self.dilation, self.first_dilation = dilation, first_dilation or dilation
        self.stride, self.anti_aliasing = stride, anti_aliasing
        self.pools = anti_aliasing != "none" and (stride > 1 or self.first_dilation != dilation)

    def act_and_pool(self, x: Any) -> Any:
        """The activation after the strided convolution, and the pool that carries its stride."""
        x = self.act(x)
        return anti_aliasing_pool(x, self.anti_aliasing, self.stride) if self.pools else x

    def selective_kernel(self, **keywords: Any) -> SelectiveKernel:
        """Selective kernels in place of the strided 3x3 convolution, its norm and its activation."""
        keywords |= {"dilation": self.first_dilation, "activation": self.activation} | self.norm_keywords
        return SelectiveKernel(**keywords, name="sk", dtype=self.dtype_policy)

    def add_attention_and_shortcut(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        *,
        attention: tuple[str, keras.layers.Layer] | None = None,
        relu_before_attention: bool = False,
        downsample_kernel: int = 1,
        downsample_pool: str = "none",
    ) -> None:
        """Add the layers that follow the branch.

        Args:
            inputs, outputs: channels of the block's input and output.
            stride: 1 or 2.
            attention: name in the block and layer, such as ("se", SqueezeExcitation()).
            relu_before_attention: whether an activation precedes the attention.
            downsample_kernel, downsample_pool: the projection of a strided or dilated block.
        """
        self.relu_before_attention = relu_before_attention
        self.add_attention(attention)
        self.downsample: list[Any] | None = None
        reduces = stride > 1 or self.dilation > 1  # dilation stands for a stride
        self.downsample_pool = reduces and downsample_pool == "avg"
        if stride > 1 or inputs != outputs:
            kernel = downsample_kernel if reduces else 1
            stride = 1 if self.downsample_pool else stride
            dilation = self.first_dilation if kernel > 1 else 1
            conv = self.conv("downsample_0", outputs, kernel, stride, dilation=dilation)
            self.downsample = [conv, self.norm("downsample_1")]
        self.note_settings()

    def build(self, input_shape: tuple) -> None:
        shape = build_chain(input_shape, *self.branch_layers())
        self.build_attention(shape)
        if self.downsample is not None:
            build_chain(input_shape, *self.downsample)
        keep_frozen(self)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        for layer in self.branch_layers():
            input_shape = layer.compute_output_shape(input_shape)
        if self.pools:
            return pooled_shape(input_shape, self.anti_aliasing, self.stride)
        return input_shape

    def shortcut(self, x: Any, training: bool | None) -> Any:
        if self.downsample is None:
            return x
        conv, bn = self.downsample
        if self.downsample_pool:
            x = average_pool(x) if self.stride > 1 else dilated_average_pool(x)
        return bn(conv(x), training=training)

    def call(self, x: Any, training: bool | None = None) -> Any:
        y = self.branch(x, training)
        if self.relu_before_attention:
            y = self.act(y)
        return self.act(self.attend(y) + self.shortcut(x, training))


@keras.saving.register_keras_serializable("samenet")
class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions, arXiv 1512.03385 fig. 5 left.

    Input and output: (N, H, W, inputs), (N, H / stride, W / stride, planes).

    Args:
        inputs: channels of the input.
        planes: channels of the output.
        stride: of the first convolution.
        norm: "bn", "bias_bn", "bias" or "gn", see `ResNet`.
        bn_epsilon, bn_momentum: PyTorch's meaning: the momentum weighs the new batch.
        selective: keywords of a `SelectiveKernel` in place of the strided 3x3; None for none.
        keywords: of `ResidualBlock` and its `add_attention_and_shortcut`.

    Example:
        >>> block = BasicBlock(64, 128, 2, attention=("se", SqueezeExcitation()))
        >>> block(keras.ops.zeros((2, 8, 8, 64))).shape
        TensorShape([2, 4, 4, 128])
    """

    expansion = 1

    def __init__(
        self,
        inputs: int,
        planes: int,
        stride: int = 1,
        *,
        norm: str = "bn",
        bn_epsilon: float = 1e-5,
        bn_momentum: float = 0.1,
        selective: Mapping[str, Any] | None = None,
        dilation: int = 1,
        first_dilation: int | None = None,
        activation: str = "relu",
        anti_aliasing: str = "none",
        name: str | None = None,
        dtype: Any = None,
        **keywords: Any,
    ):
        super().__init__(
            stride,
            config=locals() | keywords,
            norm=norm,
            bn_epsilon=bn_epsilon,
            bn_momentum=bn_momentum,
            dilation=dilation,
            first_dilation=first_dilation,
            activation=activation,
            anti_aliasing=anti_aliasing,
            name=name,
            dtype=dtype,
        )
        first = 1 if self.pools else stride
        if selective is None:
            self.conv1 = self.conv("conv1", planes, 3, first, dilation=self.first_dilation)
            self.bn1 = self.norm("bn1")
        else:
            self.sk = self.selective_kernel(inputs=inputs, outputs=planes, stride=stride, **selective)
        self.conv2, self.bn2 = self.conv("conv2", planes, 3, dilation=dilation), self.norm("bn2")
        self.add_attention_and_shortcut(inputs, planes, stride, **keywords)

    def branch_layers(self) -> tuple[keras.layers.Layer, ...]:
        first = (self.conv1, self.bn1) if self.sk is None else (self.sk,)
        return *first, self.conv2, self.bn2

    def branch(self, x: Any, training: bool | None) -> Any:
        if self.sk is None:
            y = self.act_and_pool(self.bn1(self.conv1(x), training=training))
        else:
            y = self.sk(x, training=training)
        return self.bn2(self.conv2(y), training=training)


@keras.saving.register_keras_serializable("samenet")
class Bottleneck(ResidualBlock):
    """1x1, 3x3 (in groups: ResNeXt), 1x1 convolutions, arXiv 1512.03385 fig. 5 right.

    Input and output: (N, H, W, inputs), (N, H / stride, W / stride, 4 * planes).

    Args:
        inputs: channels of the input.
        planes: nominal width; the output has four times as many channels.
        stride: of the convolution named by `stride_in`: "conv1" (the 1x1) or "conv2" (the 3x3).
        groups, width_per_group: the 3x3 has int(planes * width_per_group / 64) * groups channels.
        reduce_first: factor by which the first 1x1 is narrower than the 3x3 (SENet-154: 2).
        norm: "bn", "bias_bn", "bias" or "gn", see `ResNet`.
        bn_epsilon, bn_momentum: PyTorch's meaning: the momentum weighs the new batch.
        selective: keywords of a `SelectiveKernel` in place of the strided 3x3; None for none.
        keywords: of `ResidualBlock` and its `add_attention_and_shortcut`.

    Example:
        >>> block = Bottleneck(256, 128, 2, groups=32, width_per_group=4)
        >>> block(keras.ops.zeros((2, 8, 8, 256))).shape
        TensorShape([2, 4, 4, 512])
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
        norm: str = "bn",
        bn_epsilon: float = 1e-5,
        bn_momentum: float = 0.1,
        selective: Mapping[str, Any] | None = None,
        dilation: int = 1,
        first_dilation: int | None = None,
        activation: str = "relu",
        anti_aliasing: str = "none",
        name: str | None = None,
        dtype: Any = None,
        **keywords: Any,
    ):
        super().__init__(
            stride,
            config=locals() | keywords,
            norm=norm,
            bn_epsilon=bn_epsilon,
            bn_momentum=bn_momentum,
            dilation=dilation,
            first_dilation=first_dilation,
            activation=activation,
            anti_aliasing=anti_aliasing,
            name=name,
            dtype=dtype,
        )
        width, outputs = int(planes * width_per_group / 64) * groups, planes * self.expansion
        stride1, stride2 = (stride, 1) if stride_in == "conv1" else (1, stride)
        if self.pools:
            stride1 = stride2 = 1
        first = width // reduce_first
        self.conv1, self.bn1 = self.conv("conv1", first, 1, stride1), self.norm("bn1")
        if selective is None:
            self.conv2 = self.conv("conv2", width, 3, stride2, groups, self.first_dilation)
            self.bn2 = self.norm("bn2")
        else:
            self.sk = self.selective_kernel(
                inputs=first, outputs=width, stride=stride2, groups=groups, **selective
            )
        self.conv3, self.bn3 = self.conv("conv3", outputs, 1), self.norm("bn3")
        self.add_attention_and_shortcut(inputs, outputs, stride, **keywords)

    def branch_layers(self) -> tuple[keras.layers.Layer, ...]:
        strided = (self.conv2, self.bn2) if self.sk is None else (self.sk,)
        return self.conv1, self.bn1, *strided, self.conv3, self.bn3

    def branch(self, x: Any, training: bool | None) -> Any:
        y = self.act(self.bn1(self.conv1(x), training=training))
        if self.sk is None:
            y = self.act_and_pool(self.bn2(self.conv2(y), training=training))
        else:
            y = self.sk(y, training=training)
        return self.bn3(self.conv3(y), training=training)


def make_attention(stage: int, c: Mapping[str, Any], dtype: Any) -> tuple[str, keras.layers.Layer] | None:
    """Name and layer of a block's attention, from the keywords of `ResNet`."""
    name = c["attention"]
    if name == "se":
        layer = SqueezeExcitation(
            None, c["reduction"], hidden_rule=c["hidden_rule"], bias=c["se_bias"], name=name, dtype=dtype
        )
    elif name == "cbam":
        layer = CBAM(
            None,
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
            name=name,
            dtype=dtype,
        )
    elif name == "eca":
        sizes = c["eca_kernel_sizes"]
        size = None if sizes is None else sizes[stage]
        layer = ECA(None, size, c["eca_padding"], name=name, dtype=dtype)
    else:
        return None
    return name, layer


def make_stage(inputs: int, stage: int, c: Mapping[str, Any], dtype: Any) -> list[ResidualBlock]:
    """The blocks of one stage, which counts from 0."""
    block: Any = {"basic": BasicBlock, "bottleneck": Bottleneck}[c["block"]]
    names = ["relu_before_attention", "downsample_kernel", "downsample_pool"]
    names += ["norm", "bn_epsilon", "bn_momentum", "activation", "anti_aliasing"]
    if block is Bottleneck:
        names += ["groups", "width_per_group", "reduce_first", "stride_in"]
    keywords = {name: c[name] for name in names} | {"dtype": dtype, "selective": make_selective(c)}
    planes = c["width"] * 2**stage
    outputs = planes * block.expansion
    stride, first_dilation, dilation = stage_steps(stage, c)
    blocks = []
    for index in range(c["depths"][stage]):
        keywords |= {"first_dilation": first_dilation, "dilation": dilation}
        attention, name = make_attention(stage, c, dtype), f"layer{stage + 1}_{index}"
        blocks.append(block(inputs, planes, stride, attention=attention, name=name, **keywords))
        inputs, stride, first_dilation = outputs, 1, dilation
    return blocks
