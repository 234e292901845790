"""The layers of a TensorFlow graph whose weights are constants, from the scopes of its operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from parity_tests.watch.exported.layered import NONE, Arrays, Layered, Layers, owners
from parity_tests.watch.exported.scopes import Boundary, Step, boundaries, of_tensorflow

_SHAPES = ("Shape", "Size", "Rank", "ShapeN")
_CONTROL = {"While", "StatelessWhile", "If", "StatelessIf", "Case", "Enter", "Switch"}
_PASSING = ("Placeholder", "NoOp", "Const")
_FLOATS = (tf.float32, tf.float64, tf.float16, tf.bfloat16)


def layers_of(graph: tf.Graph) -> Layers:
    """The layers; values have the names of tensors. `NONE` for a graph with control flow."""
    if _CONTROL & {op.type for op in graph.get_operations()}:
        return NONE
    nodes, moving, owned = _sorted(graph)
    weights = [
        {name: array for t in op.inputs for name, array in owned.get(t.name, {}).items()} for op in nodes
    ]
    names = {op.name for op in graph.get_operations()}
    places = of_tensorflow([op.name for op in nodes], names, weights)
    steps = [
        Step(
            place.scope,
            tuple(dict.fromkeys(t.name for t in op.inputs if moving.get(t.name) is False)),
            tuple(t.name for t in op.outputs if moving[t.name] is False),
            place.call,
        )
        for op, place in zip(nodes, places, strict=True)
    ]
    ends = {t.name for op in nodes for t in op.outputs if not t.consumers()}
    calls = boundaries(steps, ends)
    return Layers(calls, nodes, (), *owners([place.scope for place in places], weights, calls))


def _sorted(graph: tf.Graph) -> tuple[list[Any], dict[str, bool], dict[str, Arrays]]:
    """The operations that depend on an input, and facts on tensors.

    These are: tensor that depends on an input -> whether it is only a shape; tensor -> the weights in it.
    """
    nodes: list[Any] = []
    moving: dict[str, bool] = {}
    owned: dict[str, Arrays] = {}
    for op in graph.get_operations():
        if op.type == "Placeholder":
            moving |= dict.fromkeys((t.name for t in op.outputs), False)
            continue
        before = [t.name for t in op.inputs if t.name in moving]
        if before:
            only = op.type in _SHAPES or all(moving[name] for name in before)
            moving |= dict.fromkeys((t.name for t in op.outputs), only)
            nodes.append(op)
        elif op.type == "Const" and op.outputs[0].dtype in _FLOATS and op.outputs[0].shape.rank:
            owned[op.outputs[0].name] = {op.name: _constant(op)}
        elif op.type not in _PASSING:
            inside = {name: array for t in op.inputs for name, array in owned.get(t.name, {}).items()}
            owned |= dict.fromkeys((t.name for t in op.outputs), inside)
    return nodes, moving, owned


def _constant(op: Any) -> np.ndarray:
    return tf.make_ndarray(op.get_attr("value")).astype(np.float32)


class GraphLayers(Layered):
    """Values and layers of a graph in a session; `inside` is called once the graph is there."""

    session: Any = None
    _inner: Sequence[Any] = ()

    def inside(self, graph: tf.Graph, inputs: Sequence[Any]) -> None:
        """Look at a graph with these input tensors."""
        self._inner = inputs
        self.session = tf.compat.v1.Session(graph=graph)
        self.see(layers_of(graph))

    def ordered(self, given: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The arrays in the order of the declared inputs."""
        arrays = dict(zip((slot.name for slot in self._slots(self._input_names())), given, strict=True))
        return [arrays[slot.name] for slot in self.inputs]

    def values(self, given: Sequence[np.ndarray], right: Arrays) -> dict[str, np.ndarray]:
        """The values between the layers, and the inputs, by the names of tensors."""
        if self.session is None or self.layers is NONE:
            return {}
        feed = dict(zip((t.name for t in self._inner), given, strict=True))
        asked = [name for name in self.seen() if name not in feed]
        free = [name for name in asked if name not in right]
        found: dict[str, np.ndarray] = dict(zip(free, self.session.run(free, {**feed, **right}), strict=True))
        for name in asked:
            if name in right:  # a tensor that is fed cannot be fetched
                others = {other: array for other, array in right.items() if other != name}
                found[name] = self.session.run(name, {**feed, **others})
        return {name: widened(array) for name, array in found.items()} | feed

    def run_call(self, call: Boundary, x: np.ndarray) -> np.ndarray:
        return widened(self.session.run(call.output, {call.inputs[0]: x}))


def widened(array: np.ndarray) -> np.ndarray:
    """bfloat16 as float32."""
    return array if array.dtype.kind in "fciub" else array.astype(np.float32)
