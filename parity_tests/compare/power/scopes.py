"""Tensors and settings of a torch module that can be changed, and the compared modules that notice it.

An `Item` is a tensor or a setting that is changed for a while and then restored. A `Scope` is a compared
module with its inputs in the comparison: `Scope.times_limit` runs it again and returns the change of its
output, in multiples of the limit there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

# Attribute of a module -> kind of setting. Attributes that change the shape of the output are not settings.
SETTINGS = {
    **dict.fromkeys(("eps", "epsilon"), "epsilon"),
    "momentum": "momentum",  # in train mode only
    **dict.fromkeys(("negative_slope", "alpha", "slope"), "slope"),
    **dict.fromkeys(
        ("lambd", "threshold", "value", "beta", "min_val", "max_val", "lower", "upper"), "constant"
    ),
    **dict.fromkeys(("temperature", "scale", "gain"), "constant"),
}
Call = tuple[tuple[Any, ...], dict[str, Any]]
Found = tuple[float, str]  # the smallest noticed change, and the point
NOWHERE: Found = (math.inf, "")


@dataclass(eq=False)
class Item:
    """A tensor or a setting that can be changed.

    Attributes:
        name, kind: see `Sensitivity`.
        owners: the modules that use it, by name.
        tensor: None for a setting.
        place: module and attribute of a setting.
        seed: of the tensor's random direction.
        noticed: the smallest noticed change in each direction, once measured.
    """

    name: str
    kind: str
    owners: list[str]
    tensor: Tensor | None = None
    place: tuple[nn.Module, str] | None = None
    seed: int = 0
    noticed: list[float] = field(default_factory=list)

    @property
    def directions(self) -> list[Any]:
        """The summands for a relative change of 1; created on demand, since a network has many.

        They are the tensor itself and a random tensor of the same norm; for zeros only a random tensor with
        elements about 1.
        """
        if self.tensor is not None:
            whole = self.tensor.detach().to(torch.float64)
            return [whole, self.random()] if whole.any() else [self.random()]
        assert self.place is not None
        module, attribute = self.place
        return [abs(getattr(module, attribute)) or 1.0]

    def random(self, draw: int = 0) -> Tensor:
        """A random direction of a tensor."""
        assert self.tensor is not None
        generator = torch.Generator().manual_seed((self.seed << 8) + draw)
        random = torch.empty(self.tensor.shape, dtype=torch.float64).uniform_(-1, 1, generator=generator)
        size = float(self.tensor.detach().to(torch.float64).norm()) or self.tensor.numel() ** 0.5
        return random * (size / float(random.norm()))

    @contextmanager
    def moved(self, direction: Any, step: float) -> Iterator[None]:
        """Add `step` times a direction to the item, and restore it at the end."""
        if self.tensor is not None:
            before = self.tensor.detach().clone()
            self.tensor.data.add_(direction, alpha=step)
            try:
                yield
            finally:
                self.tensor.data.copy_(before)
        elif self.place is not None:
            module, attribute = self.place
            value = getattr(module, attribute)
            setattr(module, attribute, value + direction * step)
            try:
                yield
            finally:
                setattr(module, attribute, value)


def tensors(module: nn.Module, seed: int) -> Iterator[Item]:
    """Every floating-point parameter and buffer, once each, with all modules that hold it."""
    known: dict[int, Item] = {}
    for owner, inner in module.named_modules():
        for held, kind in ((inner._parameters, "weight"), (inner._buffers, "buffer")):
            for leaf, tensor in held.items():
                if tensor is None or not tensor.is_floating_point() or not tensor.numel():
                    continue
                if (item := known.get(id(tensor))) is None:
                    kind = "statistic" if leaf.startswith("running_") else kind
                    name = f"{owner}.{leaf}" if owner else leaf
                    number = seed + len(known)
                    item = known[id(tensor)] = Item(name, kind, [], tensor=tensor, seed=number)
                item.owners.append(owner)
    yield from known.values()


def settings(module: nn.Module) -> Iterator[Item]:
    """The `SETTINGS` of a module and its submodules that are finite numbers."""
    for owner, inner in module.named_modules():
        for attribute, kind in SETTINGS.items():
            value = vars(inner).get(attribute)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                continue
            if kind == "momentum" and not (
                inner.training and getattr(inner, "running_mean", None) is not None
            ):
                continue
            name = f"{owner}.{attribute}" if owner else attribute
            yield Item(name, kind, [owner], place=(inner, attribute))


class Scope:
    """A compared module (or function) with its inputs in the comparison.

    Args:
        run: the module.
        calls: the arguments of each of its calls.
        limits: point and relative limit of each call; None for a call that is not compared.
        statistics: point -> running statistic and its limit, compared after a training step.
        state: the module whose buffers a run may change.
    """

    def __init__(
        self,
        run: Callable[..., Any],
        calls: list[Call],
        limits: list[tuple[str, float] | None],
        statistics: Mapping[str, tuple[Tensor, float]],
        state: nn.Module,
    ):
        self._run, self._calls, self._state = run, calls, state
        self._in_place = False  # whether a run changes its arguments
        self._limits, self._statistics = limits, statistics

    @cached_property
    def points(self) -> list[tuple[str, float]]:
        """Name and absolute bound of everything `observe` returns."""
        named = [limit for limit in self._limits if limit]
        named += [(name, limit) for name, (_, limit) in self._statistics.items()]
        scales = [_largest(torch.where(y.isfinite(), y, 0.0)) for y in self.base]
        return [(name, limit * scale) for (name, limit), scale in zip(named, scales, strict=True)]

    def remember(self) -> None:
        """Record the original outputs, if not recorded yet; call it before changing an item."""
        _ = self.points

    @cached_property
    def base(self) -> list[Tensor]:
        with torch.no_grad():
            return self.observe()

    def observe(self) -> list[Tensor]:
        """The compared outputs of every call in one list, then the statistics."""
        with keeping_buffers(self._state):
            outputs = [self.call(*call) for call in self._calls]
            flat = [y for y, limit in zip(outputs, self._limits, strict=True) if limit]
            return flat + [value.clone() for value, _ in self._statistics.values()]

    def call(self, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
        """One call's output, several tensors as one vector; the inputs are not changed."""
        first = "base" not in self.__dict__
        given = copied((inputs, keywords)) if first or self._in_place else (inputs, keywords)
        versions = [x._version for x in tree_leaves(given) if isinstance(x, Tensor)]
        with same_random_numbers():
            output = self._run(*given[0], **given[1])
        self._in_place |= versions != [x._version for x in tree_leaves(given) if isinstance(x, Tensor)]
        floating = [y for y in tree_leaves(output) if isinstance(y, Tensor) and y.is_floating_point()]
        return floating[0] if len(floating) == 1 else torch.cat([y.flatten() for y in floating])

    def changes(self) -> list[Tensor]:
        """The absolute differences from `base`."""
        with torch.no_grad():
            return [_difference(now, before) for now, before in zip(self.observe(), self.base, strict=True)]

    def times_limit(self) -> tuple[float, str]:
        """The largest change in multiples of its limit, and the point."""
        points, base = self.points, self.base
        with torch.no_grad():
            found = zip(self.observe(), base, points, strict=True)
            return max((in_limits(largest_change(y, b), bound), name) for y, b, (name, bound) in found)


def in_limits(change: float, bound: float) -> float:
    """A change as a multiple of its bound; infinite for a bound of 0, from an output of zeros."""
    if not math.isfinite(change):
        return math.inf
    if not change or math.isinf(bound):
        return 0.0
    return change / bound if bound > 0 else math.inf


def _difference(now: Tensor, before: Tensor) -> Tensor:
    """|now - before|; NaN where only one is NaN or infinite, 0 where both are NaN or the same infinity."""
    same = (now == before) | (now.isnan() & before.isnan())
    return torch.where(same, 0.0, (now - before).abs())


def largest_change(now: Tensor, before: Tensor) -> float:
    """The largest |now - before|; see `_difference` for NaN and infinity."""
    largest = _largest(now - before)
    return largest if math.isfinite(largest) else _largest(_difference(now, before))


def _largest(tensor: Tensor) -> float:
    """The largest magnitude; NaN if the tensor holds one."""
    return float(torch.linalg.vector_norm(tensor, math.inf)) if tensor.numel() else 0.0


def copied(tree: Any) -> Any:
    """A copy of arguments, safe for layers that work in place."""
    return tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, tree)


@contextmanager
def keeping_buffers(module: nn.Module) -> Iterator[None]:
    """Restore at the end the running statistics that training changes."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()] if module.training else []
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.data.copy_(value)


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Use the same random numbers in every run; restore the generator at the end."""
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(0)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


def recorded(module: nn.Module, names: set[str], images: Tensor) -> dict[str, list[Call]]:
    """The arguments of every call of these submodules while the module runs on the images."""
    calls: dict[str, list[Call]] = {name: [] for name in names}

    def hook(name: str) -> Callable[..., None]:
        return lambda _, inputs, keywords: calls[name].append((copied(inputs), copied(keywords)))

    hooks = [
        inner.register_forward_pre_hook(hook(name), with_kwargs=True, prepend=True)
        for name, inner in module.named_modules()
        if name in names
    ]
    try:
        with torch.no_grad(), same_random_numbers(), keeping_buffers(module):
            module(images.clone())
    finally:
        for handle in hooks:
            handle.remove()
    return calls
