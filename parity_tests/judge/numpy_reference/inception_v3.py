"""Inception-v3 in plain NumPy: https://arxiv.org/abs/1512.00567, table 1 and figures 5, 6 and 7.

Widths and kernel sizes are those of the weights. "V" marks convolutions without padding.
"""

from __future__ import annotations

import numpy as np

from parity_tests.judge.numpy_reference.attention import attend
from parity_tests.judge.numpy_reference.inception import same_size_pool
from parity_tests.judge.numpy_reference.layers import Weights, conv_norm, dense, float64, relu, windows
from weights_convert.spec import InceptionV3Spec

MODULES = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
CHAINS = {  # the modules of one map size -> the branches before the pool, each with its convolutions
    "5": (("branch1x1",), ("branch5x5_1", "branch5x5_2"), tuple(f"branch3x3dbl_{n}" for n in (1, 2, 3))),
    "6": (
        ("branch1x1",),
        tuple(f"branch7x7_{n}" for n in (1, 2, 3)),
        tuple(f"branch7x7dbl_{n}" for n in (1, 2, 3, 4, 5)),
    ),
    "6a": (("branch3x3 V2",), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3 V2")),
    "7": (
        ("branch1x1",),
        ("branch3x3_1", ("branch3x3_2a", "branch3x3_2b")),
        ("branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")),
    ),
    "7a": (
        ("branch3x3_1", "branch3x3_2 V2"),
        ("branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4 V2"),
    ),
}


class Layers:
    """The convolutions of a network, by name.

    Args:
        w: the weights.
        spec: of the network.
    """

    def __init__(self, w: Weights, spec: InceptionV3Spec):
        self.w, self.spec = w, spec

    def unit(self, x: np.ndarray, name: str) -> np.ndarray:
        """A convolution, its normalisation and the ReLU; with " V" no padding, with " V2" also stride 2."""
        path, _, rule = name.partition(" ")
        stride = 2 if rule == "V2" else 1
        y = conv_norm(
            x, self.w, self.spec, f"{path}.conv", f"{path}.bn", stride, padded=not rule.startswith("V")
        )
        return relu(y)

    def chain(self, x: np.ndarray, module: str, chain: tuple) -> np.ndarray:
        """Convolutions one after the other; those of an inner tuple side by side."""
        for step in chain:
            if isinstance(step, str):
                x = self.unit(x, f"{module}.{step}")
            else:
                x = np.concatenate([self.unit(x, f"{module}.{name}") for name in step], 1)
        return x

    def stem(self, x: np.ndarray) -> np.ndarray:
        x = self.unit(self.unit(x, "Conv2d_1a_3x3 V2"), "Conv2d_2a_3x3 V")
        x = halving_pool(self.unit(x, "Conv2d_2b_3x3"))
        return halving_pool(self.unit(self.unit(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3 V"))

    def module(self, x: np.ndarray, name: str) -> np.ndarray:
        path = f"Mixed_{name}"
        outputs = [self.chain(x, path, chain) for chain in CHAINS.get(name, CHAINS[name[0]])]
        if name in CHAINS and len(name) == 2:
            outputs.append(halving_pool(x))
        else:
            kind = self.spec.last_pool if name == "7c" else "avg"
            pooled = same_size_pool(x, kind, self.spec.count_padding)
            outputs.append(self.unit(pooled, f"{path}.branch_pool"))
        x = np.concatenate(outputs, 1)
        return attend(x, self.w, self.spec, f"{path}.{self.spec.attention}.")

    def auxiliary(self, x: np.ndarray) -> np.ndarray:
        """Averages of 5x5 squares with stride 3, a 1x1 and a 5x5 convolution without padding, dense."""
        x = windows(x, 5, 3).mean((4, 5))
        x = self.unit(self.unit(x, "AuxLogits.conv0"), "AuxLogits.conv1 V").mean((2, 3))
        return self.classify(x, "AuxLogits.fc")

    def classify(self, x: np.ndarray, name: str) -> np.ndarray:
        return dense(x, self.w, name) if self.spec.num_classes else x


def halving_pool(x: np.ndarray) -> np.ndarray:
    """The maximum of 3x3 squares without padding, stride 2."""
    return windows(x, 3, 2).max((4, 5))


def transform(x: np.ndarray) -> np.ndarray:
    """From (image - mean) / deviation of ImageNet, colour by colour, to (image - 0.5) / 0.5."""
    mean, deviation = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).reshape(2, 1, 3, 1, 1)
    return (x * deviation + mean - 0.5) / 0.5


def inception_v3(x: np.ndarray, weights: Weights, spec: InceptionV3Spec) -> dict[str, np.ndarray]:
    """Every stage's output: `stem`, `Mixed_5b` ..., `pooled` (N, C), `logits` and `aux_logits`."""
    layers, x = Layers(float64(weights), spec), x.astype(np.float64)
    points = {"stem": (x := layers.stem(transform(x) if spec.transform_input else x))}
    for name in MODULES:
        points[f"Mixed_{name}"] = x = layers.module(x, name)
    points["pooled"] = x = x.mean((2, 3))
    points["logits"] = layers.classify(x, "fc")
    if spec.aux_head:
        points["aux_logits"] = layers.auxiliary(points["Mixed_6e"])
    return points
