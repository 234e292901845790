"""Injects changes into a network, to find the smallest change that a comparison notices.

This is the judge of `compare.power` and shares no code with it. The whole network runs, every compared point
is checked against its limit, and tensors change in other random directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from parity_tests.compare.power.result import THRESHOLD, Sensitivity
from parity_tests.judge.tolerances import relative_error
from parity_tests.watch.torch import TorchTracer

_NEAR = 1.15  # accuracy of the smallest change
_WIDEST = 1e6  # range of the search around the stated figure


@dataclass(frozen=True)
class Injection:
    """One item of a network: stated and true smallest change; infinite if no change is noticed."""

    network: str
    item: Sensitivity
    true: float

    @property
    def ratio(self) -> float:
        """Stated / true; 1 if both are infinite."""
        if self.item.smallest > THRESHOLD < self.true:
            return 1.0
        return self.item.smallest / self.true if self.true > 0 else math.inf


class Injector:
    """A network with changeable tensors and settings, and the comparison that should notice changes.

    Args:
        module: the network.
        images: (N, C, H, W).
        limits: compared point -> limit.
        train: use batch statistics and compare the running statistics afterwards.
    """

    def __init__(
        self, module: nn.Module, images: np.ndarray, limits: Mapping[str, float], *, train: bool = False
    ):
        self._tracer = TorchTracer(module, "float64")
        self._images, self._train = np.asarray(images, np.float64), train
        self._limits = limits
        self._buffers = [(b, b.clone()) for b in self._tracer.module.buffers()]
        self._before = self._observed()

    def _observed(self) -> dict[str, np.ndarray]:
        """The compared tensors after one run; the buffers are restored."""
        trace = self._tracer.trace(self._images, train=self._train)
        values = {name: call.output for name, call in trace.items() if name in self._limits}
        if self._train:
            values |= {n: v for n, v in self._tracer.statistics().items() if n in self._limits}
            for buffer, before in self._buffers:
                buffer.copy_(before)
        return values

    def times_limit(self) -> float:
        """The largest error of all points in multiples of the limit."""
        now = self._observed()
        return max(relative_error(now[n], wanted) / self._limits[n] for n, wanted in self._before.items())

    @contextmanager
    def _tensor(self, name: str, change: torch.Tensor) -> Iterator[None]:
        tensor = self._tracer.module.state_dict(keep_vars=True)[name]
        before = tensor.detach().clone()
        tensor.data.add_(change)
        try:
            yield
        finally:
            tensor.data.copy_(before)

    @contextmanager
    def _setting(self, name: str, change: float) -> Iterator[None]:
        owner, _, attribute = name.rpartition(".")
        module = self._tracer.module.get_submodule(owner)
        before = getattr(module, attribute)
        setattr(module, attribute, before + change * (abs(before) or 1.0))
        try:
            yield
        finally:
            setattr(module, attribute, before)

    def vanish(self, name: str, index: int) -> float:
        """The largest error when one element becomes 0, in limits."""
        tensor = self._tracer.module.state_dict(keep_vars=True)[name].detach()
        change = torch.zeros_like(tensor)
        change.view(-1)[index] = -tensor.flatten()[index]
        with self._tensor(name, change):
            return self.times_limit()

    def inject(self, network: str, item: Sensitivity, seed: int) -> Injection:
        """The true smallest change of an item: the larger of scaling it and moving it at random."""
        start = item.smallest if 0 < item.smallest < math.inf else 0.01
        if item.is_setting:
            return Injection(network, item, _smallest(partial(self._try_setting, item.name), start))
        tensor = self._tracer.module.state_dict(keep_vars=True)[item.name].detach().clone()
        random = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed), dtype=tensor.dtype)
        size = float(tensor.norm()) or tensor.numel() ** 0.5
        ways = [random * (size / float(random.norm()))] + ([tensor] if tensor.any() else [])
        found = [_smallest(partial(self._try_tensor, item.name, way), start) for way in ways]
        return Injection(network, item, max(found))

    def _try_setting(self, name: str, change: float) -> float:
        with self._setting(name, change):
            return self.times_limit()

    def _try_tensor(self, name: str, direction: torch.Tensor, change: float) -> float:
        with self._tensor(name, direction * change):
            return self.times_limit()


def _smallest(error: Callable[[float], float], start: float) -> float:
    """The smallest change whose error exceeds 1, within `_NEAR`; infinite if there is none.

    It tries just above and below a guess from the first error, then bisects.
    """
    first = error(start)
    guess = start / first if 0 < first < math.inf else start
    if error(guess * _NEAR) > 1 >= error(guess / _NEAR):
        return guess
    low, high = guess, guess
    while not error(high) > 1:
        high *= 10
        if high > start * _WIDEST:
            return math.inf
    while error(low) > 1:
        low /= 10
        if low < start / _WIDEST:
            return low
    while high / low > _NEAR**2:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if error(middle) > 1 else (middle, high)
    return math.sqrt(low * high)
