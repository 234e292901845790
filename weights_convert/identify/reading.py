"""A file's names as interpreted by one layout: wrappers and scopes, canonical names, and the rest."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from weights_convert.families.base import Family
from weights_convert.formats.base import Reader, TensorInfo
from weights_convert.identify.misfits import misfits
from weights_convert.layouts import Layout, skeleton
from weights_convert.spec import Parameter, Spec

# DataParallel, torch.compile, and the attributes under which training code keeps the network
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
_MOST_WRAPPERS = 10  # nested


@dataclass
class Reading:
    """A file's names as interpreted by one layout.

    Attributes:
        values: keywords of the spec implied by the variant of the names.
        prefix: the prefix of every name.
        scopes: the scopes of several networks.
        names: canonical name -> names in the file of the parts of that tensor.
        extra: names in the file that the layout does not know.
        left_out: bookkeeping, and names outside the prefix.
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
        """Canonical name -> shape in the file, and dtype."""
        return {canonical: self.info(reader, canonical) for canonical in self.names}

    def info(self, reader: Reader, canonical: str) -> TensorInfo:
        """Shape in the file, and dtype."""
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
            like: canonical name -> parameter with its role, in networks of one kind.
        """
        found = {}
        for name in self.names:
            shape, parameter = self.info(reader, name).shape, like(name)
            found[name] = self.layout.stored(parameter).canonical_shape(shape) if parameter else shape
        return found

    def misfits(self, reader: Reader, spec: Spec, hints: bool = True) -> list[str]:
        return misfits(spec, self.infos(reader), self.extra, self.layout, self.prefix, self.names, hints)


@dataclass
class Inside:
    """The names with a prefix, without the prefix."""

    shapes: dict[str, tuple[int, ...]]
    left_out: dict[str, str]

    @cached_property
    def kinds(self) -> dict[str, list[str]]:
        """Names by their skeleton: of names that differ only in numbers, a layout knows all or none."""
        kinds: dict[str, list[str]] = {}
        for name in self.shapes:
            kinds.setdefault(skeleton(name), []).append(name)
        return kinds

    @cached_property
    def modules(self) -> set[str]:
        """The names without their leaves."""
        return {re.sub(r"[./][^./]*$", "", name) for name in self.shapes}


class Listing:
    """The tensors of a file for the layouts; results shared by several layouts are computed once.

    Args:
        reader: of the file.
        scope: the requested variable scope in a TF1 checkpoint.
    """

    def __init__(self, reader: Reader, scope: str | None):
        self.reader, self._scope = reader, scope
        self._weights: dict[Any, tuple[list[str], dict[str, str]]] = {}
        self._prefixes: dict[Any, tuple[str | None, list[str]]] = {}
        self._insides: dict[Any, Inside] = {}

    def readings(self, family: Family) -> list[Reading]:
        """All interpretations of the file's names by a family."""
        _, layout = family.layouts(())[0]
        prefix, _ = self.prefix(layout)
        if prefix is None:
            return []
        layouts = family.layouts(self.inside(layout, prefix).modules)
        found = [self.read_as(family, layout, values) for values, layout in layouts]
        return [reading for reading in found if reading is not None]

    def read_as(self, family: Family, layout: Layout, values: Mapping[str, Any]) -> Reading | None:
        """The file's names interpreted by one layout; None if it knows hardly any of them."""
        prefix, scopes = self.prefix(layout)
        if prefix is None:
            return None
        inside = self.inside(layout, prefix)
        known = {kind for kind, names in inside.kinds.items() if layout.knows(names[-1])}
        if not known:
            return None
        reading = Reading(family, layout, values, prefix, scopes, left_out=inside.left_out)
        if 2 * sum(len(inside.kinds[kind]) for kind in known) < len(inside.shapes):
            reading.extra = {prefix + name: shape for name, shape in inside.shapes.items()}
            return reading
        return _filled(reading, inside.shapes, layout.assign(inside.shapes))

    def read_for(self, family: Family, spec: Spec) -> Reading | None:
        """The file's names interpreted for a known network; None if the requested scope does not exist."""
        layout = family.layout_of(spec)
        prefix, scopes = self.prefix(layout)
        if prefix is None:
            return None
        inside = self.inside(layout, prefix)
        there = {name: canonical for canonical, name in layout.names(spec).items() if name is not None}
        assigned: dict[str, tuple[str, ...]] = {there[n]: (n,) for n in inside.shapes if n in there}
        rest = {name: shape for name, shape in inside.shapes.items() if name not in there}
        for canonical, names in layout.assign(rest).items():  # parts of tensors, and another network's names
            assigned.setdefault(canonical, names)
        reading = Reading(family, layout, {}, prefix, scopes, left_out=inside.left_out)
        return _filled(reading, inside.shapes, assigned)

    def weights(self, layout: Layout) -> tuple[list[str], dict[str, str]]:
        """The names of weights, and the other names with descriptions."""
        if layout.bookkeeping not in self._weights:
            left_out = {}
            for name, info in self.reader.tensors.items():
                for pattern, what in layout.bookkeeping:
                    if pattern.fullmatch(name):
                        left_out[name] = f"{what} {info.shape}"
                        break
            names = [name for name in self.reader.tensors if name not in left_out]
            self._weights[layout.bookkeeping] = names, left_out
        return self._weights[layout.bookkeeping]

    def inside(self, layout: Layout, prefix: str) -> Inside:
        """The weights with a prefix, and everything else."""
        key = layout.bookkeeping, prefix
        if key not in self._insides:
            names, left_out = self.weights(layout)
            outside = {
                name: f"outside the prefix {prefix!r}" for name in names if not name.startswith(prefix)
            }
            tensors = self.reader.tensors
            shapes = {n.removeprefix(prefix): tensors[n].shape for n in names if n not in outside}
            self._insides[key] = Inside(shapes, left_out | outside)
        return self._insides[key]

    def prefix(self, layout: Layout) -> tuple[str | None, list[str]]:
        """The prefix of every name (a wrapper's `module.`, or the TF1 scope), and all scopes of the file.

        The prefix is None if the requested scope does not exist.
        """
        key = layout.bookkeeping, layout.scoped, layout.marks, layout.tensorflow_axes
        if key not in self._prefixes:
            self._prefixes[key] = self._find_prefix(layout)
        return self._prefixes[key]

    def _find_prefix(self, layout: Layout) -> tuple[str | None, list[str]]:
        names, _ = self.weights(layout)  # entries of an optimiser or an average lie outside the wrapper
        if not layout.scoped:
            return ("" if layout.tensorflow_axes else _wrapper(names)), []
        scope = self._scope if self._scope is not None else self.reader.said("scope", str)
        if scope is not None:
            prefix = f"{scope.rstrip('/')}/" if scope else ""
            return (prefix if any(name.startswith(prefix) for name in names) else None), []
        for mark in layout.marks:
            found = {match[1] for name in names if (match := re.fullmatch(rf"(|.*/){mark}", name))}
            outer: list[str] = []
            for scope in sorted(found):  # a scope sorts before the scopes that begin with it
                if not outer or not scope.startswith(outer[-1]):
                    outer.append(scope)
            if outer:
                return outer[0], outer if len(outer) > 1 else []
        return "", []


def _wrapper(names: Sequence[str]) -> str:
    """The prefix that wrapping modules add to every name."""
    prefix = ""
    for _ in range(_MOST_WRAPPERS if names else 0):
        prefix += next((w for w in _WRAPPERS if all(n.startswith(prefix + w) for n in names)), "")
    return prefix


def _filled(
    reading: Reading, inside: Mapping[str, tuple[int, ...]], assigned: Mapping[str, tuple[str, ...]]
) -> Reading:
    prefix = reading.prefix
    reading.names = {c: tuple(prefix + name for name in names) for c, names in assigned.items()}
    used = {name for names in assigned.values() for name in names}
    reading.extra = {prefix + name: shape for name, shape in inside.items() if name not in used}
    return reading
