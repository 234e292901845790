"""LiteRT (`.tflite`), float and quantised, through ai-edge-litert or TensorFlow's interpreter."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parity_tests.watch.exported.base import LOW, Slot, Values, lowest, paths, slots_of
from parity_tests.watch.exported.layered import NONE, Arrays, Layered, Layers, owners
from parity_tests.watch.exported.scopes import Boundary, Place, Step, boundaries, of_tensorflow
from weights_convert.errors import SpecError


class LiteRT(Layered):
    """A flatbuffer of LiteRT: a file or its bytes. The names of its tensors show Keras's layers."""

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
        self._kept = self._interpreter_with_values(content)

    def _interpreter_with_values(self, content: bytes) -> Any:
        """An interpreter that keeps the values between layers; None if only the outputs are seen."""
        if self.precision in LOW:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "intended for debugging purposes only"
            kept = _interpreter(content, experimental_preserve_all_tensors=True)
        kept.allocate_tensors()
        self.see(layers_of(kept))
        return kept

    def between(self, given: Sequence[np.ndarray], right: Arrays) -> tuple[dict[str, np.ndarray], Values]:
        if right:
            raise SpecError("LiteRT takes no values in the place of its own")
        outputs = self.call(given)
        if self.outputs_only:
            return {}, outputs
        self._run(self._kept, given)
        return {name: self._kept.get_tensor(int(name)) for name in self.seen()}, outputs

    def run_call(self, call: Boundary, x: np.ndarray) -> np.ndarray:  # noqa: ARG002
        raise SpecError("LiteRT runs no layer by itself")

    def call(self, given: Sequence[np.ndarray]) -> Values:
        self._run(self.interpreter, given)
        found = [_dequantised(self.interpreter.get_tensor(d["index"]), d) for d in self._outputs]
        return list(zip(paths([d["name"] for d in self._outputs]), found, strict=True))

    def _run(self, interpreter: Any, given: Sequence[np.ndarray]) -> None:
        slots = self._slots(self._input_names())
        details = {detail["name"]: detail for detail in interpreter.get_input_details()}
        for slot, array in zip(slots, given, strict=True):
            if tuple(details[slot.name]["shape"]) != array.shape:
                interpreter.resize_tensor_input(details[slot.name]["index"], array.shape)
        interpreter.allocate_tensors()
        for slot, array in zip(slots, given, strict=True):
            interpreter.set_tensor(details[slot.name]["index"], array)
        interpreter.invoke()


def layers_of(interpreter: Any) -> Layers:
    """The layers; values have the numbers of tensors. Layers fused into one have its last one's name."""
    if not hasattr(interpreter, "_get_ops_details"):  # no public function lists the operations
        return NONE
    tensors = {int(d["index"]): d for d in interpreter.get_tensor_details()}
    moving = {int(detail["index"]) for detail in interpreter.get_input_details()}
    nodes, steps_in, weights = [], [], []
    for operation in interpreter._get_ops_details():
        taken = [int(number) for number in operation["inputs"] if int(number) in tensors]
        if operation["op_name"] == "DELEGATE" or not moving & {*taken}:
            continue
        moving |= {int(number) for number in operation["outputs"]}
        nodes.append(operation)
        steps_in.append([number for number in taken if number in moving and _is_float(tensors[number])])
        weights.append(_constants(interpreter, [tensors[number] for number in taken if number not in moving]))
    named = [
        _name(tensors[int(node["outputs"][0])]["name"], own) for node, own in zip(nodes, weights, strict=True)
    ]
    known = _places(named, weights)
    places = [known.get(name.split(";")[0], Place("", "")) for name in named]
    scopes = [place.scope for place in places]
    steps = [
        Step(
            place.scope,
            tuple(map(str, dict.fromkeys(inputs))),
            tuple(str(int(n)) for n in node["outputs"] if _is_float(tensors[int(n)])),
            place.call,
        )
        for place, inputs, node in zip(places, steps_in, nodes, strict=True)
    ]
    ends = {str(int(detail["index"])) for detail in interpreter.get_output_details()}
    calls = boundaries(steps, ends)
    owned, _ = owners(scopes, weights, calls)
    fused = {
        known[part].scope: scope
        for name, scope in zip(named, scopes, strict=True)
        for part in name.split(";")[1:]
        if part in known and known[part].scope != scope
    }
    return Layers(calls, nodes, (), owned, fused)


def _places(named: Sequence[str], weights: Sequence[Arrays]) -> dict[str, Place]:
    """The place of every operation that a name lists; those fused into another one own no weights."""
    parts: dict[str, set[str]] = {}
    for name, own in zip(named, weights, strict=True):
        for number, part in enumerate(name.split(";")):
            if "/" in part:
                parts.setdefault(part, set()).update(own if not number else ())
    return dict(zip(parts, of_tensorflow([*parts], {*parts}, [*parts.values()]), strict=True))


def _is_float(detail: Mapping[str, Any]) -> bool:
    return np.dtype(detail["dtype"]).kind == "f"


def _name(output: str, weights: Arrays) -> str:
    """The names of an operation: those of its output, else of its first weight."""
    return output if "/" in output or not weights else next(iter(weights))


def _constants(interpreter: Any, details: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    return {
        detail["name"]: interpreter.get_tensor(detail["index"])
        for detail in details
        if _is_float(detail) and len(detail["shape"])
    }


def _interpreter(content: bytes, **options: Any) -> Any:
    if importlib.util.find_spec("ai_edge_litert"):
        from ai_edge_litert.interpreter import Interpreter
    else:
        import tensorflow as tf

        Interpreter = tf.lite.Interpreter
    return Interpreter(model_content=content, num_threads=1, **options)


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
