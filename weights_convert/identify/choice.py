"""Finds the network in a file and the family of its names, from names and shapes alone.

Every family interprets the file's names. Families whose tensors match by name and shape are candidates.
Candidates with the same tensors and the same spec count as one. If the numbers would differ, the user has to
choose, and the error lists the choices.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from weights_convert.errors import MismatchError, SourceError, SpecError, nearest
from weights_convert.families import FAMILIES
from weights_convert.families.base import Family
from weights_convert.formats.base import Reader, one_line
from weights_convert.identify.candidates import Candidate, candidates_of, inferred_networks, of_rows
from weights_convert.identify.inside import candidates_inside, nearest_network, networks, readings_for
from weights_convert.identify.misfits import describe, propose
from weights_convert.identify.others import spoils, what_is
from weights_convert.identify.reading import Listing, Reading
from weights_convert.spec import KINDS, Spec, changed, is_count

_MOST_SHOWN = 8  # tensors of an example


def identify(
    listing: Listing,
    *,
    model: str | None = None,
    settings: Mapping[str, Any] | None = None,
    family: str | None = None,
) -> Candidate:
    """The network in the file, or inside it.

    Args:
        model: NAME, an architecture of `spec.MODELS`, or FAMILY:NAME, a name used by the family.
        settings: known keywords of the spec.
        family: the naming of the tensors.

    Raises:
        MismatchError: the tensors match no family, or several families that compute different numbers.
    """
    reader, label, spelled = listing.reader, None, None
    settings = dict(settings or {})
    if model is not None and ":" in model:
        family, _, label = model.partition(":")
        model = None
        spelled = find_family(family).spelled(label)
        settings = {**(spelled or {}), **settings}
    named = model is not None or label is not None
    families = [find_family(family)] if family is not None else list(FAMILIES.values())
    read = [reading for f in families for reading in listing.readings(f)]
    if not read and listing.scope is not None:
        raise _no_scope(reader, listing.scope)
    close = [r for r in read if 2 * len(r.extra) <= len(r.extra) + len(r.names) and r.names]
    pairs = inferred_networks(reader, close) or of_rows(families, reader, _read_for(listing))
    found = [c for r, i in pairs for c in candidates_of(reader, r, i, model, settings, named)]
    if groups := [fitting] if (fitting := [c for c in found if not c.misfits]) else []:
        inside = []
    else:
        inside = candidates_inside(listing, families, model, settings, named)
        groups = networks(inside)
    if label is not None and spelled is None and groups:
        groups = [with_label for g in groups if (with_label := [c for c in g if c.label == label])]
        groups = groups or _no_such(reader, family, label, found + inside)
    if not groups:
        if kind := what_is(reader.tensors):
            raise _other(reader, *kind)
        if reader.otherwise:
            raise _other(reader, reader.otherwise, [*reader.tensors])
        nearest_one = min(found, key=lambda c: len(c.misfits), default=None) or nearest_network(inside)
        if nearest_one is None or (not named and len(nearest_one.misfits) > len(reader.tensors)):
            raise _unknown(reader, read, family)
        nearest_one.check(reader)
    found_one = _one_answer(reader, _one_network(listing, groups))
    if kind := spoils(found_one.reading.outside):
        raise _other(reader, *kind)
    return found_one


def declared(listing: Listing, spec: Spec, assumed: tuple[str, ...], family: str | None) -> Candidate:
    """The network named by the file's metadata, with every tensor checked against it.

    Raises:
        MismatchError: the tensors do not match that network.
    """

    def candidate(reading: Reading, hints: bool = True) -> Candidate:
        return Candidate(reading, spec, assumed, {}, None, reading.misfits(reader, spec, hints))

    reader = listing.reader
    families = [f for f in ([find_family(family)] if family else FAMILIES.values()) if spec.kind in f.kinds]
    read = [r for f in families if (r := listing.read_for(f, spec))]
    best = max(read, key=lambda r: len(r.names), default=None)
    if best is not None and reader.said("part", bool):  # a functional model may have layers of its own too
        others = {name: f"another layer's {shape}" for name, shape in best.extra.items()}
        best.left_out, best.extra = best.left_out | others, {}
    if best is not None and not (found := candidate(best)).misfits:
        _one_scope(reader, best)
        return found
    inside = [candidate(r, hints=False) for f in families for r in readings_for(listing, f, spec)]
    if groups := networks(inside):
        return _one_network(listing, groups)[0]
    if best is None and listing.scope is not None:
        raise _no_scope(reader, listing.scope)
    if best is None or 2 * len(best.extra) > len(reader.tensors):
        raise _unknown(reader, read, family)
    _one_scope(reader, best)
    found.check(reader)
    return found


def part_of(listing: Listing, spec: Spec) -> Spec:
    """The network that a functional Keras model holds, made of the first layers of the network `spec`.

    Raises:
        SourceError: it ends too early to be a network.
    """
    read = [listing.read_for(family, spec) for family in FAMILIES.values() if family.own]
    try:
        return spec.part(max((list(reading.names) for reading in read if reading), key=len, default=[]))
    except SpecError as error:
        raise SourceError(f"{listing.reader.path}: holds {error}") from None


def _read_for(listing: Listing) -> Callable[[Family, Spec], list[Reading]]:
    return lambda family, spec: [reading for reading in [listing.read_for(family, spec)] if reading]


def _one_network(listing: Listing, groups: list[list[Candidate]]) -> list[Candidate]:
    """The candidates of the only network with one classifier; otherwise an error that lists the choices."""
    path, (first, *others) = listing.reader.path, groups
    if others:
        lines = []
        for group in groups:
            reading, spec = group[0].reading, group[0].spec
            prefix = shlex.quote(one_line(listing.start + reading.prefix))
            lines.append(f"--prefix {prefix}  ({describe(spec)}: {len(reading.names)} tensors)")
        raise MismatchError(f"{path}: holds {len(groups)} networks; choose one:", lines)
    if heads := first[0].reading.heads:
        head = head_as_read(first[0])
        lines = [f"--names {shlex.quote(one_line(f'{module} = {head}'))}" for module in heads]
        what = (
            f"{len(heads)} tensors that may be its classifier; choose one, or none with --set num_classes=0:"
        )
        raise MismatchError(f"{path}: holds {what}", lines)
    return first


def head_as_read(candidate: Candidate) -> str:
    """The module of the classifier in the names of a network without one."""
    spec = changed(candidate.spec, {"num_classes": 1})
    name = candidate.reading.layout.in_file(f"{spec.head}.weight", spec)
    return candidate.reading.prefix + re.sub(r"[./][^./]*$", "", name)


def find_family(name: str) -> Family:
    if name not in FAMILIES:
        raise SpecError(f"there is no family {name!r}{nearest(name, FAMILIES)}; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def _no_scope(reader: Reader, scope: str) -> SourceError:
    first = dict.fromkeys(name.partition("/")[0] for name in reader.tensors)
    known = one_line(", ".join(itertools.islice(first, 6)))
    return SourceError(
        f"{reader.path}: has no scope {scope!r}{nearest(scope, first)}; its names begin with {known}"
    )


def _one_answer(reader: Reader, fitting: list[Candidate]) -> Candidate:
    """The candidate that all others agree with; otherwise an error that lists the choices."""
    first, *others = fitting
    for other in others:
        if (other.spec, other.reading.names) != (first.spec, first.reading.names):
            raise _ambiguous(reader, fitting)
        if other.family is not first.family:
            first.same_as.append(other.family)
    _one_scope(reader, first.reading)
    return first


def _one_scope(reader: Reader, reading: Reading) -> None:
    if reading.scopes:
        raise several_networks(reader, reading.scopes)


def several_networks(reader: Reader, scopes: Sequence[str]) -> SourceError:
    return SourceError(f"{reader.path}: holds several networks, choose one with --scope", list(scopes))


def _ambiguous(reader: Reader, fitting: list[Candidate]) -> MismatchError:
    specs = [c.spec for c in fitting]
    keywords = [k for k in vars(specs[0]) if len({getattr(spec, k, None) for spec in specs}) > 1]
    lines = []
    for candidate in fitting:
        values = " ".join(f"--set {k}={getattr(candidate.spec, k)}" for k in keywords)
        option = f"--model {candidate.family.name}:{candidate.label}" if candidate.label else values
        lines.append(f"{option}  ({values})" if candidate.label else option)
    return MismatchError(
        f"{reader.path}: its names and shapes match {len(fitting)} networks that compute different "
        "numbers; choose one:",
        lines,
    )


def _no_such(reader: Reader, family: str | None, label: str, found: list[Candidate]) -> list[list[Candidate]]:
    labels = list(dict.fromkeys(c.label for c in found if c.label))
    raise MismatchError(
        f"{reader.path}: is not {family}:{label}{nearest(label, labels)}; "
        f"its tensors match {', '.join(f'{family}:{name}' for name in labels) or 'no named model'}"
    )


def _other(reader: Reader, what: str, names: list[str]) -> MismatchError:
    shown = [f"{name} {reader.tensors[name].shape}" for name in names[:_MOST_SHOWN]]
    return MismatchError(f"{reader.path}: {what}; it has {len(names)} such tensors, for example:", shown)


def _unknown(reader: Reader, readings: list[Reading], family: str | None) -> MismatchError:
    """The error if no layout knows half of the names: it shows the nearest layout and some unknown names."""
    count = len(reader.tensors)
    whose = f"do not match {family}" if family else "match no known family"
    best = max(readings, key=lambda r: sum(map(r.layout.knows, _inside(r))), default=None)
    unknown = [name for name in reader.tensors if not is_count(name)]
    hint = ""
    if best is not None and best.family.own and (kind := _kind_of(best)):
        return MismatchError(
            f"{reader.path}: its {count} tensors have the names of a {kind}, but no named model has these "
            "shapes; set its keywords with --model NAME --set KEY=VALUE"
        )
    if best is not None:
        known = {best.prefix + name for name in _inside(best) if best.layout.knows(name)}
        unknown = [name for name in unknown if name not in known] or unknown
        hint = f"; the nearest is {best.family.name!r}, which knows {len(known)}"
    hint += f"; {propose(reader.path)}"
    shown = [f"{name} {reader.tensors[name].shape}" for name in unknown[:_MOST_SHOWN]]
    return MismatchError(
        f"{reader.path}: the names of its {count} tensors {whose}{hint}; for example:", shown
    )


def _kind_of(reading: Reading) -> str | None:
    """The kind of network that has all names; None if there are others."""
    if reading.extra or not reading.names:
        return None
    return next((kind for kind, spec in KINDS.items() if all(map(spec.like, reading.names))), None)


def _inside(reading: Reading) -> list[str]:
    names = itertools.chain(reading.extra, *reading.names.values())
    return [name.removeprefix(reading.prefix) for name in names]
