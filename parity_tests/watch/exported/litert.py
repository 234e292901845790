"""LiteRT (`.tflite`), float and quantised, through ai-edge-litert or TensorFlow's interpreter."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parity_tests.watch.exported.base import Exported, Slot, Values, lowest, paths, slots_of
from weights_convert.errors import SpecError


class LiteRT(Exported):
    """A flatbuffer of LiteRT: a file or its bytes."""

    framework = "litert"
    channels_last = True

    def __init__(self, source: Path | bytes) -> None:
        super().__init__(source.name if isinstance(source, Path) else "the LiteRT model")
        content = source.read_bytes() if isinstance(source, Path) else source
        if content[4:8] != b"TFL3":
            raise SpecError(f"{self.what}: starts with {content[:8]!r}, expected a LiteRT flatbuffer (TFL3)")
        self.interpreter = _interpreter(content)
        self.interpreter.allocate_tensors()
        self.inputs = [_slot(detail) for detail in self.interpreter.get_input_details()]
        self._outputs = self.interpreter.get_output_details()
        self.step = _quantisation(self._outputs[0])[0]
        self.precision = _precision(self.interpreter.get_tensor_details())

    def call(self, given: Sequence[np.ndarray]) -> Values:
        names = [self.beside.name, *(name for name, _ in self.beside.others)]
        details = {detail["name"]: detail for detail in self.interpreter.get_input_details()}
        slots = self._slots(names)
        for slot, array in zip(slots, given, strict=True):
            if tuple(details[slot.name]["shape"]) != array.shape:
                self.interpreter.resize_tensor_input(details[slot.name]["index"], array.shape)
        self.interpreter.allocate_tensors()
        for slot, array in zip(slots, given, strict=True):
            self.interpreter.set_tensor(details[slot.name]["index"], array)
        self.interpreter.invoke()
        found = [_dequantised(self.interpreter.get_tensor(d["index"]), d) for d in self._outputs]
        return list(zip(paths([d["name"] for d in self._outputs]), found, strict=True))


def _interpreter(content: bytes) -> Any:
    if importlib.util.find_spec("ai_edge_litert"):
        from ai_edge_litert.interpreter import Interpreter
    else:
        import tensorflow as tf

        Interpreter = tf.lite.Interpreter
    return Interpreter(model_content=content, num_threads=1)


def _quantisation(detail: Mapping[str, Any]) -> tuple[float, int]:
    """The step and the zero of a tensor that is quantised as a whole; 0, 0 for others."""
    scales = detail["quantization_parameters"]["scales"]
    if len(scales) != 1 or np.dtype(detail["dtype"]).kind not in "iu":
        return 0.0, 0
    return float(scales[0]), int(detail["quantization_parameters"]["zero_points"][0])


def _slot(detail: Mapping[str, Any]) -> Slot:
    shape = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
    step, zero = _quantisation(detail)
    return Slot(
        detail["name"], np.dtype(detail["dtype"]), slots_of([int(size) for size in shape]), step, zero
    )


def _dequantised(array: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    step, zero = _quantisation(detail)
    return ((array.astype(np.float64) - zero) * step).astype(np.float32) if step else array


def _precision(details: Sequence[Mapping[str, Any]]) -> str:
    kinds = []
    for detail in details:
        dtype = np.dtype(detail["dtype"])
        quantised = len(detail["quantization_parameters"]["scales"]) > 0
        kinds.append("int8" if quantised and dtype.kind in "iu" else dtype.name)
    return lowest(kinds)
