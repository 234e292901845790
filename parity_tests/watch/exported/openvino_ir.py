"""OpenVINO's intermediate representation (`.xml` beside `.bin`): outputs only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parity_tests.watch.exported.base import Exported, Slot, Values, lowest, paths
from weights_convert.errors import SpecError

_KINDS = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "i8": "int8",
    "u8": "int8",
}


class OpenVino(Exported):
    """A model of OpenVINO, compiled for the CPU in float32."""

    framework = "openvino"

    def __init__(self, source: Path | Any) -> None:
        import openvino  # not at the top: the doctests import every module, and no test needs this package

        super().__init__(source.name if isinstance(source, Path) else "the OpenVINO model")
        core = openvino.Core()
        if isinstance(source, Path) and not source.with_suffix(".bin").is_file():
            raise SpecError(
                f"{source}: no {source.with_suffix('.bin').name} beside it, which has the weights"
            )
        self.model = core.read_model(str(source)) if isinstance(source, Path) else source
        self.precision = _precision(self.model)
        self.inputs = [_slot(port) for port in self.model.inputs]
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        self.compiled = core.compile_model(self.model, "CPU", settings)

    def call(self, given: Sequence[np.ndarray]) -> Values:
        names = [self.beside.name, *(name for name, _ in self.beside.others)]
        places = {slot.name: i for i, slot in enumerate(self.inputs)}
        feed = {places[slot.name]: array for slot, array in zip(self._slots(names), given, strict=True)}
        returned = self.compiled(feed)
        ports = self.compiled.outputs
        found = [np.array(returned[port]) for port in ports]
        return list(zip(paths([_name(port, i) for i, port in enumerate(ports)]), found, strict=True))


def _slot(port: Any) -> Slot:
    shape = port.partial_shape
    sizes = None
    if shape.rank.is_static:
        sizes = tuple(size.get_length() if size.is_static else None for size in shape)
    return Slot(_name(port, port.index), np.dtype(port.element_type.to_dtype()), sizes)


def _name(port: Any, place: int) -> str:
    return min(port.names, default=str(place))


def _precision(model: Any) -> str:
    kinds = []
    for node in model.get_ops():
        if node.get_type_name() == "FakeQuantize":
            kinds.append("int8")
        if node.get_type_name() == "Constant" and node.output(0).shape:
            kinds.append(_KINDS.get(node.output(0).element_type.get_type_name(), ""))
    return lowest(kinds)
