"""The ResNet family in plain NumPy.

ResNet https://arxiv.org/abs/1512.03385   ResNeXt https://arxiv.org/abs/1611.05431
"""

from __future__ import annotations

import numpy as np

from parity_tests.judge.numpy_reference.attention import attend
from parity_tests.judge.numpy_reference.layers import Weights, conv_norm, dense, float64, pad, relu, windows
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
    w, x = float64(weights), x.astype(np.float64)
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
    points["logits"] = dense(points["pooled"], w, "fc") if spec.num_classes else points["pooled"]
    return points
