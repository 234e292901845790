"""BN-Inception in plain NumPy: https://arxiv.org/abs/1502.03167, figure 5, with the pools of Caffe.

Widths and kernel sizes are those of the weights.
"""

from __future__ import annotations

import numpy as np

from parity_tests.judge.numpy_reference.attention import attend
from parity_tests.judge.numpy_reference.layers import Weights, conv_norm, dense, float64, pad, relu, windows
from parity_tests.judge.numpy_reference.resnet import max_pool
from weights_convert.spec import InceptionSpec

MODULES = ("3a", "3b", "3c", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
HALVING = ("3c", "4e")  # their last convolutions have stride 2


def convolve(
    x: np.ndarray, w: Weights, spec: InceptionSpec, chain: str, number: int, stride: int = 1
) -> np.ndarray:
    """Convolution `number` of a chain, its normalisation and the ReLU."""
    return relu(conv_norm(x, w, spec, f"{chain}.unit{number}.conv", f"{chain}.unit{number}.bn", stride))


def stem(x: np.ndarray, w: Weights, spec: InceptionSpec) -> np.ndarray:
    x = max_pool(convolve(x, w, spec, "stem", 1, 2), spec.reduction_pool)
    x = convolve(convolve(x, w, spec, "stem", 2), w, spec, "stem", 3)
    return max_pool(x, spec.reduction_pool)


def same_size_pool(x: np.ndarray, kind: str, count_padding: bool) -> np.ndarray:
    """The maximum or the mean of 3x3 squares; at the edge the mean of nine values, or of those that exist."""
    if kind == "max":
        return windows(pad(x, (1, 1), (1, 1), -np.inf), 3, 1).max((4, 5))
    total = windows(pad(x, (1, 1), (1, 1)), 3, 1).sum((4, 5))
    if count_padding:
        return total / 9
    return total / windows(pad(np.ones_like(x[:1, :1]), (1, 1), (1, 1)), 3, 1).sum((4, 5))


def module(x: np.ndarray, w: Weights, spec: InceptionSpec, name: str) -> np.ndarray:
    """The branches side by side: 1x1, 3x3, double 3x3, pool; the first is missing where the map halves."""
    halves, path = name in HALVING, f"inception_{name}"
    outputs = []
    for branch in range(1, 3 if halves else 4):
        y, chain = x, f"{path}.branch{branch}"
        units = sum(name.startswith(chain) and name.endswith(".conv.weight") for name in w)
        for number in range(1, units + 1):
            y = convolve(y, w, spec, chain, number, 2 if halves and number == units else 1)
        outputs.append(y)
    if halves:
        outputs.append(max_pool(x, spec.reduction_pool))
    else:
        pooled = same_size_pool(x, spec.last_pool if name == "5b" else "avg", spec.count_padding)
        outputs.append(convolve(pooled, w, spec, f"{path}.branch4", 1))
    return attend(np.concatenate(outputs, 1), w, spec, f"{path}.{spec.attention}.")


def inception(x: np.ndarray, weights: Weights, spec: InceptionSpec) -> dict[str, np.ndarray]:
    """Every stage's output: `stem`, `inception_3a` ..., `pooled` (N, C), `logits` (N, num_classes)."""
    w, x = float64(weights), x.astype(np.float64)
    points = {"stem": (x := stem(x, w, spec))}
    for name in MODULES:
        points[f"inception_{name}"] = x = module(x, w, spec, name)
    points["pooled"] = x = x.mean((2, 3))
    points["logits"] = dense(x, w, "fc") if spec.num_classes else x
    return points
