"""Measures `Power` on a torch module in float64: the effect of tensors and settings at the compared points.

    smallest change = step / (largest change / limit)

A tensor is changed in its own layer, or in the nearest enclosing module with a compared output; this module
runs alone on its recorded input. If many items share one such module, a few are tried and the rest estimated:
reverse mode carries the change of an item's own layer to the compared point, for random combinations of the
outputs, whose spread is the 2-norm. The tried items relate the 2-norm to the largest change.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import nn

from parity_tests.compare.power.after import seen_later
from parity_tests.compare.power.elements import Trials, own_count
from parity_tests.compare.power.model import Model, compared, stages, wide
from parity_tests.compare.power.result import BIT_FOR_BIT, THRESHOLD, Power, Sensitivity
from parity_tests.compare.power.reverse import Reverse
from parity_tests.compare.power.scopes import NOWHERE, Found, Item, Scope, settings, tensors

_TRIED = 4  # items per compared module that are always tried
_FEW = 10_000  # numbers in the outputs of a scope; with fewer the result depends on the random direction:
_DRAWS = 3  # use the median of this many directions
_LINEAR = 10.0  # size of a second step, in multiples of the smallest noticed change
_NOTHING = 1e-6  # of the limit: below it a compared module does not depend on the item
_SMALLEST_STEP = 1e-12

Entry = tuple[Item, str]  # an item and the module that uses it


def measure_power(
    module: nn.Module,
    images: np.ndarray,
    limits: Mapping[str, float],
    *,
    train: bool = False,
    bit_for_bit: Collection[str] = (),
    seed: int = 0,
) -> Power:
    """The smallest changes that a comparison of this module with another model notices.

    Args:
        module: one of the compared models; it is not changed.
        images: (N, C, H, W), the images of the comparison.
        limits: compared point -> limit, relative to its largest value: a submodule's path ("name#2" for its
            second call), "output" for the module's own output, a running statistic's name.
        train: batch statistics, as in `compare_models`.
        bit_for_bit: names of the tensors that are compared exactly.
        seed: of the random directions.

    Example:
        >>> _ = torch.manual_seed(1)
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
        >>> power = measure_power(model, np.ones((2, 3)), {"0": 1e-12, "output": 1e-12})
        >>> [(item.name, item.point, item.smallest < 1e-10) for item in power.items]
        [('0.weight', '0', True), ('0.bias', '0', True)]
    """
    model, generator = wide(module, train), torch.Generator().manual_seed(seed)
    x = torch.from_numpy(np.asarray(images, np.float64, order="C"))
    items = [*tensors(model, seed), *settings(model)]
    return power_of(compared(model, x, limits, items), items, bit_for_bit, generator)


def measure_stage_power(
    network: nn.Module,
    images: np.ndarray,
    limits: Mapping[str, float],
    paths: Mapping[str, tuple[str, ...]],
    *,
    bit_for_bit: Collection[str] = (),
    seed: int = 0,
) -> Power:
    """`measure_power` for a network of `torch_impl` in eval mode, with only its stages compared.

    Args:
        network, bit_for_bit, seed: as above.
        images: (N, C, H, W).
        limits: stage ("stem", "layer1" ..., "logits") -> limit.
        paths: stage -> the modules that run for it.
    """
    model, generator = wide(network, False), torch.Generator().manual_seed(seed)
    x = torch.from_numpy(np.asarray(images, np.float64, order="C"))
    items = [*tensors(model, seed), *settings(model)]
    moved = [item for item in items if item.tensor is None or item.name not in bit_for_bit]
    return power_of(stages(model, x, limits, moved, paths), items, bit_for_bit, generator)


# --------------------------------------------------------------------------------------------------
# Sensitivity


def power_of(
    model: Model, items: Sequence[Item], bit_for_bit: Collection[str], generator: torch.Generator
) -> Power:
    """Measure each item at the nearest compared point, else at the outermost one."""
    exact = {item for item in items if item.tensor is not None and item.name in bit_for_bit}
    found: dict[Item, Found] = dict.fromkeys(exact, (0.0, BIT_FOR_BIT))
    unseen: dict[Item, int | None] = dict.fromkeys(exact, 0)
    groups: dict[Scope, list[Entry]] = {}
    for item in items:
        for owner in item.owners if item not in exact else ():
            if (scope := model.scope_of(owner)) is not None:
                groups.setdefault(scope, []).append((item, owner))
    for scope, entries in groups.items():
        for item, smallest, count in _measured(model, scope, entries, generator):
            found[item] = min(found.get(item, smallest), smallest)
            counts = [c for c in (unseen.get(item), count) if c is not None]
            unseen[item] = min(counts, default=None)
    found |= seen_later(model, items, found)
    hidden = [item for item in items if found.get(item, NOWHERE)[0] == math.inf]
    if model.outermost is not None:
        found |= _further(model.outermost, hidden)
    return Power([_sensitivity(item, found.get(item, NOWHERE), unseen.get(item)) for item in items])


def _sensitivity(item: Item, found: Found, unseen: int | None) -> Sensitivity:
    smallest, point = found
    if item.tensor is None:
        return Sensitivity(item.name, item.kind, smallest, point)
    elements = int(torch.count_nonzero(item.tensor))
    return Sensitivity(
        item.name, item.kind, smallest, point, elements if smallest == math.inf else unseen, elements
    )


def _measured(
    model: Model, scope: Scope, entries: Sequence[Entry], generator: torch.Generator
) -> Iterator[tuple[Item, Found, int | None]]:
    """Each item of a scope with its smallest noticed change and the number of elements that could vanish."""
    own = [entry for entry in entries if model.scopes.get(entry[1]) is scope]
    distant = [entry for entry in entries if entry not in own]
    reverse = None
    counts = {
        i: own_count(scope, i, model.modules[o], model.calls[o]) for i, o in own if i.tensor is not None
    }
    uncounted = [e for e in entries if e[0].tensor is not None and counts.get(e[0]) is None]
    if uncounted or len(distant) > _TRIED:
        owners = {o: model.modules[o] for _, o in distant}
        reverse = Reverse(scope, owners, model.calls, [item for item, _ in entries], generator)
        trials = Trials(scope, generator)
        for item, owner in uncounted:
            norms = reverse.element_norms(owner, item)
            counts[item] = None if norms is None else trials.count(item, norms)
    smallest = {item: smallest_change(scope, item, model.modules[owner]) for item, owner in own}
    smallest |= _of_distant(scope, distant, reverse, generator)
    for item, _ in entries:
        yield item, smallest[item], counts.get(item)


def _of_distant(
    scope: Scope,
    entries: Sequence[Entry],
    reverse: Reverse | None,
    generator: torch.Generator,
) -> dict[Item, Found]:
    """The items of layers inside a scope: a few are tried, the rest are estimated from these."""
    order = [entries[i] for i in torch.randperm(len(entries), generator=generator)]
    reached = [entry for entry in order if reverse is not None and reverse.reaches(entry[1])]
    if reverse is None or len(reached) <= _TRIED:
        return {item: smallest_change(scope, item, None) for item, _ in order}
    estimated = reached[_TRIED:]
    tried = {item: smallest_change(scope, item, None) for item, _ in order if (item, _) not in estimated}
    norms = {item: reverse.norms(owner, item, THRESHOLD) for item, owner in reached}
    point = scope.points[0][0]
    shares = [
        1 / (tried[item][0] * min(norms[item]))
        for item, _ in reached[:_TRIED]
        if tried[item][0] < math.inf and min(norms[item]) > 0
    ]
    share = statistics.median(shares) if shares else 1.0  # largest change / 2-norm
    for item, _ in estimated:
        times = min(norms[item]) * share
        tried[item] = (1 / times, point) if times * THRESHOLD > _NOTHING else NOWHERE
    return tried


def smallest_change(scope: Scope, item: Item, owner: nn.Module | None) -> Found:
    """The smallest relative change that the scope's points notice in every direction of the item."""
    ways = [_along(scope, item, direction) for direction in item.directions]
    if item.tensor is not None and sum(y.numel() for y in scope.base) < _FEW:
        draws = [ways[-1], *(_along(scope, item, item.random(draw)) for draw in range(1, _DRAWS))]
        ways[-1] = sorted(draws, key=_noticed)[len(draws) // 2]
    item.noticed = [*map(_noticed, ways)]
    weaker = item.noticed.index(max(item.noticed))
    step, times, direction, point = ways[weaker]
    if times * THRESHOLD / step <= _NOTHING:
        return NOWHERE
    if not _is_plain(owner) and times > _LINEAR:  # maybe a kink or saturation: try a smaller change
        smaller = _LINEAR * step / times
        again, point_there = _tried(scope, item, direction, smaller)
        if 0 < again < math.inf:
            step, times, point = smaller, again, point_there
    return step / times, point


Way = tuple[float, float, Any, str]  # step, multiple of the limit, direction, point


def _noticed(way: Way) -> float:
    """The smallest noticed change in a direction."""
    step, times, _, _ = way
    return step / times if times else math.inf


def _along(scope: Scope, item: Item, direction: Any) -> Way:
    step = THRESHOLD
    times, point = _tried(scope, item, direction, step)
    while math.isinf(times) and step > _SMALLEST_STEP:  # a variance below 0, an overflow
        step *= 1e-3
        times, point = _tried(scope, item, direction, step)
    return step, times, direction, point


def _is_plain(owner: nn.Module | None) -> bool:
    """Whether this is a single layer of torch's, whose output is smooth in its tensors and settings."""
    return (
        owner is not None
        and type(owner).__module__.startswith("torch.nn.modules")
        and not [*owner.children()]
    )


def _tried(scope: Scope, item: Item, direction: Any, step: float) -> Found:
    scope.remember()
    with item.moved(direction, step):
        return scope.times_limit()


def _further(scope: Scope, hidden: Sequence[Item]) -> dict[Item, Found]:
    """The hidden items that the scope does depend on: all are moved together, then in halves."""
    found, groups = {}, [list(hidden)] if hidden else []
    scope.remember()
    while groups:
        group = groups.pop()
        with ExitStack() as stack:
            for item in group:
                stack.enter_context(item.moved(item.directions[-1], THRESHOLD))
            times, _ = scope.times_limit()
        if times <= _NOTHING:
            continue
        if len(group) == 1:
            found[group[0]] = smallest_change(scope, group[0], None)
        else:
            groups += [group[: len(group) // 2], group[len(group) // 2 :]]
    return found
