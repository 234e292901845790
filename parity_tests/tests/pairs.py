"""Small pairs of a torch module and a Keras port, for the tests of the harness on anybody's models."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import torch
from keras import layers as L
from torch import nn

from parity_tests.compare import Report, compare_models

X = np.random.default_rng(0).normal(size=(2, 3, 8, 8))


def net(**layers: nn.Module) -> nn.Sequential:
    """Named layers in a row, with random weights and statistics."""
    torch.manual_seed(0)
    found = nn.Sequential()
    for name, layer in layers.items():
        found.add_module(name, layer)
    return randomised(found)


def randomised(module: Any) -> Any:
    torch.manual_seed(0)
    for tensor in module.parameters():
        tensor.data.uniform_(-1, 1)
    for name, tensor in module.named_buffers():
        if "running" in name:
            tensor.uniform_(0.5, 1.5)
    return module.eval()


def image() -> Any:
    return L.Input((8, 8, 3), dtype="float64")


def arr(tensor: Any) -> np.ndarray:
    return tensor.detach().numpy().astype(np.float64)


def values(layer: Any) -> list[np.ndarray]:
    """The weights of a torch layer in Keras's order and axes."""
    if isinstance(layer, nn.BatchNorm2d):
        return [arr(t) for t in (layer.weight, layer.bias, layer.running_mean, layer.running_var)]
    if isinstance(layer, nn.LayerNorm):
        return [arr(layer.weight), arr(layer.bias)]
    if isinstance(layer, nn.Embedding):
        return [arr(layer.weight)]
    kernel = arr(layer.weight)
    kernel = kernel.T if kernel.ndim == 2 else np.moveaxis(kernel, (0, 1), (-1, -2))
    return [kernel, *([arr(layer.bias)] if layer.bias is not None else [])]


def port(outputs: Any, inputs: Any, module: nn.Module, *names: str) -> keras.Model:
    """A Keras model with the weights of the torch layers of these names."""
    model = keras.Model(inputs, outputs)
    for name in names:
        model.get_layer(name).set_weights(values(getattr(module, name)))
    return model


def holds(reference: Any, candidate: Any, images: Any = X, **keywords: Any) -> Report:
    """Compare; parity must hold without an accused layer."""
    report = compare_models(reference, candidate, images, **keywords)
    assert report.holds, report.why_not()
    assert report.culprits() == []
    assert all(error is None or error <= p.limit for p in report.layers for error in p.isolated.values())
    return report


def differs(
    reference: Any, candidate: Any, first: str, *culprits: str, images: Any = X, **keywords: Any
) -> Report:
    """Compare; the first difference and everybody accused must be these."""
    report = compare_models(reference, candidate, images, **keywords)
    divergence = report.first_divergence()
    assert divergence is not None, report.why_not()
    assert divergence.point == first
    assert [name for _, name in report.culprits()] == list(culprits)
    return report


def noted(report: Report, *words: str) -> bool:
    return any(all(word in note for word in words) for note in report.notes)
