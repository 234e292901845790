"""A file's names as one layout reads them: wrappers and scopes, canonical names, and what is left over."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from weights_convert.families.base import Family
from weights_convert.formats.base import Reader, TensorInfo
from weights_convert.identify.misfits import misfits
from weights_convert.layouts import Layout, skeleton
from weights_convert.spec import Parameter, Spec

# DataParallel, torch.compile, and the attributes under which training code keeps the network
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
_MOST_WRAPPERS = 10  # around one another


@dataclass
class Reading:
    """A file's names as one layout reads them.

    Attributes:
        values: keywords of the spec that the variant of the names means.
        prefix: what stands before every name.
        scopes: where there are several networks.
        names: canonical name -> names in the file, of the parts of that tensor.
        extra: names in the file that the layout has no place for.
        left_out: bookkeeping, and what is outside the prefix.
    """

    family: Family
    layout: Layout
    values: Mapping[str, Any]
    prefix: str = ""
    scopes: list[str] = field(default_factory=list)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    extra: dict[str, tuple[int, ...]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def infos(self, reader: Reader) -> dict[str, TensorInfo]:
        """Canonical name -> shape as the file keeps it, and dtype."""
        return {canonical: self.info(reader, canonical) for canonical in self.names}

    def info(self, reader: Reader, canonical: str) -> TensorInfo:
        """Shape as the file keeps it, and dtype."""
        parts = [reader.tensors[name] for name in self.names[canonical]]
        shape = parts[0].shape
        if len(parts) > 1:  # side by side along the last axis
            shape = (*shape[:-1], sum(part.shape[-1] for part in parts if part.shape))
            if any(part.shape[:-1] != shape[:-1] for part in parts):
                shape = ()
        return TensorInfo(shape, parts[0].dtype)

    def shapes(self, reader: Reader, like: Callable[[str], Parameter | None]) -> dict[str, tuple[int, ...]]:
        """Canonical names and shapes, before the network is known.

        Args:
            like: the parameter whose role a canonical name has, in networks of one kind.
        """
        found = {}
        for name in self.names:
            shape, parameter = self.info(reader, name).shape, like(name)
            found[name] = self.layout.stored(parameter).canonical_shape(shape) if parameter else shape
        return found

    def misfits(self, reader: Reader, spec: Spec, hints: bool = True) -> list[str]:
        return misfits(spec, self.infos(reader), self.extra, self.layout, self.prefix, self.names, hints)


def readings(reader: Reader, family: Family, scope: str | None) -> list[Reading]:
    """The file's names as a family may have meant them."""
    _, layout = family.layouts(())[0]
    prefix, _ = _prefix(reader, layout, scope)
    if prefix is None:
        return []
    modules = {re.sub(r"[./][^./]*$", "", name.removeprefix(prefix)) for name in reader.tensors}
    found = [read_as(reader, family, layout, values, scope) for values, layout in family.layouts(modules)]
    return [reading for reading in found if reading is not None]


def read_as(
    reader: Reader, family: Family, layout: Layout, values: Mapping[str, Any], scope: str | None
) -> Reading | None:
    """The file's names read by one layout; None where hardly any of them are its own."""
    reading, inside = _begun(reader, family, layout, values, scope)
    if reading is None:
        return None
    # of names that differ in numbers only, one tells whether the layout knows them
    kinds = Counter(map(skeleton, inside))
    examples = {skeleton(name): name for name in inside}
    if 2 * sum(n for kind, n in kinds.items() if layout.knows(examples[kind])) < len(inside):
        reading.extra = {reading.prefix + name: shape for name, shape in inside.items()}
        return reading if any(layout.knows(name) for name in examples.values()) else None
    return _filled(reading, inside, layout.assign(inside))


def read_for(reader: Reader, family: Family, spec: Spec, scope: str | None) -> Reading | None:
    """The file's names read for a known network; None where the scope that is asked for is missing."""
    layout = family.layout_of(spec)
    reading, inside = _begun(reader, family, layout, {}, scope)
    if reading is None:
        return None
    there = {name: canonical for canonical, name in layout.names(spec).items() if name is not None}
    assigned: dict[str, tuple[str, ...]] = {there[n]: (n,) for n in inside if n in there}
    rest = {name: shape for name, shape in inside.items() if name not in there}
    for canonical, names in layout.assign(rest).items():  # parts of tensors, and names of another network
        assigned.setdefault(canonical, names)
    return _filled(reading, inside, assigned)


def _begun(
    reader: Reader, family: Family, layout: Layout, values: Mapping[str, Any], scope: str | None
) -> tuple[Reading | None, dict[str, tuple[int, ...]]]:
    """A reading without names, and the names and shapes behind its prefix."""
    reading = Reading(family, layout, values)
    prefix, reading.scopes = _prefix(reader, layout, scope)
    inside: dict[str, tuple[int, ...]] = {}
    if prefix is None:
        return None, inside
    reading.prefix = prefix
    for name, info in reader.tensors.items():
        known = next((what for pattern, what in layout.bookkeeping if pattern.fullmatch(name)), None)
        if known:
            reading.left_out[name] = f"{known} {info.shape}"
        elif not name.startswith(prefix):
            reading.left_out[name] = f"outside the prefix {prefix!r}"
        else:
            inside[name.removeprefix(prefix)] = info.shape
    return reading, inside


def _filled(
    reading: Reading, inside: Mapping[str, tuple[int, ...]], assigned: Mapping[str, tuple[str, ...]]
) -> Reading:
    prefix = reading.prefix
    reading.names = {c: tuple(prefix + name for name in names) for c, names in assigned.items()}
    used = {name for names in assigned.values() for name in names}
    reading.extra = {prefix + name: shape for name, shape in inside.items() if name not in used}
    return reading


def _prefix(reader: Reader, layout: Layout, scope: str | None) -> tuple[str | None, list[str]]:
    """What stands before every name: a wrapper's `module.`, or the TF1 scope; and all scopes there are.

    None where the scope that was asked for is not there.
    """
    # an optimiser's or an average's entries are not below the wrapper
    names = [n for n in reader.tensors if not any(p.fullmatch(n) for p, _ in layout.bookkeeping)]
    if not layout.scoped:
        prefix = ""
        for _ in range(_MOST_WRAPPERS if names else 0):
            prefix += next((w for w in _WRAPPERS if all(n.startswith(prefix + w) for n in names)), "")
        return ("" if layout.tensorflow_axes else prefix), []
    scope = scope if scope is not None else reader.said("scope", str)
    if scope is not None:
        prefix = f"{scope.rstrip('/')}/" if scope else ""
        return (prefix if any(name.startswith(prefix) for name in names) else None), []
    for mark in layout.marks:
        found = {match[1] for name in names if (match := re.fullmatch(rf"(|.*/){mark}", name))}
        outer: list[str] = []
        for scope in sorted(found):  # what begins with another scope comes behind it
            if not outer or not scope.startswith(outer[-1]):
                outer.append(scope)
        if outer:
            return outer[0], outer if len(outer) > 1 else []
    return "", []
