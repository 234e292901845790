"""SE, CBAM, ECA and SK in plain NumPy, from the papers' equations.

SE https://arxiv.org/abs/1709.01507   CBAM https://arxiv.org/abs/1807.06521   ECA https://arxiv.org/abs/1910.03151
SK https://arxiv.org/abs/1903.06586

`name` is the block's prefix with its dot ("layer1.0.se."), "" for a single block.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from parity_tests.judge.numpy_reference.layers import (
    ACTIVATIONS,
    Weights,
    batch_norm,
    conv2d,
    conv_norm,
    dense,
    float64,
    relu,
    sigmoid,
)
from weights_convert.spec import AttentionOptions, AttentionSpec


def squeeze_excitation(x: np.ndarray, w: Weights, name: str = "") -> np.ndarray:
    """SE eq. 2-4: x sigmoid(W2 relu(W1 z)) with z the mean over H, W."""
    z = x.mean((2, 3))
    s = sigmoid(dense(relu(dense(z, w, f"{name}fc1")), w, f"{name}fc2"))
    return x * s[:, :, None, None]


def cbam(x: np.ndarray, w: Weights, options: AttentionOptions, name: str = "") -> np.ndarray:
    """CBAM eq. 1-3: F' = Mc(F) F, F'' = Ms(F') F'."""

    def mlp(z: np.ndarray) -> np.ndarray:
        return dense(relu(dense(z, w, f"{name}channel.fc1")), w, f"{name}channel.fc2")

    channel_gate = sigmoid(mlp(x.mean((2, 3))) + mlp(x.max((2, 3))))  # eq. 2
    refined = x * channel_gate[:, :, None, None]

    spatial_input = refined if options.cbam_spatial_input == "refined" else x
    maximum, mean = spatial_input.max(1), spatial_input.mean(1)
    maps = [maximum, mean] if options.cbam_order == "max_mean" else [mean, maximum]
    gate = conv2d(np.stack(maps, 1), w[f"{name}spatial.conv.weight"])  # eq. 3
    if options.cbam_spatial_bias:
        gate = gate + w[f"{name}spatial.conv.bias"]
    if options.cbam_bn:
        gate = batch_norm(gate, w, f"{name}spatial.bn", options.bn_epsilon)
    return refined * sigmoid(gate)


def eca(x: np.ndarray, w: Weights, padding: str = "zeros", name: str = "") -> np.ndarray:
    """ECA eq. 5: s_c = sigmoid(sum over j of k_j z_{c + j - k//2}), z the mean over H, W.

    Outside, z is zero, or with `padding="circular"` continues at the other end.
    """
    kernel = w[f"{name}conv.weight"][0, 0]
    half = len(kernel) // 2
    z = np.pad(x.mean((2, 3)), ((0, 0), (half, half)), mode="wrap" if padding == "circular" else "constant")
    s = sigmoid(np.lib.stride_tricks.sliding_window_view(z, len(kernel), axis=1) @ kernel)
    return x * s[:, :, None, None]


def selective_kernels(
    x: np.ndarray, w: Weights, spec: Any, name: str, stride: int, dilation: int
) -> np.ndarray:
    """SK eq. 1-6: V = sum over i of a_i U_i, a the softmax over i of W2_i z, z from the mean of sum U_i."""
    inputs = np.split(x, 2, 1) if spec.sk_split else [x, x]
    maps = []
    for number, factor in ((1, 1), (2, 2)):
        conv, bn = f"{name}conv{number}", f"{name}bn{number}"
        y = conv_norm(inputs[number - 1], w, spec, conv, bn, stride, spec.groups, factor * dilation)
        maps.append(ACTIVATIONS[spec.activation](y))
    z = dense((maps[0] + maps[1]).mean((2, 3)), w, f"{name}fc1")[:, :, None, None]
    z = relu(z if spec.norm == "bias" else batch_norm(z, w, f"{name}bn", spec.bn_epsilon))[:, :, 0, 0]
    first, second = np.split(np.exp(dense(z, w, f"{name}fc2")), 2, 1)
    weight = (first / (first + second))[:, :, None, None]
    return weight * maps[0] + (1 - weight) * maps[1]


def attend(x: np.ndarray, w: Weights, options: AttentionOptions, name: str = "") -> np.ndarray:
    """The attention block that `options` describe."""
    if options.attention == "se":
        return squeeze_excitation(x, w, name)
    if options.attention == "cbam":
        return cbam(x, w, options, name)
    if options.attention == "eca":
        return eca(x, w, options.eca_padding, name)
    return x


def attention_block(x: np.ndarray, w: Weights, spec: AttentionSpec) -> np.ndarray:
    """A single block; `x` and the weights are cast to float64."""
    return attend(x.astype(np.float64), float64(w), spec)
