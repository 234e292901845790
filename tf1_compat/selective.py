"""Selective kernels as a TensorFlow 1 graph function: two 3x3 convolutions, weighted channel by channel.

Selective Kernel Networks: https://arxiv.org/abs/1903.06586
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import tensorflow.compat.v1 as tf

from .attention import batch_norm, dense, graph_input, open_scope
from .layers import ACTIVATIONS, conv2d


def selective_kernel(
    x: tf.Tensor,
    outputs: int,
    stride: int = 1,
    groups: int = 1,
    *,
    dilation: int = 1,
    reduction: int = 16,
    min_hidden: int = 32,
    split: bool = False,
    activation: str = "relu",
    norm: Callable[..., tf.Tensor] = batch_norm,
    bias: bool = False,
    scope: str | None = None,
) -> tf.Tensor:
    """SK convolution, arXiv 1903.06586: a1 * u1 + a2 * u2, in place of a block's 3x3 convolution.

    u1 and u2 are act(BN(conv(x))) with a 3x3 and a 3x3 of twice the dilation, which stands for the 5x5;
    z = relu(BN(W1 mean(u1 + u2))), eq. 1-4; a1 and a2 are the softmax of W2 z over the two, eq. 5.

    Input and output: (N, H, W, C), (N, H / stride, W / stride, outputs).

    Args:
        x: (N, H, W, C), float, a tensor or NumPy array.
        outputs: channels of the output.
        stride, groups, dilation: of the first convolution.
        reduction, min_hidden: W1 has max(outputs // reduction, min_hidden) rows (the paper's r and L).
        split: whether each convolution reads one half of the channels (timm's basic and bottleneck blocks
            without groups), instead of all.
        activation: "relu", "silu", "gelu" or "leaky_relu", after the convolutions.
        norm: batch normalisation, called with `scope`.
        bias: whether the convolutions and W1 have biases.
        scope: variable scope of `conv1`, `bn1`, `conv2`, `bn2`, `fc1`, `bn` and `fc2`.

    Raises:
        ValueError: `x` has the wrong shape.
        RuntimeError: called in eager mode or in `tf.function`.

    Example:
        >>> with tf.Graph().as_default():
        ...     selective_kernel(tf.zeros((2, 8, 8, 64)), 128, 2, scope="sk").shape
        TensorShape([2, 4, 4, 128])
    """
    x, conv, act = graph_input(x), partial(conv2d, bias=bias), ACTIVATIONS[activation]
    with open_scope(scope):
        x1, x2 = tf.split(x, 2, -1) if split else (x, x)
        u1 = conv(x1, outputs, 3, stride, groups, dilation=dilation, scope="conv1")
        u1 = act(norm(u1, scope="bn1"))  # (N, H, W, C)
        # of the two strides and dilations only one is above 1: take every other pixel instead
        u2 = conv(
            x2[:, ::stride, ::stride], outputs, 3, 1, groups, dilation=2 * dilation // stride, scope="conv2"
        )
        u2 = act(norm(u2, scope="bn2"))
        hidden = max(outputs // reduction, min_hidden)
        z = dense(tf.reduce_mean(u1 + u2, [1, 2]), hidden, bias, scope="fc1")  # (N, hidden)
        z = tf.nn.relu(norm(z[:, None, None, :], scope="bn"))[:, 0, 0, :]
        a = tf.reshape(dense(z, 2 * outputs, False, scope="fc2"), (-1, 2, 1, 1, outputs))
        a = tf.nn.softmax(a, 1)
        return a[:, 0] * u1 + a[:, 1] * u2


def make_selective(c: Mapping[str, Any]) -> dict[str, Any] | None:
    """The keywords of a block's selective kernels, from those of `resnet`; None without them."""
    names = {"reduction": "reduction", "min_hidden": "sk_min_hidden", "split": "sk_split"}
    return {name: c[of] for name, of in names.items()} if c["attention"] == "sk" else None
