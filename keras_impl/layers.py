"""Convolution and pooling where stock Keras layers differ from PyTorch: padding and groups.

All layers are channels_last and ignore `keras.config.image_data_format()`. Layers that `attention.py` needs
too (`BatchNormalization`, `mean`, initial values) are defined there, so that `attention.py` can be copied
alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import keras
from keras import ops

from .attention import BatchNormalization, dense, kaiming_normal, mean, uniform
from .keywords import NORM_GROUPS

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": ops.relu,
    "silu": ops.silu,
    # Keras's own GELU and leaky ReLU round their constants to float32
    "gelu": lambda x: 0.5 * x * (1 + ops.erf(x * math.sqrt(0.5))),  # x Phi(x)
    "leaky_relu": lambda x: ops.where(x > 0, x, 0.01 * x),
    "relu6": ops.relu6,  # min(max(x, 0), 6)
}


@keras.saving.register_keras_serializable("samenet")
class Conv2D(keras.layers.Conv2D):
    """Convolution padded by dilation * (k // 2) on each side, in groups, by default without bias.

    `pad_rule` may also be "valid" for no padding, and with a stride "same" or "end"; see `pad_strided`.

    Keras's "same" pads a strided convolution of an even size at the end only, which shifts the output by one
    pixel against PyTorch. Keras's grouped convolution on TensorFlow goes through XLA: on a CPU its forward
    pass is slow and its backward pass over a thousand times slower; see `grouped_conv2d`.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int],
        strides: int = 1,
        groups: int = 1,
        *,
        pad_rule: str = "pad1",
        **keywords: Any,
    ):
        defaults = {
            "use_bias": False,
            "data_format": "channels_last",
            "kernel_initializer": kaiming_normal(),
        }
        super().__init__(filters, kernel_size, strides, groups=groups, **(defaults | keywords))
        self.pad_rule = pad_rule
        if self.groups > 1 and _on_tensorflow_cpu():
            self.supports_jit = False  # otherwise compile(jit_compile="auto") uses the slow XLA path

    def build(self, input_shape: tuple) -> None:
        rows, columns = self.kernel_size
        self.bias_initializer = uniform(input_shape[-1] // self.groups * rows * columns)
        super().build(input_shape)

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        padding = "same"  # with stride 1 and an odd kernel this is k // 2 on each side
        if self.pad_rule == "valid":
            padding = "valid"
        elif self.strides != (1, 1):
            inputs, padding = pad_strided(inputs, self.kernel_size, self.pad_rule)
        if self.groups > 1:
            return grouped_conv2d(inputs, kernel, self.strides, padding, self.groups, self.dilation_rate)
        return ops.conv(inputs, kernel, self.strides, padding, "channels_last", self.dilation_rate)

    def compute_output_shape(self, input_shape: tuple) -> tuple:  # a dilated convolution keeps the size
        out = strided_sizes(input_shape[1:3], self.kernel_size, self.strides, self.pad_rule)
        return (input_shape[0], *out, self.filters)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"pad_rule": self.pad_rule}


@keras.saving.register_keras_serializable("samenet")
class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """Convolution of each channel with its own kernel, by default without bias; padded as `Conv2D`."""

    def __init__(self, kernel_size: int, strides: int = 1, *, pad_rule: str = "pad1", **keywords: Any):
        defaults = {
            "use_bias": False,
            "data_format": "channels_last",
            "depthwise_initializer": kaiming_normal(),
        }
        super().__init__(kernel_size, strides, **(defaults | keywords))
        self.pad_rule = pad_rule
        if _on_tensorflow_cpu():
            self.supports_jit = False  # as in `Conv2D` with groups

    def build(self, input_shape: tuple) -> None:
        rows, columns = self.kernel_size
        self.bias_initializer = uniform(rows * columns)
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        padding = "same"
        if self.strides != (1, 1):
            inputs, padding = pad_strided(inputs, self.kernel_size, self.pad_rule)
        y = ops.depthwise_conv(inputs, self.kernel, self.strides, padding, "channels_last")
        return y if self.bias is None else y + self.bias

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        out = strided_sizes(input_shape[1:3], self.kernel_size, self.strides, self.pad_rule)
        return (input_shape[0], *out, input_shape[3])

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"pad_rule": self.pad_rule}


def pad_strided(x: Any, kernel_size: tuple[int, int], rule: str) -> tuple[Any, str]:
    """The input of a strided convolution, and the remaining padding that Keras adds.

    Args:
        rule: k // 2 on each side ("pad1") or only at the end ("end"), or TensorFlow's rule ("same").
    """
    if rule == "same" or kernel_size == (1, 1):
        return x, "same" if rule == "same" else "valid"
    sides = [(size // 2 if rule == "pad1" else 0, size // 2) for size in kernel_size]
    return ops.pad(x, ((0, 0), *sides, (0, 0))), "valid"


def strided_sizes(sizes: tuple, kernel_size: tuple, strides: tuple, rule: str) -> list[int | None]:
    """Rows and columns of a convolution's output; None for an unknown size."""
    found: list[int | None] = []
    for n, k, s in zip(sizes, kernel_size, strides, strict=True):
        if n is None or (s == 1 and rule != "valid"):
            found.append(n)
        elif rule == "valid":
            found.append((n - k) // s + 1)
        else:
            beyond = k // 2 * (2 if rule == "pad1" else 1) - k
            found.append(-(-n // s) if rule == "same" else (n + beyond) // s + 1)
    return found


def grouped_conv2d(
    x: Any,
    kernel: Any,
    strides: tuple[int, int],
    padding: str,
    groups: int,
    dilations: tuple[int, int] = (1, 1),
) -> Any:
    """Convolution in groups, (N, H, W, C) with a kernel (kH, kW, C / groups, O).

    JAX and torch have it. TensorFlow has it where its grouped gradient exists (GPU, or oneDNN in float32);
    elsewhere this function computes one convolution per group and concatenates.
    """
    if keras.backend.backend() != "tensorflow":
        return ops.conv(x, kernel, strides, padding, "channels_last", dilations)
    import tensorflow as tf

    conv = partial(tf.nn.convolution, strides=strides, padding=padding.upper(), dilations=dilations)
    if not _on_tensorflow_cpu() or _has_grouped_gradient(x.dtype.name):
        y = conv(x, kernel)
        # keeps grappler from fusing convolution and batch norm: without oneDNN the fused op refuses groups
        return tf.ensure_shape(y, (None, None, None, kernel.shape[-1]))
    parts = zip(tf.split(x, groups, -1), tf.split(kernel, groups, -1), strict=True)
    return tf.concat([conv(part, k) for part, k in parts], -1)


@cache
def _on_tensorflow_cpu() -> bool:
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return not tf.config.list_physical_devices("GPU")


@cache
def _has_grouped_gradient(dtype: str) -> bool:
    """Whether this CPU build of TensorFlow can differentiate a grouped convolution; tried once per dtype."""
    import tensorflow as tf

    # calls the op directly, because tf.init_scope (needed to leave a graph under construction) stops tapes
    with tf.init_scope(), tf.device("CPU:0"):
        y, kernel = tf.ones((1, 1, 1, 2), dtype), tf.ones((1, 1, 1, 2), dtype)
        try:
            tf.raw_ops.Conv2DBackpropInput(
                input_sizes=(1, 1, 1, 2), filter=kernel, out_backprop=y, strides=(1, 1, 1, 1), padding="VALID"
            )
        except (tf.errors.OpError, NotImplementedError):
            return False
    return True


@keras.saving.register_keras_serializable("samenet")
class GroupNormalization(keras.layers.GroupNormalization):
    """Group normalisation (https://arxiv.org/abs/1803.08494) of (N, H, W, C), in the dtype of the weights.

    Keras's own layer computes in float32 on the JAX backend.
    """

    def call(self, inputs: Any) -> Any:
        x = ops.cast(inputs, self.variable_dtype)
        rows, columns, channels = ops.shape(x)[1:3] + x.shape[3:]
        x = ops.reshape(x, (-1, rows, columns, self.groups, channels // self.groups))
        x = x - mean(x, (1, 2, 4), keepdims=True)
        x = x * ops.rsqrt(mean(ops.square(x), (1, 2, 4), keepdims=True) + self.epsilon)
        y = self.gamma * ops.reshape(x, (-1, rows, columns, channels)) + self.beta
        return ops.cast(y, self.compute_dtype)


def shuffle_channels(x: Any, groups: int, view: str) -> Any:
    """Transpose the channels of (N, H, W, C), seen as (groups, C / groups) or, "groups_last", the reverse.

    ShuffleNet: https://arxiv.org/abs/1707.01083, section 3.1.
    """
    rows, columns, channels = ops.shape(x)[1:3] + x.shape[3:]
    first = groups if view == "groups_first" else channels // groups
    y = ops.reshape(x, (-1, rows, columns, first, channels // first))
    return ops.reshape(ops.transpose(y, (0, 1, 2, 4, 3)), (-1, rows, columns, channels))


def average_pool_3x3(x: Any, count_padding: bool) -> Any:
    """Means of 3x3 squares, stride 2, padded by 1 on each side; at the edge the zeros count, or not."""
    pad = ((0, 0), (1, 1), (1, 1), (0, 0))
    y = ops.average_pool(ops.pad(x, pad), 3, 2, "valid", "channels_last")
    if count_padding:
        return y
    ones = ops.pad(ops.ones_like(x[:1, :, :, :1]), pad)
    return y / ops.average_pool(ones, 3, 2, "valid", "channels_last")


def max_pool(x: Any, rule: str) -> Any:
    """Max-pool 3x3, stride 2. Padding: "pad1" PyTorch's, "ceil" Caffe's, "same" TensorFlow's.

    With the rule "valid" there is no padding, and with "none" no pool.
    """
    if rule == "none":
        return x
    if rule in ("same", "valid"):
        return ops.max_pool(x, 3, 2, rule, "channels_last")
    # -inf instead of zero: inputs may be negative; Caffe's rule pads by one at the end, unused if the size is
    # odd
    pad = {"pad1": (1, 1), "ceil": (0, 1)}[rule]
    x = ops.pad(x, ((0, 0), pad, pad, (0, 0)), constant_values=float("-inf"))
    return ops.max_pool(x, 3, 2, "valid", "channels_last")


def average_pool(x: Any) -> Any:
    """Means of 2x2 squares; an odd edge averages only the existing values."""
    return ops.average_pool(x, 2, 2, "same", "channels_last")


def dilated_average_pool(x: Any) -> Any:
    """Means of 2x2 squares, stride 1; a row and a column of zeros at the end keep the size, and count."""
    return ops.average_pool(ops.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))), 2, 1, "valid", "channels_last")


def blur_pool(x: Any, stride: int) -> Any:
    """The filter (1, 2, 1) / 4 along both axes, then every `stride`-th value; edges are mirrored.

    Zhang, "Making Convolutional Networks Shift-Invariant Again", https://arxiv.org/abs/1904.11486.
    """
    x = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    x = ops.average_pool(x, 2, 1, "valid", "channels_last")  # two means of pairs are (1, 2, 1) / 4
    return ops.average_pool(x, 2, stride, "valid", "channels_last")


def anti_aliasing_pool(x: Any, rule: str, stride: int) -> Any:
    """The pool that carries the stride of a convolution: "avg" or "blur"."""
    if rule == "blur":
        return blur_pool(x, stride)
    return ops.average_pool(x, stride, stride, "valid", "channels_last")


def pooled_shape(shape: tuple, rule: str, stride: int) -> tuple:
    """The shape of `anti_aliasing_pool`'s output."""
    beyond = stride - 1 if rule == "blur" else 0  # the mirrored edge
    return (shape[0], *(None if n is None else (n + beyond) // stride for n in shape[1:3]), shape[3])


def pool_stem(x: Any, rule: str, anti_aliasing: str) -> Any:
    """`max_pool`, or the pool that `anti_aliasing` puts in its place."""
    if anti_aliasing == "none" or rule == "none":
        return max_pool(x, rule)
    if anti_aliasing == "blur":
        x = ops.max_pool(x, 3, 1, "same", "channels_last")
    return anti_aliasing_pool(x, anti_aliasing, 2)


def pool_globally(x: Any, rule: str) -> Any:
    """(N, H, W, C) -> (N, C): mean ("avg"), maximum ("max") or half their sum ("avgmax").

    "catavgmax" is the mean followed by the maximum: (N, 2 C).
    """
    if rule == "avg":
        return mean(x, (1, 2))
    maximum = ops.max(x, (1, 2))
    if rule == "max":
        return maximum
    average = mean(x, (1, 2))
    return ops.concatenate([average, maximum], 1) if rule == "catavgmax" else 0.5 * average + 0.5 * maximum


def adaptive_average_pool(x: Any, size: int) -> Any:
    """Means of size x size windows that cover an input (N, H, W, C), as (N, C, size, size)."""
    if isinstance(x, keras.KerasTensor):
        return AdaptiveAveragePool(size)(x)
    rows, columns = (_windows(n, size, x.dtype) for n in ops.shape(x)[1:3])
    x = ops.transpose(x, (0, 3, 1, 2))  # (N, C, H, W)
    return ops.matmul(rows, ops.matmul(x, ops.transpose(columns)))


@keras.saving.register_keras_serializable("samenet")
class AdaptiveAveragePool(keras.Operation):
    """`adaptive_average_pool` in a functional model, whose images may have any size."""

    def __init__(self, size: int, name: str | None = None):
        super().__init__(name=name)
        self.size = size

    def call(self, x: Any) -> Any:
        return adaptive_average_pool(x, self.size)

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor((x.shape[0], x.shape[-1], self.size, self.size), x.dtype)


def _windows(n: Any, size: int, dtype: Any) -> Any:
    """(size, n): row i is 1 / length from i n // size to the ceiling of (i + 1) n / size, else 0."""
    place, i = ops.arange(n), ops.arange(size)[:, None]
    inside = (place >= i * n // size) & (place < ((i + 1) * n + size - 1) // size)
    return ops.cast(inside, dtype) / ops.cast(ops.sum(ops.cast(inside, "int32"), 1, keepdims=True), dtype)


def identity(name: str, dtype: Any) -> keras.layers.Layer:
    """A layer that does nothing; Keras saves its dtype policy only as a name."""
    return keras.layers.Identity(name=name, dtype=keras.dtype_policies.get(dtype).name)


def make_norm(name: str, c: Mapping[str, Any], dtype: Any) -> keras.layers.Layer:
    """The norm layer after a convolution, from the keywords of `ResNet`."""
    if c["norm"] == "bias":
        return identity(name, dtype)
    if c["norm"] == "gn":
        return GroupNormalization(NORM_GROUPS, epsilon=c["bn_epsilon"], name=name, dtype=dtype)
    # Keras's momentum is the weight of the old value
    return BatchNormalization(momentum=1 - c["bn_momentum"], epsilon=c["bn_epsilon"], name=name, dtype=dtype)


def make_head(inputs: int, num_classes: int, bias: bool, name: str, dtype: Any) -> keras.layers.Layer:
    """Return the classifier, which without classes does nothing."""
    if not num_classes:
        return identity(name, dtype)
    return dense(inputs, num_classes, bias, name=name, dtype=dtype)


def build_chain(shape: tuple, *layers: keras.layers.Layer) -> tuple:
    """Build consecutive layers for an input of this shape; return the shape of the output."""
    for layer in layers:
        if not layer.built:  # Keras builds a layer that it loads, such as an attention
            layer.build(shape)
        shape = layer.compute_output_shape(shape)
    return shape
