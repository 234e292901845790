"""Grouped convolution in TensorFlow where it lacks a gradient: oneDNN off, float32 and float64.

Measures several ways to compute the layers of SE-ResNeXt-50 with 32 groups, batch 8, in turn (A B A B ...).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

from benchmarks.timing import spread

GROUPS = 32
LAYERS = [(56, 128, 1), (58, 256, 2), (28, 256, 1), (14, 512, 1), (7, 1024, 1)]  # size, channels, stride


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=7, help="counted steps of each way")
    parser.add_argument("--dtypes", nargs="*", default=["float64", "float32"])


def split(x: Any, kernel: Any, stride: int, padding: str, groups: int = GROUPS) -> Any:
    """One convolution per group, the project's own way."""
    import tensorflow as tf

    parts = zip(tf.split(x, groups, -1), tf.split(kernel, groups, -1), strict=True)
    return tf.concat([tf.nn.conv2d(part, k, stride, padding) for part, k in parts], -1)


def merged(count: int) -> Callable[..., Any]:
    """`count` groups in one convolution with a block-diagonal kernel."""

    def way(x: Any, kernel: Any, stride: int, padding: str) -> Any:
        import tensorflow as tf

        height, width, inputs, outputs = kernel.shape
        blocks = GROUPS // count
        k = tf.reshape(kernel, (height, width, 1, inputs, blocks, count, outputs // GROUPS))
        k *= tf.reshape(tf.eye(count, dtype=k.dtype), (1, 1, count, 1, 1, count, 1))
        return split(x, tf.reshape(k, (height, width, count * inputs, outputs)), stride, padding, blocks)

    return way


def custom_gradient(x: Any, kernel: Any, stride: int, padding: str) -> Any:
    """The forward kernel for groups, with a gradient built from it and from batched matrix products."""
    import tensorflow as tf

    @tf.custom_gradient
    def convolution(x: Any, kernel: Any) -> Any:
        def gradient(dy: Any) -> tuple[Any, Any]:
            return input_gradient(dy, x, kernel, stride), kernel_gradient(dy, x, kernel, stride, padding)

        return tf.nn.conv2d(x, kernel, stride, padding), gradient

    return convolution(x, kernel)


def input_gradient(dy: Any, x: Any, kernel: Any, stride: int) -> Any:
    import tensorflow as tf

    height, width, inputs, outputs = kernel.shape
    size, count = x.shape[1], outputs // GROUPS
    k = tf.reshape(kernel, (height, width, inputs, GROUPS, count))
    k = tf.reverse(tf.transpose(k, (0, 1, 4, 3, 2)), (0, 1))  # rotated, inputs and outputs swapped
    k = tf.reshape(k, (height, width, count, GROUPS * inputs))
    if stride == 1:
        return tf.nn.conv2d(dy, k, 1, "SAME")
    n, out = dy.shape[:2]
    spread_out = tf.reshape(dy, (n, out, 1, out, 1, outputs))
    spread_out = tf.pad(spread_out, [[0, 0], [0, 0], [0, 1], [0, 0], [0, 1], [0, 0]])
    dy = tf.reshape(spread_out, (n, 2 * out, 2 * out, outputs))
    pad = [2, size - 2 * out]
    return tf.nn.conv2d(tf.pad(dy, [[0, 0], pad, pad, [0, 0]]), k, 1, "VALID")


def kernel_gradient(dy: Any, x: Any, kernel: Any, stride: int, padding: str) -> Any:
    import tensorflow as tf

    height, width, inputs, outputs = kernel.shape
    n, out = dy.shape[:2]
    if padding == "SAME":
        x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
    dy = tf.transpose(tf.reshape(dy, (n * out * out, GROUPS, -1)), (1, 0, 2))
    products = []
    for row in range(height):
        for column in range(width):
            part = x[:, row : row + out * stride : stride, column : column + out * stride : stride]
            part = tf.transpose(tf.reshape(part, (n * out * out, GROUPS, inputs)), (1, 0, 2))
            products.append(tf.matmul(part, dy, transpose_a=True))  # (groups, C / groups, O / groups)
    dk = tf.reshape(tf.stack(products), (height, width, GROUPS, inputs, outputs // GROUPS))
    return tf.reshape(tf.transpose(dk, (0, 1, 3, 2, 4)), (height, width, inputs, outputs))


WAYS: dict[str, Callable[..., Any]] = {
    "one per group": split,
    "merged by 2": merged(2),
    "merged by 4": merged(4),
    "merged by 8": merged(8),
    "custom gradient": custom_gradient,
}


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    report = {}
    for dtype in arguments.dtypes:
        for size, channels, stride in LAYERS:
            name = f"{dtype} {size}x{size}x{channels} stride {stride}"
            report[name] = figures = measure(dtype, size, channels, stride, arguments.runs)
            for way, values in figures.items():
                ratio, ms = values["ratio"], 1e3 * values["seconds"]["median"]
                times = f"{ratio['median']:.2f} ({ratio['quartile_1']:.2f} to {ratio['quartile_3']:.2f})"
                print(f"{name:<32} {way:<16} {ms:6.1f} ms, {times} times", flush=True)
    return report


def measure(dtype: str, size: int, channels: int, stride: int, runs: int) -> dict[str, Any]:
    """Forward and gradient of one layer, compiled, in each way; all must agree."""
    import numpy as np
    import tensorflow as tf

    random, padding = np.random.default_rng(0), "SAME" if stride == 1 else "VALID"
    x = tf.constant(random.normal(0, 1, (8, size, size, channels)), dtype)
    kernel = tf.constant(random.normal(0, 1, (3, 3, channels // GROUPS, channels)), dtype)

    def step(way: Callable[..., Any]) -> Callable[[], Any]:
        @tf.function
        def gradients(x: Any, kernel: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch([x, kernel])
                loss = tf.reduce_sum(way(x, kernel, stride, padding) ** 2)
            return tape.gradient(loss, [x, kernel])

        return lambda: [gradient.numpy() for gradient in gradients(x, kernel)]

    steps = {name: step(way) for name, way in WAYS.items()}
    wanted = steps["one per group"]()
    for one in steps.values():
        for actual, expected in zip(one(), wanted, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(runs):
        for name, one in steps.items():
            start = time.perf_counter()
            one()
            found[name].append(time.perf_counter() - start)
    first = found["one per group"]
    return {
        name: {"seconds": spread(times), "ratio": spread([a / b for a, b in zip(times, first, strict=True)])}
        for name, times in found.items()
    }
