"""The SENet authors' networks as Caffe computes them, layer by layer in float64, and as .caffemodel files.

Structure and names are those of https://github.com/hujie-frank/SENet/tree/master/models,
with fewer blocks. PyTorch's functions stand for Caffe's layers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

EPSILON = float(np.float32(1e-5))  # of caffe.proto
FACTOR = 3.0  # that Caffe keeps beside the statistics


class CaffeNet:
    """Computes layers one after another, and notes each for the file."""

    def __init__(self, images: np.ndarray, seed: int):
        self.values = {"data": torch.from_numpy(images).double()}
        self.layers: list[dict[str, Any]] = [{"name": "data", "type": "Input", "top": ["data"]}]
        self.random = np.random.default_rng(seed)

    def _add(self, name: str, kind: str, bottoms: list[str], top: str, blobs: tuple = ()) -> None:
        layer = {"name": name, "type": kind, "bottom": bottoms, "top": [top]}
        self.layers.append(layer | {"blobs": blobs})

    def _weights(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
        return (scale * self.random.standard_normal(shape) + shift).astype(np.float32)

    def conv(
        self, name: str, bottom: str, out: int, k: int, stride: int = 1, group: int = 1, bias: bool = False
    ) -> str:
        x = self.values[bottom]
        inputs = x.shape[1] // group
        w = self._weights(out, inputs, k, k, scale=math.sqrt(2 / (inputs * k * k)))
        blobs = (w, self._weights(out, scale=0.1)) if bias else (w,)
        weight, offset = (torch.from_numpy(a).double() for a in (*blobs, np.zeros(out, np.float32))[:2])
        self.values[name] = F.conv2d(x, weight, offset, stride, k // 2, 1, group)
        self._add(name, "Convolution", [bottom], name, blobs)
        return name

    def norm(self, top: str, relu: bool = True) -> str:
        """BatchNorm, Scale and ReLU in place."""
        x = self.values[top]
        c = x.shape[1]
        mean, gamma, beta = (
            self._weights(c, scale=0.1),
            self._weights(c, scale=0.1, shift=1),
            self._weights(c, scale=0.1),
        )
        variance = (1 + self.random.random(c)).astype(np.float32)
        blobs = (np.float32(FACTOR) * mean, np.float32(FACTOR) * variance, np.array([FACTOR], np.float32))
        self._add(f"{top}/bn", "BatchNorm", [top], top, blobs)
        self._add(f"{top}/bn/scale", "Scale", [top], top, (gamma, beta))
        around, spread, scale, shift = (
            torch.from_numpy(array).double()
            for array in (blobs[0] / blobs[2], blobs[1] / blobs[2], gamma, beta)
        )
        x = F.batch_norm(x, around, spread, scale, shift, eps=EPSILON)
        if relu:
            x = F.relu(x)
            self._add(f"{top}/relu", "ReLU", [top], top)
        self.values[top] = x
        return top

    def unit(
        self, name: str, bottom: str, out: int, k: int, stride: int = 1, group: int = 1, relu: bool = True
    ) -> str:
        return self.norm(self.conv(name, bottom, out, k, stride, group), relu)

    def pool(self, name: str, bottom: str, kind: str, stride: int) -> str:
        x = self.values[bottom]
        if stride == 2:  # Caffe rounds the size up
            self.values[name] = F.max_pool2d(x, 3, 2, 0, ceil_mode=True)
        elif kind == "MAX":
            self.values[name] = F.max_pool2d(x, 3, 1, 1)
        else:
            self.values[name] = F.avg_pool2d(x, 3, 1, 1, count_include_pad=True)
        self._add(name, "Pooling", [bottom], name)
        return name

    def gate(self, prefix: str, bottom: str, hidden: int) -> str:
        """The gate of SE from the mean of `bottom`."""
        x = self.values[bottom]
        self.values[f"{prefix}_global_pool"] = x.mean((2, 3), keepdim=True)
        self._add(f"{prefix}_global_pool", "Pooling", [bottom], f"{prefix}_global_pool")
        down = self.conv(f"{prefix}_1x1_down", f"{prefix}_global_pool", hidden, 1, bias=True)
        self.values[down] = F.relu(self.values[down])
        up = self.conv(f"{prefix}_1x1_up", down, x.shape[1], 1, bias=True)
        self.values[up] = torch.sigmoid(self.values[up])
        self._add(f"{prefix}_prob", "Sigmoid", [up], up)
        return up

    def classifier(self, bottom: str, classes: int) -> np.ndarray:
        x = self.values[bottom].mean((2, 3))
        w, b = self._weights(classes, x.shape[1], scale=0.1), self._weights(classes)
        self._add("classifier", "InnerProduct", [bottom], "classifier", (w, b))
        return F.linear(x, torch.from_numpy(w).double(), torch.from_numpy(b).double()).numpy()


def se_resnet(
    net: CaffeNet, *, groups: int, senet154: bool = False, depths: tuple[int, ...] = (1, 2, 1, 1)
) -> np.ndarray:
    """SE-ResNet, SE-ResNeXt, or with `senet154` that network's stem and blocks; the logits."""
    if senet154:
        x = net.unit("conv1_1/3x3_s2", "data", 64, 3, 2)
        x = net.unit("conv1_3/3x3", net.unit("conv1_2/3x3", x, 64, 3), 128, 3)
    else:
        x = net.unit("conv1/7x7_s2", "data", 64, 7, 2)
    x = net.pool("pool1/3x3_s2", x, "MAX", 2)
    for stage, depth in enumerate(depths):
        out = 256 * 2**stage
        middle = out // 2 if groups > 1 else out // 4
        wide = 2 * middle if senet154 else middle
        for block in range(depth):
            stride = 2 if stage and not block else 1
            first = stride if groups == 1 else 1  # the authors' SE-ResNets halve in the first 1x1
            name = f"conv{stage + 2}_{block + 1}"
            y = net.unit(f"{name}_1x1_reduce", x, middle, 1, first)
            y = net.unit(f"{name}_3x3", y, wide, 3, stride // first, groups)
            y = net.unit(f"{name}_1x1_increase", y, out, 1, relu=False)
            gate = net.gate(name, y, out // 16)
            if not block:
                kernel = 3 if senet154 and stage else 1
                x = net.unit(f"{name}_1x1_proj", x, out, kernel, stride, relu=False)
            net.values[name] = F.relu(net.values[gate] * net.values[y] + net.values[x])  # Axpy, ReLU
            net._add(name, "Axpy", [gate, y, x], name)
            x = name
    return net.classifier(x, 10)


_INCEPTION = {  # 1x1, 3x3 reduce, 3x3, double reduce, double a and b, projection; 0: a module that halves
    "3a": (64, 64, 64, 64, 96, 32), "3b": (64, 64, 96, 64, 96, 64), "3c": (0, 128, 160, 64, 96, 0),
    "4a": (224, 64, 96, 96, 128, 128), "4b": (192, 96, 128, 96, 128, 128),
    "4c": (160, 128, 160, 128, 160, 128), "4d": (96, 128, 192, 160, 192, 128),
    "4e": (0, 128, 192, 192, 256, 0), "5a": (352, 192, 320, 160, 224, 128),
    "5b": (352, 192, 320, 192, 224, 128),
}  # fmt: skip


def se_bn_inception(net: CaffeNet) -> np.ndarray:
    """SE-BN-Inception; the logits."""
    x = net.pool("pool1/3x3_s2", net.unit("conv1/7x7_s2", "data", 64, 7, 2), "MAX", 2)
    x = net.unit("conv2/3x3", net.unit("conv2/3x3_reduce", x, 64, 1), 192, 3)
    x = net.pool("pool2/3x3_s2", x, "MAX", 2)
    for name, (one, reduce3, three, reduce_double, double, projection) in _INCEPTION.items():
        at = f"inception_{name}"
        stride = 1 if one else 2
        parts = [net.unit(f"{at}/1x1", x, one, 1)] if one else []
        y = net.unit(f"{at}/3x3_reduce", x, reduce3, 1)
        parts.append(net.unit(f"{at}/3x3", y, three, 3, stride))
        y = net.unit(f"{at}/double3x3_reduce", x, reduce_double, 1)
        y = net.unit(f"{at}/double3x3a", y, double, 3)
        parts.append(net.unit(f"{at}/double3x3b", y, double, 3, stride))
        y = net.pool(f"{at}/pool", x, "MAX" if not one or name == "5b" else "AVE", stride)
        parts.append(net.unit(f"{at}/pool_proj", y, projection, 1) if projection else y)
        net.values[f"{at}/concat"] = torch.cat([net.values[part] for part in parts], 1)
        net._add(f"{at}/concat", "Concat", parts, f"{at}/concat")
        gate = net.gate(at, f"{at}/concat", net.values[f"{at}/concat"].shape[1] // 16)
        x = f"{at}/output"
        net.values[x] = net.values[gate] * net.values[f"{at}/concat"]
        net._add(f"{at}_scale", "Scale", [f"{at}/concat", gate], x)  # without blobs
    return net.classifier(x, 10)
