"""ONNX: a file or a `ModelProto`, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from parity_tests.watch.exported.base import Exported, Slot, Values, lowest, paths, slots_of
from weights_convert.errors import SpecError

_QUANTISED = ("QuantizeLinear", "QLinear", "QGemm", "Integer")  # in the names of operators
_FLOATS = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
}


class Onnx(Exported):
    """A model of ONNX.

    `outputs_only` until its layers are read, see `onnx_layers`.
    """

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
        self.session = session(self.model)

    def call(self, given: Sequence[np.ndarray]) -> Values:
        found = self.session.run(self.names, self._feed(given))
        return list(zip(paths(self.names), found, strict=True))

    def _feed(self, given: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        slots = self._slots([self.beside.name, *(name for name, _ in self.beside.others)])
        return {slot.name: array for slot, array in zip(slots, given, strict=True)}


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
