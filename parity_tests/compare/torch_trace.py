"""Watching a PyTorch module: forward hooks on a copy of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from parity_tests.compare.trace import OUTPUT, Call, Trace, numbered

_CONTAINERS = (torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.Identity)
_DROPOUTS = (torch.nn.modules.dropout._DropoutNd,)


class TorchTracer:
    """Watches a copy of a module, in `dtype`; the module itself stays as it is. Dropout is off."""

    framework = "torch"

    def __init__(self, module: torch.nn.Module, dtype: str):
        self.dtype = dtype
        self.module = copy.deepcopy(module).to(getattr(torch, dtype))
        # batch norms that were frozen by hand stay frozen in training
        self._frozen = [m for m in self.module.modules() if self.module.training and not m.training]
        self._layers = {
            name: layer
            for name, layer in self.module.named_modules()
            if name and not isinstance(layer, _CONTAINERS)
        }
        self._several: set[str] = set()  # layers that take more than one tensor, so not alone

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.asarray(array, self.dtype, order="C"))

    def trace(self, images: np.ndarray, *, train: bool = False) -> Trace:
        calls: Trace = {}
        seen: dict[str, int] = {}
        before: dict[str, np.ndarray] = {}

        def note(name: str, inputs: tuple, keywords: dict[str, Any]) -> None:
            tensors = [x for x in (*inputs, *keywords.values()) if isinstance(x, torch.Tensor)]
            if len(inputs) != 1 or len(tensors) != 1:
                self._several.add(name)
            if tensors:  # copies: a layer that works in place changes what was recorded
                before[name] = tensors[0].detach().numpy().copy()

        def record(name: str, output: Any) -> None:
            if name in before and isinstance(output, torch.Tensor):
                calls[numbered(name, seen)] = Call(before.pop(name), output.detach().numpy().copy())

        hooks = []
        for name, layer in self._layers.items():
            hooks += [
                layer.register_forward_pre_hook(
                    lambda _, inputs, keywords, name=name: note(name, inputs, keywords), with_kwargs=True
                ),
                layer.register_forward_hook(lambda _, __, output, name=name: record(name, output)),
            ]
        try:
            output = self._run(self.module, images, train)
        finally:
            for hook in hooks:
                hook.remove()
        if isinstance(output, torch.Tensor):
            calls[OUTPUT] = Call(np.asarray(images, self.dtype), output.numpy().copy())
        return calls

    def alone(self, inputs: Mapping[str, np.ndarray], *, train: bool = False) -> dict[str, np.ndarray]:
        outputs = {}
        for name, x in inputs.items():
            layer = self._layers.get(base := name.partition("#")[0])
            if layer is not None and base not in self._several:
                output = self._run(layer, x, train)
                if isinstance(output, torch.Tensor):
                    outputs[name] = output.numpy()
        return outputs

    def _run(self, module: torch.nn.Module, x: np.ndarray, train: bool) -> Any:
        self.module.train(train)
        for layer in (*self._frozen, *(m for m in self.module.modules() if isinstance(m, _DROPOUTS))):
            layer.training = False
        with torch.no_grad():
            return module(self._tensor(x))

    def statistics(self) -> Mapping[str, np.ndarray]:
        return {n: b.numpy().copy() for n, b in self.module.named_buffers() if "running_" in n}

    def weighted(self) -> set[str]:
        return {name for name, layer in self._layers.items() if list(layer.parameters(recurse=False))}

    def restore(self) -> None:
        """It is a copy that has been moved."""
