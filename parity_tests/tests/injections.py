"""Changes injected into a network, to find how large one has to be for a comparison to notice it.

The judge of `compare.power`: it shares no code with the measurement. The network runs whole, every compared
point is held against its limit, and the change is moved in a random direction of its own.
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

_NEAR = 1.15  # how exactly the smallest change is found
_WIDEST = 1e6  # how far from the stated figure it is looked for


@dataclass(frozen=True)
class Injection:
    """One item of one network: the stated smallest change and the true one; infinite where none is seen."""

    network: str
    item: Sensitivity
    true: float

    @property
    def ratio(self) -> float:
        """Stated / true; 1 where both say that there is no power."""
        if self.item.smallest > THRESHOLD < self.true:
            return 1.0
        return self.item.smallest / self.true if self.true > 0 else math.inf


class Injector:
    """A network whose tensors and settings can be changed, and the comparison that should notice.

    Args:
        module: the network.
        images: (N, C, H, W).
        limits: compared point -> limit.
        train: batch statistics, and the running ones compared afterwards.
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
        """What is compared, after one run; the buffers are put back."""
        trace = self._tracer.trace(self._images, train=self._train)
        values = {name: call.output for name, call in trace.items() if name in self._limits}
        if self._train:
            values |= {n: v for n, v in self._tracer.statistics().items() if n in self._limits}
            for buffer, before in self._buffers:
                buffer.copy_(before)
        return values

    def times_limit(self) -> float:
        """The largest error of any point in multiples of its limit."""
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

    A guess from the first error is tried just above and just below. If it is not right, bisection.
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
