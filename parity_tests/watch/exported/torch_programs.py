"""TorchScript and `torch.export` programs, as objects and as files."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from parity_tests.watch.exported.base import Exported, Slot, Values, file_of, lowest
from parity_tests.watch.exported.layered import Arrays, Layered
from parity_tests.watch.exported.scopes import Boundary
from parity_tests.watch.exported.torch_layers import Run, layers_of, run_nodes
from parity_tests.watch.structure import arrays
from weights_convert.errors import SpecError

_QUANTISED = ("quantize", "quantized")


class TorchScript(Exported):
    """A scripted or traced module."""

    framework = "torchscript"

    def __init__(self, source: Path | Any) -> None:
        super().__init__(source.name if isinstance(source, Path) else "the TorchScript module")
        self.module = _loaded(source) if isinstance(source, Path) else source
        state = [*self.module.state_dict().values()] if hasattr(self.module, "state_dict") else []
        self.precision = _precision(state, _has_quantised(self.module))

    def call(self, given: Sequence[np.ndarray]) -> Values:
        names = self._input_names()
        return _called(self.module, given, names, self.precision)


class Program(Layered):
    """A program of `torch.export`. Its layers are those of `torch_layers`."""

    framework = "torch.export"

    def __init__(self, source: Path | Any) -> None:
        super().__init__(source.name if isinstance(source, Path) else "the exported program")
        self.program = _load_program(source) if isinstance(source, Path) else source
        targets = [str(node.target) for node in self.program.graph.nodes if node.op == "call_function"]
        quantised = any(word in target for target in targets for word in _QUANTISED)
        self.precision = _precision(self.program.state_dict.values(), quantised)
        self.inputs = _declared(self.program)
        self.module = self.program.module()
        self._places = [node.name for node in self.module.graph.nodes if node.op == "placeholder"]
        self.see(layers_of(self.module))

    def between(self, given: Sequence[np.ndarray], right: Arrays) -> tuple[dict[str, np.ndarray], Values]:
        slots = self._slots(self._input_names())
        arrays_ = {slot.name: array for slot, array in zip(slots, given, strict=True)}
        ordered = [slot.name for slot in self.inputs if slot.name in arrays_]  # as it was exported
        tensors = _tensors([arrays_[name] for name in ordered], self.precision)
        run = Run(self.module, self.seen(), {name: torch.tensor(array) for name, array in right.items()})
        with torch.no_grad():
            returned = self.module.graph.process_outputs(run.run(*tensors, enable_io_processing=False))
        values = {name: _array(tensor) for name, tensor in run.kept.items()}
        values |= dict(zip(self._places, (arrays_[name] for name in ordered), strict=True))
        return values, arrays(returned, torch.is_tensor, _array)[0]

    def run_call(self, call: Boundary, x: np.ndarray) -> np.ndarray:
        nodes = [*self.layers.static, *(self.layers.nodes[place] for place in call.steps)]
        with torch.no_grad():
            return _array(run_nodes(self.module, nodes, {call.inputs[0]: torch.tensor(x)}))


def _loaded(path: Path) -> Any:
    file_of(path, (".pt", ".ts"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "torch.jit.load is deprecated"
        try:
            return torch.jit.load(str(path), map_location="cpu").eval()
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:120]
            raise SpecError(
                f"{path}: no TorchScript program ({reason}); a file of weights is no model: load it into one"
            ) from error


def _load_program(path: Path) -> Any:
    return torch.export.load(str(file_of(path, (".pt2",))))


def _declared(program: Any) -> list[Slot]:
    """The inputs of the user, without parameters and buffers."""
    by_name = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    found = []
    for name in program.graph_signature.user_inputs:
        value = by_name.get(name)
        if isinstance(value, torch.Tensor):
            shape = tuple(size if isinstance(size, int) else None for size in value.shape)
            found.append(Slot(str(name), _numpy_dtype(value.dtype), shape))
    return found


def _numpy_dtype(dtype: torch.dtype) -> np.dtype | None:
    """The dtype of NumPy; float32 for bfloat16, which `_called` casts."""
    return np.dtype(np.float32) if dtype == torch.bfloat16 else torch.empty(0, dtype=dtype).numpy().dtype


def _precision(state: Iterable[Any], quantised: bool) -> str:
    kinds = [str(tensor.dtype).removeprefix("torch.") for tensor in state if torch.is_tensor(tensor)]
    return lowest([*kinds, "int8"] if quantised else kinds)


def _has_quantised(module: Any) -> bool:
    kinds = (getattr(m, "original_name", "") for m in module.modules()) if hasattr(module, "modules") else ()
    return any("Quantize" in kind or "PackedParams" in kind for kind in kinds)


def _called(module: Any, given: Sequence[np.ndarray], names: Sequence[str], precision: str) -> Values:
    pairs = list(zip(names, _tensors(given, precision), strict=True))
    with torch.no_grad():
        returned = module(*(t for name, t in pairs if not name), **{name: t for name, t in pairs if name})
    return arrays(returned, torch.is_tensor, _array)[0]


def _tensors(given: Sequence[np.ndarray], precision: str) -> list[torch.Tensor]:
    low = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)
    tensors = [torch.tensor(array) for array in given]
    return [t.to(low) if low and t.is_floating_point() else t for t in tensors]


def _array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.dequantize() if tensor.is_quantized else tensor.detach()
    return (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy().copy()
