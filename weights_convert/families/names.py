"""Pairs of names, theirs and ours: patterns that translate a name in both directions.

Numbers in braces are copied, `{b+1}` is one more on that side, and `{part}` numbers the parts of a tensor
that is stored in several:

    >>> rules = Names({"features.stage{s}.unit{b+1}.body.conv{n}.conv": "layer{s}.{b}.conv{n}"}, ".")
    >>> rules.parse("features.stage2.unit1.body.conv3.conv.weight")
    'layer2.0.conv3.weight'
    >>> rules.rename(Parameter("layer2.0.conv3.weight", (64, 64, 1, 1), "conv2d"))
    'features.stage2.unit1.body.conv3.conv.weight'
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache, partial
from typing import NamedTuple

from weights_convert.layouts import KERAS_LEAVES, ROLES, from_tensorflow, like, skeleton
from weights_convert.spec import Parameter, Spec

PLACE = re.compile(r"\{(\w+)(?:\+(\d{1,4}))?\}")  # {b}, or {b+1}: one more on this side


class Rule(NamedTuple):
    """One direction of a pair of patterns."""

    source: str
    pattern: str  # of `source`, as a regular expression
    target: str
    shifts: dict[str, int]  # letter -> added to its number


Rules = dict[str, list[Rule]]  # by the skeleton of their names


class Names:
    """Pairs of module paths, usable in both directions; the first match counts."""

    def __init__(self, names: Mapping[str, str], separator: str, leaves: Mapping[str, str] | None = None):
        self.separator, self.leaves = separator, leaves or {}
        self._from_file = rules_of(names.items())
        self._to_file = rules_of((c, f) for f, c in names.items() if "{part}" not in f)
        self._in_parts = any("{part}" in file for file in names)
        # a module has up to five tensors
        self._module = lru_cache(maxsize=4096)(partial(translate, self._from_file))

    def knows(self, module: str) -> bool:
        """Whether the names include a module path of a file."""
        return self._module(module) is not None

    def parse(self, name: str) -> str | None:
        """The canonical name of a tensor in a file, or None."""
        path, _, leaf = name.removesuffix(":0").rpartition(self.separator)
        numbered = self.separator == "/" and leaf.isdigit() and path.endswith("/vars")  # in a Keras 3 file
        module = self._module(path.removesuffix("/vars") if numbered else path)
        if module is None:
            return None
        if numbered:
            leaf = KERAS_LEAVES[int(leaf)] if len(leaf) == 1 and int(leaf) < len(KERAS_LEAVES) else ""
        elif self.separator == "/":
            return from_tensorflow(module, self.leaves.get(leaf, leaf))
        return f"{module}.{leaf}" if like(f"{module}.{leaf}") else None

    def part(self, name: str) -> int:
        """The number of the part of a tensor that a name in a file stands for; 0 for a whole one."""
        if not self._in_parts:
            return 0
        path = name.removesuffix(":0").rpartition(self.separator)[0]
        for rule in self._from_file.get(skeleton(path), ()):
            if match := re.fullmatch(rule.pattern, path):
                return int(match.groupdict().get("part", 0))
        return 0

    def rename(self, parameter: Parameter, spec: Spec | None = None) -> str | None:  # noqa: ARG002
        """The inverse of `parse`."""
        module, _, leaf = parameter.name.rpartition(".")
        file = translate(self._to_file, module)
        if self.separator == "/":
            leaf = ROLES[parameter.role].tf or ""
        return f"{file}{self.separator}{leaf}" if file and leaf else None


def rules_of(pairs: Iterable[tuple[str, str]]) -> Rules:
    """The rules that translate the first pattern of each pair to the second."""
    rules: Rules = {}
    for source, target in pairs:
        letters = {letter: int(more or 0) for letter, more in PLACE.findall(source)}
        parts = itertools.zip_longest(PLACE.split(source)[::3], PLACE.findall(source))
        pattern = "".join(
            re.escape(text) + (f"(?P<{place[0]}>\\d{{1,9}})" if place else "") for text, place in parts
        )
        shifts = {letter: int(more or 0) - letters.get(letter, 0) for letter, more in PLACE.findall(target)}
        target = PLACE.sub(lambda m: f"{{{m[1]}}}", target)
        rule = Rule(source, pattern, target, {letter: shift for letter, shift in shifts.items() if shift})
        rules.setdefault(skeleton(PLACE.sub("0", source)), []).append(rule)
    return rules


def matched(rules: Rules, name: str) -> tuple[str, Rule] | None:
    """The translation of a name by the first rule that matches, with that rule."""
    for rule in rules.get(skeleton(name), ()):
        if match := re.fullmatch(rule.pattern, name):
            numbers = {letter: int(n) + rule.shifts.get(letter, 0) for letter, n in match.groupdict().items()}
            if min(numbers.values(), default=0) >= 0:
                return rule.target.format(**numbers), rule
    return None


def translate(rules: Rules, name: str) -> str | None:
    """The translation of a name, None if no rule matches."""
    found = matched(rules, name)
    return found and found[0]
