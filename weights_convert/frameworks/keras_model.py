"""Keras 3 layers and models of this project: a canonical name is a path of attributes.

A network may be wrapped in other models, and a functional model may be made of a network's layers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from weights_convert.checkpoint import Checkpoint
from weights_convert.errors import MismatchError, SpecError
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
from weights_convert.spec import KINDS, Parameter, make_spec, parameters


@dataclass(frozen=True)
class _Found:
    """A network or block, or a functional model made of a network's layers.

    Attributes:
        layers: name of a layer or attribute -> layer or list of layers.
    """

    name: str
    layers: Callable[[str], Any]
    weights: list[keras.Variable]
    config: dict[str, Any]
    is_part: bool = False


def _inner(layer: keras.layers.Layer) -> dict[str, Any]:
    """The layers inside a layer, by their names in a file."""
    if isinstance(layer, keras.Model):
        named = {inner.name: inner for inner in layer.layers}
        if len(named) == len(layer.layers):
            return named
    found: dict[str, Any] = {}
    # on the torch backend a module keeps its layers in `_modules`
    for name, value in (vars(layer) | vars(layer).get("_modules", {})).items():
        several = isinstance(value, (list, tuple))
        found |= {f"{name}/{i}": item for i, item in enumerate(value)} if several else {name: value}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, keras.layers.Layer) and not name.startswith("_")
    }


def _networks(layer: keras.layers.Layer, path: str = "", outer: tuple[Any, ...] = ()) -> dict[str, _Found]:
    """The networks in a layer, by their paths: itself, or those that it wraps."""
    if hasattr(layer, "live_keywords"):
        return {path: _whole(layer)}
    inside, found = _inner(layer), {}
    if (keywords := inside.get("keywords")) is not None and type(keywords).__name__ == "Keywords":
        found[path] = _part(layer, keywords.metadata(), inside)
    for name, inner in inside.items():
        if inner not in outer:
            found |= _networks(inner, f"{path}/{name}".lstrip("/"), (*outer, layer))
    return found


def _whole(layer: keras.layers.Layer) -> _Found:
    return _Found(layer.name, lambda name: getattr(layer, name, None), layer.weights, config_of(layer))


def _part(model: keras.Model, metadata: Mapping[str, Any], layers: Mapping[str, Any]) -> _Found:
    """The network whose first layers a functional model holds; it may have other layers too."""
    spec: Any = make_spec(KINDS[metadata["kind"]], metadata["spec"])
    found = _Found(model.name, layers.get, [], {}, is_part=True)
    there = [parameter.name for parameter in parameters(spec) if _variable(found, parameter) is not None]
    try:
        return replace(found, config=spec.part(there).model_kwargs())
    except SpecError as error:
        raise MismatchError(f"the model {model.name!r} holds {error}") from None


def _found(layer: keras.layers.Layer, scope: str | None) -> _Found:
    """The network to load or read."""
    networks = _networks(layer)
    if scope is not None and scope in networks:
        return networks[scope]
    if len(networks) > 1 or (scope is not None and networks):
        raise MismatchError(f"the model {layer.name!r} holds networks, choose one with scope=", [*networks])
    if not networks and not layer.built:
        raise MismatchError(f"the layer {layer.name!r} is not built yet; call it, or its build(), once")
    return next(iter(networks.values()), None) or _whole(layer)


def _variable(found: _Found, parameter: Parameter) -> keras.Variable | None:
    """The variable of a parameter: `layer1.0.conv1.weight` is `found.layer1[0].conv1.kernel`."""
    first, *path = parameter.name.split(".")[:-1]
    layer = found.layers(first)
    if layer is None and path:  # in a functional model every layer has a name
        layer, path = found.layers(f"{first}_{path[0]}"), path[1:]
    for step in path:
        if step.isdigit():
            layer = layer[int(step)] if isinstance(layer, (list, tuple)) and int(step) < len(layer) else None
        else:
            layer = getattr(layer, step, None)
    return None if layer is None else getattr(layer, ROLES[parameter.role].tf or "", None)


def _variables(found: _Found) -> dict[str, tuple[keras.Variable, Stored]]:
    """Canonical name -> variable and its layout in Keras, for every weight of a network or block."""
    variables = {
        parameter.name: (variable, LAYOUTS["keras"].stored(parameter))
        for spec in possible_specs(found.config)
        for parameter in parameters(spec)
        if (variable := _variable(found, parameter)) is not None
    }
    known = {id(variable) for variable, _ in variables.values()}
    if unknown := [variable.path for variable in found.weights if id(variable) not in known]:
        raise MismatchError(
            f"the layer {found.name!r} is not one of this project; unknown variables:", unknown
        )
    return variables


def keywords_of(layer: keras.layers.Layer, scope: str | None) -> dict[str, Any]:
    return _found(layer, scope).config


def load_into(
    layer: keras.layers.Layer,
    checkpoint: Checkpoint,
    prefix: str,
    scope: str | None,
    without: Collection[str] = (),
) -> None:
    found = _found(layer, scope)
    variables = _variables(found)
    if found.is_part and not prefix:
        checkpoint = _restricted(checkpoint, variables)
    check_config(found.config, checkpoint, without)
    wanted = {}
    for name, (variable, stored) in variables.items():
        shape = stored.canonical_shape(tuple(variable.shape))
        wanted[name] = (shape, np.dtype(keras.backend.standardize_dtype(variable.dtype)))
    arrays = match(wanted, checkpoint, selected(checkpoint, prefix), without)
    for name, array in arrays.items():
        variable, stored = variables[name]
        variable.assign(stored.to_file(array))


def _restricted(checkpoint: Checkpoint, names: Collection[str]) -> Checkpoint:
    """The same part of a checkpoint."""
    spec = checkpoint.spec.part(names)
    inside = {parameter.name for parameter in parameters(spec)}
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name in inside}
    return checkpoint.derived(tensors, spec, "only the part that the model has")


def state_of(
    layer: keras.layers.Layer,
    scope: str | None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    found, arrays = _found(layer, scope), {}
    for name, (variable, stored) in _variables(found).items():
        array = stored.to_canonical(keras.ops.convert_to_numpy(variable.value))
        arrays[name] = np.array(array, order="C")
    return arrays, found.config


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
