"""The network of a checkpoint as a function of prepared images, in any framework."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from weights_convert import load, load_model
from weights_convert.layouts import tf1_module

Classify = Callable[[np.ndarray], np.ndarray]  # prepared images (N, H, W, C) -> logits (N, K)
Gates = dict[str, np.ndarray]  # block -> the factor of each channel (N, C), or of each place (N, H, W)


def classifier(
    path: str | Path, framework: str, dtype: str = "float32", gates: Gates | None = None
) -> Classify:
    """The network of a checkpoint as a function.

    Args:
        gates: filled with what every attention block multiplies its input with, at each call.
    """
    return {"torch": _torch, "keras": _keras, "tf1": _tf1}[framework](path, dtype, gates)


def _torch(path: str | Path, dtype: str, gates: Gates | None) -> Classify:
    import torch

    model = load_model(path, "torch", dtype=dtype, assume=True)
    if gates is not None:
        _watch(model.named_modules(), gates, lambda gate: gate.squeeze(1).numpy())

    def classify(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()

    return classify


def _keras(path: str | Path, dtype: str, gates: Gates | None) -> Classify:
    import keras

    model = load_model(path, "keras", dtype=dtype, assume=True)
    if gates is None:
        return model.predict_on_batch
    from parity_tests.watch.keras_layers import named_layers

    to_numpy = keras.ops.convert_to_numpy
    _watch(named_layers(model), gates, lambda gate: _maps(to_numpy(gate)))
    return lambda images: to_numpy(model(images, training=False))


def _watch(layers: Iterable[tuple[str, Any]], gates: Gates, to_numpy: Callable[[Any], np.ndarray]) -> None:
    """Let the layers that have a `gate` note what it returns."""

    def noted(name: str, gate: Callable[..., Any], *inputs: Any, **keywords: Any) -> Any:
        found = gate(*inputs, **keywords)
        gates[name] = to_numpy(found)
        return found

    for name, layer in list(layers):
        if hasattr(layer, "gate"):
            layer.gate = partial(noted, name, layer.gate)


def _tf1(path: str | Path, dtype: str, gates: Gates | None) -> Classify:
    import tensorflow.compat.v1 as tf

    network = load_model(path, "tf1", dtype=dtype, assume=True)
    with load(path, assume=True) as checkpoint:
        channels = checkpoint.spec.input_channels
    with tf.Graph().as_default() as graph:
        images = tf.placeholder(dtype, (None, None, None, channels))
        logits, _ = network(images)
        initialize = tf.global_variables_initializer()
    session = tf.Session(graph=graph)
    session.run(initialize)
    if gates is None:
        return lambda batch: session.run(logits, {images: batch})
    blocks = {
        tf1_module(op.name.removesuffix("/gate")): op.outputs[0]
        for op in graph.get_operations()
        if op.name.endswith("/gate")
    }

    def classify(batch: np.ndarray) -> np.ndarray:
        found, logits_ = session.run([blocks, logits], {images: batch})
        gates.update({name: _maps(gate) for name, gate in found.items()})
        return logits_

    return classify


def _maps(gate: np.ndarray) -> np.ndarray:
    """(N, C), or (N, H, W, 1) without its last axis."""
    return gate[..., 0] if gate.ndim == 4 else gate
