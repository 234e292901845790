"""The classes and functions of a user's Keras model, which its config only names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras

from parity_tests.watch.keras_layers import named_layers

_BASE = ("name", "trainable", "dtype")  # what Keras adds to the config of every layer


def accepted_config(model: keras.Layer) -> Any:
    """A model's config without Keras's own entries that its constructor does not take.

    They are lost in the copy: its dtype is the default one, which the caller sets.
    """
    config = model.get_config()
    parameters = inspect.signature(type(model).__init__).parameters.values()
    if "from_config" in vars(type(model)) or any(p.kind is p.VAR_KEYWORD for p in parameters):
        return config
    taken = {parameter.name for parameter in parameters}
    return {key: value for key, value in config.items() if key in taken or key not in _BASE}


def with_functions(config: Any, model: keras.Layer) -> tuple[Any, dict[str, Any]]:
    """A config and the custom objects with which Keras can build the model from it.

    The classes of the layers are those of the live model. A `Lambda` calls the live function itself: its
    config would hold the function's bytecode, which Keras does not load.
    """
    layers = [model, *(layer for _, layer in named_layers(model))]
    own: dict[str, Any] = {}
    for layer in layers:
        if not type(layer).__module__.startswith("keras."):
            own[type(layer).__name__] = type(layer)
            own[keras.saving.get_registered_name(type(layer))] = type(layer)
    functions = {layer.name: layer.function for layer in layers if isinstance(layer, keras.layers.Lambda)}
    own |= {_key(name): function for name, function in functions.items()}
    return (_replaced(config, functions) if functions else config), own


def _key(name: str) -> str:
    return f"function of {name}"


def _replaced(config: Any, functions: Mapping[str, Any]) -> Any:
    """The config with each Lambda's function by its name in the custom objects."""
    if isinstance(config, Mapping):
        found = {key: _replaced(value, functions) for key, value in config.items()}
        inner = found.get("config")
        if found.get("class_name") == "Lambda" and isinstance(inner, dict) and inner["name"] in functions:
            key = _key(inner["name"])
            named = {"module": "builtins", "class_name": "function", "config": key, "registered_name": key}
            found["config"] = inner | {"function": named}
        return found
    if isinstance(config, (list, tuple)):
        return type(config)(_replaced(item, functions) for item in config)
    return config
