"""Layers in plain NumPy float64, forward, in inference mode: written from their equations.

Arrays are (N, C, H, W); `w` maps canonical names (PyTorch's) to arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Weights = Mapping[str, np.ndarray]


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0.0)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    """x times the normal distribution's function at x: x (1 + erf(x / sqrt 2)) / 2."""
    erf = np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2))
    return x * (1 + erf) / 2


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": relu,
    "silu": lambda x: x * sigmoid(x),
    "gelu": gelu,
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "relu6": lambda x: np.minimum(relu(x), 6.0),
}


def windows(x: np.ndarray, size: int | tuple[int, int], stride: int, dilation: int = 1) -> np.ndarray:
    """Every size x size window of points `dilation` apart: (N, C, H, W) -> (N, C, H', W', size, size)."""
    sizes = (size, size) if isinstance(size, int) else size
    spans = tuple(dilation * (size - 1) + 1 for size in sizes)
    view = np.lib.stride_tricks.sliding_window_view(x, spans, axis=(2, 3))
    return view[:, :, ::stride, ::stride, ::dilation, ::dilation]


def pad(x: np.ndarray, rows: tuple[int, int], columns: tuple[int, int], value: float = 0.0) -> np.ndarray:
    return np.pad(x, ((0, 0), (0, 0), rows, columns), constant_values=value)


def conv2d(
    x: np.ndarray,
    kernel: np.ndarray,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
    padded: bool = True,
) -> np.ndarray:
    """y[n,o,i,j] = sum over c,u,v of kernel[o,c,u,v] x[n,c,stride i + u', stride j + v'].

    u' = dilation (u - k//2), and v' likewise; without padding u' = dilation u.
    """
    n, channels = x.shape[:2]
    outputs, inputs, *sizes = kernel.shape
    rows, columns = (dilation * (size // 2) if padded else 0 for size in sizes)
    padded_x = pad(x, (rows, rows), (columns, columns))
    patches = windows(padded_x, (sizes[0], sizes[1]), stride, dilation)  # (N, C, H', W', kH, kW)
    height, width = patches.shape[2:4]
    patches = patches.reshape(n, groups, channels // groups, height, width, *sizes)
    terms = inputs * sizes[0] * sizes[1]
    values = patches.transpose(0, 1, 2, 5, 6, 3, 4).reshape(n, groups, terms, height * width)
    weights = kernel.reshape(groups, outputs // groups, terms)
    return (weights @ values).reshape(n, outputs, height, width)


def batch_norm(x: np.ndarray, w: Weights, name: str, epsilon: float) -> np.ndarray:
    """gamma (x - mean) / sqrt(variance + epsilon) + beta, channel by channel."""
    mean, variance = w[f"{name}.running_mean"], w[f"{name}.running_var"]
    gamma, beta = w[f"{name}.weight"], w[f"{name}.bias"]
    shape = (1, -1, 1, 1)
    normalised = (x - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + epsilon)
    return gamma.reshape(shape) * normalised + beta.reshape(shape)


def dense(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    """W x + b; b is optional."""
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def conv_norm(
    x: np.ndarray,
    w: Weights,
    spec: Any,
    conv: str,
    bn: str,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
    padded: bool = True,
) -> np.ndarray:
    """A convolution followed by batch normalisation, a bias, or both."""
    y = conv2d(x, w[f"{conv}.weight"], stride, groups, dilation, padded)
    if spec.norm in ("bias_bn", "bias"):
        y = y + w[f"{conv}.bias"].reshape(1, -1, 1, 1)
    return normalise(y, w, spec, bn)


def group_norm(x: np.ndarray, w: Weights, name: str, epsilon: float) -> np.ndarray:
    """gamma (x - mean) / sqrt(variance + epsilon) + beta; statistics of an image's 32 groups of channels."""
    groups = x.reshape(len(x), 32, -1)
    mean, variance = groups.mean(2, keepdims=True), groups.var(2, keepdims=True)
    normalised = ((groups - mean) / np.sqrt(variance + epsilon)).reshape(x.shape)
    return w[f"{name}.weight"].reshape(1, -1, 1, 1) * normalised + w[f"{name}.bias"].reshape(1, -1, 1, 1)


def normalise(x: np.ndarray, w: Weights, spec: Any, name: str) -> np.ndarray:
    """The normalisation after a convolution and its bias."""
    if spec.norm == "bias":
        return x
    return (group_norm if spec.norm == "gn" else batch_norm)(x, w, name, spec.bn_epsilon)


def float64(weights: Weights) -> dict[str, np.ndarray]:
    return {name: np.asarray(array, np.float64) for name, array in weights.items()}
