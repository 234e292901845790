"""ONNX: a file or a `ModelProto`, run by onnxruntime; the values between its layers are further outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from parity_tests.watch.exported.base import Slot, Values, lowest, paths, slots_of
from parity_tests.watch.exported.layered import Arrays, Layered
from parity_tests.watch.exported.onnx_layers import layers_of
from parity_tests.watch.exported.scopes import Boundary
from weights_convert.errors import SpecError

_QUANTISED = ("QuantizeLinear", "QLinear", "QGemm", "Integer")  # in the names of operators
_FLOATS = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
}


class Onnx(Layered):
    """A model of ONNX. Its layers are those of `onnx_layers`."""

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
        self.see(layers_of(self.model.graph))
        ready = {value.name for value in self.model.graph.input} | {*self.names}
        self._asked = [*self.names, *(value for value in self.seen() if value not in ready)]
        self.session = session(_with_values(self.model, self._asked[len(self.names) :]))

    def between(self, given: Sequence[np.ndarray], right: Arrays) -> tuple[dict[str, np.ndarray], Values]:
        slots = self._slots(self._input_names())
        feed = {slot.name: array for slot, array in zip(slots, given, strict=True)}
        run = self._with_right(right) if right else self.session
        more = {f"right {name}": array for name, array in right.items()}
        values = dict(zip(self._asked, run.run(self._asked, feed | more), strict=True)) | feed
        outputs = [(path, values[name]) for path, name in zip(paths(self.names), self.names, strict=True)]
        return values, outputs

    def _with_right(self, right: Arrays) -> Any:
        """A session whose nodes take these values, which are further inputs."""
        given = {f"right {name}": array for name, array in right.items()}
        nodes = [_renamed(node, {name: f"right {name}" for name in right}) for node in self.layers.nodes]
        model = _part(self.model, [*self.layers.static, *nodes], given, self._asked)
        model.graph.input.extend(self.model.graph.input)
        return session(model)

    def run_call(self, call: Boundary, x: np.ndarray) -> np.ndarray:
        nodes = [*self.layers.static, *(self.layers.nodes[place] for place in call.steps)]
        given = {call.inputs[0]: x}
        (found,) = session(_part(self.model, nodes, given, [call.output])).run([call.output], given)
        return found


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
