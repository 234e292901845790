"""What can be moved in a torch module, and the compared modules that are run again to see what that does.

An `Item` is a tensor or a setting that can be moved and is put back. A `Scope` is a compared module with the
inputs it had in the comparison: `Scope.times_limit` runs it again and says how far its output is from before,
in multiples of the limit there.
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

# Attribute of a module -> the kind of setting. Attributes that change the shape of the output are none.
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
Found = tuple[float, str]  # the smallest change that is noticed, and the point
NOWHERE: Found = (math.inf, "")


@dataclass(eq=False)
class Item:
    """A tensor or a setting that can be moved.

    Attributes:
        name, kind: see `power.Sensitivity`.
        owners: the modules that use it, by name.
        tensor: None for a setting.
        place: module and attribute of a setting.
        seed: of the tensor's random direction.
        noticed: the smallest change in each direction, once it is measured.
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
        """What is added for a relative change of 1; made when asked for, since a network has many.

        The tensor itself, and a random one of the same norm; for zeros only a random one of elements about 1.
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
        """The item moved by `step` times a direction, and put back."""
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
    """Every floating-point parameter and buffer, each once, with all the modules that hold it."""
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
    """The numbers of `SETTINGS` in a module and below it, as they are now; one that is 0 moves absolutely."""
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
    """A compared module (or function) with the inputs that it had.

    Args:
        run: the module.
        calls: the arguments of each of its calls.
        limits: of each call its point and relative limit; None where it is not compared.
        statistics: point -> running statistic and its limit, compared after a step of training.
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
        self._in_place = False  # whether a run changes what it is given
        self._limits, self._statistics = limits, statistics

    @cached_property
    def points(self) -> list[tuple[str, float]]:
        """Name and absolute bound of everything `observe` returns."""
        named = [limit for limit in self._limits if limit]
        named += [(name, limit) for name, (_, limit) in self._statistics.items()]
        scales = [_largest(torch.where(y.isfinite(), y, 0.0)) for y in self.base]
        return [(name, limit * scale) for (name, limit), scale in zip(named, scales, strict=True)]

    def remember(self) -> None:
        """Run once, if it has not been, to compare with: before anything is moved."""
        _ = self.points

    @cached_property
    def base(self) -> list[Tensor]:
        with torch.no_grad():
            return self.observe()

    def observe(self) -> list[Tensor]:
        """The compared outputs of every call, flat, and the statistics after them."""
        with keeping_buffers(self._state):
            outputs = [self.call(*call) for call in self._calls]
            flat = [y for y, limit in zip(outputs, self._limits, strict=True) if limit]
            return flat + [value.clone() for value, _ in self._statistics.values()]

    def call(self, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
        """One call's output, several tensors as one vector; the inputs stay as they are."""
        first = "base" not in self.__dict__
        given = copied((inputs, keywords)) if first or self._in_place else (inputs, keywords)
        versions = [x._version for x in tree_leaves(given) if isinstance(x, Tensor)]
        with same_random_numbers():
            output = self._run(*given[0], **given[1])
        self._in_place |= versions != [x._version for x in tree_leaves(given) if isinstance(x, Tensor)]
        floating = [y for y in tree_leaves(output) if isinstance(y, Tensor) and y.is_floating_point()]
        return floating[0] if len(floating) == 1 else torch.cat([y.flatten() for y in floating])

    def changes(self) -> list[Tensor]:
        """What has changed since `base`."""
        with torch.no_grad():
            return [_difference(now, before) for now, before in zip(self.observe(), self.base, strict=True)]

    def times_limit(self) -> tuple[float, str]:
        """The largest change in multiples of its limit, and the point."""
        points, base = self.points, self.base
        with torch.no_grad():
            found = zip(self.observe(), base, points, strict=True)
            return max((in_limits(largest_change(y, b), bound), name) for y, b, (name, bound) in found)


def in_limits(change: float, bound: float) -> float:
    """How often a change exceeds its bound; beyond an output of zeros any change does, infinitely."""
    if not math.isfinite(change):
        return math.inf
    if not change or math.isinf(bound):
        return 0.0
    return change / bound if bound > 0 else math.inf


def _difference(now: Tensor, before: Tensor) -> Tensor:
    """|now - before|; NaN where one is out of place, 0 where both are NaN or the same infinity."""
    same = (now == before) | (now.isnan() & before.isnan())
    return torch.where(same, 0.0, (now - before).abs())


def largest_change(now: Tensor, before: Tensor) -> float:
    """The largest |now - before|; see `_difference` for what is not finite."""
    largest = _largest(now - before)
    return largest if math.isfinite(largest) else _largest(_difference(now, before))


def _largest(tensor: Tensor) -> float:
    """The largest magnitude; NaN where there is one."""
    return float(torch.linalg.vector_norm(tensor, math.inf)) if tensor.numel() else 0.0


def copied(tree: Any) -> Any:
    """Arguments whose tensors can be worked on in place."""
    return tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, tree)


@contextmanager
def keeping_buffers(module: nn.Module) -> Iterator[None]:
    """Training moves running statistics; afterwards they are as before."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()] if module.training else []
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.data.copy_(value)


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """What is random in a run is the same in every run; the generator is put back afterwards."""
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(0)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


def recorded(module: nn.Module, names: set[str], images: Tensor) -> dict[str, list[Call]]:
    """The arguments of every call of these submodules when the module runs on images."""
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
