"""Points after a layer that notice a change better than the layer's own output.

A mean over the map or over the channels keeps a constant change but shrinks the values, and the limit with
them: inside an attention block a change can be ten times larger, in limits, than at its layer. The model runs
with the change, from the layer to a few compared points after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from parity_tests.compare.power.model import Model
from parity_tests.compare.power.scopes import (
    NOWHERE,
    Found,
    Item,
    copied,
    in_limits,
    keeping_buffers,
    largest_change,
    same_random_numbers,
)
from parity_tests.watch.trace import OUTPUT, numbered

_POINTS = 4  # after a layer: most of its block
_STEP = 1e-6  # small enough for a linear response, large enough to exceed rounding
_WORTH_IT = 1.5
# In a norm: the tensor with the same effect on its output.
_ALIKE = {"running_mean": "bias", "running_var": "weight", "eps": "weight"}


def seen_later(model: Model, items: Sequence[Item], found: Mapping[Item, Found]) -> dict[Item, Found]:
    """The items that a later point notices better than their own layer, with that point.

    Candidates are changes that are constant over the map (settings, tensors with one value per channel) and
    items of modules with compared points inside. One item is tried for all of the same kind.
    """
    after = After(model)
    known: dict[str, list[tuple[float, str]]] = {}
    better = {}
    for item in sorted(items, key=lambda item: item.name.rpartition(".")[2] in _ALIKE):
        owner, _, leaf = item.name.rpartition(".")
        smallest, point = found.get(item, NOWHERE)
        seen_first = owner in model.scopes and 0 < smallest < math.inf
        apart = model.modules[owner].training and item.kind in ("statistic", "momentum")  # not in the output
        flat = item.tensor is None or item.tensor.dim() == 1
        if not seen_first or apart or not (flat or after.inside(owner)):
            continue
        tried = f"{owner}.{_ALIKE.get(leaf)}"
        if tried not in known:
            tried = item.name
            known[tried] = after.gains(item, owner)
        ways = [
            (own / gain, at or point) for own, (gain, at) in zip(item.noticed, known[tried], strict=False)
        ]
        better[item] = min(max(ways), (smallest, point))
    return better


class _Enough(Exception):
    """Stops a run after the requested points."""


class After:
    """A model run on one image (on all in training) with hooks on every compared point."""

    def __init__(self, model: Model):
        self._module, self._limits = model.modules[""], model.limits
        (images,), _ = model.calls[""][0]
        self._images = images if self._module.training else images[:1]
        self._watched = {n: m for n, m in model.modules.items() if n in model.limits}
        self._watched[OUTPUT] = self._module

    @cached_property
    def _base(self) -> dict[str, Tensor]:
        """The output of every point."""
        outputs: dict[str, Tensor] = {}

        def keep(name: str, output: Tensor) -> None:
            outputs[name] = output.clone()  # the next layer may work in place

        self._run({}, keep)
        return outputs

    @cached_property
    def _bounds(self) -> dict[str, float]:
        compared = {n: y for n, y in self._base.items() if n in self._limits and y.numel()}
        return {name: self._limits[name] * largest_change(y, y.new_zeros(())) for name, y in compared.items()}

    def _run(
        self, answers: Mapping[str, Tensor], see: Callable[[str, Tensor], None], wanted: float = math.inf
    ) -> None:
        """Pass the outputs of `wanted` points to `see` in execution order; use `answers` where given."""
        seen: dict[str, int] = {}
        left = wanted

        def watch(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, __: Any, output: Any) -> None:
                nonlocal left
                number = numbered(name, seen)
                if isinstance(output, Tensor) and name not in answers:
                    see(number, output.detach())
                    left -= 1
                if left <= 0:
                    raise _Enough

            return hook

        hooks = [module.register_forward_hook(watch(name)) for name, module in self._watched.items()]
        try:
            with ExitStack() as stack:
                for name, output in answers.items():
                    if name.rpartition(".")[0] in answers:
                        continue  # modules inside an answer do not run
                    stack.enter_context(_answering(self._watched[name], output))
                for context in (torch.no_grad(), same_random_numbers(), keeping_buffers(self._module)):
                    stack.enter_context(context)
                with suppress(_Enough):
                    self._module(copied(self._images))
        finally:
            for handle in hooks:
                handle.remove()

    def _before(self, owner: str) -> dict[str, Tensor]:
        """Outputs of modules that end before a layer and are not inside it: they cannot change with it."""
        names = [name.partition("#")[0] for name in self._base]
        if not owner:
            return {}
        before = names[: names.index(owner)]
        once = [n for n in before if names.count(n) == 1 and not n.startswith(f"{owner}.")]
        return {name: self._base[name] for name in once}

    def gains(self, item: Item, owner: str) -> list[tuple[float, str]]:
        """The gain in each direction; without a gain in the random direction the others are not tried."""
        random = self.gain(item, owner, item.directions[-1])
        if random[0] < _WORTH_IT:
            return [random] * len(item.directions)
        return [*(self.gain(item, owner, other) for other in item.directions[:-1]), random]

    def inside(self, owner: str) -> int:
        """The number of points inside a module."""
        return sum(n.startswith(f"{owner}." if owner else "") for n in self._base) - (not owner)

    def gain(self, item: Item, owner: str, direction: Any) -> tuple[float, str]:
        """The best point and the factor by which it notices the item better than the layer's own output."""
        place = owner or OUTPUT
        if place not in self._bounds:
            return 1.0, ""
        times: dict[str, float] = {}

        def see(name: str, output: Tensor) -> None:
            if name in self._bounds and output.shape == self._base[name].shape:
                times[name] = in_limits(largest_change(output, self._base[name]), self._bounds[name])

        answers = self._before(owner)
        with item.moved(direction, _STEP):
            self._run(answers, see, self.inside(owner) + 1 + _POINTS)
        own = max((value for name, value in times.items() if name.partition("#")[0] == place), default=0.0)
        best = max(times, key=lambda name: times[name], default="")
        return (times[best] / own, best) if 0 < own < times[best] < torch.inf else (1.0, "")


@contextmanager
def _answering(module: nn.Module, output: Tensor) -> Iterator[None]:
    """Let a module return a copy of `output` instead of computing it; its hooks still run."""
    had = module.__dict__.get("forward")
    module.__dict__["forward"] = lambda *_, **__: output.clone()
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if had is not None:
            module.__dict__["forward"] = had
