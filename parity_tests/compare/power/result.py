"""The smallest change of every tensor and setting that a comparison notices.

If no change of a weight can exceed a limit, the comparison proves nothing about that weight. `Power` is plain
data; `measure` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

THRESHOLD = 0.01  # a tensor or setting that can change by more than this unnoticed counts as not compared
BIT_FOR_BIT = "bit for bit"
_SETTINGS = ("epsilon", "momentum", "slope", "constant")


@dataclass(frozen=True)
class Sensitivity:
    """The smallest noticed change of one tensor or setting.

    Attributes:
        name: canonical, such as "layer1.0.bn1.running_var"; a setting is "layer1.0.bn1.eps".
        kind: "weight", "statistic", "buffer"; for a setting "epsilon", "momentum", "slope", "constant".
        smallest: the smallest noticed relative change: 0 if the tensors are compared bit for bit, infinite if
            no change is noticed. A tensor is scaled as a whole and moved in a random direction; this is the
            larger figure. A tensor or setting of zeros is moved by absolute amounts.
        point: the compared point that notices it; "bit for bit"; "" for none.
        unseen: number of single elements that could become 0 unnoticed; None for a setting or if not counted.
        elements: number of elements that are not 0.
    """

    name: str
    kind: str
    smallest: float
    point: str
    unseen: int | None = None
    elements: int | None = None

    @property
    def is_setting(self) -> bool:
        return self.kind in _SETTINGS


@dataclass
class Power:
    """The sensitivity of one comparison to every tensor and setting of the compared models.

    Attributes:
        items: tensors and settings, in the order of the model.
        reason: why nothing was measured; "" after a measurement.
    """

    items: list[Sensitivity] = field(default_factory=list)
    reason: str = ""

    def without_power(self, threshold: float = THRESHOLD) -> list[Sensitivity]:
        """The tensors and settings that could change by more than `threshold` unnoticed."""
        return [item for item in self.items if not item.smallest <= threshold]

    def weakest(self, count: int = 5) -> list[Sensitivity]:
        """The tensors and settings that need the largest changes to be noticed, the weakest first."""
        return sorted(self.items, key=lambda item: -item.smallest)[:count]

    def of_layers(self) -> dict[str, float]:
        """Layer -> the smallest change that is noticed in every one of its tensors and settings."""
        found: dict[str, float] = {}
        for item in self.items:
            layer = item.name.rpartition(".")[0]
            found[layer] = max(item.smallest, found.get(layer, 0.0))
        return found

    def dead(self) -> list[Sensitivity]:
        """The tensors with single elements that could become 0 unnoticed, the most elements first."""
        return sorted((item for item in self.items if item.unseen), key=lambda item: -(item.unseen or 0))

    def caveat(self, threshold: float = THRESHOLD) -> str:
        """ "without power for ...", to follow "holds, but"; "" if everything has power."""
        weak = self.without_power(threshold)
        kinds = {kind: [item for item in weak if item.kind == kind] for kind in dict.fromkeys(_kinds(weak))}
        return f"without power for: {'; '.join(map(_group, kinds.values()))}" if weak else ""

    def summary(self) -> str:
        """One line: the smallest noticed changes, and the single elements that could vanish unnoticed."""
        if self.reason:
            return f"power was not measured: {self.reason}"
        if not self.items:
            return "power: the model has neither tensors nor settings"
        parts = [_noticed("tensor", [i for i in self.items if not i.is_setting])]
        parts += [_noticed("setting", [i for i in self.items if i.is_setting])]
        line = ", ".join(filter(None, parts))
        if dead := self.dead():
            total = sum(item.unseen or 0 for item in dead)
            more = f" and {len(dead) - 1} more" if len(dead) > 1 else ""
            line += f"; {total:,} single elements could be 0 unseen, in {dead[0].name}{more}: dead units"
        return line

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; infinity is the string "inf"."""
        items = [
            asdict(item) | ({} if math.isfinite(item.smallest) else {"smallest": "inf"})
            for item in self.items
        ]
        weak = [item.name for item in self.without_power()]
        return {"summary": self.summary(), "reason": self.reason, "without_power": weak, "items": items}


def best_of(powers: Iterable[Power]) -> Power:
    """The combined power of several comparisons of the same models: the best figures of each item.

    A float32 comparison cannot notice every epsilon that a float64 comparison notices.
    """
    powers = list(powers)
    best: dict[str, Sensitivity] = {}
    for item in (item for power in powers for item in power.items):
        known = best.get(item.name, item)
        first = min(known, item, key=lambda one: one.smallest)
        counts = [one.unseen for one in (known, item) if one.unseen is not None]
        best[item.name] = replace(first, unseen=min(counts, default=None))
    reasons = "; ".join(dict.fromkeys(power.reason for power in powers if power.reason))
    return Power(list(best.values()), "" if best else reasons)


def _kinds(items: Iterable[Sensitivity]) -> list[str]:
    return [item.kind for item in items]


def _noticed(what: str, items: list[Sensitivity]) -> str:
    """The smallest noticed change of all tensors, or of all settings."""
    if not items:
        return ""
    worst = max(items, key=lambda item: item.smallest)
    if worst.smallest == 0:
        return f"any change of any {what} would have been seen"
    if worst.smallest < math.inf:
        return f"a change of {worst.smallest:.0e} in any {what} would have been seen (weakest: {worst.name})"
    hidden = [item for item in items if item.smallest == math.inf]
    return f"no change in {_listed(hidden, lambda item: item.name)} would have been seen"


def _group(items: list[Sensitivity]) -> str:
    """Several items of one kind: "epsilon layer1.0.bn1.eps (4e-01)"."""
    return f"{items[0].kind} {_listed(items, _with_change)}"


def _with_change(item: Sensitivity) -> str:
    change = "any change" if item.smallest == math.inf else f"{item.smallest:.0e}"
    return f"{item.name} ({change})"


def _listed(items: list[Sensitivity], text: Callable[[Sensitivity], str], most: int = 3) -> str:
    """The first few items, and the number of others."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(text, items[:most])) + more
