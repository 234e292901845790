"""ONNX: a file or a `ModelProto`, run by onnxruntime; the values between its layers are further outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from parity_tests.watch.exported.base import LOW, Exported, Slot, lowest, paths, slots_of
from parity_tests.watch.exported.onnx_layers import NONE, layers_of
from parity_tests.watch.trace import (
    Call,
    Fingerprint,
    Trace,
    Weights,
    channels_last,
    is_index,
    nearest,
    reason_of,
)
from weights_convert.errors import SpecError

_QUANTISED = ("QuantizeLinear", "QLinear", "QGemm", "Integer")  # in the names of operators
_FLOATS = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
}


class Onnx(Exported):
    """A model of ONNX. Its layers are those of `onnx_layers`; without any, only outputs are seen."""

    framework = "onnx"

    def __init__(self, source: Path | Any) -> None:
        super().__init__(source.name if isinstance(source, Path) else "the ONNX model")
        self.model = model_of(source)
        initial = {tensor.name for tensor in self.model.graph.initializer}
        given = [value for value in self.model.graph.input if value.name not in initial]
        self.inputs = [_slot(value) for value in given]
        self.precision = _precision(self.model)
        self.step = _output_step(self.model)
        self.names = [value.name for value in self.model.graph.output]
        self.layers = NONE if self.precision in LOW else layers_of(self.model.graph)
        self.outputs_only = not self.layers.calls
        self.session = session(_with_values(self.model, self._between()))

    def trace(self, images: np.ndarray, *, train: bool = False) -> Trace:
        self._check_eval(train)
        values = self._values(self.session, images, {}, [*self.names, *self._between()])
        calls = self._calls(values)
        calls.exported, calls.fused = not self.outputs_only, dict(self.layers.fused)
        given = images if is_index(images) else np.array(images, self.dtype)
        found = [
            (path, self._canonical(values[name]))
            for path, name in zip(paths(self.names), self.names, strict=True)
        ]
        return calls.finish(given, found)

    def _between(self) -> list[str]:
        """The values that enter or leave a layer and that the graph itself does not return."""
        given = {value.name for value in self.model.graph.input} | {*self.names}
        values = (v for call in self.layers.calls.values() for v in (*call.inputs, call.output))
        return [value for value in dict.fromkeys(values) if value not in given]

    def _calls(
        self, values: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray] | None = None
    ) -> Trace:
        """The calls of the layers; `given` are corrected values, which the layers after them take."""
        calls, entered = self._new_trace(), {**values, **(given or {})}
        for name, call in self.layers.calls.items():
            if call.output in values and all(value in entered for value in call.inputs):
                first, *others = (self._canonical(entered[value]) for value in call.inputs)
                calls[name] = Call(first, self._canonical(values[call.output]), call.layer, tuple(others))
        return calls

    def _values(
        self, run: Any, images: np.ndarray, more: Mapping[str, np.ndarray], names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Values by name, the inputs included; `more` are further inputs of the session."""
        parts: list[dict[str, np.ndarray]] = []
        at = 0
        for batch in self._batches(images):
            slots = self._slots([self.beside.name, *(name for name, _ in self.beside.others)])
            feed = {slot.name: array for slot, array in zip(slots, batch, strict=True)}
            feed |= {name: array[at : at + len(batch[0])] for name, array in more.items()}
            at += len(batch[0])
            parts.append(dict(zip(names, run.run(names, feed), strict=True)) | feed)
        if len(parts) == 1:
            return parts[0]
        size = at // len(parts)  # a value that does not hold one entry per image cannot be joined
        whole = [n for n, array in parts[0].items() if array.ndim and len(array) == size]
        return {name: np.concatenate([part[name] for part in parts]) for name in whole}

    def run_alone(
        self, inputs: Mapping[str, np.ndarray], *, train: bool = False
    ) -> dict[str, np.ndarray | str]:
        del train
        return {name: self._run_layer(name, x) for name, x in inputs.items()}

    def _run_layer(self, name: str, x: np.ndarray) -> np.ndarray | str:
        call = self.layers.calls.get(name)
        if call is None or len(call.inputs) != 1:
            return "it has several inputs"
        nodes = [*self.layers.static, *(self.layers.nodes[place] for place in call.steps)]
        given = {call.inputs[0]: self._own(x)}
        try:
            run = session(_part(self.model, nodes, given, [call.output]))
            (found,) = run.run([call.output], given)
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
        values = self._values(self.session, images, {}, [*self.names, *self._between()])
        right: dict[str, np.ndarray] = {}
        for name, wanted in outputs.items():
            call = self.layers.calls.get(name)
            if call is not None and call.output in values and call.output not in right:
                found = nearest(self._canonical(values[call.output]), wanted)
                right[call.output] = self._own(found)
        given = {f"right {name}": array for name, array in right.items()}
        nodes = [_renamed(node, {name: f"right {name}" for name in right}) for node in self.layers.nodes]
        names = [name for name in (*self.names, *self._between()) if name in values]
        model = _part(self.model, [*self.layers.static, *nodes], given, names)
        model.graph.input.extend(self.model.graph.input)
        try:
            found_values = self._values(session(model), images, given, names)
        except Exception:  # a corrected value may not fit
            return Trace()
        return self._calls(found_values, right)

    def weighted(self) -> Mapping[str, Weights]:
        return self.layers.weighted()

    def fingerprints(self) -> Mapping[str, Sequence[Fingerprint]]:
        return self.layers.fingerprints()


def _with_values(model: Any, names: Sequence[str]) -> Any:
    """A copy of a model that returns further values."""
    if not names:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return copy


def _part(model: Any, nodes: Sequence[Any], given: Mapping[str, np.ndarray], names: Sequence[str]) -> Any:
    """A model of some nodes, with these inputs and outputs."""
    part = onnx.ModelProto()
    part.ir_version = model.ir_version
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    part.graph.name = "part"
    used = {value for node in nodes for value in node.input}
    part.graph.initializer.extend(t for t in model.graph.initializer if t.name in used)
    part.graph.node.extend(nodes)
    for name, array in given.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        part.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, [None] * array.ndim))
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return part


def _renamed(node: Any, names: Mapping[str, str]) -> Any:
    """A copy of a node with other inputs."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for place, value in enumerate(copy.input):
        copy.input[place] = names.get(value, value)
    return copy


def model_of(source: Path | Any) -> Any:
    """A checked `ModelProto`, with the weights of files beside it."""
    if isinstance(source, Path):
        model = onnx.load(str(source))
    else:
        model = onnx.ModelProto()
        model.CopyFrom(getattr(source, "model_proto", source))
    if not model.graph.node or not model.graph.output:
        raise SpecError(f"{source if isinstance(source, Path) else 'the ONNX model'}: an empty ONNX graph")
    return model


def session(model: Any) -> Any:
    """A session on the CPU that reports errors only."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _slot(value: Any) -> Slot:
    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type) if kind.elem_type else None
    sizes = None
    if kind.HasField("shape"):
        sizes = slots_of([d.dim_value for d in kind.shape.dim])
    return Slot(value.name, dtype, sizes)


def _precision(model: Any) -> str:
    kinds = [_FLOATS[t.data_type] for t in model.graph.initializer if t.data_type in _FLOATS and t.dims]
    kinds += [
        _FLOATS[v.type.tensor_type.elem_type]
        for v in model.graph.input
        if v.type.tensor_type.elem_type in _FLOATS
    ]
    if any(word in node.op_type for node in model.graph.node for word in _QUANTISED):
        kinds.append("int8")
    return lowest(kinds)


def _output_step(model: Any) -> float:
    """The quantisation step of the first output, if a DequantizeLinear gives it."""
    name = model.graph.output[0].name
    node = next((node for node in model.graph.node if name in node.output), None)
    if node is None or node.op_type != "DequantizeLinear":
        return 0.0
    scale = next((t for t in model.graph.initializer if t.name == node.input[1]), None)
    return float(onnx.numpy_helper.to_array(scale).reshape(-1)[0]) if scale is not None else 0.0
