"""The layers of a graph of `torch.export`, from the module stack of its nodes, and how its nodes are run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Interpreter, Node

from parity_tests.watch.exported.layered import Layers, owners
from parity_tests.watch.exported.scopes import Place, Step, boundaries


def layers_of(module: GraphModule) -> Layers:
    """The layers; values have the names of the nodes that compute them."""
    nodes, static = [], []
    moving: dict[str, bool] = {}  # depends on the inputs -> whether it is a tensor
    for node in module.graph.nodes:
        if node.op == "placeholder":
            moving[node.name] = True
        elif node.op == "call_function" and any(n.name in moving for n in node.all_input_nodes):
            moving[node.name] = not isinstance(node.meta.get("val"), (int, torch.SymInt))
            nodes.append(node)
        elif node.op in ("get_attr", "call_function"):
            static.append(node)
    places = [_place(node) for node in nodes]
    steps = [
        Step(
            place.scope,
            tuple(dict.fromkeys(n.name for n in node.all_input_nodes if moving.get(n.name))),
            (node.name,) if moving[node.name] else (),
            place.call,
        )
        for node, place in zip(nodes, places, strict=True)
    ]
    ends = {n.name for node in module.graph.nodes if node.op == "output" for n in node.all_input_nodes}
    calls = boundaries(steps, ends)
    weights = [_weights(module, node) for node in nodes]
    return Layers(calls, nodes, static, *owners([place.scope for place in places], weights, calls))


def _place(node: Node) -> Place:
    """The path of the node's module; the keys of its stack end in "@1" in the second call of a module."""
    stack = node.meta.get("nn_module_stack", {})
    calls = {str(path): key.partition("@")[2] for key, (path, _) in stack.items()}
    scope = [*calls][-1] if calls else ""
    if not scope or scope.startswith("_empty"):
        return Place("", "")
    parts = scope.split(".")
    numbers = (calls.get(".".join(parts[: depth + 1]), "") for depth in range(len(parts)))
    return Place(scope, ".".join(f"{part}@{number}" for part, number in zip(parts, numbers, strict=True)))


def _weights(module: GraphModule, node: Node, depth: int = 8) -> dict[str, np.ndarray]:
    """The floating-point tensors that a node takes, perhaps through nodes that only reshape them."""
    found: dict[str, np.ndarray] = {}
    for source in node.all_input_nodes if depth else ():
        if source.op == "get_attr":
            tensor = _attribute(module, str(source.target))
            if torch.is_tensor(tensor) and tensor.is_floating_point() and tensor.ndim:
                found[str(source.target)] = tensor.detach().float().numpy()
        elif source.op == "call_function" and not _moves(source):
            found |= _weights(module, source, depth - 1)
    return found


def _moves(node: Node, depth: int = 8) -> bool:
    """Whether a node depends on an input."""
    sources = node.all_input_nodes
    return node.op == "placeholder" or (depth > 0 and any(_moves(source, depth - 1) for source in sources))


def _attribute(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


class Run(Interpreter):
    """Runs a graph and keeps some of its values.

    Args:
        wanted: the names of the nodes whose tensors are kept in `kept`.
        right: tensors that the nodes after a node take in the place of its own.
    """

    def __init__(
        self, module: GraphModule, wanted: Collection[str], right: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        super().__init__(module)
        self.wanted, self.right = {*wanted}, right or {}
        self.kept: dict[str, torch.Tensor] = {}

    def run_node(self, n: Node) -> Any:
        found = super().run_node(n)
        if n.name in self.wanted and torch.is_tensor(found):
            self.kept[n.name] = found.clone()  # an operation in place may change it afterwards
        return self.right[n.name].clone() if n.name in self.right else found


def run_nodes(module: GraphModule, nodes: Sequence[Node], known: Mapping[str, torch.Tensor]) -> Any:
    """The value of the last of these nodes, from known values and the graph's constants."""
    runner = Interpreter(module, garbage_collect_values=False)
    by_name = {node.name: node for node in module.graph.nodes}
    runner.env = {by_name[name]: value for name, value in known.items()}
    for node in nodes:
        runner.env[node] = runner.run_node(node)
    return runner.env[nodes[-1]]
