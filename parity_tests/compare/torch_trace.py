"""Watching a PyTorch module: forward hooks on a copy of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from parity_tests.compare.trace import Call, Trace, numbered

_CONTAINERS = (torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.Identity)


class TorchTracer:
    """Watches a copy of a module, in `dtype`; the module itself stays as it is."""

    framework = "torch"

    def __init__(self, module: torch.nn.Module, dtype: str):
        self.dtype = dtype
        self.module = copy.deepcopy(module).to(getattr(torch, dtype))
        self._layers = {
            name: layer
            for name, layer in self.module.named_modules()
            if name and not isinstance(layer, _CONTAINERS)
        }

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.asarray(array, self.dtype, order="C"))

    def trace(self, images: np.ndarray, *, train: bool = False) -> Trace:
        calls: Trace = {}
        seen: dict[str, int] = {}

        def recorder(name: str) -> Any:
            def record(_: torch.nn.Module, inputs: tuple, output: Any) -> None:
                if inputs and isinstance(inputs[0], torch.Tensor) and isinstance(output, torch.Tensor):
                    # copies: a layer that works in place changes what was recorded
                    calls[numbered(name, seen)] = Call(before.pop(name), output.detach().numpy().copy())

            return record

        before: dict[str, np.ndarray] = {}

        def noter(name: str) -> Any:
            def note(_: torch.nn.Module, inputs: tuple) -> None:
                if inputs and isinstance(inputs[0], torch.Tensor):
                    before[name] = inputs[0].detach().numpy().copy()

            return note

        hooks = []
        for name, layer in self._layers.items():
            hooks += [
                layer.register_forward_pre_hook(noter(name)),
                layer.register_forward_hook(recorder(name)),
            ]
        try:
            self._run(self.module, images, train)
        finally:
            for hook in hooks:
                hook.remove()
        return calls

    def alone(self, inputs: Mapping[str, np.ndarray], *, train: bool = False) -> dict[str, np.ndarray]:
        layers = {name: self._layers[name.partition("#")[0]] for name in inputs}
        return {name: self._run(layer, inputs[name], train) for name, layer in layers.items()}

    def _run(self, module: torch.nn.Module, x: np.ndarray, train: bool) -> np.ndarray:
        self.module.train(train)
        with torch.no_grad():
            return module(self._tensor(x)).numpy()

    def statistics(self) -> Mapping[str, np.ndarray]:
        return {n: b.numpy().copy() for n, b in self.module.named_buffers() if "running_" in n}
