"""ShuffleNetV1 in plain NumPy: https://arxiv.org/abs/1707.01083"""

from __future__ import annotations

import numpy as np

from parity_tests.judge.numpy_reference.attention import attend
from parity_tests.judge.numpy_reference.layers import Weights, conv_norm, dense, float64, pad, relu, windows
from parity_tests.judge.numpy_reference.resnet import max_pool
from weights_convert.spec import ShuffleNetSpec


def shuffle(x: np.ndarray, groups: int, view: str) -> np.ndarray:
    """Of g n channels: y[:, i g + j] = x[:, j n + i]; "groups_last" is the inverse."""
    n = x.shape[1] // groups
    place = [j * n + i for i in range(n) for j in range(groups)]
    return x[:, place if view == "groups_first" else np.argsort(place)]


def strided_mean(x: np.ndarray, count_padding: bool) -> np.ndarray:
    """Means of 3x3 squares, stride 2; at the edge of nine values, or of those that exist."""
    total = windows(pad(x, (1, 1), (1, 1)), 3, 2).sum((4, 5))
    if count_padding:
        return total / 9
    return total / windows(pad(np.ones_like(x[:1, :1]), (1, 1), (1, 1)), 3, 2).sum((4, 5))


def unit(
    x: np.ndarray, w: Weights, spec: ShuffleNetSpec, path: str, stride: int, first_groups: int
) -> np.ndarray:
    """A unit of figure 2: its branch, and the input or the means beside it."""
    y = relu(conv_norm(x, w, spec, f"{path}.conv1", f"{path}.bn1", groups=first_groups))
    if spec.shuffle_after == "conv1":
        y = shuffle(y, spec.groups, spec.shuffle_view)
    y = conv_norm(y, w, spec, f"{path}.conv2", f"{path}.bn2", stride, groups=y.shape[1])
    if spec.shuffle_after == "conv2":
        y = shuffle(y, spec.groups, spec.shuffle_view)
    y = conv_norm(y, w, spec, f"{path}.conv3", f"{path}.bn3", groups=spec.groups)
    gate = f"{path}.{spec.attention}."
    if spec.attention_on == "branch":
        y = attend(y, w, spec, gate)
    if stride == 1:
        y = relu(x + y)
    else:
        shortcut = strided_mean(x, spec.count_padding)
        first, second = (y, shortcut) if spec.concat_order == "branch_shortcut" else (shortcut, y)
        y = relu(np.concatenate((first, second), 1))
    return attend(y, w, spec, gate) if spec.attention_on == "output" else y


def shufflenet(x: np.ndarray, weights: Weights, spec: ShuffleNetSpec) -> dict[str, np.ndarray]:
    """Every stage's output: `stem`, `stage2` ..., `pooled` (N, C), `logits` (N, num_classes)."""
    w, x = float64(weights), x.astype(np.float64)
    x = max_pool(relu(conv_norm(x, w, spec, "conv1", "bn1", 2)), "pad1")
    points, groups = {"stem": x}, 1
    for stage, depth in enumerate(spec.depths, 2):
        for index in range(depth):
            x = unit(x, w, spec, f"stage{stage}.{index}", 1 if index else 2, groups)
            groups = spec.groups  # the very first convolution of the units has none
        points[f"stage{stage}"] = x
    points["pooled"] = x = x.mean((2, 3))
    points["logits"] = dense(x, w, "fc") if spec.num_classes else x
    return points
