"""The judge: attention blocks and the ResNet family, forward, in plain NumPy float64.

Written from the papers' equations, independently of the three implementations, with NumPy only. Arrays are
(N, C, H, W); `w` maps canonical names (PyTorch's) to arrays; inference mode.

ResNet https://arxiv.org/abs/1512.03385    ResNeXt https://arxiv.org/abs/1611.05431
SE     https://arxiv.org/abs/1709.01507    CBAM    https://arxiv.org/abs/1807.06521
ECA    https://arxiv.org/abs/1910.03151
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from weights_convert.spec import AttentionOptions, AttentionSpec, ResNetSpec

Weights = Mapping[str, np.ndarray]


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0.0)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def windows(x: np.ndarray, size: int, stride: int) -> np.ndarray:
    """Every size x size window: (N, C, H, W) -> (N, C, H', W', size, size)."""
    view = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))
    return view[:, :, ::stride, ::stride]


def pad(x: np.ndarray, rows: tuple[int, int], columns: tuple[int, int], value: float = 0.0) -> np.ndarray:
    return np.pad(x, ((0, 0), (0, 0), rows, columns), constant_values=value)


def conv2d(x: np.ndarray, kernel: np.ndarray, stride: int = 1, groups: int = 1) -> np.ndarray:
    """y[n,o,i,j] = sum over c,u,v of kernel[o,c,u,v] x[n,c,stride i + u - k//2, stride j + v - k//2]."""
    n, channels = x.shape[:2]
    outputs, inputs, size, _ = kernel.shape
    half = size // 2
    patches = windows(pad(x, (half, half), (half, half)), size, stride)  # (N, C, H', W', k, k)
    height, width = patches.shape[2:4]
    patches = patches.reshape(n, groups, channels // groups, height, width, size, size)
    columns = patches.transpose(0, 1, 2, 5, 6, 3, 4).reshape(n, groups, inputs * size * size, height * width)
    rows = kernel.reshape(groups, outputs // groups, inputs * size * size)
    return (rows @ columns).reshape(n, outputs, height, width)


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


def pool_padding(size: int, rule: str) -> tuple[int, int]:
    """Padding (before, after) of the 3x3, stride-2 max-pool."""
    if rule == "pad1":
        return 1, 1
    # both rules add a last window across the edge; TensorFlow's SAME also centres a padding of two
    windows_wanted = -(-size // 2) if rule == "same" else -(-(size - 3) // 2) + 1
    total = max((windows_wanted - 1) * 2 + 3 - size, 0)
    return (total // 2, total - total // 2) if rule == "same" else (0, total)


def max_pool(x: np.ndarray, rule: str) -> np.ndarray:
    if rule == "none":
        return x
    rows, columns = (pool_padding(size, rule) for size in x.shape[2:])
    return windows(pad(x, rows, columns, -np.inf), 3, 2).max((4, 5))


def average_pool_2x2(x: np.ndarray) -> np.ndarray:
    """Means of 2x2 squares; an odd edge averages only the existing values."""
    rows, columns = x.shape[2] % 2, x.shape[3] % 2
    total = windows(pad(x, (0, rows), (0, columns)), 2, 2).sum((4, 5))
    count = windows(pad(np.ones_like(x[:1, :1]), (0, rows), (0, columns)), 2, 2).sum((4, 5))
    return total / count


# --------------------------------------------------------------------------------------------------
# Attention: `name` is the block's prefix with its dot ("layer1.0.se."), "" for a single block.


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


def eca(x: np.ndarray, w: Weights, name: str = "") -> np.ndarray:
    """ECA eq. 5: s_c = sigmoid(sum over j of k_j z_{c + j - k//2}), z the mean over H, W, zero outside."""
    kernel = w[f"{name}conv.weight"][0, 0]
    half = len(kernel) // 2
    z = np.pad(x.mean((2, 3)), ((0, 0), (half, half)))
    s = sigmoid(np.lib.stride_tricks.sliding_window_view(z, len(kernel), axis=1) @ kernel)
    return x * s[:, :, None, None]


def attend(x: np.ndarray, w: Weights, options: AttentionOptions, name: str = "") -> np.ndarray:
    """The attention block that `options` describe."""
    if options.attention == "se":
        return squeeze_excitation(x, w, name)
    if options.attention == "cbam":
        return cbam(x, w, options, name)
    if options.attention == "eca":
        return eca(x, w, name)
    return x


def attention_block(x: np.ndarray, w: Weights, spec: AttentionSpec) -> np.ndarray:
    """A single block; `x` and the weights are cast to float64."""
    return attend(x.astype(np.float64), _float64(w), spec)


# --------------------------------------------------------------------------------------------------
# Networks


def conv_norm(
    x: np.ndarray, w: Weights, spec: ResNetSpec, conv: str, bn: str, stride: int = 1, groups: int = 1
) -> np.ndarray:
    """A convolution followed by batch normalisation, a bias, or both."""
    y = conv2d(x, w[f"{conv}.weight"], stride, groups)
    if spec.norm in ("bias_bn", "bias"):
        y = y + w[f"{conv}.bias"].reshape(1, -1, 1, 1)
    return y if spec.norm == "bias" else batch_norm(y, w, bn, spec.bn_epsilon)


def residual_block(x: np.ndarray, w: Weights, spec: ResNetSpec, name: str, stride: int) -> np.ndarray:
    """y = relu(F(x) + shortcut(x)), ResNet eq. 2, with attention on F(x) (SE fig. 3)."""

    def conv(x: np.ndarray, number: int, stride: int = 1, groups: int = 1) -> np.ndarray:
        return conv_norm(x, w, spec, f"{name}conv{number}", f"{name}bn{number}", stride, groups)

    if spec.block == "basic":
        y = conv(relu(conv(x, 1, stride)), 2)
    else:
        stride1, stride2 = (stride, 1) if spec.stride_in == "conv1" else (1, stride)
        y = relu(conv(x, 1, stride1))
        y = relu(conv(y, 2, stride2, spec.groups))
        y = conv(y, 3)
    if spec.relu_before_attention:
        y = relu(y)
    y = attend(y, w, spec, f"{name}{spec.attention}.")

    if f"{name}downsample.0.weight" in w:
        if stride == 2 and spec.downsample_pool == "avg":
            x, stride = average_pool_2x2(x), 1
        x = conv_norm(x, w, spec, f"{name}downsample.0", f"{name}downsample.1", stride)
    return relu(y + x)


def resnet(x: np.ndarray, weights: Weights, spec: ResNetSpec) -> dict[str, np.ndarray]:
    """Every stage's output: `stem`, `layer1` ..., `pooled` (N, C), `logits` (N, num_classes)."""
    w, x = _float64(weights), x.astype(np.float64)
    for number in (1, 2, 3) if spec.stem in ("deep", "deep_tiered") else (1,):
        stride = 2 if number == 1 and spec.stem != "3x3" else 1
        x = relu(conv_norm(x, w, spec, f"conv{number}", f"bn{number}", stride))
    points = {"stem": (x := max_pool(x, str(spec.stem_pool)))}
    for stage, depth in enumerate(spec.depths, 1):
        for index in range(depth):
            stride = 2 if stage > 1 and index == 0 else 1
            x = residual_block(x, w, spec, f"layer{stage}.{index}.", stride)
        points[f"layer{stage}"] = x
    points["pooled"] = x.mean((2, 3))
    points["logits"] = dense(points["pooled"], w, "fc")
    return points


def _float64(weights: Weights) -> dict[str, np.ndarray]:
    return {name: np.asarray(array, np.float64) for name, array in weights.items()}
