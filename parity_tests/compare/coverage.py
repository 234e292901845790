"""Pairs the layers of two models and counts how much of each was compared.

Parity does not hold if a layer with weights, an output or a running statistic was not compared, unless the
caller names it in `ignore`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from parity_tests.compare.report import Coverage
from parity_tests.compare.statistics import statistic_names
from parity_tests.watch.repeat import Watched
from parity_tests.watch.structure import paired
from parity_tests.watch.trace import Trace, Weights, covers
from weights_convert.errors import MismatchError, SpecError

OWN = "the model's own weights"  # weights outside all layers, if the model has no output


class Ignored:
    """Layers, outputs and statistics that need no comparison, each including everything inside it."""

    def __init__(self, ignore: Iterable[str] = ()) -> None:
        self.entries = (ignore,) if isinstance(ignore, str) else tuple(ignore)
        for entry in self.entries:
            if not isinstance(entry, str) or not entry:
                raise SpecError(f"ignore={entry!r}: expected names of layers, outputs or statistics")

    def __contains__(self, name: object) -> bool:
        return any(covers(entry, str(name)) for entry in self.entries)

    def check(self, names: Iterable[str]) -> None:
        """Raise `MismatchError` for an entry that names nothing: probably a typing error."""
        known = list(names)
        unknown = [entry for entry in self.entries if not any(covers(entry, name) for name in known)]
        if unknown:
            raise MismatchError(f"ignore=: nothing is called {', '.join(map(repr, unknown))} in either model")


class Renamed:
    """A candidate's run under the reference's names; `own` maps them to the candidate's names."""

    def __init__(self, reference: Trace, watched: Watched, names: Mapping[str, str] | None) -> None:
        self._ours = {theirs: name for name, theirs in (names or {}).items()}
        self._taken = set(names or {})
        pairs = {name: self.name(name, call.layer) for name, call in watched.trace.items()}
        own = {*watched.trace.outputs}
        pairs = {n: new if n in own else _first_tensor(new, reference) for n, new in pairs.items()}
        outputs = paired(reference.outputs, [pairs[name] for name in watched.trace.outputs])
        final = {name: outputs.get(new, new) for name, new in pairs.items()}
        self.trace = Trace({new: watched.trace[name] for name, new in final.items()})
        self.trace.outputs = [final[name] for name in watched.trace.outputs]
        self.trace.opaque = watched.trace.opaque
        self.trace.moved = watched.trace.moved
        self.trace.exported, self.trace.fused = watched.trace.exported, watched.trace.fused
        self.own = {new: name for name, new in final.items()}
        self.weighted = {self.name(name, name): weights for name, weights in watched.weighted.items()}
        self.unstable = {final.get(name, name): error for name, error in watched.unstable.items()}
        self.statistics = statistic_names(watched, lambda layer: self.name(layer, layer))

    def name(self, name: str, layer: str) -> str:
        """The reference's name of a call; a layer whose name `names` gives to another one is renamed."""
        if name in self._ours:
            return self._ours[name]
        if layer in self._ours:
            return self._ours[layer] + name[len(layer) :]
        return f"{name} (the candidate's own)" if layer in self._taken or name in self._taken else name


def _first_tensor(name: str, reference: Trace) -> str:
    """The reference's name of a layer that returns a tuple on one side and its first tensor on the other."""
    if name in reference:
        return name
    other = name.removesuffix(" 0") if name.endswith(" 0") else f"{name} 0"
    return other if other in reference and other not in reference.outputs else name


def covers_call(layer: str, name: str) -> bool:
    """Whether a name in a trace is a call of a layer, or a tensor of one."""
    return name == layer or name.startswith((f"{layer}#", f"{layer} "))


def coverage(
    trace: Trace,
    weighted: Mapping[str, Weights],
    statistics: Iterable[str],
    compared: set[str],
    common: Collection[str],
    ignored: Ignored,
) -> Coverage:
    """How much of one model was compared.

    Args:
        trace: its calls, under the reference's names.
        weighted: the layers with weights, under the same names.
        statistics: names of the running statistics; none in eval mode.
        compared: names of the compared points.
        common: names in both traces. A tensor that only one side returns is left out in peace if another
            tensor of the same call was compared; what uses it is compared itself.
        ignored: names that need no comparison.
    """
    missing, done = [], []
    outputs = [name for name in trace.outputs if name in compared]
    missing += [name for name in (*trace.outputs, *trace.opaque) if name not in compared]
    for layer in weighted:
        calls = trace.outputs if not layer else [name for name in trace if covers_call(layer, name)]
        done_calls = {name.partition(" ")[0] for name in calls if name in compared}
        left = [
            name
            for name in calls
            if name not in compared
            and (not layer or name in common or name.partition(" ")[0] not in done_calls)
        ]
        if calls and not left:
            done.append(layer)
        elif calls:
            missing += [name for name in left if name not in missing]
        else:
            missing.append(layer or OWN)
    statistics = list(statistics)
    missing += [name for name in statistics if name not in compared]
    sizes = [weighted[layer] for layer in done]
    return Coverage(
        points=(sum(name in compared for name in trace), len(trace)),
        outputs=(len(outputs), len(trace.outputs) + len(trace.opaque)),
        tensors=(sum(size.tensors for size in sizes), sum(size.tensors for size in weighted.values())),
        parameters=(sum(s.parameters for s in sizes), sum(s.parameters for s in weighted.values())),
        statistics=(sum(name in compared for name in statistics), len(statistics)),
        left_out=[name for name in missing if name not in ignored],
        ignored=[name for name in missing if name in ignored],
    )
