"""Keras 3 layers and models of this project: a canonical name is a path of attributes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from weights_convert.checkpoint import Checkpoint
from weights_convert.errors import MismatchError
from weights_convert.frameworks import block_config, check_config, common_dtype, config_of, match, selected
from weights_convert.layouts import ROLES, permuted, role_of
from weights_convert.spec import AttentionSpec, ResNetSpec, make_spec, parameters


def _variable(layer: Any, name: str) -> keras.Variable | None:
    """The variable behind a canonical name: `layer1.0.conv1.weight` is `layer.layer1[0].conv1.kernel`."""
    *path, _ = name.split(".")
    for step in path:
        if step.isdigit():
            layer = layer[int(step)] if isinstance(layer, (list, tuple)) and int(step) < len(layer) else None
        else:
            layer = getattr(layer, step, None)
    role = role_of(name)
    return None if layer is None or role is None else getattr(layer, ROLES[role].tf or "", None)


def _candidates(layer: keras.layers.Layer) -> Iterator[str]:
    """The possible canonical names of a layer: those of its spec, or of a single attention block."""
    config = config_of(layer)
    if "depths" in config:
        specs: list[Any] = [make_spec(ResNetSpec, config)]
    else:
        specs = [AttentionSpec(attention=kind, cbam_spatial_bias=True) for kind in ("se", "cbam", "eca")]
    for spec in specs:
        yield from (parameter.name for parameter in parameters(spec) if parameter.role != "count")


def _variables(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """Canonical name -> variable, for every weight of a layer."""
    if not layer.built:
        raise MismatchError(f"the layer {layer.name!r} is not built yet; call it, or its build(), once")
    found = {
        name: variable for name in _candidates(layer) if (variable := _variable(layer, name)) is not None
    }
    known = {id(variable) for variable in found.values()}
    if unknown := [variable.path for variable in layer.weights if id(variable) not in known]:
        raise MismatchError(
            f"the layer {layer.name!r} is not one of this project; unknown variables:", unknown
        )
    return found


def keywords_of(layer: keras.layers.Layer, scope: str | None) -> dict[str, Any]:
    return config_of(layer)


def load_into(layer: keras.layers.Layer, checkpoint: Checkpoint, prefix: str, scope: str | None) -> None:
    check_config(config_of(layer), checkpoint)
    variables = _variables(layer)
    wanted = {}
    for name, variable in variables.items():
        shape = permuted(tuple(variable.shape), ROLES[str(role_of(name))].to_torch)
        wanted[name] = (shape, np.dtype(keras.backend.standardize_dtype(variable.dtype)))
    arrays = match(wanted, checkpoint, selected(checkpoint, prefix))
    for name, array in arrays.items():
        axes = ROLES[str(role_of(name))].to_tf
        variables[name].assign(array if axes is None else array.transpose(axes))


def state_of(
    layer: keras.layers.Layer,
    scope: str | None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays = {}
    for name, variable in _variables(layer).items():
        array, axes = keras.ops.convert_to_numpy(variable.value), ROLES[str(role_of(name))].to_torch
        arrays[name] = np.array(array if axes is None else array.transpose(axes), order="C")
    return arrays, config_of(layer)


def load_model(checkpoint: Checkpoint) -> keras.layers.Layer:
    from keras_impl import ResNet
    from keras_impl.blocks import make_attention

    dtype = common_dtype(checkpoint)
    if isinstance(checkpoint.spec, AttentionSpec):
        made = make_attention(0, block_config(checkpoint), dtype)
        assert made is not None  # an AttentionSpec has an attention
        layer = made[1]
        layer.build((None, None, None, checkpoint.spec.channels))
    else:
        layer = ResNet(**checkpoint.spec.model_kwargs(), dtype=dtype)
    load_into(layer, checkpoint, "", None)
    return layer
