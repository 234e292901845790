"""Convolution and pooling on `tf.nn` with PyTorch's numbers: padding and groups.

Arrays are (N, H, W, C). Functions that `attention.py` needs too (`batch_norm`, `dense`, initial values) are
defined there, so that `attention.py` can be copied alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import tensorflow.compat.v1 as tf

from .attention import kaiming_normal, uniform

ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "relu": tf.nn.relu,
    "silu": tf.nn.silu,
    "gelu": lambda x: 0.5 * x * (1 + tf.math.erf(x * math.sqrt(0.5))),  # x Phi(x)
    # TensorFlow's own leaky ReLU rounds its slope to float32
    "leaky_relu": lambda x: tf.where(x > 0, x, 0.01 * x),
    "relu6": tf.nn.relu6,  # min(max(x, 0), 6)
}


def conv2d(
    x: tf.Tensor,
    filters: int,
    kernel_size: int | tuple[int, int],
    stride: int = 1,
    groups: int = 1,
    *,
    dilation: int = 1,
    padding: str = "pad1",
    bias: bool = False,
    scope: str,
) -> tf.Tensor:
    """Convolution padded by dilation * (k // 2); variables `kernel` (k, k, C / groups, filters) and `bias`.

    `padding` may also be "valid" for none, and with a stride and k x k "same" or "end"; see `pad_strided`.

    SAME pads a strided convolution of an even size at the end only, which shifts the output by one pixel.
    """
    with tf.variable_scope(scope):
        inputs = int(x.shape[-1]) // groups
        rows, columns = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        kernel = tf.get_variable("kernel", (rows, columns, inputs, filters), x.dtype, kaiming_normal())
        rule, padding = padding, "SAME"  # for stride 1 and an odd kernel SAME is k // 2 on each side
        if rule == "valid":
            padding = "VALID"
        elif stride > 1:
            x, padding = pad_strided(x, rows, rule)
        if groups > 1:
            y = grouped_conv2d(x, kernel, stride, padding, groups, dilation)
        else:
            y = _convolution(x, kernel, stride, padding, dilation)
        if bias:
            fan_in = rows * columns * inputs
            y += tf.get_variable("bias", (filters,), x.dtype, uniform(fan_in))
        return y


def depthwise_conv2d(
    x: tf.Tensor,
    kernel_size: int,
    stride: int = 1,
    *,
    padding: str = "pad1",
    bias: bool = False,
    scope: str,
) -> tf.Tensor:
    """Convolution of each channel with its own kernel; variables `kernel` (k, k, C, 1) and `bias`.

    `padding` as in `conv2d`.
    """
    with tf.variable_scope(scope):
        channels = int(x.shape[-1])
        shape = (kernel_size, kernel_size, channels, 1)
        kernel = tf.get_variable("kernel", shape, x.dtype, kaiming_normal())
        rule, padding = padding, "SAME"
        if stride > 1:
            x, padding = pad_strided(x, kernel_size, rule)
        y = tf.nn.depthwise_conv2d(x, kernel, [1, stride, stride, 1], padding)
        if bias:
            y += tf.get_variable("bias", (channels,), x.dtype, uniform(kernel_size * kernel_size))
        return y


def pad_strided(x: tf.Tensor, kernel_size: int, rule: str) -> tuple[tf.Tensor, str]:
    """The input of a strided convolution, and the remaining padding that TensorFlow adds.

    Args:
        rule: k // 2 on each side ("pad1") or only at the end ("end"), or TensorFlow's rule ("same").
    """
    if rule == "same" or kernel_size == 1:
        return x, "SAME" if rule == "same" else "VALID"
    side = [kernel_size // 2 if rule == "pad1" else 0, kernel_size // 2]
    return tf.pad(x, [[0, 0], side, side, [0, 0]]), "VALID"


def _convolution(x: tf.Tensor, kernel: tf.Tensor, stride: int, padding: str, dilation: int) -> tf.Tensor:
    """`tf.nn.conv2d`; a dilated one runs on parts of the image, because CPUs lack its gradient."""
    if dilation == 1:
        return tf.nn.conv2d(x, kernel, stride, padding)
    return tf.nn.convolution(x, kernel, padding, strides=(stride, stride), dilation_rate=(dilation, dilation))


def grouped_conv2d(
    x: tf.Tensor, kernel: tf.Tensor, stride: int, padding: str, groups: int, dilation: int = 1
) -> tf.Tensor:
    """Convolution in groups, (N, H, W, C) with a kernel (kH, kW, C / groups, O).

    TensorFlow has it where its gradient exists (GPU, or oneDNN in float32); elsewhere this function computes
    one convolution per group and concatenates.
    """
    if tf.config.list_physical_devices("GPU") or _has_grouped_gradient(x.dtype.base_dtype.name):
        y = _convolution(x, kernel, stride, padding, dilation)
        # prevents grappler from fusing convolution and batch norm: the fused op refuses groups where oneDNN
        # is off, and a frozen graph may run on such a machine
        return tf.ensure_shape(y, (None, None, None, kernel.shape[-1]))
    parts = zip(tf.split(x, groups, -1), tf.split(kernel, groups, -1), strict=True)
    return tf.concat([_convolution(part, k, stride, padding, dilation) for part, k in parts], -1)


@cache
def _has_grouped_gradient(dtype: str) -> bool:
    """Whether this CPU build of TensorFlow can differentiate a grouped convolution; tried once per dtype."""
    config = tf.ConfigProto(device_count={"GPU": 0})
    with tf.Graph().as_default(), tf.Session(config=config) as session:
        x, kernel = tf.placeholder(dtype, (1, 1, 1, 2)), tf.placeholder(dtype, (1, 1, 1, 2))
        gradients = tf.gradients(tf.nn.conv2d(x, kernel, 1, "VALID"), [x, kernel])
        try:
            session.run(gradients, {x: [[[[1, 1]]]], kernel: [[[[1, 1]]]]})
        except (tf.errors.OpError, NotImplementedError):
            return False
    return True


def group_norm(x: tf.Tensor, groups: int, epsilon: float, *, scope: str) -> tf.Tensor:
    """Group normalisation (https://arxiv.org/abs/1803.08494); variables `gamma` and `beta`."""
    with tf.variable_scope(scope):
        channels = int(x.shape[-1])
        gamma = tf.get_variable("gamma", (channels,), x.dtype, tf.ones_initializer())
        beta = tf.get_variable("beta", (channels,), x.dtype, tf.zeros_initializer())
        n, rows, columns = tf.unstack(tf.shape(x)[:3])
        y = tf.reshape(x, (n, rows, columns, groups, channels // groups))
        y -= tf.reduce_mean(y, [1, 2, 4], keepdims=True)
        y *= tf.math.rsqrt(tf.reduce_mean(tf.square(y), [1, 2, 4], keepdims=True) + epsilon)
        y = tf.reshape(y, (n, rows, columns, channels))
        return tf.ensure_shape(gamma * y + beta, x.shape)


def shuffle_channels(x: tf.Tensor, groups: int, view: str) -> tf.Tensor:
    """Transpose the channels of (N, H, W, C), seen as (groups, C / groups) or, "groups_last", the reverse.

    ShuffleNet: https://arxiv.org/abs/1707.01083, section 3.1.
    """
    n, rows, columns = tf.unstack(tf.shape(x)[:3])
    channels = int(x.shape[-1])
    first = groups if view == "groups_first" else channels // groups
    y = tf.transpose(tf.reshape(x, (n, rows, columns, first, channels // first)), (0, 1, 2, 4, 3))
    return tf.ensure_shape(tf.reshape(y, (n, rows, columns, channels)), x.shape)


def average_pool_3x3(x: tf.Tensor, count_padding: bool) -> tf.Tensor:
    """Means of 3x3 squares, stride 2, padded by 1 on each side; at the edge the zeros count, or not."""
    pad = [[0, 0], [1, 1], [1, 1], [0, 0]]
    y = tf.nn.avg_pool2d(tf.pad(x, pad), 3, 2, "VALID")
    if count_padding:
        return y
    return y / tf.nn.avg_pool2d(tf.pad(tf.ones_like(x[:1, :, :, :1]), pad), 3, 2, "VALID")


def max_pool(x: tf.Tensor, rule: str) -> tf.Tensor:
    """Max-pool 3x3, stride 2. Padding: "pad1" PyTorch's, "ceil" Caffe's, "same" TensorFlow's.

    With the rule "valid" there is no padding, and with "none" no pool.
    """
    if rule == "none":
        return x
    if rule in ("same", "valid"):
        return tf.nn.max_pool2d(x, 3, 2, rule.upper())
    # this padding counts as -inf; Caffe's rule pads by one at the end, unused if the size is odd
    pad = {"pad1": [1, 1], "ceil": [0, 1]}[rule]
    return tf.nn.max_pool2d(x, 3, 2, [[0, 0], pad, pad, [0, 0]])


def average_pool(x: tf.Tensor) -> tf.Tensor:
    """Means of 2x2 squares; an odd edge averages only the existing values."""
    return tf.nn.avg_pool2d(x, 2, 2, "SAME")


def dilated_average_pool(x: tf.Tensor) -> tf.Tensor:
    """Means of 2x2 squares, stride 1; a row and a column of zeros at the end keep the size, and count."""
    return tf.nn.avg_pool2d(tf.pad(x, [[0, 0], [0, 1], [0, 1], [0, 0]]), 2, 1, "VALID")


def blur_pool(x: tf.Tensor, stride: int) -> tf.Tensor:
    """The filter (1, 2, 1) / 4 along both axes, then every `stride`-th value; edges are mirrored.

    Zhang, "Making Convolutional Networks Shift-Invariant Again", https://arxiv.org/abs/1904.11486.
    """
    x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], "REFLECT")
    x = tf.nn.avg_pool2d(x, 2, 1, "VALID")  # two means of pairs are (1, 2, 1) / 4
    return tf.nn.avg_pool2d(x, 2, stride, "VALID")


def anti_aliasing_pool(x: tf.Tensor, rule: str, stride: int) -> tf.Tensor:
    """The pool that carries the stride of a convolution: "avg" or "blur"."""
    return blur_pool(x, stride) if rule == "blur" else tf.nn.avg_pool2d(x, stride, stride, "VALID")


def pool_stem(x: tf.Tensor, rule: str, anti_aliasing: str) -> tf.Tensor:
    """`max_pool`, or the pool that `anti_aliasing` puts in its place."""
    if anti_aliasing == "none" or rule == "none":
        return max_pool(x, rule)
    if anti_aliasing == "blur":
        x = tf.nn.max_pool2d(x, 3, 1, "SAME")
    return anti_aliasing_pool(x, anti_aliasing, 2)


def pool_globally(x: tf.Tensor, rule: str) -> tf.Tensor:
    """(N, H, W, C) -> (N, C): mean ("avg"), maximum ("max") or half their sum ("avgmax").

    "catavgmax" is the mean followed by the maximum: (N, 2 C).
    """
    if rule == "avg":
        return tf.reduce_mean(x, [1, 2])
    maximum = tf.reduce_max(x, [1, 2])
    if rule == "max":
        return maximum
    mean = tf.reduce_mean(x, [1, 2])
    return tf.concat([mean, maximum], 1) if rule == "catavgmax" else 0.5 * mean + 0.5 * maximum


def adaptive_average_pool(x: tf.Tensor, size: int) -> tf.Tensor:
    """Means of size x size windows that cover an input (N, H, W, C), as (N, C, size, size)."""
    shape = tf.shape(x)
    rows, columns = (_windows(n, size, x.dtype) for n in (shape[1], shape[2]))
    x = tf.transpose(x, [0, 3, 1, 2])  # (N, C, H, W)
    return tf.linalg.matmul(rows, tf.linalg.matmul(x, columns, transpose_b=True))


def _windows(n: tf.Tensor, size: int, dtype: tf.DType) -> tf.Tensor:
    """(size, n): row i is 1 / length from i n // size to the ceiling of (i + 1) n / size, else 0."""
    place, i = tf.range(n), tf.range(size)[:, None]
    inside = (place >= i * n // size) & (place < ((i + 1) * n + size - 1) // size)
    return tf.cast(inside, dtype) / tf.cast(tf.reduce_sum(tf.cast(inside, tf.int32), 1, keepdims=True), dtype)
