"""Judges a layer by what reaches its neighbours: padding, activations, batch norms may stand in or around it.

    reference   c -> bn -> relu -> d        candidate   c (bn folded, relu inside) -> d

The candidate's c differs from the reference's c, and equals what reaches d. Then the group from c to d
agrees, and no layer in it is wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np

from parity_tests.compare.views import SAMPLE, USUAL, View, Views, agree
from parity_tests.judge import tolerances
from parity_tests.watch.trace import Call, Trace, covers

KINDS = ("reference", "candidate", "inside")  # of groups, see `Judged`


class Judged(NamedTuple):
    """A compared output.

    Attributes:
        error: of the candidate's output.
        view: the order of the candidate's numbers.
        group: "" at the layer itself; at the end of a group "reference" or "candidate", the side that has
            further calls in it; "inside" before the activation inside a Keras layer.
    """

    error: float
    view: View = USUAL
    group: str = ""


def judge(
    name: str,
    reference: Trace,
    candidate: Trace,
    views: Views,
    limit: float,
    matched: Collection[str],
    kinds: Collection[str] = KINDS,
) -> Judged:
    """Compare an output of the candidate with the reference's, or with what reaches the layers after it.

    Args:
        name: in both traces.
        reference, candidate: under the names of the reference.
        views: the orders of the candidate's numbers.
        limit: the largest accepted error.
        matched: the names that both sides have.
        kinds: the groups that count, see `Judged`.
    """
    wanted, found = reference[name].output, candidate[name].output
    final = name in reference.outputs
    view = views.of_output(name, found, wanted, limit) if final else views.best(found, wanted, limit)
    error = tolerances.relative_error(view.seen(found), wanted)
    if error <= limit or final:
        return Judged(error, view)
    entered = reference[name].input
    if views.equal(found, [entered], limit) is None:  # a layer that does nothing is no group
        reached = reached_by(found, name, reference, views, limit, matched)
        if reached is not None:
            view = views.best(found, reached, limit)
            return Judged(tolerances.relative_error(view.seen(found), reached), view, "reference")
    for array in after(candidate, name, matched) if "candidate" in kinds else ():
        agrees = views.equal(array, [wanted], limit) is not None
        if agrees and not _is_another_layers(array, candidate, name, matched):
            view = views.best(array, wanted, limit)
            return Judged(tolerances.relative_error(view.seen(array), wanted), view, "candidate")
    before = candidate[name].inside
    if "inside" in kinds and before is not None and views.equal(before, [wanted], limit) is not None:
        view = views.best(before, wanted, limit)
        return Judged(tolerances.relative_error(view.seen(before), wanted), view, "inside")
    permuted = views.permuted(found, wanted, limit) if "permuted" in kinds else None
    if permuted is not None:
        return Judged(tolerances.relative_error(permuted.seen(found), wanted), permuted)
    return Judged(error, view)


def reached_by(
    found: np.ndarray, name: str, reference: Trace, views: Views, limit: float, matched: Collection[str]
) -> np.ndarray | None:
    """The array that reaches a layer after `name` in the reference and equals the candidate's `found`."""
    for array in after(reference, name, matched):
        if views.equal(found, [array], limit) is not None:
            return None if _is_another_layers(array, reference, name, matched) else array
    return None


def _is_another_layers(array: np.ndarray, trace: Trace, name: str, matched: Collection[str]) -> bool:
    """Whether an array is the output of a layer that both sides have, and not of a layer around this one."""
    own = trace[name].layer
    return any(
        n in matched and n not in trace.outputs and not covers(call.layer, own) and _is(array, call.output)
        for n, call in trace.items()
    )


def members(
    name: str,
    judged: Judged,
    reference: Trace,
    candidate: Trace,
    views: Views,
    limit: float,
    matched: Collection[str],
) -> tuple[str, ...]:
    """The calls that only one side has and that are in one group with a layer that agrees."""
    found = _before(name, reference, candidate, views, limit, matched)
    if judged.group in ("reference", "candidate"):
        found += _chain(reference if judged.group == "reference" else candidate, name, matched)
    return found


def after(trace: Trace, name: str, matched: Collection[str]) -> Iterator[np.ndarray]:
    """The inputs of the layers after a call, and the outputs of later calls that one side lacks."""
    names = list(trace)
    own = trace[name].layer
    for later in names[names.index(name) + 1 :]:
        call = trace[later]
        if call.layer and covers(call.layer, own):  # the layer around this one began before it
            continue
        if later in trace.outputs:
            yield call.output
            continue
        yield from (call.input, *call.others)
        if later not in matched:
            yield call.output


def _chain(trace: Trace, name: str, matched: Collection[str]) -> tuple[str, ...]:
    """The calls that only one side has and that follow a call directly, one after the other."""
    found: list[str] = []
    value, names = trace[name].output, list(trace)
    for later in names[names.index(name) + 1 :]:
        if later not in matched and later not in trace.outputs and _is(trace[later].input, value):
            found.append(later)
            value = trace[later].output
    return tuple(found)


def _before(
    name: str, reference: Trace, candidate: Trace, views: Views, limit: float, matched: Collection[str]
) -> tuple[str, ...]:
    """The calls of one side that a layer of the other side contains, in front of its own."""
    if name in reference.outputs:
        return ()
    ours, theirs = reference[name].input, candidate[name].input
    if not ours.size or not theirs.size or agree(views.best(theirs, ours, limit).seen(theirs), ours, limit):
        return ()
    for start, calls in _backwards(reference, name, matched):
        if views.equal(theirs, [start], limit) is not None:
            return calls
    for start, calls in _backwards(candidate, name, matched):
        if views.equal(start, [ours], limit) is not None:
            return calls
    return ()


def _backwards(
    trace: Trace, name: str, matched: Collection[str]
) -> Iterator[tuple[np.ndarray, tuple[str, ...]]]:
    """The inputs of longer and longer chains of calls that only one side has and that lead to a call."""
    names, value, found = list(trace), trace[name].input, []
    for earlier in reversed(names[: names.index(name)]):
        call: Call = trace[earlier]
        if earlier not in matched and _is(call.output, value):
            found.append(earlier)
            value = call.input
            yield value, tuple(found)


def _is(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape or not one.size:
        return False
    few = slice(SAMPLE)
    return bool(
        np.array_equal(one.flat[few], other.flat[few], equal_nan=True)
        and np.array_equal(one, other, equal_nan=True)
    )
