"""The orders in which two models may hold the same numbers: channels second or last, flattened rows.

A tracer moves the last axis of Keras's and TF1's arrays to the second place. That is right for images and
wrong for tokens (N, T, C). No rank says which it is, so the order is found by agreement: it is the first in
which the array of the candidate equals the array of the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from parity_tests.judge import tolerances
from parity_tests.watch.trace import Trace, channels_first, channels_last

Arrange = Callable[[np.ndarray], np.ndarray]
SAMPLE = 256  # numbers that are compared before a whole array is


class View(NamedTuple):
    """One order of the candidate's numbers.

    Attributes:
        text: for a note; "" for the usual order.
        seen: the candidate's array in the order of the reference.
        fed: the reverse.
    """

    text: str
    seen: Arrange
    fed: Arrange


def _same(array: np.ndarray) -> np.ndarray:
    return array


USUAL = View("", _same, _same)
SAME_AXES = "the same axes in both models"
FLATTENED = "flattened in another order"
PERMUTED = "the channels in another order"
SQUEEZED = "axes of size 1 on one side only"  # (N, C) and (N, C, 1, 1)


class Views:
    """The orders to try between two runs.

    Args:
        reference, candidate: the runs; `Trace.moved` says whose last axes were moved.
        layouts: output -> "moved" or "same", as the caller states it.
        orders: number of channels -> the orders in which the candidate may have them.
    """

    def __init__(
        self,
        reference: Trace,
        candidate: Trace,
        layouts: Mapping[str, str] | None = None,
        orders: Mapping[int, Sequence[np.ndarray]] | None = None,
    ) -> None:
        self._layouts, self._orders = layouts or {}, orders or {}
        self._differ = reference.moved != candidate.moved
        # undoing the move on one side is moving the other side's axes
        pair = (channels_last, channels_first) if candidate.moved else (channels_first, channels_last)
        self._axes = View(SAME_AXES, *pair)
        self._first = not reference.moved  # whether the reference's flattened rows begin with the channels
        self._shapes: dict[int, set[tuple[int, ...]]] = {}  # size -> (C, H, W) of the reference's arrays
        if self._differ:
            for call in reference.values():
                for array in (call.input, call.output):
                    if array.ndim > 2:
                        self._shapes.setdefault(math.prod(array.shape[1:]), set()).add(array.shape[1:])

    def of(self, array: np.ndarray, *, flat: bool = True) -> Iterator[View]:
        """The orders that an array of the reference may have in the candidate, the usual one first."""
        yield USUAL
        if self._differ and array.ndim > 2:
            yield self._axes
        if flat and array.ndim == 2:
            yield from (_squeezed(array.shape, (*array.shape, *[1] * n)) for n in (1, 2, 3))
        elif flat and array.ndim > 2 and array.size == array.shape[0] * array.shape[1]:
            yield _squeezed(array.shape, array.shape[:2])
        for places in self._orders.get(array.shape[1], ()) if flat and array.ndim > 1 else ():
            yield _permuted(USUAL, places)
        if self._differ and array.ndim == 2 and flat:
            for shape in sorted(self._shapes.get(array.shape[1], ())):
                yield _flattened(shape, self._first)

    def of_output(self, name: str, found: np.ndarray, wanted: np.ndarray, limit: float) -> View:
        """The order of an output of the model: the stated one, else the best; rows are never reordered."""
        if name in self._layouts and self._differ and wanted.ndim > 2:
            return self._axes if self._layouts[name] == "same" else USUAL
        return self.best(found, wanted, limit, flat=False)

    def best(self, found: np.ndarray, wanted: np.ndarray, limit: float, *, flat: bool = True) -> View:
        """The first order in which `found` equals `wanted`, else the usual or a clearly nearer one."""
        fitting = [view for view in self.of(wanted, flat=flat) if _fits(view, found, wanted)]
        if len(fitting) < 2:
            return (fitting or [USUAL])[0]
        errors = [tolerances.relative_error(view.seen(found), wanted) for view in fitting]
        agreeing = [view for view, error in zip(fitting, errors, strict=True) if error <= limit]
        if agreeing:
            return agreeing[0]
        return fitting[errors.index(min(errors)) if min(errors) < errors[0] / 2 else 0]

    def permuted(self, found: np.ndarray, wanted: np.ndarray, limit: float) -> View | None:
        """The order of the channels with which `found` equals `wanted`."""
        for view in self.of(wanted):
            if wanted.ndim < 2 or not _fits(view, found, wanted):
                continue
            seen = view.seen(found)
            places = np.argsort(_keys(seen))[np.argsort(np.argsort(_keys(wanted)))]
            if agree(seen[:, places], wanted, limit):
                return _permuted(view, places)
        return None

    def orders(self, array: np.ndarray) -> list[np.ndarray]:
        """An array of the reference in every order that the candidate may have it in."""
        return [view.fed(array) for view in self.of(array)]

    def equal(self, found: np.ndarray, wanted: Iterable[np.ndarray], limit: float) -> np.ndarray | None:
        """The first of the `wanted` arrays that `found` equals in some order."""
        for array in wanted:
            if array.size != found.size or array.ndim < 2 or _is_constant(array):
                continue
            for view in self.of(array):
                if _fits(view, found, array) and agree(view.seen(found), array, limit):
                    return array
        return None


def agree(found: np.ndarray, wanted: np.ndarray, limit: float) -> bool:
    """Whether the error is within the limit; a few numbers are compared first."""
    if found.shape != wanted.shape or found.dtype.kind != "f" or wanted.dtype.kind != "f":
        return False
    few, others = found.flat[:SAMPLE], wanted.flat[:SAMPLE]
    with np.errstate(invalid="ignore", over="ignore"):
        if not np.abs(few - others).max() <= limit * np.abs(wanted).max():
            return False
    return tolerances.relative_error(found, wanted) <= limit


def _is_constant(array: np.ndarray) -> bool:
    """Whether all values are equal, so that equality proves nothing."""
    return bool((array == array.flat[0]).all())


def _fits(view: View, found: np.ndarray, wanted: np.ndarray) -> bool:
    if found.size != wanted.size or (found.ndim != wanted.ndim and view.text != SQUEEZED):
        return False
    return view.seen(found).shape == wanted.shape


def _keys(array: np.ndarray) -> np.ndarray:
    """One number per channel: a fixed combination of all its values."""
    rows = np.moveaxis(array, 1, 0).reshape(array.shape[1], -1)
    return rows @ np.random.default_rng(0).normal(size=rows.shape[1])


def _squeezed(wanted: tuple[int, ...], found: tuple[int, ...]) -> View:
    """Arrays of one value per channel, of which one side has axes of size 1 behind."""

    def seen(array: np.ndarray) -> np.ndarray:
        return array.reshape(wanted) if array.shape == found else array

    return View(SQUEEZED, seen, lambda array: array.reshape(found))


def _permuted(view: View, places: np.ndarray) -> View:
    back = np.argsort(places)

    def taken(array: np.ndarray, order: np.ndarray) -> np.ndarray:
        return array[:, order] if array.ndim > 1 and array.shape[1] == order.size else array

    return View(
        PERMUTED, lambda array: taken(view.seen(array), places), lambda array: view.fed(taken(array, back))
    )


def _flattened(shape: Sequence[int], first: bool) -> View:
    """Rows that one model flattened from (C, H, W) and the other from (H, W, C).

    `first`: whether the reference is the one with (C, H, W).
    """
    order = np.arange(math.prod(shape)).reshape(shape)  # C H W
    if first:  # the candidate's row at H W C, in the order C H W
        places = np.moveaxis(np.arange(order.size).reshape(*shape[1:], shape[0]), -1, 0).ravel()
    else:
        places = np.moveaxis(order, 0, -1).ravel()
    back = np.argsort(places)
    return View(FLATTENED, lambda array: array[:, places], lambda array: array[:, back])
