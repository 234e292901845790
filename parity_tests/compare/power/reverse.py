"""Reverse mode for `measure`: the effect of many items on one compared output, from a few backward passes.

For random v the derivative of <v, y> in the direction of a change is a normal variable; its standard
deviation is the 2-norm of the change's effect on y. A probe of zeros added to the output of each layer
receives the derivative there, which carries any change of the layer's output to y.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from parity_tests.compare.power.elements import channel_axis
from parity_tests.compare.power.scopes import Call, Item, Scope

_DRAWS = 4  # random v


class Reverse:
    """The derivatives of random combinations of a scope's outputs, in limits.

    Args:
        scope: the compared module.
        owners: layers inside it by name, whose outputs are probed.
        calls: the arguments of their calls in the comparison.
        items: tensors inside it, whose gradients are computed.
        generator: of the random combinations.
    """

    def __init__(
        self,
        scope: Scope,
        owners: Mapping[str, nn.Module],
        calls: Mapping[str, list[Call]],
        items: Iterable[Item],
        generator: torch.Generator,
    ):
        self._layers = {name: _Layer(owner, calls[name]) for name, owner in owners.items()}
        learned = [item for item in items if item.tensor is not None and item.tensor.requires_grad]
        tensors = [item.tensor for item in learned if item.tensor is not None]
        probes: dict[str, list[Tensor]] = {name: [] for name in owners}
        hooks = [owner.register_forward_hook(_probe(probes[name])) for name, owner in owners.items()]
        try:
            with torch.enable_grad():
                outputs = scope.observe()
        finally:
            for hook in hooks:
                hook.remove()
        flat = [probe for found in probes.values() for probe in found]
        squares = [torch.zeros_like(tensor, requires_grad=False) for tensor in tensors]
        draws: list[list[Tensor]] = [[] for _ in flat]
        self._along: dict[Item, list[list[Tensor]]] = {
            item: [[] for _ in item.directions] for item in learned
        }
        for last in [False] * (_DRAWS - 1) + [True]:
            gradients = _gradients(outputs, scope, [*flat, *tensors], generator, keep=not last)
            for draw, gradient in zip(draws, gradients[: len(flat)], strict=True):
                draw.append(gradient.float())
            for square, gradient in zip(squares, gradients[len(flat) :], strict=True):
                square += gradient**2 / _DRAWS
            for item, gradient in zip(learned, gradients[len(flat) :], strict=True):
                for found, direction in zip(self._along[item], item.directions, strict=True):
                    found.append((gradient * direction).sum())
        stacked = iter([torch.stack(draw) for draw in draws])
        self._cotangents = {name: [next(stacked) for _ in found] for name, found in probes.items()}
        self._spread = {id(t): square.sqrt() for t, square in zip(tensors, squares, strict=True)}

    def reaches(self, owner: str) -> bool:
        """Whether every call of the layer was probed."""
        return 0 < len(self._cotangents[owner]) == len(self._layers[owner].base)

    def norms(self, owner: str, item: Item, step: float) -> list[float]:
        """For each direction the 2-norm of the effect on the outputs, for a relative change of 1."""
        if item in self._along:  # includes every use of the tensor
            return [float(_spread(torch.stack(found))) for found in self._along[item]]
        return [self._carried(owner, item, direction, step) for direction in item.directions]

    def _carried(self, owner: str, item: Item, direction: Any, step: float) -> float:
        with item.moved(direction, step):
            changes = self._layers[owner].differences()
        pairs = zip(self._cotangents[owner], changes, strict=True)
        totals = sum((cotangent * change).flatten(1).sum(1) for cotangent, change in pairs)
        return float(_spread(torch.as_tensor(totals))) / step

    def element_norms(self, owner: str, item: Item) -> Tensor | None:
        """The same for each vanishing element; None if unknown."""
        assert item.tensor is not None
        if (spread := self._spread.get(id(item.tensor))) is not None:
            return spread * item.tensor.detach().abs()
        layer, leaf = self._layers[owner], item.name.rpartition(".")[2]
        if not self.reaches(owner) or len({y.dim() for y in layer.base}) != 1:
            return None
        if (axis := channel_axis(layer.owner, leaf, item.tensor, layer.base[0])) is None:
            return None
        axis %= layer.base[0].dim()
        with item.moved(item.tensor.detach().clone(), -1.0):
            changes = self._layers[owner].differences()
        pairs = zip(self._cotangents[owner], changes, strict=True)
        products = [
            (cotangent * change).movedim(axis + 1, 0).flatten(2).sum(2) for cotangent, change in pairs
        ]
        return _spread(torch.stack(products).sum(0).T)


class _Layer(Scope):
    """A single layer as a scope, compared or not."""

    def __init__(self, owner: nn.Module, calls: list[Call]):
        super().__init__(owner, calls, [("", 1.0)] * len(calls), {}, owner)
        self.owner = owner
        self.remember()

    def differences(self) -> list[Tensor]:
        """The signed difference from `base`."""
        with torch.no_grad():
            return [now - before for now, before in zip(self.observe(), self.base, strict=True)]


def _probe(probes: list[Tensor]) -> Callable[..., Any]:
    """A forward hook that adds zeros to a layer's output; their gradient is the derivative there."""

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return None
        probes.append(torch.zeros_like(output, requires_grad=True))
        return output + probes[-1]

    return hook


def _gradients(
    outputs: Sequence[Tensor],
    scope: Scope,
    wanted: Sequence[Tensor],
    generator: torch.Generator,
    *,
    keep: bool,
) -> Sequence[Tensor]:
    """The gradients of one random combination of the outputs, each in units of its bound."""
    bounds = [bound for _, bound in scope.points]
    total = sum(
        (torch.randn(y.shape, generator=generator, dtype=y.dtype) * y).sum() / bound
        for y, bound in zip(outputs, bounds, strict=True)
        if y.requires_grad and 0 < bound < torch.inf
    )
    if not isinstance(total, Tensor):
        return [torch.zeros_like(tensor) for tensor in wanted]
    return torch.autograd.grad(total, wanted, retain_graph=keep, allow_unused=True, materialize_grads=True)


def _spread(values: Tensor) -> Tensor:
    """The root mean square over the first axis."""
    return values.to(torch.float64).square().mean(0).sqrt()
