"""Layers that an exported graph does not show: fused into others, or folded into constants.

They are judged at the next layer that the graph shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from parity_tests.compare.neighbours import Judged
from parity_tests.watch.trace import Trace


def hidden(
    calls: Iterable[str],
    trace: Trace,
    other: Trace,
    judged: Mapping[str, Judged],
    limits: Mapping[str, float],
) -> set[str]:
    """The calls of layers with weights, which only one side has, that an exported graph explains.

    Further layers of the graph itself are judged by what they give to the next common one. A layer that the
    graph lacks counts as missing only if the layer before it is right and the next one is wrong.

    Args:
        calls: those that only `trace` has.
        trace, other: both sides, under the names of the reference.
        judged, limits: of the common calls.
    """
    if trace.exported:
        return {*calls}
    if not other.exported:
        return set()
    right = {name for name, found in judged.items() if found.error <= limits[name]}
    named = {trace[name].layer for name in judged}
    names = list(trace)

    def explained(name: str) -> bool:
        if other.fused.get(trace[name].layer) in named:
            return True
        following = next((later for later in names[names.index(name) + 1 :] if later in judged), None)
        before = [
            other_name
            for other_name in judged
            if other_name in right and not judged[other_name].group and _leads_to(trace, other_name, name)
        ]
        return following in right or not before

    return {name for name in calls if explained(name)}


def _leads_to(trace: Trace, one: str, name: str) -> bool:
    """Whether a layer takes the output of another one directly."""
    output, entered = trace[one].output, trace[name].input
    return one not in trace.outputs and output.shape == entered.shape and np.array_equal(output, entered)
