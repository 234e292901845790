"""The network inside a file: below any prefix, beside other tensors, with its classifier elsewhere.

Used if a file as a whole is no known network. A tensor is outside the network if its name does not begin with
the network's prefix, or if its first module below the prefix is none of the network's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from weights_convert.families.base import Family
from weights_convert.identify.candidates import Candidate, candidates_of, inferred_networks, of_rows
from weights_convert.identify.heads import with_head
from weights_convert.identify.reading import Listing, Reading
from weights_convert.identify.votes import Inferred
from weights_convert.layouts import Layout, skeleton
from weights_convert.spec import Spec, parameters

_MOST_PLACES = 8  # prefixes of one file
_MOST_KINDS = 2_000  # names that differ in more than numbers; the largest networks have 100
_MOST_MODULES = 10  # of a prefix
_LONGEST = 400  # characters of a name
_FEWEST = 4  # a place has at least a quarter of the names of the first one


def candidates_inside(
    listing: Listing,
    families: Sequence[Family],
    model: str | None,
    settings: dict[str, Any],
    named: bool,
) -> list[Candidate]:
    """The networks below each prefix, with or without misfits."""
    reader = listing.reader

    def candidates(pairs: list[tuple[Reading, Inferred]]) -> list[Candidate]:
        there = {reading.prefix for reading, _ in pairs}
        with_heads = [with_head(reader, reading, network, settings, there) for reading, network in pairs]
        return [c for r, i in with_heads for c in candidates_of(reader, r, i, model, settings, named)]

    read = [reading for family in families for reading in _readings(listing, family)]
    found = candidates(inferred_networks(reader, read))
    if not any(_whole(candidate) for candidate in found):
        found += candidates(of_rows(families, reader, partial(readings_for, listing)))
    return found


def networks(found: Sequence[Candidate]) -> list[list[Candidate]]:
    """The candidates that fit, by network: of those with the same tensors, the ones with most of the file."""
    groups: list[tuple[set[str], list[Candidate]]] = []
    for candidate in sorted(filter(_whole, found), key=_liberties):
        files = {name for names in candidate.reading.names.values() for name in names}
        group = next((group for group in groups if not files.isdisjoint(group[0])), None)
        if group is None:
            groups.append((files, [candidate]))
        elif _liberties(candidate) == _liberties(group[1][0]):
            group[1].append(candidate)
    return [group for _, group in groups]


def nearest_network(found: Sequence[Candidate]) -> Candidate | None:
    """The network with the fewest misfits of which a file has most tensors."""
    most = [
        candidate
        for candidate in found
        if candidate.spec.network and 2 * len(candidate.reading.names) > len(parameters(candidate.spec))
    ]
    return min(most, key=lambda candidate: len(candidate.misfits), default=None)


def readings_for(listing: Listing, family: Family, spec: Spec) -> Iterator[Reading]:
    """The file's names below each prefix, for a known network."""
    layout = family.layout_of(spec)
    for prefix in places(listing, layout):
        if reading := listing.read_inside(family, layout, {}, prefix, spec):
            yield reading


def _readings(listing: Listing, family: Family) -> Iterator[Reading]:
    _, layout = family.layouts(())[0]
    for prefix in places(listing, layout):
        for values, variant in family.layouts(listing.inside(layout, prefix).modules):
            reading = listing.read_inside(family, variant, values, prefix)
            if reading and len(reading.extra) <= len(reading.names):
                yield reading


def _whole(candidate: Candidate) -> bool:
    """Whether a network is complete; a single attention block is one only in a file of its own."""
    return not candidate.misfits and bool(candidate.spec.network or not candidate.reading.outside)


def _liberties(candidate: Candidate) -> tuple[int, bool]:
    return len(candidate.reading.outside), bool(candidate.reading.head)


def places(listing: Listing, layout: Layout) -> list[str]:
    """The prefixes below which a layout knows many names, the one with the most names first."""
    if layout.scoped:
        prefix, scopes = listing.prefix(layout)
        return [] if prefix is None or scopes else [prefix]
    separator = "/" if layout.tensorflow_axes else "."
    below: dict[str, set[str]] = {}
    for names in _kinds(listing.weights(layout)[0]):
        modules = names[0].split(separator)
        for count in range(min(len(modules), _MOST_MODULES + 1)):
            if layout.knows(separator.join(modules[count:])):
                for name in names:
                    start = separator.join([*name.split(separator)[:count], ""]) if count else ""
                    below.setdefault(start, set()).add(name)
    found: list[str] = []
    fewest = 1
    while below and len(found) < _MOST_PLACES:
        place = max(below, key=lambda start: (len(below[start]), -len(start)))
        known = below.pop(place)
        if len(known) < fewest:
            break
        found.append(place)
        fewest = max(fewest, len(known) // _FEWEST)
        below = {start: rest for start, others in below.items() if (rest := others - known)}
    return found


def _kinds(names: Sequence[str]) -> list[list[str]]:
    """Names that differ only in numbers; [] for a file of too many kinds."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        if len(name) <= _LONGEST:
            kinds.setdefault(skeleton(name), []).append(name)
    return list(kinds.values()) if len(kinds) <= _MOST_KINDS else []
