"""Residual blocks as TensorFlow 1 graph functions, each with a place for attention.

ResNet: https://arxiv.org/abs/1512.03385   ResNeXt: https://arxiv.org/abs/1611.05431
Attention follows the last batch normalisation and precedes the addition: SE (1709.01507) fig. 3.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import tensorflow.compat.v1 as tf

from .attention import batch_norm, cbam, dense, eca, graph_input, open_scope, squeeze_excitation
from .keywords import NORM_GROUPS, WITH_BIAS, stage_steps
from .layers import ACTIVATIONS, anti_aliasing_pool, average_pool, conv2d, dilated_average_pool, group_norm
from .selective import make_selective, selective_kernel

EXPANSION = {"basic": 1, "bottleneck": 4}


def attention_and_shortcut(
    x: tf.Tensor,
    y: tf.Tensor,
    stride: int,
    *,
    attention: Callable[[tf.Tensor], tf.Tensor] | None = None,
    relu_before_attention: bool = False,
    downsample_kernel: int = 1,
    downsample_pool: str = "none",
    dilation: int = 1,
    first_dilation: int | None = None,
    activation: str = "relu",
    norm: Callable[..., tf.Tensor],
    bias: bool,
) -> tf.Tensor:
    """End of `basic_block` and `bottleneck`: relu(attention(y) + shortcut(x)).

    Args:
        x: the block's input.
        y: the branch, up to its last batch normalisation.
        stride: of the block, 1 or 2.
        attention: maps (N, H, W, C) to the same shape.
        relu_before_attention: whether an activation precedes the attention.
        downsample_kernel, downsample_pool: the projection of a strided or dilated block.
        dilation: of the block's 3x3 convolutions.
        first_dilation: of the first of them; None for `dilation`.
        activation: "relu", "silu", "gelu", "leaky_relu" (slope 0.01) or "relu6".
        norm: batch normalisation, called with `scope`.
        bias: whether the projection's convolution has a bias.
    """
    act = ACTIVATIONS[activation]
    if relu_before_attention:
        y = act(y)
    if attention is not None:
        y = attention(y)
    inputs, outputs = int(x.shape[-1]), int(y.shape[-1])
    if stride > 1 or inputs != outputs:
        reduces = stride > 1 or dilation > 1  # dilation stands for a stride
        if reduces and downsample_pool == "avg":
            x, stride = average_pool(x) if stride > 1 else dilated_average_pool(x), 1
        kernel_size = downsample_kernel if reduces else 1
        dilation = first_dilation or dilation if kernel_size > 1 else 1
        x = conv2d(x, outputs, kernel_size, stride, dilation=dilation, bias=bias, scope="downsample_0")
        x = norm(x, scope="downsample_1")
    return act(y + x)


def convolution_stride(
    stride: int, dilation: int, first_dilation: int, anti_aliasing: str
) -> tuple[int, Callable[[tf.Tensor], tf.Tensor]]:
    """The stride of a block's convolutions, and the pool after the activation that may carry it instead."""
    if anti_aliasing == "none" or (stride == 1 and first_dilation == dilation):
        return stride, lambda x: x
    return 1, partial(anti_aliasing_pool, rule=anti_aliasing, stride=stride)


def basic_block(
    x: tf.Tensor,
    planes: int,
    stride: int = 1,
    *,
    norm: Callable[..., tf.Tensor] = batch_norm,
    bias: bool = False,
    selective: Mapping[str, Any] | None = None,
    dilation: int = 1,
    first_dilation: int | None = None,
    activation: str = "relu",
    anti_aliasing: str = "none",
    scope: str,
    **keywords: Any,
) -> tf.Tensor:
    """Two 3x3 convolutions, arXiv 1512.03385 fig. 5 left.

    Input and output: (N, H, W, C), (N, H / stride, W / stride, planes).

    Args:
        x: (N, H, W, C), float, a tensor or NumPy array.
        planes: channels of the output.
        stride: of the first convolution.
        norm: batch normalisation, called with `scope`.
        bias: whether the convolutions have biases.
        selective: keywords of a `selective_kernel` in place of the strided 3x3; None for none.
        dilation, first_dilation, activation: see `attention_and_shortcut`.
        anti_aliasing: "none", or a pool in place of the stride, after the strided convolution's activation:
            "avg" (2x2 means) or "blur" (see `blur_pool`).
        keywords: of `attention_and_shortcut`.

    Raises:
        ValueError: `x` has the wrong shape.
        RuntimeError: called in eager mode or in `tf.function`.

    Example:
        >>> with tf.Graph().as_default():
        ...     x, attention = tf.zeros((2, 8, 8, 64)), partial(squeeze_excitation, scope="se")
        ...     basic_block(x, 128, 2, attention=attention, scope="block").shape
        TensorShape([2, 4, 4, 128])
    """
    x, conv, act = graph_input(x), partial(conv2d, bias=bias), ACTIVATIONS[activation]
    first = first_dilation or dilation
    conv_stride, pool = convolution_stride(stride, dilation, first, anti_aliasing)
    keywords |= {"dilation": dilation, "first_dilation": first, "activation": activation}
    own: dict[str, Any] = {
        "dilation": first,
        "activation": activation,
        "norm": norm,
        "bias": bias,
        "scope": "sk",
    }
    with tf.variable_scope(scope):
        if selective is None:
            y = conv(x, planes, 3, conv_stride, dilation=first, scope="conv1")
            y = pool(act(norm(y, scope="bn1")))
        else:
            y = selective_kernel(x, planes, stride, **selective, **own)
        y = norm(conv(y, planes, 3, dilation=dilation, scope="conv2"), scope="bn2")
        return attention_and_shortcut(x, y, stride, norm=norm, bias=bias, **keywords)


def bottleneck(
    x: tf.Tensor,
    planes: int,
    stride: int = 1,
    *,
    groups: int = 1,
    width_per_group: int = 64,
    reduce_first: int = 1,
    stride_in: str = "conv2",
    norm: Callable[..., tf.Tensor] = batch_norm,
    bias: bool = False,
    selective: Mapping[str, Any] | None = None,
    dilation: int = 1,
    first_dilation: int | None = None,
    activation: str = "relu",
    anti_aliasing: str = "none",
    scope: str,
    **keywords: Any,
) -> tf.Tensor:
    """1x1, 3x3 (in groups: ResNeXt), 1x1 convolutions, arXiv 1512.03385 fig. 5 right.

    Input and output: (N, H, W, C), (N, H / stride, W / stride, 4 * planes).

    Args:
        x: (N, H, W, C), float, a tensor or NumPy array.
        planes: nominal width; the output has four times as many channels.
        stride: of the convolution named by `stride_in`: "conv1" (the 1x1) or "conv2" (the 3x3).
        groups, width_per_group: the 3x3 has int(planes * width_per_group / 64) * groups channels.
        reduce_first: factor by which the first 1x1 is narrower than the 3x3 (SENet-154: 2).
        norm: batch normalisation, called with `scope`.
        bias: whether the convolutions have biases.
        selective: keywords of a `selective_kernel` in place of the strided 3x3; None for none.
        dilation, first_dilation, activation, anti_aliasing: see `basic_block`.
        keywords: of `attention_and_shortcut`.

    Raises:
        ValueError: `x` has the wrong shape.
        RuntimeError: called in eager mode or in `tf.function`.

    Example:
        >>> with tf.Graph().as_default():
        ...     x = tf.zeros((2, 8, 8, 256))
        ...     bottleneck(x, 128, 2, groups=32, width_per_group=4, scope="block").shape
        TensorShape([2, 4, 4, 512])
    """
    width = int(planes * width_per_group / 64) * groups
    first = first_dilation or dilation
    conv_stride, pool = convolution_stride(stride, dilation, first, anti_aliasing)
    stride1, stride2 = (conv_stride, 1) if stride_in == "conv1" else (1, conv_stride)
    x, conv, act = graph_input(x), partial(conv2d, bias=bias), ACTIVATIONS[activation]
    keywords |= {"dilation": dilation, "first_dilation": first, "activation": activation}
    own: dict[str, Any] = {
        "dilation": first,
        "activation": activation,
        "norm": norm,
        "bias": bias,
        "scope": "sk",
    }
    with tf.variable_scope(scope):
        y = act(norm(conv(x, width // reduce_first, 1, stride1, scope="conv1"), scope="bn1"))
        if selective is None:
            y = conv(y, width, 3, stride2, groups, dilation=first, scope="conv2")
            y = pool(act(norm(y, scope="bn2")))
        else:
            y = selective_kernel(y, width, stride2, groups, **selective, **own)
        y = norm(conv(y, planes * EXPANSION["bottleneck"], 1, scope="conv3"), scope="bn3")
        return attention_and_shortcut(x, y, stride, norm=norm, bias=bias, **keywords)


def make_attention(
    stage: int, c: Mapping[str, Any], is_training: bool
) -> Callable[[tf.Tensor], tf.Tensor] | None:
    """A block's attention, from the keywords of `resnet`."""
    name = c["attention"]
    if name == "se":
        return partial(
            squeeze_excitation,
            reduction=c["reduction"],
            hidden_rule=c["hidden_rule"],
            bias=c["se_bias"],
            scope=name,
        )
    if name == "cbam":
        return partial(
            cbam,
            reduction=c["reduction"],
            hidden_rule=c["hidden_rule"],
            mlp_bias=c["cbam_mlp_bias"],
            order=c["cbam_order"],
            kernel_size=c["cbam_kernel_size"],
            bn=c["cbam_bn"],
            bn_momentum=c["cbam_bn_momentum"],
            bn_epsilon=c["bn_epsilon"],
            spatial_bias=c["cbam_spatial_bias"],
            spatial_input=c["cbam_spatial_input"],
            is_training=is_training,
            scope=name,
        )
    if name == "eca":
        sizes = c["eca_kernel_sizes"]
        size = None if sizes is None else sizes[stage]
        return partial(eca, kernel_size=size, padding=c["eca_padding"], scope=name)
    return None


def make_norm(c: Mapping[str, Any], is_training: bool) -> Callable[..., tf.Tensor]:
    """The norm after a convolution, called with `scope`, from the keywords of `resnet`."""
    if c["norm"] == "bias":
        return lambda x, **_: x
    if c["norm"] == "gn":
        return partial(group_norm, groups=NORM_GROUPS, epsilon=c["bn_epsilon"])
    return partial(batch_norm, is_training=is_training, epsilon=c["bn_epsilon"], momentum=c["bn_momentum"])


@contextmanager
def open_network(
    collection: str, keywords: Mapping[str, Any], scope: str | None, reuse: bool | None
) -> Iterator[None]:
    """Open the variable scope of a network, and record scope and keywords in a collection of the graph.

    Raises `ValueError` if the scope holds a network already, unless the two share their variables.
    """
    with open_scope(scope, reuse) as opened:
        there = [json.loads(text)["scope"] for text in tf.get_collection(collection)]
        if opened.name in there and not opened.reuse:
            raise ValueError(
                f"a network already exists in the variable scope {opened.name!r}: give this one another "
                "scope=NAME, or reuse=tf.AUTO_REUSE to share the variables"
            )
        tf.add_to_collection(collection, json.dumps({"scope": opened.name, "keywords": keywords}))
        yield


def make_head(x: tf.Tensor, num_classes: int, bias: bool, *, scope: str) -> tf.Tensor:
    """Return the output of the classifier, which without classes is its input."""
    return dense(x, num_classes, bias, scope=scope) if num_classes else x


def make_stage(x: tf.Tensor, stage: int, c: Mapping[str, Any], is_training: bool) -> tf.Tensor:
    """The blocks of one stage, which counts from 0."""
    block = {"basic": basic_block, "bottleneck": bottleneck}[c["block"]]
    names = ["relu_before_attention", "downsample_kernel", "downsample_pool", "activation", "anti_aliasing"]
    if block is bottleneck:
        names += ["groups", "width_per_group", "reduce_first", "stride_in"]
    keywords = {name: c[name] for name in names}
    keywords |= {"norm": make_norm(c, is_training), "bias": c["norm"] in WITH_BIAS}
    keywords["selective"] = make_selective(c)
    keywords["attention"] = make_attention(stage, c, is_training)
    stride, first_dilation, dilation = stage_steps(stage, c)
    for index in range(c["depths"][stage]):
        keywords |= {"first_dilation": first_dilation, "dilation": dilation}
        x = block(x, c["width"] * 2**stage, stride, scope=f"layer{stage + 1}_{index}", **keywords)
        stride, first_dilation = 1, dilation
    return x
