"""Channels that a port has in another order: one order that explains every layer, or none.

A port may permute the channels of a layer if it permutes those of the following layers alike. Then a wrong
layer among them is wrong in that order, and its neighbours are right. The order is proposed by the layers
whose channels correlate one to one; it counts if fewer layers are sources of an error with it than without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from parity_tests.compare.coverage import Ignored, Renamed
from parity_tests.compare.isolation import isolate
from parity_tests.compare.points import Matched, points_of
from parity_tests.compare.report import Point
from parity_tests.watch.repeat import Watched
from parity_tests.watch.trace import Tracer

_ALIKE = 0.9  # smallest correlation of a channel with its counterpart
_MOST = 4096  # channels, whose correlations are a square matrix

Judgement = tuple[dict[str, Matched], list[Point], list[str]]


def judge_layers(
    first: Watched,
    renamed: Mapping[str, Renamed],
    candidates: Mapping[str, Tracer],
    inputs: np.ndarray,
    train: bool,
    ignored: Ignored,
    noise: Mapping[str, float],
    dtype: str,
    layouts: Mapping[str, str],
    statistics: Sequence[Point],
) -> Judgement:
    """The matched runs, their points with the layers run alone, and notes.

    Args:
        first: the reference's run.
        renamed, candidates: the candidates' runs and tracers.
        inputs, train: of the comparison.
        ignored, noise, dtype, layouts: see `Matched`.
        statistics: points to put behind the layers.
    """

    def judged(orders: Mapping[int, Sequence[np.ndarray]]) -> Judgement:
        matched = {
            who: Matched(first, run, who, ignored, noise, dtype, layouts, orders)
            for who, run in renamed.items()
        }
        points = [*points_of(first.trace, matched, noise, dtype), *statistics]
        return matched, points, isolate(points, matched, candidates, inputs, train)

    usual = judged({})
    (m, *others) = usual[0].values()
    if others or not (m.sites and (orders := _likely(m))):
        return usual
    permuted = judged(orders)
    return permuted if len(permuted[0][m.who].sites) < len(m.sites) else usual


def _likely(m: Matched) -> dict[int, list[np.ndarray]]:
    """Number of channels -> the orders in which the channels of a failing layer correlate."""
    found: dict[int, list[np.ndarray]] = {}
    for name, judged in m.judged.items():
        if name in m.trace.outputs or judged.error <= m.limits[name]:
            continue
        wanted, seen = m.trace[name].output, judged.view.seen(m.run.trace[name].output)
        places = _order(seen, wanted) if seen.shape == wanted.shape and wanted.ndim > 1 else None
        known = found.setdefault(wanted.shape[1], []) if places is not None else []
        if places is not None and not any(np.array_equal(places, other) for other in known):
            known.append(places)
    return found


def _order(found: np.ndarray, wanted: np.ndarray) -> np.ndarray | None:
    """The channels of `found` in the order of `wanted`; None if they are in it or have no counterparts."""
    if not 1 < wanted.shape[1] <= _MOST or not (np.isfinite(found).all() and np.isfinite(wanted).all()):
        return None
    alike = _rows(wanted) @ _rows(found).T
    places, usual = alike.argmax(axis=1), np.arange(wanted.shape[1])
    one_to_one = np.array_equal(np.sort(places), usual) and alike.max(axis=1).min() > _ALIKE
    return places if one_to_one and not np.array_equal(places, usual) else None


def _rows(array: np.ndarray) -> np.ndarray:
    """One row of mean 0 and length 1 per channel."""
    rows = np.moveaxis(array, 1, 0).reshape(array.shape[1], -1).astype(np.float64)
    rows = rows - rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)
