"""A file's names as interpreted by one layout: wrappers and scopes, canonical names, and the rest.

A name *as read* is the name in the file after the user's own names (`mapping.py`), without the user's prefix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from weights_convert.errors import SourceError, nearest
from weights_convert.families.base import Family
from weights_convert.formats.base import Reader, TensorInfo, one_line
from weights_convert.identify.misfits import misfits
from weights_convert.layouts import Layout, skeleton
from weights_convert.mapping import OwnNames
from weights_convert.spec import Parameter, Spec

# DataParallel, torch.compile, and the attributes under which training code keeps the network
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
_MOST_WRAPPERS = 10  # nested


@dataclass
class Reading:
    """A file's names as interpreted by one layout.

    Attributes:
        values: keywords of the spec implied by the variant of the names.
        prefix: the prefix of the network's names.
        scopes: the scopes of several networks.
        names: canonical name -> names in the file of the parts of that tensor.
        extra: names in the file that the layout does not know.
        outside: names in the file of tensors that are not the network's.
        head: the module of the classifier, if it is not where the layout has it.
        heads: modules that may be the classifier, if there are several.
        maybe: modules that fit as the classifier, but have no usual name.
        left_out: bookkeeping, and names outside the requested prefix or scope.
    """

    family: Family
    layout: Layout
    values: Mapping[str, Any]
    prefix: str = ""
    scopes: list[str] = field(default_factory=list)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    extra: dict[str, tuple[int, ...]] = field(default_factory=dict)
    outside: dict[str, tuple[int, ...]] = field(default_factory=dict)
    head: str = ""
    heads: tuple[str, ...] = ()
    maybe: tuple[str, ...] = ()
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
        """As the function; with hints also the tensors outside, any of which may be one that is missing."""
        extra = self.extra | self.outside if hints else self.extra
        return misfits(spec, self.infos(reader), extra, self.layout, self.prefix, self.names, hints)


@dataclass
class Inside:
    """The names as read with a prefix, without the prefix; and the names in the file of all others."""

    shapes: dict[str, tuple[int, ...]]
    outside: dict[str, tuple[int, ...]]
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
        prefix: the requested beginning of the names of the network.
        names: the user's own names.

    Attributes:
        files: name as read -> name in the file.
    """

    def __init__(
        self, reader: Reader, scope: str | None, prefix: str | None = None, names: OwnNames | None = None
    ):
        self.reader, self.scope = reader, scope
        own = names.ours(reader.tensors, reader.path) if names else dict.fromkeys(reader.tensors)
        self.files = {new: old if old is not None else new for new, old in own.items()}
        self.start = "" if prefix is None else _start(reader, prefix)
        renamed = {new for new, old in self.files.items() if new != old}
        self._others = {
            file: f"outside the prefix {self.start!r}"
            for new, file in self.files.items()
            if not file.startswith(self.start) and new not in renamed
        }
        self.files = {
            new.removeprefix(self.start): old for new, old in self.files.items() if old not in self._others
        }
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
        reading = self._reading(family, layout, values, prefix, scopes)
        if 2 * sum(len(inside.kinds[kind]) for kind in known) < len(inside.shapes):
            reading.extra = {self.files[prefix + name]: shape for name, shape in inside.shapes.items()}
            return reading
        return self._filled(reading, inside.shapes, layout.assign(inside.shapes))

    def read_for(self, family: Family, spec: Spec) -> Reading | None:
        """The file's names interpreted for a known network; None if the requested scope does not exist."""
        layout = family.layout_of(spec)
        prefix, scopes = self.prefix(layout)
        if prefix is None:
            return None
        inside = self.inside(layout, prefix)
        reading = self._reading(family, layout, {}, prefix, scopes)
        return self._filled(reading, inside.shapes, _assigned(layout, spec, inside.shapes))

    def read_inside(
        self, family: Family, layout: Layout, values: Mapping[str, Any], prefix: str, spec: Spec | None = None
    ) -> Reading | None:
        """The network with a prefix, with every tensor that is not below the network's modules outside.

        Args:
            values: as in `Reading`.
            spec: the network, if known.
        """
        inside = self.inside(layout, prefix)
        known = {kind for kind, names in inside.kinds.items() if layout.knows(names[-1])}
        roots = {_root(kind) for kind in known}
        shapes = {
            name: inside.shapes[name]
            for kind, names in inside.kinds.items()
            if _root(kind) in roots
            for name in names
        }
        if not known or 2 * sum(len(inside.kinds[kind]) for kind in known) < len(shapes):
            return None
        reading = self._reading(family, layout, values, prefix, [])
        others = {self.files[prefix + n]: shape for n, shape in inside.shapes.items() if n not in shapes}
        reading.outside = inside.outside | others
        assigned = layout.assign(shapes) if spec is None else _assigned(layout, spec, shapes)
        return self._filled(reading, shapes, assigned)

    def _reading(
        self, family: Family, layout: Layout, values: Mapping[str, Any], prefix: str, scopes: list[str]
    ) -> Reading:
        _, left_out = self.weights(layout)
        reading = Reading(family, layout, values, prefix, scopes, left_out=left_out | self._others)
        if layout.scoped:
            outside = self.inside(layout, prefix).outside
            reading.left_out |= dict.fromkeys(outside, f"outside the prefix {prefix!r}")
        return reading

    def _filled(
        self, reading: Reading, inside: Mapping[str, tuple[int, ...]], assigned: Mapping[str, tuple[str, ...]]
    ) -> Reading:
        file = {name: self.files[reading.prefix + name] for name in inside}
        reading.names = {c: tuple(file[name] for name in names) for c, names in assigned.items()}
        used = {name for names in assigned.values() for name in names}
        reading.extra = {file[name]: shape for name, shape in inside.items() if name not in used}
        return reading

    def weights(self, layout: Layout) -> tuple[list[str], dict[str, str]]:
        """The names as read of weights, and the other names in the file with descriptions."""
        if layout.bookkeeping not in self._weights:
            names, left_out = [], {}
            for name, file in self.files.items():
                found = (what for pattern, what in layout.bookkeeping if pattern.fullmatch(name))
                if (what := next(found, None)) is None:
                    names.append(name)
                else:
                    left_out[file] = f"{what} {self.reader.tensors[file].shape}"
            self._weights[layout.bookkeeping] = names, left_out
        return self._weights[layout.bookkeeping]

    def inside(self, layout: Layout, prefix: str) -> Inside:
        """The weights with a prefix, and everything else."""
        key = layout.bookkeeping, prefix
        if key not in self._insides:
            names, left_out = self.weights(layout)
            tensors, files = self.reader.tensors, self.files
            shapes = {n.removeprefix(prefix): tensors[files[n]].shape for n in names if n.startswith(prefix)}
            outside = {files[n]: tensors[files[n]].shape for n in names if not n.startswith(prefix)}
            self._insides[key] = Inside(shapes, outside, left_out)
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
        scope = self.scope if self.scope is not None else self.reader.said("scope", str)
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


def _assigned(layout: Layout, spec: Spec, shapes: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Canonical name -> names as read of the parts of that tensor, for a known network."""
    there = {name: canonical for canonical, name in layout.names(spec).items() if name is not None}
    assigned: dict[str, tuple[str, ...]] = {there[n]: (n,) for n in shapes if n in there}
    rest = {name: shape for name, shape in shapes.items() if name not in there}
    for canonical, names in layout.assign(rest).items():  # parts of tensors, and another network's names
        assigned.setdefault(canonical, names)
    return assigned


def _root(kind: str) -> str:
    """The first module of a name's skeleton."""
    return re.split(r"[./]", kind, maxsplit=1)[0]


def _start(reader: Reader, prefix: str) -> str:
    """The requested prefix with the separator that follows it in the file.

    Raises:
        SourceError: no name begins with it.
    """
    for start in (f"{prefix.rstrip('./')}.", f"{prefix.rstrip('./')}/") if prefix else ("",):
        if any(name.startswith(start) for name in reader.tensors):
            return start
    first = list(dict.fromkeys(re.split(r"[./]", name, maxsplit=1)[0] for name in reader.tensors))
    known = one_line(", ".join(first[:6]))
    raise SourceError(
        f"{reader.path}: no name begins with {prefix!r}{nearest(prefix, first)}; its names begin with {known}"
    )
