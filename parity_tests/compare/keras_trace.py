"""Watching a Keras model: every layer's `__call__`, for the time of one run."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from parity_tests.compare.trace import OUTPUT, Call, Trace, channels_first, channels_last, numbered
from weights_convert.errors import SpecError


def named_layers(layer: keras.Layer, prefix: str = "") -> Iterator[tuple[str, keras.Layer]]:
    """Every layer below one with its path: attribute names and places in lists, or Keras's own names."""
    if isinstance(layer, (keras.Sequential, keras.src.models.Functional)):
        inner = [(child.name, child) for child in layer.layers]
    else:
        public = {name: value for name, value in vars(layer).items() if not name.startswith("_")}
        inner = list(_inside(public))
        known = {id(child) for _, child in inner}
        # what is kept under a private name has only Keras's own
        rest = layer._flatten_layers(include_self=False, recursive=False)
        inner += [(child.name, child) for child in rest if id(child) not in known]
    for name, child in inner:
        yield prefix + name, child
        yield from named_layers(child, f"{prefix}{name}.")


def _inside(value: Any, path: str = "") -> Iterator[tuple[str, keras.Layer]]:
    """The layers in nested lists and mappings, each with its path."""
    if isinstance(value, keras.Layer):
        yield path, value
    elif isinstance(value, (list, tuple, Mapping)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from _inside(item, f"{path}.{key}" if path else str(key))


class KerasTracer:
    """Watches a Keras model, or the same one built again in `dtype`. Dropout is off."""

    framework = "keras"

    def __init__(self, model: keras.Layer, dtype: str):
        if dtype == "float64" and keras.backend.backend() == "jax" and not _jax_has_float64():
            raise SpecError("JAX computes in float32 here: set JAX_ENABLE_X64=1 before it is imported")
        self.dtype = dtype
        self.model = model if model.compute_dtype == dtype else _rebuilt(model, dtype)
        self._layers = {
            name: layer
            for name, layer in named_layers(self.model)
            if not isinstance(layer, (keras.layers.Identity, keras.layers.InputLayer))
        }
        self._before: list[np.ndarray] | None = None  # the weights, before training moves statistics

    def trace(self, images: np.ndarray, *, train: bool = False) -> Trace:
        calls: Trace = {}
        if train and self.model.built and self._before is None:
            self._before = self.model.get_weights()
        with _recording(self._layers, calls), _without_dropout(self._layers.values()):
            output = self.model(channels_last(images.astype(self.dtype)), training=train)
        if keras.ops.is_tensor(output):
            calls[OUTPUT] = Call(np.asarray(images, self.dtype), _array(output))
        return calls

    def alone(self, inputs: Mapping[str, np.ndarray], *, train: bool = False) -> dict[str, np.ndarray]:
        layers = {name: self._layers.get(name.partition("#")[0]) for name in inputs}
        with _without_dropout(self._layers.values()):
            outputs = {n: self._alone(layer, inputs[n], train) for n, layer in layers.items() if layer}
        return {name: _array(output) for name, output in outputs.items() if keras.ops.is_tensor(output)}

    def _alone(self, layer: keras.Layer, x: np.ndarray, train: bool) -> Any:
        keywords = {"training": train} if "training" in inspect.signature(layer.call).parameters else {}
        return layer(channels_last(x.astype(self.dtype)), **keywords)

    def weighted(self) -> set[str]:
        parents = {name.rpartition(".")[0] for name, layer in self._layers.items() if layer.weights}
        return {name for name, layer in self._layers.items() if layer.weights and name not in parents}

    def restore(self) -> None:
        if self._before is not None:
            self.model.set_weights(self._before)

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
        tensors = args and keras.ops.is_tensor(args[0]) and keras.ops.is_tensor(output)
        if id(self) in names and tensors:
            calls[numbered(names[id(self)], seen)] = Call(_array(args[0]), _array(output))
        return output

    keras.Layer.__call__ = call
    try:
        yield
    finally:
        keras.Layer.__call__ = original


@contextmanager
def _without_dropout(layers: Iterable[keras.Layer]) -> Iterator[None]:
    """No two frameworks draw the same mask."""
    rates = [(layer, layer.rate) for layer in layers if isinstance(layer, keras.layers.Dropout)]
    for layer, _ in rates:
        layer.rate = 0
    try:
        yield
    finally:
        for layer, rate in rates:
            layer.rate = rate


def _jax_has_float64() -> bool:
    import jax

    return bool(jax.config.jax_enable_x64)


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
