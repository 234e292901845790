"""Watching a Keras model: every layer's `__call__`, for the time of one run."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from parity_tests.compare.trace import Call, Trace, channels_first, channels_last, numbered
from weights_convert.errors import SpecError


def named_layers(layer: keras.Layer, prefix: str = "") -> Iterator[tuple[str, keras.Layer]]:
    """Every layer below one with its path: attribute names and places in lists, or Keras's own names."""
    if isinstance(layer, (keras.Sequential, keras.src.models.Functional)):
        inner = [(child.name, child) for child in layer.layers]
    else:
        inner = []
        for attribute, value in vars(layer).items():
            if attribute.startswith("_"):
                continue
            if isinstance(value, keras.Layer):
                inner.append((attribute, value))
            elif isinstance(value, (list, tuple)):
                inner += [(f"{attribute}.{i}", v) for i, v in enumerate(value) if isinstance(v, keras.Layer)]
    for name, child in inner:
        yield prefix + name, child
        yield from named_layers(child, f"{prefix}{name}.")


class KerasTracer:
    """Watches a Keras model, or the same one built again in `dtype`."""

    framework = "keras"

    def __init__(self, model: keras.Layer, dtype: str):
        self.dtype = dtype
        self.model = model if model.compute_dtype == dtype else _rebuilt(model, dtype)
        self._layers = {
            name: layer
            for name, layer in named_layers(self.model)
            if not isinstance(layer, (keras.layers.Identity, keras.layers.InputLayer))
        }

    def trace(self, images: np.ndarray, *, train: bool = False) -> Trace:
        calls: Trace = {}
        with _recording(self._layers, calls):
            self.model(channels_last(images.astype(self.dtype)), training=train)
        return calls

    def alone(self, inputs: Mapping[str, np.ndarray], *, train: bool = False) -> dict[str, np.ndarray]:
        return {
            name: self._alone(self._layers[name.partition("#")[0]], x, train) for name, x in inputs.items()
        }

    def _alone(self, layer: keras.Layer, x: np.ndarray, train: bool) -> np.ndarray:
        keywords = {"training": train} if "training" in inspect.signature(layer.call).parameters else {}
        return _array(layer(channels_last(x.astype(self.dtype)), **keywords))

    def statistics(self) -> Mapping[str, np.ndarray]:
        leaves = {"moving_mean": "running_mean", "moving_variance": "running_var"}
        return {
            f"{name}.{theirs}": np.array(keras.ops.convert_to_numpy(getattr(layer, ours)))
            for name, layer in self._layers.items()
            if isinstance(layer, keras.layers.BatchNormalization)
            for ours, theirs in leaves.items()
        }


def _array(tensor: Any) -> np.ndarray:
    return channels_first(np.array(keras.ops.convert_to_numpy(tensor)))


@contextmanager
def _recording(layers: Mapping[str, keras.Layer], calls: Trace) -> Iterator[None]:
    """Record the calls of these layers; Keras looks `__call__` up on the class, so it is put there."""
    names = {id(layer): name for name, layer in layers.items()}
    seen: dict[str, int] = {}
    original = keras.Layer.__call__

    def call(self: keras.Layer, *args: Any, **keywords: Any) -> Any:
        output = original(self, *args, **keywords)
        if id(self) in names and args and not isinstance(output, (list, tuple, dict)):
            calls[numbered(names[id(self)], seen)] = Call(_array(args[0]), _array(output))
        return output

    keras.Layer.__call__ = call
    try:
        yield
    finally:
        keras.Layer.__call__ = original


def _rebuilt(model: keras.Layer, dtype: str) -> keras.Layer:
    """The same model in another dtype, from its config, with its weights."""
    try:
        other = type(model).from_config(_with_dtype(model.get_config(), dtype))
        other.set_weights(model.get_weights())
    except Exception as error:
        raise SpecError(
            f"the Keras model computes in {model.compute_dtype} and cannot be built again in {dtype} "
            f"({type(error).__name__}); build it with dtype={dtype!r}, or compare with "
            f"dtype={model.compute_dtype!r}"
        ) from error
    return other


def _with_dtype(config: Any, dtype: str) -> Any:
    """A config in which every dtype and dtype policy is `dtype`."""
    if isinstance(config, Mapping):
        return {k: dtype if k == "dtype" else _with_dtype(v, dtype) for k, v in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_with_dtype(item, dtype) for item in config)
    return config
