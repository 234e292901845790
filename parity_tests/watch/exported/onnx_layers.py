"""The layers of an ONNX graph, from the module paths of torch's exporters, else from the names of weights."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from parity_tests.watch.exported.layered import NONE, Layers, owners
from parity_tests.watch.exported.scopes import Step, boundaries

_SCOPES = "pkg.torch.onnx.name_scopes"  # of torch.onnx.export(dynamo=True)
_FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
)


def layers_of(graph: Any) -> Layers:
    """The layers of a graph without control flow; `NONE` for one with it."""
    if any(a.HasField("g") or a.graphs for node in graph.node for a in node.attribute):
        return NONE
    initial = {t.name: t for t in graph.initializer if t.data_type in _FLOATS and t.dims}
    given = {value.name for value in graph.input} - {t.name for t in graph.initializer}
    nodes, static, shapes, owned = _sorted(graph, given, initial)
    scopes = _scopes(nodes, owned)
    steps = [
        Step(
            scope,
            tuple(dict.fromkeys(v for v in node.input if v in shapes and not shapes[v])),
            tuple(v for v in node.output if not shapes[v]),
        )
        for node, scope in zip(nodes, scopes, strict=True)
    ]
    calls = boundaries(steps, {value.name for value in graph.output})
    weights = [
        {
            name: onnx.numpy_helper.to_array(initial[name])
            for value in node.input
            for name in owned.get(value, ())
        }
        for node in nodes
    ]
    return Layers(calls, nodes, static, *owners(scopes, weights, calls))


def _sorted(
    graph: Any, given: set[str], initial: Mapping[str, Any]
) -> tuple[list[Any], list[Any], dict[str, bool], dict[str, tuple[str, ...]]]:
    """The nodes that depend on the inputs, the constant ones, and facts on the values.

    These are: value that depends on the inputs -> whether it is only a shape; value -> the weights in it.
    """
    nodes, static = [], []
    shapes = dict.fromkeys(given, False)
    owned: dict[str, tuple[str, ...]] = {name: (name,) for name in initial}
    for node in graph.node:
        moving = [value for value in node.input if value in shapes]
        if moving:
            only = node.op_type in ("Shape", "Size") or all(shapes[value] for value in moving)
            shapes |= dict.fromkeys(node.output, only)
            nodes.append(node)
        else:
            inside = tuple(name for value in node.input for name in owned.get(value, ()))
            owned |= dict.fromkeys(node.output, inside)
            static.append(node)
    return nodes, static, shapes, owned


def _scopes(nodes: Sequence[Any], owned: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The path of each node's module."""
    paths = [_path(node) for node in nodes]
    if not any(paths):
        return [_by_weights(node, owned) for node in nodes]
    known = {*paths}
    found = []
    for node, path in zip(nodes, paths, strict=True):
        owners = {name.rpartition(".")[0] for value in node.input for name in owned.get(value, ())}
        base = re.sub(r"_\d+$", "", path)  # the exporter numbers the calls of a module: relu, relu_1
        repeated = base != path and base in known and not any(owner == path for owner in owners)
        found.append(base if repeated and (not owners or base in owners) else path)
    return found


def _path(node: Any) -> str:
    """The path of a node's module, from its metadata or its name; "" for none."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            parts = ast.literal_eval(entry.value)
            return str(parts[-2]) if len(parts) > 1 else ""
    if "/" not in node.name:
        return ""
    path = ""
    for part in node.name.strip("/").split("/")[:-1]:  # /layer1/layer1.0/conv1/Conv
        inside = path and part.startswith(f"{path.rpartition('.')[2]}.")
        path = f"{path.rpartition('.')[0]}.{part}".lstrip(".") if inside else f"{path}.{part}".lstrip(".")
    return path


def _by_weights(node: Any, owned: Mapping[str, tuple[str, ...]]) -> str:
    names = [name for value in node.input for name in owned.get(value, ())]
    if not names:
        return ""
    return names[0].rpartition(".")[0] or node.name or node.output[0]
