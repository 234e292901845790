"""Keras 3 layers and models of this project: a canonical name is a path of attributes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import keras
import numpy as np

from weights_convert.checkpoint import Checkpoint
from weights_convert.errors import MismatchError
from weights_convert.frameworks import (
    block_config,
    check_config,
    common_dtype,
    config_of,
    match,
    possible_specs,
    selected,
)
from weights_convert.layouts import LAYOUTS, ROLES, Stored
from weights_convert.spec import Parameter, parameters


def _variable(layer: Any, parameter: Parameter) -> keras.Variable | None:
    """The variable of a parameter: `layer1.0.conv1.weight` is `layer.layer1[0].conv1.kernel`."""
    *path, _ = parameter.name.split(".")
    for step in path:
        if step.isdigit():
            layer = layer[int(step)] if isinstance(layer, (list, tuple)) and int(step) < len(layer) else None
        else:
            layer = getattr(layer, step, None)
    return None if layer is None else getattr(layer, ROLES[parameter.role].tf or "", None)


def _variables(layer: keras.layers.Layer) -> dict[str, tuple[keras.Variable, Stored]]:
    """Canonical name -> variable and its layout in Keras, for every weight of a layer."""
    if not layer.built:
        raise MismatchError(f"the layer {layer.name!r} is not built yet; call it, or its build(), once")
    found = {
        parameter.name: (variable, LAYOUTS["keras"].stored(parameter))
        for spec in possible_specs(config_of(layer))
        for parameter in parameters(spec)
        if (variable := _variable(layer, parameter)) is not None
    }
    known = {id(variable) for variable, _ in found.values()}
    if unknown := [variable.path for variable in layer.weights if id(variable) not in known]:
        raise MismatchError(
            f"the layer {layer.name!r} is not one of this project; unknown variables:", unknown
        )
    return found


def keywords_of(layer: keras.layers.Layer, scope: str | None) -> dict[str, Any]:
    return config_of(layer)


def load_into(
    layer: keras.layers.Layer,
    checkpoint: Checkpoint,
    prefix: str,
    scope: str | None,
    without: Collection[str] = (),
) -> None:
    check_config(config_of(layer), checkpoint, without)
    variables = _variables(layer)
    wanted = {}
    for name, (variable, stored) in variables.items():
        shape = stored.canonical_shape(tuple(variable.shape))
        wanted[name] = (shape, np.dtype(keras.backend.standardize_dtype(variable.dtype)))
    arrays = match(wanted, checkpoint, selected(checkpoint, prefix), without)
    for name, array in arrays.items():
        variable, stored = variables[name]
        variable.assign(stored.to_file(array))


def state_of(
    layer: keras.layers.Layer,
    scope: str | None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays = {}
    for name, (variable, stored) in _variables(layer).items():
        array = stored.to_canonical(keras.ops.convert_to_numpy(variable.value))
        arrays[name] = np.array(array, order="C")
    return arrays, config_of(layer)


def build(spec: Any, dtype: str) -> Any:
    """A built network or block."""
    import keras_impl
    from keras_impl.blocks import make_attention

    if spec.network:
        return getattr(keras_impl, spec.network)(**spec.model_kwargs(), dtype=dtype)
    made = make_attention(0, block_config(spec), dtype)
    assert made is not None  # the spec of a block has an attention
    made[1].build((None, None, None, spec.input_channels))
    return made[1]


def load_model(checkpoint: Checkpoint, spec: Any, without: Collection[str]) -> keras.layers.Layer:
    layer = build(spec, common_dtype(checkpoint))
    load_into(layer, checkpoint, "", None, without)
    return layer
