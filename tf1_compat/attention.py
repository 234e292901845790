"""Channel and spatial attention for CNNs as TensorFlow 1 graph functions: SE, CBAM, ECA.

SE:   Squeeze-and-Excitation Networks, https://arxiv.org/abs/1709.01507
CBAM: Convolutional Block Attention Module, https://arxiv.org/abs/1807.06521
ECA:  Efficient Channel Attention, https://arxiv.org/abs/1910.03151

Each function keeps the shape (N, H, W, C) and the dtype of its input, so it fits into any graph; `scope=None`
puts its variables into the current scope. The tensor `gate:0` of its scope has the factors by which a block
multiplies, (N, C) or (N, H, W, 1). Read it beside the same file in `torch_impl` and `keras_impl`.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from numbers import Integral, Real
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

__all__ = ["cbam", "channel_attention", "eca", "spatial_attention", "squeeze_excitation"]

CONFIG_COLLECTION = "attention_config"  # one JSON text per CBAM or ECA block: its scope and its keywords
_HIDDEN_RULES = ("floor", "multiple_of_8", "absolute")
_MOST = 2**31 - 1  # largest size


def squeeze_excitation(
    x: tf.Tensor,
    reduction: int = 16,
    *,
    hidden_rule: str = "floor",
    bias: bool = True,
    scope: str | None = None,
) -> tf.Tensor:
    """SE block, arXiv 1709.01507: x * sigmoid(W2 relu(W1 mean(x))), eq. 2-4.

    Args:
        x: (N, H, W, C), float, a tensor or NumPy array; the output has the same shape.
        reduction: r, the factor by which the hidden layer is narrower.
        hidden_rule: hidden width: C / r by "floor" or to a "multiple_of_8" (timm), or r itself ("absolute").
        bias: whether the two layers have biases (the paper's models: yes).
        scope: variable scope of `fc1` and `fc2`.

    Raises:
        ValueError: an argument is invalid, or the input has the wrong shape.
        RuntimeError: called in eager mode or in `tf.function`.

    Example:
        >>> with tf.Graph().as_default():
        ...     y = squeeze_excitation(tf.zeros((2, 7, 7, 64)), scope="se")
        ...     [variable.name for variable in tf.trainable_variables()]
        ...     tf.get_default_graph().get_tensor_by_name("se/gate:0").shape
        ['se/fc1/kernel:0', 'se/fc1/bias:0', 'se/fc2/kernel:0', 'se/fc2/bias:0']
        TensorShape([2, 64])
    """
    x = graph_input(x)
    channels = int(x.shape[-1])
    hidden, bias = hidden_channels(channels, reduction, hidden_rule), check_bool("bias", bias)
    with open_scope(scope):
        z = tf.reduce_mean(x, [1, 2])  # (N, C), eq. 2: squeeze
        z = tf.nn.relu(dense(z, hidden, bias, scope="fc1"))
        s = tf.sigmoid(dense(z, channels, bias, scope="fc2"), "gate")  # (N, C), eq. 3: excitation
        return x * s[:, None, None, :]  # (N, H, W, C), eq. 4: scale


def channel_attention(
    x: tf.Tensor,
    reduction: int = 16,
    *,
    hidden_rule: str = "floor",
    bias: bool = True,
    scope: str | None = None,
) -> tf.Tensor:
    """Channel gate of CBAM, arXiv 1807.06521 eq. 2: x * sigmoid(MLP(mean(x)) + MLP(max(x))).

    Input and output: (N, H, W, C).

    Args:
        x, reduction, hidden_rule, scope: as in `squeeze_excitation`.
        bias: whether the shared MLP has biases (the authors' code: yes).

    Raises:
        ValueError: an argument is invalid, or the input has the wrong shape.
        RuntimeError: called in eager mode or in `tf.function`.

    Example:
        >>> with tf.Graph().as_default():
        ...     channel_attention(tf.zeros((2, 7, 7, 64))).shape
        TensorShape([2, 7, 7, 64])
    """
    x = graph_input(x)
    channels = int(x.shape[-1])
    hidden, bias = hidden_channels(channels, reduction, hidden_rule), check_bool("bias", bias)

    def mlp(z: tf.Tensor) -> tf.Tensor:
        return dense(tf.nn.relu(dense(z, hidden, bias, scope="fc1")), channels, bias, scope="fc2")

    with open_scope(scope):
        mean = mlp(tf.reduce_mean(x, [1, 2]))
        # the MLP is shared; its second call has the name scopes fc1_1 and fc2_1
        with tf.variable_scope(tf.get_variable_scope(), reuse=True, auxiliary_name_scope=False):
            gate = tf.sigmoid(mean + mlp(tf.reduce_max(x, [1, 2])), "gate")  # (N, C)
        return x * gate[:, None, None, :]


def spatial_attention(
    x: tf.Tensor,
    kernel_size: int = 7,
    *,
    order: str = "max_mean",
    bn: bool = True,
    bn_momentum: float = 0.01,
    bn_epsilon: float = 1e-5,
    bias: bool = False,
    is_training: bool = False,
    scope: str | None = None,
) -> tf.Tensor:
    """Spatial gate of CBAM, arXiv 1807.06521 eq. 3: sigmoid(BN(conv7x7([max(x); mean(x)]))), (N, H, W, 1).

    Input (N, H, W, C), output (N, H, W, 1): the gate itself, because CBAM's variants multiply different
    tensors with it.

    Args:
        x: (N, H, W, C), float, a tensor or NumPy array.
        kernel_size: odd.
        order: order of the two pooled maps, "max_mean" (the authors' code) or "mean_max".
        bn: whether a batch normalisation follows the convolution (the authors' code: yes).
        bn_momentum: weight of the new batch in its running statistics (PyTorch's meaning).
        bn_epsilon: added to the variance in that batch normalisation.
        bias: whether the convolution has a bias.
        is_training: a Python bool. Training uses the batch's statistics and adds the updates of the running
            statistics to `tf.GraphKeys.UPDATE_OPS`.
        scope: variable scope of `conv` and `bn`.

    Raises:
        ValueError: an argument is invalid, or the input has the wrong shape.
        RuntimeError: called in eager mode or in `tf.function`.
        TypeError: `is_training` is not a Python bool.

    Example:
        >>> with tf.Graph().as_default():
        ...     spatial_attention(tf.zeros((2, 7, 7, 64)), kernel_size=3).shape
        TensorShape([2, 7, 7, 1])
    """
    x, size = graph_input(x), check_odd("kernel_size", kernel_size)
    check_choice("order", order, ("max_mean", "mean_max"))
    bias, bn = check_bool("bias", bias), check_bool("bn", bn)
    check_is_training(is_training)
    bn_epsilon, bn_momentum = check_float("bn_epsilon", bn_epsilon), check_float("bn_momentum", bn_momentum)
    with open_scope(scope):
        maps = [tf.reduce_max(x, -1, keepdims=True), tf.reduce_mean(x, -1, keepdims=True)]
        if order == "mean_max":
            maps.reverse()
        gate = tf.concat(maps, -1)  # (N, H, W, 2)
        with tf.variable_scope("conv"):
            kernel = tf.get_variable("kernel", (size, size, 2, 1), x.dtype, kaiming_normal())
            gate = tf.nn.conv2d(gate, kernel, 1, "SAME")  # (N, H, W, 1)
            if bias:
                gate += tf.get_variable("bias", (1,), x.dtype, uniform(2 * size * size))
        if bn:
            gate = batch_norm(gate, is_training, epsilon=bn_epsilon, momentum=bn_momentum, scope="bn")
        return tf.sigmoid(gate, "gate")


def cbam(
    x: tf.Tensor,
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
    is_training: bool = False,
    scope: str | None = None,
) -> tf.Tensor:
    """Convolutional block attention module, arXiv 1807.06521 eq. 1: channel attention, then spatial.

    Input and output: (N, H, W, C).

    Args:
        x, reduction, hidden_rule: as in `squeeze_excitation`.
        mlp_bias: whether the channel MLP has biases.
        order, kernel_size, bn, bn_momentum, bn_epsilon, is_training: as in `spatial_attention`.
        spatial_bias: whether the spatial convolution has a bias.
        spatial_input: input of the spatial gate, the channel-"refined" map (the paper) or the "input".
        scope: variable scope of `channel` and `spatial`.

    Raises:
        ValueError: an argument is invalid, or the input has the wrong shape.
        RuntimeError: called in eager mode or in `tf.function`.
        TypeError: `is_training` is not a Python bool.

    Example:
        >>> with tf.Graph().as_default():
        ...     cbam(tf.zeros((2, 7, 7, 64)), order="mean_max").shape
        TensorShape([2, 7, 7, 64])
    """
    x = graph_input(x)
    spatial_input = check_choice("spatial_input", spatial_input, ("refined", "input"))
    bn_epsilon, bn_momentum = check_float("bn_epsilon", bn_epsilon), check_float("bn_momentum", bn_momentum)
    mlp_bias, spatial_bias = check_bool("mlp_bias", mlp_bias), check_bool("spatial_bias", spatial_bias)
    check_is_training(is_training)  # before any variable is created
    with open_scope(scope) as opened:
        keywords: dict[str, Any] = {"cbam_order": order, "cbam_spatial_input": spatial_input}
        keywords |= {"bn_epsilon": bn_epsilon, "cbam_bn_momentum": bn_momentum} if bn else {}
        tf.add_to_collection(CONFIG_COLLECTION, json.dumps({"scope": opened.name, "keywords": keywords}))
        refined = channel_attention(x, reduction, hidden_rule=hidden_rule, bias=mlp_bias, scope="channel")
        settings: Any = {"order": order, "bn": bn, "bn_momentum": bn_momentum, "bn_epsilon": bn_epsilon}
        maps = refined if spatial_input == "refined" else x
        gate = spatial_attention(
            maps, kernel_size, **settings, bias=spatial_bias, is_training=is_training, scope="spatial"
        )
        return refined * gate


def eca(
    x: tf.Tensor, kernel_size: int | None = None, padding: str = "zeros", *, scope: str | None = None
) -> tf.Tensor:
    """Efficient channel attention, arXiv 1910.03151 eq. 5: x * sigmoid(conv1d(mean(x))) across channels.

    Args:
        x: (N, H, W, C), float, a tensor or NumPy array; the output has the same shape.
        kernel_size: odd; None computes it from C by eq. 12.
        padding: beyond the first and last channel, "zeros" or "circular" (the channels form a ring).
        scope: variable scope of `conv`.

    Raises:
        ValueError: an argument is invalid, or the input has the wrong shape.
        RuntimeError: called in eager mode or in `tf.function`.

    Example:
        >>> with tf.Graph().as_default():
        ...     y = eca(tf.zeros((2, 7, 7, 256)))
        ...     y.shape, tf.trainable_variables()[0].shape
        (TensorShape([2, 7, 7, 256]), TensorShape([5, 1, 1]))
    """
    x = graph_input(x)
    channels = int(x.shape[-1])
    size = eca_kernel_size(channels) if kernel_size is None else check_odd("kernel_size", kernel_size)
    circular = check_choice("padding", padding, ("zeros", "circular")) == "circular"
    with open_scope(scope) as opened:
        keywords = {"channels": channels, "eca_padding": padding}
        tf.add_to_collection(CONFIG_COLLECTION, json.dumps({"scope": opened.name, "keywords": keywords}))
        z = tf.reduce_mean(x, [1, 2])[:, :, None]  # (N, C, 1): the channels are the sequence
        if circular and (half := size // 2):
            z = tf.concat([z[:, -half:], z, z[:, :half]], 1)
        with tf.variable_scope("conv"):
            kernel = tf.get_variable("kernel", (size, 1, 1), x.dtype, uniform(size))
            z = tf.nn.conv1d(z, kernel, 1, "VALID" if circular else "SAME")
        s = tf.sigmoid(z[:, :, 0], "gate")  # (N, C)
        return x * s[:, None, None, :]


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


def check_is_training(is_training: Any) -> None:
    """Raise `TypeError` unless this is a bool: a tensor cannot switch a finished graph to training."""
    if not isinstance(is_training, (bool, np.bool_)):
        raise TypeError(f"is_training: expected a Python bool, got {is_training!r}; build one graph for each")


def check_graph() -> None:
    """Raise `RuntimeError` where variables are not kept: in eager mode and in `tf.function`."""
    graph = tf.get_default_graph()
    with tf.init_scope():
        if not tf.executing_eagerly():  # a graph of TensorFlow 1
            return
    while hasattr(graph, "outer_graph"):  # of a function, or of a branch inside it
        if graph.name.startswith("wrapped_function"):
            return
        graph = graph.outer_graph
    raise RuntimeError(
        "tf1_compat builds graphs: call it inside tf.Graph().as_default(), after tf.compat.v1."
        "disable_eager_execution(), or in tf.compat.v1.wrap_function in the place of tf.function"
    )


def graph_input(x: Any, channels: int | None = None, name: str = "input") -> tf.Tensor:
    """Convert `x` (a tensor or a NumPy array) to a tensor of the current graph and check its shape.

    Raises `RuntimeError` as `check_graph`, and `ValueError` unless `x` is (N, H, W, C) with C = `channels`
    (None: any C).
    """
    check_graph()
    x = tf.convert_to_tensor(x)
    known = x.shape.as_list()[-1] if x.shape.rank == 4 else None
    if known is None or channels not in (None, known):
        wanted = "C" if channels is None else channels
        raise ValueError(f"{name} of shape {x.shape}, expected (N, H, W, {wanted})")
    return x


def kaiming_normal() -> Any:
    """He's initial values (https://arxiv.org/abs/1502.01852, fan-out), as in PyTorch's ResNets."""
    return tf.variance_scaling_initializer(2.0, "fan_out", "untruncated_normal")


def uniform(fan_in: int) -> Any:
    """PyTorch's initial values of kernels and biases: uniform within 1 / sqrt(fan_in)."""
    return tf.random_uniform_initializer(-(fan_in**-0.5), fan_in**-0.5)


def batch_norm(
    x: tf.Tensor, is_training: bool = False, *, epsilon: float = 1e-5, momentum: float = 0.1, scope: str
) -> tf.Tensor:
    """Batch normalisation; variables `gamma`, `beta`, `moving_mean`, `moving_variance`.

    The running variance is unbiased, as in PyTorch, and `momentum` is PyTorch's: the weight of the new
    batch. In training the updates go to `tf.GraphKeys.UPDATE_OPS`.
    """
    check_is_training(is_training)
    ones, zeros, shape = tf.ones_initializer(), tf.zeros_initializer(), x.shape[-1:]
    with tf.variable_scope(scope):
        gamma = tf.get_variable("gamma", shape, x.dtype, ones)
        beta = tf.get_variable("beta", shape, x.dtype, zeros)
        initial = {"moving_mean": zeros, "moving_variance": ones}
        moving = [tf.get_variable(k, shape, x.dtype, v, trainable=False) for k, v in initial.items()]
        fused = x.dtype == tf.float32  # the fused operation has no float64
        if not is_training and fused:
            return tf.nn.fused_batch_norm(x, gamma, beta, *moving, epsilon, is_training=False)[0]
        if not is_training:
            return tf.nn.batch_normalization(x, *moving, beta, gamma, epsilon)
        if fused:
            y, mean, variance = tf.nn.fused_batch_norm(x, gamma, beta, epsilon=epsilon)  # already unbiased
        else:
            mean, biased = tf.nn.moments(x, [0, 1, 2])
            y = tf.nn.batch_normalization(x, mean, biased, beta, gamma, epsilon)
            n = tf.cast(tf.reduce_prod(tf.shape(x)[:3]), x.dtype)
            variance = biased * (n / tf.maximum(n - 1, 1))
        for old, new in zip(moving, (mean, variance), strict=True):
            update = tf.assign(old, (1 - momentum) * old + momentum * tf.stop_gradient(new))
            tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, update.op)
        return y


def dense(x: tf.Tensor, units: int, bias: bool = True, *, scope: str) -> tf.Tensor:
    """x @ kernel + bias; variables `kernel` (C, units) and `bias`."""
    with tf.variable_scope(scope):
        inputs = int(x.shape[-1])
        y = tf.matmul(x, tf.get_variable("kernel", (inputs, units), x.dtype, uniform(inputs)))
        return y + tf.get_variable("bias", (units,), x.dtype, uniform(inputs)) if bias else y


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


def open_scope(scope: str | None, reuse: bool | None = None) -> tf.variable_scope:
    """`tf.variable_scope(scope)`; for None the current scope, without a prefix."""
    return tf.variable_scope(tf.get_variable_scope() if scope is None else scope, reuse=reuse)
