"""MobileNetV1 in plain NumPy: https://arxiv.org/abs/1704.04861"""

from __future__ import annotations

import numpy as np

from parity_tests.judge.numpy_reference.attention import attend
from parity_tests.judge.numpy_reference.layers import (
    ACTIVATIONS,
    Weights,
    conv_norm,
    dense,
    float64,
    normalise,
    pad,
    windows,
)
from weights_convert.spec import MobileNetSpec


def edges(n: int, stride: int, rule: str) -> tuple[int, int]:
    """The zeros before and after n numbers for a kernel of 3.

    "same": as many as ceil(n / stride) outputs need, the odd one after; "end": one after a strided axis.
    """
    if stride == 1 or rule == "pad1":
        return 1, 1
    needed = (-(-n // stride) - 1) * stride + 3 - n if rule == "same" else 1
    return needed // 2, needed - needed // 2


def padded_windows(x: np.ndarray, stride: int, rule: str) -> np.ndarray:
    """The 3x3 windows of a padded input: (N, C, H', W', 3, 3)."""
    return windows(pad(x, edges(x.shape[2], stride, rule), edges(x.shape[3], stride, rule)), 3, stride)


def with_bias(y: np.ndarray, w: Weights, spec: MobileNetSpec, conv: str) -> np.ndarray:
    return y + w[f"{conv}.bias"].reshape(1, -1, 1, 1) if spec.norm in ("bias_bn", "bias") else y


def stem(x: np.ndarray, w: Weights, spec: MobileNetSpec, rule: str) -> np.ndarray:
    """y[n,o,i,j] = sum over c,u,v of kernel[o,c,u,v] x[n,c,2i+u,2j+v], x padded."""
    y = np.einsum("ncijuv,ocuv->noij", padded_windows(x, 2, rule), w["conv1.weight"])
    return normalise(with_bias(y, w, spec, "conv1"), w, spec, "bn1")


def depthwise(
    x: np.ndarray, w: Weights, spec: MobileNetSpec, unit: str, stride: int, rule: str
) -> np.ndarray:
    """y[n,c,i,j] = sum over u,v of kernel[c,0,u,v] x[n,c,stride i + u,stride j + v], x padded."""
    y = np.einsum("ncijuv,cuv->ncij", padded_windows(x, stride, rule), w[f"{unit}.conv1.weight"][:, 0])
    return normalise(with_bias(y, w, spec, f"{unit}.conv1"), w, spec, f"{unit}.bn1")


def mobilenet(x: np.ndarray, weights: Weights, spec: MobileNetSpec) -> dict[str, np.ndarray]:
    """Every stage's output: `stem`, `stage1` ..., `pooled` (N, C), `logits` (N, num_classes)."""
    w, x, act = float64(weights), x.astype(np.float64), ACTIVATIONS[spec.activation]
    first, others = {"keras": ("same", "end")}.get(spec.stride_padding, (spec.stride_padding,) * 2)
    points = {"stem": (x := act(stem(x, w, spec, first)))}
    for stage, depth in enumerate(spec.depths, 1):
        for index in range(depth):
            unit, stride = f"stage{stage}.{index}", 2 if stage > 1 and index == 0 else 1
            x = act(depthwise(x, w, spec, unit, stride, others))
            x = act(conv_norm(x, w, spec, f"{unit}.conv2", f"{unit}.bn2"))
            x = attend(x, w, spec, f"{unit}.{spec.attention}.")
        points[f"stage{stage}"] = x
    points["pooled"] = x = x.mean((2, 3))
    points["logits"] = dense(x, w, "fc") if spec.num_classes else x
    return points
