"""TensorFlow 1 sessions: a canonical name is a variable scope's path."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

from weights_convert.checkpoint import Checkpoint
from weights_convert.errors import MismatchError
from weights_convert.frameworks import block_config, cast, check_config, match, selected
from weights_convert.layouts import LAYOUTS, ROLES, permuted, role_of
from weights_convert.spec import TRAINING_ONLY, AttentionSpec

_LAYOUT = LAYOUTS["tf1"]
# collections of tf1_compat with the scope and keywords of each network, and of each CBAM block
_CONFIGS, _BLOCKS = "resnet_config", "cbam_config"


def _configs(graph: tf.Graph) -> dict[str, dict[str, Any]]:
    """Scope -> keywords, for every network of a graph.

    Raises:
        MismatchError: two networks share variables but have different keywords.
    """
    found: dict[str, dict[str, Any]] = {}
    for note in map(json.loads, graph.get_collection(_CONFIGS)):
        scope, keywords = note["scope"], note["keywords"]
        for name, value in found.get(scope, keywords).items():
            if name not in TRAINING_ONLY and keywords[name] != value:
                shown = f"{name}={value!r} and {name}={keywords[name]!r}"
                raise MismatchError(
                    f"two networks share the variables under {scope!r}: {shown}; expected one"
                )
        found[scope] = keywords
    return found


def keywords_of(session: tf.Session, scope: str | None) -> dict[str, Any]:
    """The keywords of the network or the CBAM block in a scope; {} if the graph does not record them."""
    scope = _scope(session, scope)
    notes = map(json.loads, session.graph.get_collection(_BLOCKS))
    blocks = {note["scope"]: note["keywords"] for note in notes}
    return _configs(session.graph).get(scope) or blocks.get(scope, {})


def _scope(session: tf.Session, scope: str | None) -> str:
    if scope is not None:
        return scope.rstrip("/")
    scopes = sorted(_configs(session.graph))
    if len(scopes) > 1:
        raise MismatchError("the session's graph holds several networks, choose one with scope=", scopes)
    return scopes[0] if scopes else ""


def _variables(session: tf.Session, scope: str) -> dict[str, tf.Variable]:
    """Canonical name -> variable, for the network or block in a scope, without slots and counters."""
    prefix, found, unknown = f"{scope}/" if scope else "", {}, []
    for variable in session.graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES):
        name = variable.op.name
        if not name.startswith(prefix) or any(p.fullmatch(name) for p, _ in _LAYOUT.bookkeeping):
            continue
        canonical = _LAYOUT.parse(name.removeprefix(prefix))
        if canonical is None:
            unknown.append(name)
        else:
            found[canonical] = variable
    if unknown or not found:
        raise MismatchError(
            f"the variables under {scope!r} do not form one network (choose it with scope=):", unknown
        )
    return found


def load_into(session: tf.Session, checkpoint: Checkpoint, prefix: str, scope: str | None) -> None:
    scope = _scope(session, scope)
    check_config(keywords_of(session, scope), checkpoint)
    variables = _variables(session, scope)
    wanted = {}
    for name, variable in variables.items():
        shape = permuted(tuple(variable.shape.as_list()), ROLES[str(role_of(name))].to_torch)
        wanted[name] = (shape, np.dtype(variable.dtype.base_dtype.as_numpy_dtype))
    arrays = match(wanted, checkpoint, selected(checkpoint, prefix))
    feed = {}
    for name, array in arrays.items():
        axes = ROLES[str(role_of(name))].to_tf
        # feeding the existing initialisers adds no operations to the graph
        feed[variables[name].initializer.inputs[1]] = array if axes is None else array.transpose(axes)
    session.run([variables[name].initializer for name in arrays], feed)


def state_of(session: tf.Session, scope: str | None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    scope = _scope(session, scope)
    values = session.run(_variables(session, scope))
    arrays = {}
    for name, array in values.items():
        axes = ROLES[str(role_of(name))].to_torch
        arrays[name] = np.array(array if axes is None else array.transpose(axes), order="C")
    return arrays, keywords_of(session, scope)


def load_model(checkpoint: Checkpoint) -> Callable[..., Any]:
    """A function like those of `tf1_compat`, whose variables initialise from the checkpoint."""
    from tf1_compat import resnet
    from tf1_compat.blocks import make_attention

    reading = threading.Lock()  # a session runs its initialisers in parallel

    def initial_value(canonical: str) -> Callable[..., tf.Tensor]:
        axes = ROLES[str(role_of(canonical))].to_tf

        def initializer(shape: Any, dtype: Any = None, partition_info: Any = None) -> tf.Tensor:
            wanted = np.dtype(tf.as_dtype(dtype).as_numpy_dtype)

            def value() -> np.ndarray:
                with reading:
                    array = cast(canonical, checkpoint[canonical], wanted)
                return array if axes is None else array.transpose(axes)

            if checkpoint.tensors[canonical].info.dtype != wanted:
                value()  # raises now instead of in the session if the dtype would lose values
            # a Python function instead of a constant, so that the graph does not hold the weights
            tensor = tf.numpy_function(value, [], dtype)
            tensor.set_shape(shape)
            return tensor

        return initializer

    def network(images: tf.Tensor, is_training: bool = False, scope: str | None = None) -> Any:
        opened = "/".join(filter(None, [tf.get_variable_scope().name, scope]))

        def from_file(
            getter: Callable[..., tf.Variable], name: str, *args: Any, **keywords: Any
        ) -> tf.Variable:
            canonical = _LAYOUT.parse(re.sub(rf"^{re.escape(opened)}/", "", name))
            if canonical in checkpoint.tensors:
                keywords["initializer"] = initial_value(canonical)
            return getter(name, *args, **keywords)

        with tf.variable_scope(tf.get_variable_scope(), custom_getter=from_file):
            if isinstance(checkpoint.spec, AttentionSpec):
                attend: Any = make_attention(0, block_config(checkpoint), is_training)
                assert attend is not None  # an AttentionSpec has an attention
                y = attend(images, scope=scope)
                return y, {"attention": y}
            return resnet(images, is_training, scope=scope, **checkpoint.spec.model_kwargs())

    return network
