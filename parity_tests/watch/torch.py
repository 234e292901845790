"""Tracing a PyTorch module: forward hooks on a copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from parity_tests.watch.inputs import Beside
from parity_tests.watch.rounding import check_rounding
from parity_tests.watch.structure import arrays, replaced, tensors
from parity_tests.watch.torch_plain import copied, notes_of
from parity_tests.watch.trace import (
    Call,
    Fingerprint,
    Trace,
    Weights,
    base_name,
    fingerprint,
    is_index,
    joined,
    nearest,
    numbered,
    reason_of,
    settings_of,
    stirred,
)

_CONTAINERS = (torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.Identity)
_DROPOUTS = (torch.nn.modules.dropout._DropoutNd,)
_WIDE = (torch.float32, torch.float64)
_COMPLEX = {"float32": torch.complex64, "float64": torch.complex128}


class TorchTracer:
    """Traces a copy of a module in `dtype`; the module itself is not changed. Dropout is off in training.

    `as_it_is`: keep half precision, and compare a copy in another dtype with the module's own outputs.
    """

    framework = "torch"
    same_axes = True

    def __init__(self, module: torch.nn.Module, dtype: str, *, as_it_is: bool = False):
        self.dtype, self.beside = dtype, Beside()
        self.module = copied(module)
        self.notes = notes_of(module)
        floats = {tensor.dtype for _, tensor in self._state() if tensor.is_floating_point()}
        # a module that keeps half precision takes half precision as input
        half = as_it_is and floats and not floats & {*_WIDE}
        self._input = next(iter(floats)) if half else getattr(torch, dtype)
        self._own: torch.nn.Module | None = None  # a copy in the module's own dtype, until compared
        if as_it_is and torch.float32 in floats and dtype == "float64":
            self._own = copy.deepcopy(self.module)
        self.module._apply(lambda tensor: _converted(tensor, dtype, as_it_is))
        # manually frozen batch norms stay frozen in training
        self._frozen = [m for m in self.module.modules() if self.module.training and not m.training]
        self._layers = {
            name: layer
            for name, layer in self.module.named_modules()
            if name
            and not (isinstance(layer, _CONTAINERS) and not _own(layer))
            and "parametrizations" not in name.split(".")  # what weights are made of, not a layer
        }
        self._several: set[str] = set()  # layers with more than one input tensor, which cannot run alone
        self._used_by: dict[str, str] | None = None  # see `_find_users`; None before a run
        self._before = {name: tensor.detach().clone() for name, tensor in self._state()}

    def _state(self) -> list[tuple[str, torch.Tensor]]:
        return [*self.module.named_parameters(), *self.module.named_buffers()]

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        """A copy, because a model may work in place. Indices stay integers."""
        if is_index(array):
            return torch.tensor(array)
        return torch.tensor(np.asarray(array, self.dtype)).to(self._input)

    def trace(self, images: np.ndarray, *, train: bool = False) -> Trace:
        return self._trace(images, train, {}, Trace())

    def run_corrected(
        self, images: np.ndarray, outputs: Mapping[str, Sequence[np.ndarray]], *, train: bool = False
    ) -> Trace:
        calls = Trace()
        with suppress(Exception):  # a user's layer may raise anything
            self._trace(images, train, outputs, calls)
        return calls

    def _trace(
        self, images: np.ndarray, train: bool, outputs: Mapping[str, Sequence[np.ndarray]], calls: Trace
    ) -> Trace:
        seen: dict[str, int] = {}
        before: dict[str, list[list[np.ndarray]]] = {}

        def note(name: str, inputs: tuple, keywords: dict[str, Any]) -> None:
            given = tensors((inputs, keywords), torch.is_tensor)
            if len(inputs) != 1 or len(given) != 1:
                self._several.add(name)
            # copies, because a layer may work in place
            before.setdefault(name, []).append([_array(tensor) for tensor in given] or [np.empty(0)])

        def record(name: str, output: Any) -> Any:
            (entered, *others), number = before[name].pop(), numbered(name, seen)
            corrected = {}
            for path, array in arrays(output, torch.is_tensor, _array)[0]:
                calls[joined(number, path)] = Call(entered, array, name, tuple(others))
                if wanted := outputs.get(joined(number, path)):
                    corrected[path] = torch.tensor(nearest(array, wanted)).to(self._input)
            return replaced(output, corrected) if corrected else None

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
        given = images if is_index(images) else np.array(images, self.dtype)
        calls.finish(given, *arrays(output, torch.is_tensor, _array))
        self._check_once(images, seen)
        return calls

    def _check_once(self, images: np.ndarray, called: Mapping[str, int]) -> None:
        """After the first run: find shared weights and compare the copy with the module."""
        if self._used_by is None:
            self._used_by = self._find_users(images, called)
        if self._own is not None:
            own, self._own = self._own, None
            check_rounding(
                "the torch module",
                lambda x: self._outputs(own, x, torch.float32),
                lambda x: self._outputs(self.module, x),
                images,
            )

    def _find_users(self, images: np.ndarray, called: Mapping[str, int]) -> dict[str, str]:
        """Layers that are not called -> the enclosing layer that uses their weights.

        For example `torch.nn.MultiheadAttention` uses its `out_proj`: the weights are in the output's graph.
        """
        around: dict[str, str] = {}
        for name, layer in self._layers.items():
            parent = name.rpartition(".")[0]
            if name not in called and _own(layer) and parent in called:
                around[name] = parent
        if not around:
            return {}
        reached: dict[str, set[int]] = {}
        hooks = [
            self._layers[parent].register_forward_hook(
                lambda _, __, output, parent=parent: reached.setdefault(parent, set()).update(_graph(output))
            )
            for parent in set(around.values())
        ]
        try:
            with torch.enable_grad():
                self._mode(False)
                self._call(self.module, images)
        except RuntimeError:  # works in place on tensors that a gradient needs
            return {}
        finally:
            for hook in hooks:
                hook.remove()
        return {
            name: parent
            for name, parent in around.items()
            if {id(parameter) for parameter in _own(self._layers[name])} <= reached.get(parent, set())
        }

    def run_alone(
        self, inputs: Mapping[str, np.ndarray], *, train: bool = False
    ) -> dict[str, np.ndarray | str]:
        return {name: self._run_layer(name, x, train) for name, x in inputs.items()}

    def _run_layer(self, name: str, x: np.ndarray, train: bool) -> np.ndarray | str:
        number, _, path = name.partition(" ")
        layer = self._layers.get(base := number.partition("#")[0])
        if layer is None or base in self._several:
            return "it has several inputs"
        try:
            output = self._run(layer, x, train)
        except Exception as error:  # a user's layer may raise anything
            return reason_of(error)
        return dict(arrays(output, torch.is_tensor, _array)[0]).get(path, "it returns no such tensor")

    def _mode(self, train: bool) -> None:
        self.module.train(train)
        for layer in self._frozen:
            layer.training = False
        for layer in self.module.modules():
            if train and isinstance(layer, _DROPOUTS):  # random masks differ between frameworks
                layer.training = False

    def _run(self, module: torch.nn.Module, x: np.ndarray, train: bool) -> Any:
        self._mode(train)
        with torch.no_grad():
            return self._call(module, x) if module is self.module else module(self._tensor(x))

    def _call(self, module: torch.nn.Module, x: np.ndarray, dtype: torch.dtype | None = None) -> Any:
        """Call a model with the input and the ones beside it."""

        def tensor(array: np.ndarray) -> torch.Tensor:
            found = self._tensor(array)
            return found.to(dtype) if dtype and found.is_floating_point() else found

        if self.beside.name:
            return module(**{name: tensor(a) for name, a in ((self.beside.name, x), *self.beside.others)})
        return module(tensor(x), *(tensor(array) for _, array in self.beside.others))

    def _outputs(
        self, module: torch.nn.Module, x: np.ndarray, dtype: torch.dtype | None = None
    ) -> dict[str, np.ndarray]:
        with torch.no_grad():
            return dict(arrays(self._call(module.eval(), x, dtype), torch.is_tensor, _array)[0])

    def statistics(self) -> Mapping[str, np.ndarray]:
        return {
            name: _array(tensor)
            for name, tensor in self._state()
            if tensor.is_floating_point() and ("running_" in name or not self._is_as_before(name, tensor))
        }

    def _is_as_before(self, name: str, tensor: torch.Tensor) -> bool:
        before = self._before.get(name)
        return before is not None and torch.equal(tensor, before)

    def unbiased(self) -> Mapping[str, np.ndarray]:
        return {}

    def weighted(self) -> Mapping[str, Weights]:
        layers = {"": self.module, **self._layers}
        found: dict[str, Weights] = {}
        for name, layer in layers.items():
            own = _own(layer)
            holder = (self._used_by or {}).get(name, name)
            before = found.get(holder, Weights(0, 0))
            if own:
                numbers = sum(parameter.numel() for parameter in own)
                found[holder] = Weights(before.tensors + len(own), before.parameters + numbers)
        return found

    def settings(self, name: str) -> Mapping[str, float]:
        return settings_of(self._layers.get(base_name(name)))

    def fingerprints(self) -> Mapping[str, Sequence[Fingerprint]]:
        found: dict[str, list[Fingerprint]] = {}
        for name, layer in self._layers.items():
            holder = (self._used_by or {}).get(name, name)
            for tensor in (*_own(layer), *layer.buffers(recurse=False)):
                if tensor.is_floating_point():
                    found.setdefault(holder, []).append(fingerprint(_array(tensor)))
        return found

    def randomness(self) -> bytes:
        return torch.get_rng_state().numpy().tobytes()

    def move_weights(self, step: float) -> None:
        """Change every weight by a relative step, up or down at random."""
        generator = torch.Generator().manual_seed(0)
        for _, tensor in self.module.named_parameters():
            if tensor.is_floating_point():
                signs = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
                tensor.data.mul_(1 + step * signs.to(tensor.dtype))

    def stir(self) -> None:
        with torch.no_grad():
            for _, tensor in self._state():
                if tensor.is_floating_point():
                    tensor.copy_(torch.tensor(stirred(_array(tensor))))

    def restore(self) -> None:
        with torch.no_grad():
            for name, tensor in self._state():
                before = self._before.get(name)
                if before is not None and before.shape == tensor.shape:
                    tensor.copy_(before)


def _own(layer: torch.nn.Module) -> list[torch.Tensor]:
    """A layer's own weights, the parametrised ones as it uses them."""
    made = getattr(layer, "parametrizations", {})
    return [*layer.parameters(recurse=False), *(getattr(layer, name) for name in made)]


def _array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.dtype == torch.bfloat16:  # NumPy lacks it
        tensor = tensor.to(torch.float32)
    return tensor.numpy().copy()


def _converted(tensor: torch.Tensor, dtype: str, as_it_is: bool) -> torch.Tensor:
    """A tensor in `dtype`; integers are kept, and half precision if `as_it_is`."""
    if tensor.is_complex():
        return tensor.to(_COMPLEX[dtype])
    if not tensor.is_floating_point() or (as_it_is and tensor.dtype not in _WIDE):
        return tensor
    return tensor.to(getattr(torch, dtype))


def _graph(output: Any) -> set[int]:
    """The ids of the parameters in the graph of an output."""
    found_in = tensors(output, torch.is_tensor)
    waiting = [tensor.grad_fn for tensor in found_in if tensor.grad_fn is not None]
    seen, found = set(waiting), set()
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return found
