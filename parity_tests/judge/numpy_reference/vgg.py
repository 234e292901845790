"""VGG with batch normalisation in plain NumPy: https://arxiv.org/abs/1409.1556"""

from __future__ import annotations

import numpy as np

from parity_tests.judge.numpy_reference.attention import attend
from parity_tests.judge.numpy_reference.layers import Weights, conv_norm, dense, float64, relu, windows
from weights_convert.spec import VGGSpec


def adaptive_average_pool(x: np.ndarray, size: int) -> np.ndarray:
    """y[n,c,i,j] is the mean of rows iH // size to ceil((i + 1) H / size) and of such columns."""

    def edges(length: int) -> list[tuple[int, int]]:
        return [(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]

    return np.stack(
        [
            np.stack([x[:, :, top:bottom, left:right].mean((2, 3)) for left, right in edges(x.shape[3])], -1)
            for top, bottom in edges(x.shape[2])
        ],
        -2,
    )


def vgg(x: np.ndarray, weights: Weights, spec: VGGSpec) -> dict[str, np.ndarray]:
    """Every stage's output: `stage1` ..., `pooled` (N, C * size * size), `logits` (N, num_classes)."""
    w, x = float64(weights), x.astype(np.float64)
    points, number = {}, 0
    for stage, depth in enumerate(spec.depths, 1):
        for _ in range(depth):
            x = relu(conv_norm(x, w, spec, f"features.{number}", f"features.{number + 1}"))
            number += 2 if spec.norm == "bias" else 3
            x = attend(x, w, spec, f"features.{number - 1}.{spec.attention}.")
        points[f"stage{stage}"] = x = windows(x, 2, 2).max((4, 5))
        number += 1
    points["pooled"] = x = adaptive_average_pool(x, spec.pool_size).reshape(len(x), -1)
    x = relu(dense(relu(dense(x, w, "classifier.0")), w, "classifier.3"))
    points["logits"] = dense(x, w, "classifier.6") if spec.num_classes else x
    return points
