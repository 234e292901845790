"""Pairs layers by shapes and the layers that feed them, and one layer with the several that it stands for.

The layers that feed a layer are measured, in any framework: the output of one layer is changed, and every
layer whose input changes then depends on it. The weights are random meanwhile, because some have no effect
as they are: the last scale of a residual branch is often 0 at first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from parity_tests.judge import tolerances
from parity_tests.watch.repeat import Watched, run
from parity_tests.watch.trace import Call, Tracer

_ROUNDING = 1e-6  # relative change of an input that counts
_MOST = 400  # layers with weights: each takes a run
Feeders = Mapping[str, frozenset[str]]  # layer -> the layers with weights that reach it
Shapes = Callable[[str], Sequence[tuple[int, ...]]]


def feeders(watched: Watched, tracer: Tracer, inputs: np.ndarray) -> Feeders | None:
    """The layers with weights that reach each layer with weights; None for too many of them."""
    layers = [layer for layer in watched.weighted if layer]
    if len(layers) > _MOST:
        return None
    found: dict[str, set[str]] = {layer: set() for layer in layers}
    tracer.stir()
    try:
        trace = run(tracer, inputs, False)
        for layer in layers:
            changed = {
                name: [_changed(call.output)]
                for name, call in trace.items()
                if call.layer == layer and call.output.dtype.kind == "f"
            }
            for name, call in tracer.run_corrected(inputs, changed).items():
                if (
                    call.layer in found
                    and call.layer != layer
                    and name in trace
                    and _differ(call, trace[name])
                ):
                    found[call.layer].add(layer)
    finally:
        tracer.restore()
    return {layer: frozenset(reached) for layer, reached in found.items()}


def _differ(one: Call, other: Call) -> bool:
    """Whether the inputs of two calls differ by more than rounding."""
    pairs = zip((one.input, *one.others), (other.input, *other.others), strict=False)
    return any(tolerances.relative_error(now, then) > _ROUNDING for now, then in pairs if then.size)


def _changed(array: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=array.shape) * (np.abs(array).mean() or 1.0)
    return (array + noise).astype(array.dtype)


def pair_by_feeders(
    sides: tuple[Feeders, Feeders],
    shapes: tuple[Shapes, Shapes],
    known: Mapping[str, str],
    missing: Collection[str],
    extra: Collection[str],
) -> dict[str, str]:
    """Pairs of layers of equal shapes that the same known layers feed, and that feed the same ones.

    Args:
        sides: of the reference and of the candidate.
        shapes: layer -> shapes of its weights, of each side.
        known: pairs that are certain: layer of the reference -> of the candidate.
        missing, extra: layers without a counterpart.
    """
    pairs: dict[str, str] = {}
    for keys in (_of_known, _of_all):
        while True:
            certain = {**known, **pairs}
            names = ({a: a for a in certain}, {b: a for a, b in certain.items()})
            keyed = [keys(side, shape, name) for side, shape, name in zip(sides, shapes, names, strict=True)]
            new = _unique(
                {layer: keyed[0][layer] for layer in missing if layer not in pairs and layer in keyed[0]},
                {
                    layer: keyed[1][layer]
                    for layer in extra
                    if layer not in pairs.values() and layer in keyed[1]
                },
            )
            if not new:
                break
            pairs |= new
    return pairs


def _of_known(side: Feeders, shapes: Shapes, names: Mapping[str, str]) -> dict[str, Any]:
    """The key of each layer: its shapes, and the known layers before and after it."""
    found = {}
    for layer, before in side.items():
        after = {other for other, reached in side.items() if layer in reached}
        around = [frozenset(names[other] for other in others if other in names) for others in (before, after)]
        found[layer] = (tuple(sorted(shapes(layer))), *around)
    return found


def _of_all(side: Feeders, shapes: Shapes, names: Mapping[str, str]) -> dict[str, Any]:
    """The key of each layer: its shapes, and the keys of all layers before and after it."""
    colours = {layer: hash((names.get(layer), tuple(sorted(shapes(layer))))) for layer in side}
    for _ in range(len(side)):
        refined = {}
        for layer, before in side.items():
            after = [other for other, reached in side.items() if layer in reached]
            around = [tuple(sorted(colours[other] for other in others)) for others in (before, after)]
            refined[layer] = hash((colours[layer], *around))
        if len({*refined.values()}) == len({*colours.values()}):
            return refined
        colours = refined
    return dict(colours)


def _unique(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, str]:
    """Pairs of names whose keys only one name on each side has."""
    owners: dict[Any, tuple[list[str], list[str]]] = {}
    for side, keyed in enumerate((ours, theirs)):
        for name, key in keyed.items():
            owners.setdefault(key, ([], []))[side].append(name)
    return {left[0]: right[0] for left, right in owners.values() if len(left) == len(right) == 1}


def last_of_group(layers: Sequence[str], shapes: Shapes, wanted: Iterable[tuple[int, ...]]) -> str | None:
    """The last of several layers in a row that have the matrices and kernels of one layer of the other side.

    None if no row of layers has these shapes, or more than one.
    """
    target = sorted(_large(wanted))
    found = []
    for start in range(len(layers)):
        for end in range(start + 2, len(layers) + 1):
            if target and sorted(s for layer in layers[start:end] for s in _large(shapes(layer))) == target:
                found.append(layers[end - 1])
    return found[0] if len({*found}) == 1 else None


def numbers(shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The number of values in a layer's kernels: what is left if its projections or biases are split."""
    large = sum(math.prod(shape) for shape in _large(shapes))
    return [(large,)] if large else list(shapes)


def _large(shapes: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [shape for shape in shapes if len(shape) > 1]
