"""Points after a layer that notice a change better than the layer's own output.

A mean over the map or over the channels lets a constant change through and shrinks what it is compared with:
inside an attention block a change can be ten times as large, in limits, as where it began. The module around
a layer is run with the change, and every compared point inside is looked at.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from parity_tests.compare.power_model import Model
from parity_tests.compare.power_scopes import (
    NOWHERE,
    Call,
    Found,
    Item,
    in_limits,
    keeping_buffers,
    same_random_numbers,
)
from parity_tests.compare.trace import OUTPUT, numbered

_STEP = 1e-6  # small enough for a linear answer, large enough to stand out of rounding
_WORTH_IT = 1.5  # a gain that is followed up
_RUNS = 24  # of one surrounding module; a flat model has all its layers in one
_ALIKE = {
    "running_mean": "bias",
    "running_var": "weight",
    "eps": "weight",
}  # in a norm


def gains(model: Model, items: Sequence[Item], found: Mapping[Item, Found]) -> dict[Item, Found]:
    """The items that a point after their own layer sees better than that layer, with that point.

    One item of a layer is tried for all of its kind; only where there is something to gain each is.
    """
    insides: dict[str, Inside] = {}
    runs: Counter[str] = Counter()
    known: dict[str, tuple[float, str]] = {}
    better = {}
    for item in sorted(items, key=lambda item: item.name.rpartition(".")[2] in _ALIKE):
        owner, _, leaf = item.name.rpartition(".")
        around = model.around(owner)
        seen_first = 0 < found.get(item, NOWHERE)[0] < math.inf and owner in model.scopes
        apart = model.modules[owner].training and item.kind in ("statistic", "momentum")  # of the output
        if around is None or not seen_first or apart or runs[around] >= _RUNS:
            continue
        inside = insides.setdefault(around, Inside(model, around))
        alike = f"{owner}.{_ALIKE.get(leaf)}"
        if alike not in known:
            runs[around] += 1
            known[item.name] = inside.gain(item, owner, item.directions[-1])
        if (known.get(item.name) or known[alike])[0] >= _WORTH_IT:
            each = [inside.gain(item, owner, direction) for direction in item.directions]
            ways = [(smallest / gain, at) for smallest, (gain, at) in zip(item.noticed, each, strict=True)]
            smallest, point = max(ways)
            better[item] = (smallest, point or found[item][1])
    return better


class Inside:
    """A compared module of a model, run on its first call with all compared points inside being watched."""

    def __init__(self, model: Model, name: str):
        self._module, self._limits = model.modules[name], model.limits
        call = model.calls[name][0]
        self._call = call if self._module.training else _first_image(call, model.batch)
        prefix = f"{name}." if name else ""
        watched = {n: m for n, m in model.modules.items() if n and n in self._limits and n.startswith(prefix)}
        self._watched = watched | {name or OUTPUT: self._module}

    @cached_property
    def _base(self) -> dict[str, Tensor]:
        return self._outputs()

    @cached_property
    def _bounds(self) -> dict[str, float]:
        compared = {n: y for n, y in self._base.items() if n in self._limits and y.numel()}
        return {name: self._limits[name] * float(y.abs().max()) for name, y in compared.items()}

    def _outputs(self) -> dict[str, Tensor]:
        """The output of every compared point."""
        outputs: dict[str, Tensor] = {}
        seen: dict[str, int] = {}
        hooks = [m.register_forward_hook(_keep(n, outputs, seen)) for n, m in self._watched.items()]
        inputs, keywords = self._call
        try:
            with torch.no_grad(), same_random_numbers(), keeping_buffers(self._module):
                self._module(*_cloned(inputs), **keywords)
        finally:
            for hook in hooks:
                hook.remove()
        return outputs

    @contextmanager
    def _replayed(self, owner: str) -> Iterator[None]:
        """What has ended before a layer begins is not computed again: it cannot have changed."""
        names = [name.partition("#")[0] for name in self._base]
        before = names[: names.index(owner)]
        once = [n for n in before if names.count(n) == 1 and not f"{n}.".startswith(f"{owner}.")]
        with ExitStack() as stack:
            for name in once:
                stack.enter_context(_answering(self._watched[name], self._base[name]))
            yield

    def gain(self, item: Item, owner: str, direction: Any) -> tuple[float, str]:
        """How much better the best point sees the item than the layer's own output does, and that point."""
        bounds = self._bounds
        if owner not in bounds:
            return 1.0, ""
        with item.moved(direction, _STEP), self._replayed(owner):
            outputs = self._base | self._outputs()
        times = {
            name: in_limits(float((outputs[name] - self._base[name]).abs().max()), bound)
            for name, bound in bounds.items()
            if outputs[name].shape == self._base[name].shape
        }
        own = max((value for name, value in times.items() if name.partition("#")[0] == owner), default=0.0)
        best = max(times, key=lambda name: times[name], default="")
        return (times[best] / own, best) if 0 < own < times[best] < torch.inf else (1.0, "")


@contextmanager
def _answering(module: nn.Module, output: Tensor) -> Iterator[None]:
    """A module that returns a copy of this output instead of computing it; its hooks run."""
    had = module.__dict__.get("forward")
    module.__dict__["forward"] = lambda *_, **__: output.clone()
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if had is not None:
            module.__dict__["forward"] = had


def _first_image(call: Call, batch: int) -> Call:
    """A call's arguments with the first image of a batch only, where all of them are batches."""
    inputs, keywords = call
    tensors = [x for x in (*inputs, *keywords.values()) if isinstance(x, Tensor)]
    if len(tensors) != len(inputs) or any(x.dim() < 2 or len(x) != batch for x in tensors):
        return call
    return tuple(x[:1] for x in inputs), {}


def _cloned(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)


def _keep(name: str, outputs: dict[str, Tensor], seen: dict[str, int]) -> Callable[..., None]:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):  # a copy: the next layer may work in place
            outputs[numbered(name, seen)] = output.detach().clone()

    return hook
