"""Artefacts that show the values between their layers: a graph whose nodes carry the paths of modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from parity_tests.watch.exported.base import LOW, Exported, Values
from parity_tests.watch.exported.scopes import Boundary
from parity_tests.watch.trace import (
    Call,
    Fingerprint,
    Trace,
    Weights,
    channels_last,
    fingerprint,
    is_index,
    nearest,
    reason_of,
)

Arrays = Mapping[str, np.ndarray]


class Layers(NamedTuple):
    """The layers of a graph.

    Attributes:
        calls: name of a call -> its boundary; steps are places in `nodes`.
        nodes: those that depend on the inputs.
        static: the other ones, which compute constants.
        weights: layer -> its weights.
        fused: module whose weights another layer has -> that layer.
    """

    calls: Mapping[str, Boundary]
    nodes: Sequence[Any]
    static: Sequence[Any]
    weights: Mapping[str, Arrays]
    fused: Mapping[str, str]


NONE = Layers({}, (), (), {}, {})


def owners(
    scopes: Sequence[str], weights: Sequence[Arrays], calls: Mapping[str, Boundary]
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, str]]:
    """The weights of each layer, and the modules whose weights another layer has.

    Args:
        scopes: the module's path of each node.
        weights: by name, those that each node takes.
    """
    named = {call.layer for call in calls.values()}
    found: dict[str, dict[str, np.ndarray]] = {}
    fused: dict[str, str] = {}
    for scope, taken in zip(scopes, weights, strict=True):
        layer = _called(scope, named)
        for name, array in taken.items():
            found.setdefault(layer, {})[name] = array
            owner = name.rpartition(".")[0]
            if owner and layer and owner != layer and owner not in named:
                fused[owner] = layer
    return found, fused


def _called(scope: str, named: set[str]) -> str:
    """The innermost layer of a scope that has a boundary."""
    while scope and scope not in named:
        scope = scope.rpartition(".")[0]
    return scope


class Layered(Exported):
    """Traces an artefact layer by layer.

    A kind of artefact sets `layers` by `see`, and defines `between` and `run_call`. In low precision and
    without layers only the outputs are seen.
    """

    layers: Layers = NONE

    def between(self, given: Sequence[np.ndarray], right: Arrays) -> tuple[dict[str, np.ndarray], Values]:
        """Run on arrays in the artefact's layout: the values by name, inputs included, and the outputs.

        Args:
            right: values that the nodes after them take in the place of those computed.
        """
        raise NotImplementedError

    def run_call(self, call: Boundary, x: np.ndarray) -> np.ndarray:
        """The output of one call with a single input."""
        raise NotImplementedError

    def see(self, layers: Layers) -> None:
        self.layers = NONE if self.precision in LOW else layers
        self.outputs_only = not self.layers.calls

    def seen(self) -> list[str]:
        """The values that enter or leave a layer."""
        calls = self.layers.calls.values()
        return list(dict.fromkeys(value for call in calls for value in (*call.inputs, call.output)))

    def trace(self, images: np.ndarray, *, train: bool = False) -> Trace:
        self._check_eval(train)
        values, outputs = self._joined(images, {})
        calls = self._calls(values)
        calls.exported, calls.fused = not self.outputs_only, dict(self.layers.fused)
        given = images if is_index(images) else np.array(images, self.dtype)
        return calls.finish(given, [(path, self._canonical(array)) for path, array in outputs])

    def _joined(self, images: np.ndarray, right: Arrays) -> tuple[dict[str, np.ndarray], Values]:
        """`between` for all images; a value that does not hold one entry per image cannot be joined."""
        parts, at = [], 0
        for batch in self._batches(images):
            own = {name: array[at : at + len(batch[0])] for name, array in right.items()}
            parts.append(self.between(batch, own))
            at += len(batch[0])
        if len(parts) == 1:
            return parts[0]
        size = at // len(parts)
        values, outputs = parts[0]
        whole = [name for name, array in values.items() if array.ndim and len(array) == size]
        joined = [(path, np.concatenate([p[1][i][1] for p in parts])) for i, (path, _) in enumerate(outputs)]
        return {name: np.concatenate([part[0][name] for part in parts]) for name in whole}, joined

    def _calls(self, values: Arrays, given: Arrays | None = None) -> Trace:
        """The calls of the layers; `given` are corrected values, which the layers after them take."""
        calls, entered = self._new_trace(), {**values, **(given or {})}
        for name, call in self.layers.calls.items():
            if call.output in values and all(value in entered for value in call.inputs):
                first, *others = (self._canonical(entered[value]) for value in call.inputs)
                calls[name] = Call(first, self._canonical(values[call.output]), call.layer, tuple(others))
        return calls

    def run_alone(self, inputs: Arrays, *, train: bool = False) -> dict[str, np.ndarray | str]:
        del train
        return {name: self._run_layer(name, x) for name, x in inputs.items()}

    def _run_layer(self, name: str, x: np.ndarray) -> np.ndarray | str:
        call = self.layers.calls.get(name)
        if call is None or len(call.inputs) != 1:
            return "it has several inputs"
        try:
            found = self.run_call(call, self._own(x))
        except Exception as error:  # another shape than the layer's
            return reason_of(error)
        return self._canonical(found)

    def _own(self, array: np.ndarray) -> np.ndarray:
        """An array of a trace in the graph's layout and dtype."""
        moved = self.channels_last or not self.same_axes
        return (channels_last(array) if moved else array).astype(self.dtype)

    def run_corrected(
        self, images: np.ndarray, outputs: Mapping[str, Sequence[np.ndarray]], *, train: bool = False
    ) -> Trace:
        del train
        values, _ = self._joined(images, {})
        right: dict[str, np.ndarray] = {}
        for name, wanted in outputs.items():
            call = self.layers.calls.get(name)
            if call is not None and call.output in values and call.output not in right:
                right[call.output] = self._own(nearest(self._canonical(values[call.output]), wanted))
        try:
            corrected, _ = self._joined(images, right)
        except Exception:  # a corrected value may not fit
            return Trace()
        return self._calls(corrected, right)

    def weighted(self) -> Mapping[str, Weights]:
        return {
            layer: Weights(len(own), sum(array.size for array in own.values()))
            for layer, own in self.layers.weights.items()
        }

    def fingerprints(self) -> Mapping[str, Sequence[Fingerprint]]:
        weights = self.layers.weights.items()
        return {layer: [fingerprint(array) for array in own.values()] for layer, own in weights}
