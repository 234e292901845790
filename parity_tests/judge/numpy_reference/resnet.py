"""The ResNet family in plain NumPy.

ResNet https://arxiv.org/abs/1512.03385   ResNeXt https://arxiv.org/abs/1611.05431
"""

from __future__ import annotations

import numpy as np

from parity_tests.judge.numpy_reference.attention import attend, selective_kernels
from parity_tests.judge.numpy_reference.layers import (
    ACTIVATIONS,
    Weights,
    conv2d,
    conv_norm,
    dense,
    float64,
    normalise,
    pad,
    windows,
)
from weights_convert.spec import ResNetSpec


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


def average_pool_dilated(x: np.ndarray) -> np.ndarray:
    """Means of 2x2 squares at every place; beyond the last row and column lie zeros, which count."""
    return windows(pad(x, (0, 1), (0, 1)), 2, 1).mean((4, 5))


def anti_alias(x: np.ndarray, rule: str, stride: int) -> np.ndarray:
    """ "avg": means of stride x stride squares. "blur": arXiv 1904.11486, with mirrored edges."""
    if rule == "avg":
        return windows(x, stride, stride).mean((4, 5))
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    weights = np.outer([1, 2, 1], [1, 2, 1]) / 16
    return (windows(x, 3, stride) * weights).sum((4, 5))


def steps(spec: ResNetSpec, stage: int, index: int) -> tuple[int, int, int]:
    """Stride of a block, dilation of its first 3x3 convolution, dilation of its second."""
    strides = spec.strides or [1] + [2] * (len(spec.depths) - 1)
    dilations = spec.dilations or [1] * len(spec.depths)
    before = dilations[stage - 1] if index == 0 and stage > 0 else dilations[stage]
    return strides[stage] if index == 0 else 1, before, dilations[stage]


def residual_block(
    x: np.ndarray, w: Weights, spec: ResNetSpec, name: str, stride: int, first_dilation: int, dilation: int
) -> np.ndarray:
    """y = relu(F(x) + shortcut(x)), ResNet eq. 2, with attention on F(x) (SE fig. 3)."""
    act = ACTIVATIONS[spec.activation]
    pools = spec.anti_aliasing != "none" and (stride > 1 or first_dilation != dilation)

    def conv(x: np.ndarray, number: int, stride: int = 1, groups: int = 1, dilation: int = 1) -> np.ndarray:
        names = f"{name}conv{number}", f"{name}bn{number}"
        return conv_norm(x, w, spec, *names, 1 if pools else stride, groups, dilation)

    def pool(x: np.ndarray) -> np.ndarray:
        return anti_alias(x, spec.anti_aliasing, stride) if pools else x

    def strided(x: np.ndarray, number: int, stride: int, groups: int = 1) -> np.ndarray:
        if spec.attention == "sk":
            return selective_kernels(x, w, spec, f"{name}sk.", stride, first_dilation)
        return pool(act(conv(x, number, stride, groups, first_dilation)))

    if spec.block == "basic":
        y = strided(x, 1, stride)
        y = conv(y, 2, dilation=dilation)
    else:
        stride1, stride2 = (stride, 1) if spec.stride_in == "conv1" else (1, stride)
        y = act(conv(x, 1, stride1))
        y = strided(y, 2, stride2, spec.groups)
        y = conv(y, 3)
    if spec.relu_before_attention:
        y = act(y)
    y = attend(y, w, spec, f"{name}{spec.attention}.")
    return act(y + shortcut(x, w, spec, f"{name}downsample.", stride, first_dilation, dilation))


def shortcut(
    x: np.ndarray, w: Weights, spec: ResNetSpec, name: str, stride: int, first_dilation: int, dilation: int
) -> np.ndarray:
    """The block's input, projected if a stride or the number of channels asks for it."""
    if f"{name}0.weight" not in w:
        return x
    if spec.downsample_pool == "avg":
        if stride == 2:
            x, stride = average_pool_2x2(x), 1
        elif dilation > 1:
            x = average_pool_dilated(x)
    return conv_norm(x, w, spec, f"{name}0", f"{name}1", stride, dilation=first_dilation)


def stem(x: np.ndarray, w: Weights, spec: ResNetSpec) -> np.ndarray:
    act = ACTIVATIONS[spec.activation]
    for number in (1, 2, 3) if spec.stem in ("deep", "deep_tiered") else (1,):
        stride = 2 if number == 1 and spec.stem != "3x3" else 1
        x = act(conv_norm(x, w, spec, f"conv{number}", f"bn{number}", stride))
    pools = spec.anti_aliasing != "none" and spec.stem_pool != "none"
    if spec.stem_pool == "conv":
        y = conv2d(x, w["pool_conv.weight"], 1 if pools else 2)
        if "pool_conv.bias" in w:
            y = y + w["pool_conv.bias"].reshape(1, -1, 1, 1)
        y = anti_alias(y, spec.anti_aliasing, 2) if pools else y
        return act(normalise(y, w, spec, "pool_bn"))
    if not pools:
        return max_pool(x, str(spec.stem_pool))
    if spec.anti_aliasing == "blur":
        x = windows(pad(x, (1, 1), (1, 1), -np.inf), 3, 1).max((4, 5))
    return anti_alias(x, spec.anti_aliasing, 2)


def global_pool(x: np.ndarray, rule: str) -> np.ndarray:
    """(N, C, H, W) -> (N, C), or (N, 2 C) for "catavgmax"."""
    mean, maximum = x.mean((2, 3)), x.max((2, 3))
    both = {"avgmax": (mean + maximum) / 2, "catavgmax": np.concatenate([mean, maximum], 1)}
    return {"avg": mean, "max": maximum, **both}[rule]


def resnet(x: np.ndarray, weights: Weights, spec: ResNetSpec) -> dict[str, np.ndarray]:
    """Every stage's output: `stem`, `layer1` ..., `pooled` (N, C), `logits` (N, num_classes)."""
    w, x = float64(weights), x.astype(np.float64)
    points = {"stem": (x := stem(x, w, spec))}
    for stage, depth in enumerate(spec.depths):
        for index in range(depth):
            x = residual_block(x, w, spec, f"layer{stage + 1}.{index}.", *steps(spec, stage, index))
        points[f"layer{stage + 1}"] = x
    points["pooled"] = global_pool(x, spec.global_pool)
    points["logits"] = dense(points["pooled"], w, "fc") if spec.num_classes else points["pooled"]
    return points
