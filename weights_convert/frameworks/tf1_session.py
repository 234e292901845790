"""TensorFlow 1 sessions: a canonical name is a variable scope's path."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

from weights_convert.checkpoint import Checkpoint
from weights_convert.errors import MismatchError
from weights_convert.frameworks import (
    block_config,
    cast,
    check_config,
    match,
    selected,
)
from weights_convert.layouts import LAYOUTS, Stored, like
from weights_convert.spec import KINDS, TRAINING_ONLY, network_spec, parameters

_LAYOUT = LAYOUTS["tf1"]
# collections of tf1_compat with the scope and keywords of networks, and of CBAM blocks
_CONFIGS = [f"{kind.kind}_config" for kind in KINDS.values() if kind.network]
_BLOCKS = "attention_config"


def _configs(graph: tf.Graph) -> dict[str, dict[str, Any]]:
    """Scope -> keywords, for every network of a graph.

    Raises:
        MismatchError: two networks share variables but have different keywords.
    """
    found: dict[str, dict[str, Any]] = {}
    for note in (json.loads(text) for name in _CONFIGS for text in graph.get_collection(name)):
        scope, keywords = note["scope"], note["keywords"]
        for name, value in found.get(scope, keywords).items():
            if name not in TRAINING_ONLY and keywords.get(name) != value:
                shown = f"{name}={value!r} and {name}={keywords.get(name)!r}"
                raise MismatchError(
                    f"two networks share the variables under {scope!r}: {shown}; expected one"
                )
        found[scope] = keywords
    return found


def _raw(session: Any) -> tf.Session:
    """The session without the hooks of a `MonitoredSession`, which count steps and save."""
    if not hasattr(session, "run_step_fn"):
        return session
    return session.run_step_fn(lambda step_context: step_context.session)


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


def _variables(session: tf.Session, scope: str) -> dict[str, tuple[tf.Variable, Stored]]:
    """Canonical name -> variable and its layout, for the network or block in a scope.

    Slots and counters are omitted.
    """
    prefix, found, unknown = f"{scope}/" if scope else "", {}, []
    spec = network_spec(keywords_of(session, scope))
    known = {} if spec is None else {_LAYOUT.rename(p, spec): p for p in parameters(spec)}
    for variable in session.graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES):
        name = variable.op.name
        if not name.startswith(prefix) or any(p.fullmatch(name) for p, _ in _LAYOUT.bookkeeping):
            continue
        inside = name.removeprefix(prefix)
        parameter = known.get(inside)
        canonical = parameter.name if parameter else None
        if spec is None and (canonical := _LAYOUT.parse(inside)):
            parameter = like(canonical)
        if canonical is None or parameter is None:
            unknown.append(name)
        else:
            found[canonical] = variable, _LAYOUT.stored(parameter)
    if unknown or not found:
        raise MismatchError(
            f"the variables under {scope!r} do not form one network (choose it with scope=):", unknown
        )
    return found


def load_into(
    session: tf.Session,
    checkpoint: Checkpoint,
    prefix: str,
    scope: str | None,
    without: Collection[str] = (),
) -> None:
    session = _raw(session)
    scope = _scope(session, scope)
    check_config(keywords_of(session, scope), checkpoint, without)
    variables = _variables(session, scope)
    wanted = {}
    for name, (variable, stored) in variables.items():
        shape = stored.canonical_shape(tuple(variable.shape.as_list()))
        wanted[name] = (shape, np.dtype(variable.dtype.base_dtype.as_numpy_dtype))
    arrays = match(wanted, checkpoint, selected(checkpoint, prefix), without)
    feed = {}
    for name, array in arrays.items():
        variable, stored = variables[name]
        # feeding the existing initialisers adds no operations to the graph
        feed[variable.initializer.inputs[1]] = stored.to_file(array)
    session.run([variables[name][0].initializer for name in arrays], feed)


def state_of(session: tf.Session, scope: str | None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    session = _raw(session)
    scope = _scope(session, scope)
    variables = _variables(session, scope)
    values = session.run({name: variable for name, (variable, _) in variables.items()})
    arrays = {
        name: np.array(variables[name][1].to_canonical(array), order="C") for name, array in values.items()
    }
    return arrays, keywords_of(session, scope)


def build(images: tf.Tensor, spec: Any, is_training: bool = False, scope: str | None = None) -> Any:
    """A network's or block's output in the default graph, and its end points."""
    import tf1_compat
    from tf1_compat.blocks import make_attention

    if spec.network:
        network = getattr(tf1_compat, spec.network.lower())
        return network(images, is_training, scope=scope, **spec.model_kwargs())
    attend: Any = make_attention(0, block_config(spec), is_training)
    assert attend is not None  # the spec of a block has an attention
    y = attend(images, scope=scope)
    return y, {"attention": y}


def load_model(checkpoint: Checkpoint, spec: Any, without: Collection[str]) -> Callable[..., Any]:
    """A function like those of `tf1_compat`, whose variables initialise from the checkpoint."""
    of = {_LAYOUT.rename(parameter, spec): parameter for parameter in parameters(spec)}
    reading = threading.Lock()  # a session runs its initialisers in parallel

    def initial_value(canonical: str, stored: Stored) -> Callable[..., tf.Tensor]:

        def initializer(shape: Any, dtype: Any = None, partition_info: Any = None) -> tf.Tensor:
            wanted = np.dtype(tf.as_dtype(dtype).as_numpy_dtype)

            def value() -> np.ndarray:
                with reading:
                    array = cast(canonical, checkpoint[canonical], wanted)
                return stored.to_file(array)

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
            parameter = of.get(re.sub(rf"^{re.escape(opened)}/", "", name))
            if parameter and parameter.name in checkpoint.tensors and parameter.name not in without:
                keywords["initializer"] = initial_value(parameter.name, _LAYOUT.stored(parameter))
            return getter(name, *args, **keywords)

        with tf.variable_scope(tf.get_variable_scope(), custom_getter=from_file):
            return build(images, spec, is_training, scope)

    return network
