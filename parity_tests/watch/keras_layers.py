"""The layers of a Keras model by their paths, and each layer's own weights."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np


def call_with(
    model: keras.Layer, inputs: Sequence[tuple[str, np.ndarray]], keywords: Mapping[str, Any]
) -> Any:
    """Call a model with inputs and their names ("" for inputs in order).

    A functional model takes several inputs as one argument; others take them as their `call` names them, or
    as one mapping or list.
    """
    names, arrays = zip(*inputs, strict=True)
    if len(arrays) == 1 and not names[0]:
        return model(arrays[0], **keywords)
    if isinstance(model, (keras.Sequential, keras.src.models.Functional)):
        by_name = {*names} == {tensor.name for tensor in model.inputs}
        given = dict(inputs) if by_name else list(arrays)
        return model(given if len(arrays) > 1 else arrays[0], **keywords)
    taken = {*inspect.signature(model.call).parameters} - {"training", "mask"}
    if names[0]:
        return model(**dict(inputs), **keywords) if {*names} <= taken else model(dict(inputs), **keywords)
    return model(*arrays, **keywords) if len(taken) >= len(arrays) else model(list(arrays), **keywords)


def named_layers(layer: keras.Layer, prefix: str = "") -> Iterator[tuple[str, keras.Layer]]:
    """Every layer inside a layer with its path: attribute names and list indices, or Keras's names."""
    if isinstance(layer, (keras.Sequential, keras.src.models.Functional)):
        inner = [(child.name, child) for child in layer.layers]
    else:
        public = {name: value for name, value in vars(layer).items() if not name.startswith("_")}
        inner = list(_inside(public))
        known = {id(child) for _, child in inner}
        # layers under private names have only Keras's names
        rest = layer._flatten_layers(include_self=False, recursive=False)
        inner += [(child.name, child) for child in rest if id(child) not in known]
    for name, child in inner:
        yield prefix + name, child
        yield from named_layers(child, f"{prefix}{name}.")


def _inside(value: Any, path: str = "") -> Iterator[tuple[str, keras.Layer]]:
    """The layers in nested lists and mappings with their paths."""
    if isinstance(value, keras.Layer):
        yield path, value
    elif isinstance(value, (list, tuple, Mapping)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from _inside(item, f"{path}.{key}" if path else str(key))


def to_numpy(value: Any) -> np.ndarray:
    """A copy of a tensor or a variable."""
    value = value.value if isinstance(value, keras.Variable) else value
    if keras.backend.backend() == "tensorflow" and hasattr(value, "numpy"):
        return np.array(value.numpy())  # convert_to_numpy warns under NumPy 2, once per variable
    return np.array(keras.ops.convert_to_numpy(value))


WHOLE = (  # Keras's layers that are one layer in torch: the cells and projections inside are parts of them
    keras.layers.RNN,
    keras.layers.Bidirectional,
    keras.layers.MultiHeadAttention,
    keras.layers.GroupQueryAttention,
)


def own_weights(layer: keras.Layer) -> list[keras.Variable]:
    """The weights of a layer without those of the layers inside it, which parts of a layer are not."""
    if isinstance(layer, WHOLE):
        return list(layer.weights)
    inside = {id(w) for child in layer._flatten_layers(include_self=False) for w in child.weights}
    return [weight for weight in layer.weights if id(weight) not in inside]
