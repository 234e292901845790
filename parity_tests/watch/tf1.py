"""Tracing a TensorFlow 1 graph: the tensors that enter and leave each variable scope.

Only operations between the images and the outputs count; variables, initialisers, savers and gradients do
not. A scope that is entered again ("fc1_1/" for the shared MLP of CBAM) is the layer's second call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow.compat.v1 as tf

from parity_tests.watch.inputs import Beside
from parity_tests.watch.structure import leaves
from parity_tests.watch.trace import (
    Call,
    Fingerprint,
    TF1Model,
    Trace,
    Weights,
    channels_first,
    channels_last,
    fingerprint,
    numbered,
    reason_of,
)
from weights_convert.errors import SpecError
from weights_convert.layouts import tf1_module


class _Boundary(NamedTuple):
    """The tensors that enter and leave a scope."""

    input: tf.Tensor
    output: tf.Tensor


class _Layer(NamedTuple):
    boundary: _Boundary
    layer: str  # the name without the number of the call


class TF1Tracer:
    """Traces the network between a placeholder and a tensor of a session's graph."""

    framework = "tf1"
    notes = ()
    same_axes = False

    def __init__(self, model: TF1Model, dtype: str):
        if model.images.dtype.base_dtype.name != dtype:
            raise SpecError(
                f"the TF1 network computes in {model.images.dtype.base_dtype.name}, expected {dtype}; "
                f"build it on a {dtype} placeholder"
            )
        self.dtype, self.model, self.beside = dtype, model, Beside()
        self._outputs = self._output_tensors()
        self._prefix = f"{model.scope.rstrip('/')}/" if model.scope else ""
        self._on_path = self._path()
        self._layers = self._boundaries()
        self._moving = [
            (variable, model.session.run(variable))
            for variable in model.session.graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES)
            if variable.op.name.rpartition("/")[2] in ("moving_mean", "moving_variance")
        ]

    def trace(self, images: np.ndarray, *, train: bool = False) -> Trace:
        updates = []
        if self.beside.others:
            raise SpecError("several inputs: a TF1Model has one placeholder, expected one array")
        if train:  # run the updates of the statistics; the mode itself is fixed in the graph
            updates = self.model.session.graph.get_collection(tf.GraphKeys.UPDATE_OPS, self._prefix or None)
        feed = {self.model.images: self._given(images)}
        layers = {name: boundary for name, (boundary, _) in self._layers.items()}
        values, outputs, _ = self.model.session.run([layers, list(self._outputs.values()), updates], feed)
        calls = Trace()
        calls.moved = True
        for name, value in values.items():
            calls[name] = Call(
                channels_first(value.input), channels_first(value.output), self._layers[name].layer
            )
        found = zip(self._outputs, map(channels_first, outputs), strict=True)
        return calls.finish(np.array(images, self.dtype), found)

    def _given(self, images: np.ndarray) -> np.ndarray:
        images = images.astype(self.dtype)
        return images if self.same_axes else channels_last(images)

    def _output_tensors(self) -> dict[str, tf.Tensor]:
        found = dict(leaves(self.model.outputs))
        for path, leaf in found.items():
            if not isinstance(leaf, tf.Tensor):
                raise SpecError(
                    f"outputs {path}: {type(leaf).__name__}, expected tensors of the session's graph"
                )
        if not found:
            raise SpecError("received no outputs, expected at least one tensor")
        return found

    def run_alone(
        self,
        inputs: Mapping[str, np.ndarray],
        *,
        train: bool = False,  # noqa: ARG002  (fixed in the graph)
    ) -> dict[str, np.ndarray | str]:
        outputs: dict[str, np.ndarray | str] = {}
        for names in self._runs({name: x for name, x in inputs.items() if name in self._layers}):
            feed = {
                self._layers[n].boundary.input: channels_last(inputs[n].astype(self.dtype)) for n in names
            }
            try:
                values = self.model.session.run({n: self._layers[n].boundary.output for n in names}, feed)
            except (tf.errors.OpError, ValueError) as error:  # another shape than the graph's
                outputs |= dict.fromkeys(names, reason_of(error))
                continue
            outputs |= {n: channels_first(value) for n, value in values.items()}
        return outputs

    def run_corrected(
        self,
        images: np.ndarray,
        outputs: Mapping[str, Sequence[np.ndarray]],
        *,
        train: bool = False,  # noqa: ARG002  (fixed in the graph)
    ) -> Trace:
        """One run for each layer, because a tensor that is fed cannot be fetched."""
        calls = Trace()
        calls.moved = True
        fed = {
            self._layers[name].boundary.output.ref(): channels_last(wanted[0].astype(self.dtype))
            for name, wanted in outputs.items()
            if name in self._layers
        }
        fed = {t: x for t, x in fed.items() if t.deref().shape.is_compatible_with(x.shape)}
        images = self._given(images)
        for name in outputs:
            if name not in self._layers:
                continue
            boundary, layer = self._layers[name]
            feed = {t.deref(): x for t, x in fed.items() if t.deref() is not boundary.output}
            try:
                value = self.model.session.run(boundary, {**feed, self.model.images: images})
            except (tf.errors.OpError, ValueError):  # another shape than the graph's
                continue
            calls[name] = Call(channels_first(value.input), channels_first(value.output), layer)
        return calls

    def _runs(self, inputs: Mapping[str, np.ndarray]) -> list[list[str]]:
        """Group the layers that one run can compute together.

        In a group no layer is inside another, no output is another layer's input, and layers with the same
        input tensor get equal values.
        """
        runs: list[list[str]] = []
        for name in inputs:
            for run in runs:
                if not any(self._disturb(name, other, inputs) for other in run):
                    run.append(name)
                    break
            else:
                runs.append([name])
        return runs

    def _disturb(self, a: str, b: str, inputs: Mapping[str, np.ndarray]) -> bool:
        one, other = self._layers[a].boundary, self._layers[b].boundary
        nested = a.startswith(f"{b}.") or b.startswith(f"{a}.")
        if nested or one.output is other.input or other.output is one.input:
            return True
        return one.input is other.input and not np.array_equal(inputs[a], inputs[b], equal_nan=True)

    def statistics(self) -> Mapping[str, np.ndarray]:
        leaves = {"moving_mean": "running_mean", "moving_variance": "running_var"}
        found = {}
        for variable in self.model.session.graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES):
            module, _, leaf = variable.op.name.rpartition("/")
            if leaf in leaves and module.startswith(self._prefix):
                found[f"{_canonical(module.removeprefix(self._prefix))}.{leaves[leaf]}"] = variable
        return self.model.session.run(found)

    def unbiased(self) -> Mapping[str, np.ndarray]:
        return {}

    def weighted(self) -> Mapping[str, Weights]:
        """Trainable variables and other variables that the outputs depend on, by scope."""
        trainable = self.model.session.graph.get_collection(tf.GraphKeys.TRAINABLE_VARIABLES)
        names = {variable.op.name for variable in trainable}
        found: dict[str, Weights] = {}
        for variable in self.model.session.graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES):
            path, _, leaf = variable.op.name.rpartition("/")
            moving = leaf in ("moving_mean", "moving_variance")
            mine = variable.op.name.startswith(self._prefix) and not moving
            if mine and (variable.op.name in names or self._is_used(variable.op)):
                layer = _canonical(f"{path}/".removeprefix(self._prefix).rstrip("/"))
                known = found.get(layer, Weights(0, 0))
                size = int(np.prod(variable.shape.as_list()))
                found[layer] = Weights(known.tensors + 1, known.parameters + size)
        return found

    def settings(self, name: str) -> Mapping[str, float]:
        del name
        return {}

    def fingerprints(self) -> Mapping[str, Sequence[Fingerprint]]:
        found: dict[str, list[Fingerprint]] = {}
        for variable in self.model.session.graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES):
            if variable.op.name.startswith(self._prefix) and variable.dtype.base_dtype.is_floating:
                layer = _canonical(variable.op.name.rpartition("/")[0].removeprefix(self._prefix))
                found.setdefault(layer, []).append(fingerprint(self.model.session.run(variable)))
        return found

    def _is_used(self, variable: tf.Operation) -> bool:
        """Whether an operation of the network reads a variable, directly or through other operations."""
        seen, waiting = {variable}, [variable]
        while waiting:
            for tensor in waiting.pop().outputs:
                for consumer in tensor.consumers():
                    if consumer in self._on_path:
                        return True
                    if consumer not in seen:
                        seen.add(consumer)
                        waiting.append(consumer)
        return False

    def randomness(self) -> Any:
        return None  # the state is inside the session; random numbers show in the outputs only

    def stir(self) -> None:
        pass

    def restore(self) -> None:
        # feeding the existing initialisers adds no operations to the graph
        feed = {variable.initializer.inputs[1]: value for variable, value in self._moving}
        self.model.session.run([variable.initializer for variable, _ in self._moving], feed)

    def _boundaries(self) -> dict[str, _Layer]:
        """Layer -> its boundary, in the order of the graph, inner scopes before outer ones."""
        on_path = self._on_path
        order = {op: index for index, op in enumerate(self.model.session.graph.get_operations())}
        scopes = self._scopes()
        inside: dict[str, list[tf.Operation]] = {}
        for op in sorted(on_path, key=order.__getitem__):
            parts = op.name.split("/")
            for depth in range(1, len(parts)):
                inside.setdefault("/".join(parts[:depth]), []).append(op)
        found = []
        for scope, ops in inside.items():
            module = self._module(scope, scopes)
            if module is None:
                continue
            own = set(ops)
            outputs = [t for op in ops for t in op.outputs if self._leaves(t, own, on_path)]
            inputs = list(
                {t.ref(): t for op in ops for t in op.inputs if t.op in on_path and t.op not in own}
            )
            if len(outputs) == 1 and len(inputs) == 1:
                found.append((order[outputs[0].op], -scope.count("/"), module, inputs[0].deref(), outputs[0]))
        seen: dict[str, int] = {}
        return {
            numbered(m, seen): _Layer(_Boundary(i, o), m)
            for *_, m, i, o in sorted(found, key=lambda f: f[:2])
        }

    def _leaves(self, tensor: tf.Tensor, own: set[tf.Operation], on_path: set[tf.Operation]) -> bool:
        """Whether a tensor leaves a scope: an operation outside uses it, or it is an output."""
        return any(tensor is output for output in self._outputs.values()) or any(
            consumer in on_path and consumer not in own for consumer in tensor.consumers()
        )

    def _path(self) -> set[tf.Operation]:
        """The operations between the images and the outputs, both included."""
        start, ends = self.model.images.op, {tensor.op for tensor in self._outputs.values()}
        after, waiting = {start}, [start]
        while waiting:
            for tensor in waiting.pop().outputs:
                for consumer in tensor.consumers():
                    if consumer not in after:
                        after.add(consumer)
                        waiting.append(consumer)
        found, waiting = set(ends), [*ends]
        while waiting:
            for tensor in waiting.pop().inputs:
                if tensor.op in after and tensor.op not in found:
                    found.add(tensor.op)
                    waiting.append(tensor.op)
        return found

    def _scopes(self) -> set[str]:
        """Every scope with variables in it or below it."""
        scopes = set()
        for variable in self.model.session.graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES):
            parts = variable.op.name.split("/")
            scopes |= {"/".join(parts[:depth]) for depth in range(1, len(parts))}
        return scopes

    def _module(self, scope: str, scopes: set[str]) -> str | None:
        """The layer's name; a numbered name scope ("fc1_1") stands for the variable scope it re-enters."""
        parts: list[str] = []
        for part in scope.split("/"):
            again = re.sub(r"_\d+$", "", part)
            known = "/".join([*parts, part]) in scopes
            parts.append(part if known or "/".join([*parts, again]) not in scopes else again)
        path = "/".join(parts)
        if path not in scopes or not path.startswith(self._prefix) or path == self._prefix.rstrip("/"):
            return None
        return _canonical(path.removeprefix(self._prefix))


def _canonical(path: str) -> str:
    """`layer1_0/downsample_1` -> `layer1.0.downsample.1`."""
    return tf1_module(path)
