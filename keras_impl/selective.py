"""Selective kernels in Keras 3: two 3x3 convolutions, weighted channel by channel.

Selective Kernel Networks: https://arxiv.org/abs/1903.06586
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from .attention import dense, keep_frozen, mean
from .layers import ACTIVATIONS, Conv2D, build_chain, make_norm


@keras.saving.register_keras_serializable("samenet")
class SelectiveKernel(keras.layers.Layer):
    """SK convolution, arXiv 1903.06586: a1 * u1 + a2 * u2, in place of a block's 3x3 convolution.

    u1 and u2 are act(BN(conv(x))) with a 3x3 and a 3x3 of twice the dilation, which stands for the 5x5;
    z = relu(BN(W1 mean(u1 + u2))), eq. 1-4; a1 and a2 are the softmax of W2 z over the two, eq. 5.

    Input and output: (N, H, W, inputs), (N, H / stride, W / stride, outputs).

    Args:
        inputs, outputs: channels.
        stride, groups, dilation: of the first convolution.
        reduction, min_hidden: W1 has max(outputs // reduction, min_hidden) rows (the paper's r and L).
        split: whether each convolution reads one half of the channels (timm's basic and bottleneck blocks
            without groups), instead of all.
        activation: "relu", "silu", "gelu" or "leaky_relu", after the convolutions.
        norm, bn_epsilon, bn_momentum: see `ResNet`.

    Example:
        >>> SelectiveKernel(64, 128, 2)(keras.ops.zeros((2, 8, 8, 64))).shape
        TensorShape([2, 4, 4, 128])
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
        norm: str = "bn",
        bn_epsilon: float = 1e-5,
        bn_momentum: float = 0.1,
        **keywords: Any,
    ):
        c = {k: v for k, v in locals().items() if k not in ("self", "__class__", "keywords")}
        super().__init__(**keywords)
        self.config = c
        self.stride, self.split, self.activation = stride, split, activation
        dtype, bias = self.dtype_policy, norm != "bn"
        conv = {"use_bias": bias, "dtype": dtype}
        self.conv1 = Conv2D(outputs, 3, stride, groups, dilation_rate=dilation, **conv, name="conv1")
        self.bn1 = make_norm("bn1", c, dtype)
        # of the two strides and dilations only one is above 1: `call` takes every other pixel instead
        self.conv2 = Conv2D(outputs, 3, 1, groups, dilation_rate=2 * dilation // stride, **conv, name="conv2")
        self.bn2 = make_norm("bn2", c, dtype)
        hidden = max(outputs // reduction, min_hidden)
        self.fc1, self.bn = dense(outputs, hidden, bias, dtype=dtype, name="fc1"), make_norm("bn", c, dtype)
        self.fc2 = dense(hidden, 2 * outputs, False, dtype=dtype, name="fc2")

    def build(self, input_shape: tuple) -> None:
        inputs = (*input_shape[:3], self.config["inputs"] // (2 if self.split else 1))
        build_chain(inputs, self.conv1, self.bn1)
        build_chain(inputs, self.conv2, self.bn2)
        hidden = build_chain((None, self.config["outputs"]), self.fc1)
        self.bn.build((None, 1, 1, hidden[-1]))
        self.fc2.build(hidden)
        keep_frozen(self)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return self.conv1.compute_output_shape(input_shape)

    def act(self, x: Any) -> Any:
        return ACTIVATIONS[self.activation](x)

    def call(self, x: Any, training: bool | None = None) -> Any:
        x1, x2 = ops.split(x, 2, -1) if self.split else (x, x)
        x2 = x2[:, :: self.stride, :: self.stride]
        u1 = self.act(self.bn1(self.conv1(x1), training=training))  # (N, H, W, C)
        u2 = self.act(self.bn2(self.conv2(x2), training=training))
        z = self.fc1(mean(u1 + u2, (1, 2)))  # (N, hidden)
        z = ops.relu(self.bn(z[:, None, None, :], training=training))[:, 0, 0, :]
        a = ops.softmax(ops.reshape(self.fc2(z), (-1, 2, 1, 1, u1.shape[-1])), 1)  # (N, 2, 1, 1, C)
        return a[:, 0] * u1 + a[:, 1] * u2

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | self.config


def make_selective(c: Mapping[str, Any]) -> dict[str, Any] | None:
    """The keywords of a block's selective kernels, from those of `ResNet`; None without them."""
    names = {"reduction": "reduction", "min_hidden": "sk_min_hidden", "split": "sk_split"}
    return {name: c[of] for name, of in names.items()} if c["attention"] == "sk" else None
