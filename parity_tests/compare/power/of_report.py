"""The power of a comparison that holds: collects its points and limits and measures on a torch module."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from parity_tests.compare.coverage import Ignored, Renamed
from parity_tests.compare.power.result import Power
from parity_tests.compare.report import Report
from parity_tests.watch.trace import OUTPUT, Trace, Tracer


def power_of_report(
    report: Report,
    reference: Tracer,
    trace: Trace,
    candidates: Mapping[str, tuple[Tracer, Renamed]],
    inputs: np.ndarray,
    ignored: Ignored,
    bit_for_bit: Collection[str] = (),
) -> Power:
    """The smallest changes that a comparison notices, measured on the reference if it is a torch module.

    Points that were not compared with every candidate do not count; ignored items are omitted.
    """
    both = [name for name in report.candidates if name not in report.pairs]
    limits = {point.name: point.limit for point in report.layers if all(who in point.errors for who in both)}
    if reference.framework == "torch":
        module, own, layers = _module(reference), {}, trace
    else:
        torch = [(tracer, run) for tracer, run in candidates.values() if tracer.framework == "torch"]
        if not torch:
            return Power(reason="this needs a torch module, and none of the models is one")
        (tracer, run), *_ = torch
        module, own, layers = _module(tracer), run.own, run.trace
    from parity_tests.compare.power.measure import measure_power

    if reference.beside.others:
        return Power(reason="the models have several inputs")
    train, by_module = report.mode == "train", _by_module(limits, layers, own)
    try:
        power = measure_power(module, inputs, by_module, train=train, bit_for_bit=bit_for_bit)
    except Exception as error:  # a user's module may raise anything; the comparison itself holds already
        return Power(reason=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
    return Power([item for item in power.items if item.name not in ignored])


def _module(tracer: Tracer) -> Any:
    from parity_tests.watch.torch import TorchTracer

    assert isinstance(tracer, TorchTracer)
    return tracer.module


def _by_module(limits: Mapping[str, float], trace: Trace, own: Mapping[str, str]) -> dict[str, float]:
    """The limits under the calls of the torch module; for a call with several tensors the widest limit."""
    found: dict[str, float] = {}
    for name, limit in limits.items():
        call = own.get(name, name)
        if name in trace:
            layer = trace[name].layer
            number = call.removeprefix(layer).partition(" ")[0]
            call = f"{layer}{number}" if layer else OUTPUT
        found[call] = max(limit, found.get(call, 0.0))
    return found
