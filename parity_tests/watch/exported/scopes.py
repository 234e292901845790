"""The layers of a graph whose nodes carry the path of their module: the values that enter and leave each.

A module's nodes stand in a row; a second row is the module's second call. A layer with more than one output
is left out, and its error shows at the next layer.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

from parity_tests.watch.trace import numbered
from weights_convert.layouts import tf1_module

# scopes that TensorFlow's own functions open, and those of functions in the place of calls
_OF_FUNCTIONS = ("batchnorm", "moments", "StatefulPartitionedCall", "PartitionedCall")
_PASSED = "Func/"  # operations that pass a function's inputs


class Step(NamedTuple):
    """One node: the path of its module, and the values that it takes and gives (constants left out).

    Attributes:
        call: the path again, with other parts for another call of the same module; "" if nothing tells.
    """

    scope: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    call: str = ""


class Boundary(NamedTuple):
    """A call of a layer: its name, the values that enter and leave it, its nodes."""

    layer: str
    inputs: tuple[str, ...]
    output: str
    steps: tuple[int, ...]


def boundaries(steps: Sequence[Step], ends: Collection[str]) -> dict[str, Boundary]:
    """Name of a call -> its boundary, in order of execution, inner layers before outer ones.

    Example:
        >>> steps = [Step("a.conv", ("x",), ("y",)), Step("a.act", ("y",), ("z",))]
        >>> {name: (b.inputs, b.output) for name, b in boundaries(steps, ["z"]).items()}
        {'a.conv': (('x',), 'y'), 'a.act': (('y',), 'z'), 'a': (('x',), 'z')}
    """
    users: dict[str, list[int]] = {}
    for place, step in enumerate(steps):
        for value in step.inputs:
            users.setdefault(value, []).append(place)
    found = []
    for layer, rows in _rows(steps).items():
        for row in rows:
            inside = {*row}
            made = [value for place in row for value in steps[place].outputs]
            left = [v for v in made if v in ends or any(u not in inside for u in users.get(v, ()))]
            given = [v for place in row for v in steps[place].inputs if v not in {*made}]
            if len(left) == 1 and given:
                found.append(
                    (row[-1], -layer.count("."), Boundary(layer, (*dict.fromkeys(given),), left[0], row))
                )
    seen: dict[str, int] = {}
    return {numbered(b.layer, seen): b for *_, b in sorted(found, key=lambda each: each[:2])}


def _rows(steps: Sequence[Step]) -> dict[str, list[tuple[int, ...]]]:
    """Layer -> the nodes of each of its calls."""
    rows: dict[str, list[list[int]]] = {}
    last: dict[str, str] = {}
    for place, step in enumerate(steps):
        for layer, call in zip(_around(step.scope), _around(step.call or step.scope), strict=True):
            known = rows.setdefault(layer, [])
            if known and known[-1][-1] == place - 1 and last[layer] == call:
                known[-1].append(place)
            else:
                known.append([place])
            last[layer] = call
    return {layer: [tuple(row) for row in calls] for layer, calls in rows.items()}


def _around(scope: str) -> Iterator[str]:
    parts = scope.split(".") if scope else []
    for depth in range(1, len(parts) + 1):
        yield ".".join(parts[:depth])


class Place(NamedTuple):
    """Where an operation stands: the path of its module, and the call of it, as in `Step`."""

    scope: str
    call: str


def of_tensorflow(
    names: Sequence[str], operations: Collection[str], weights: Sequence[Collection[str]]
) -> list[Place]:
    """The place of each operation of TensorFlow, by the scopes in its name.

    Scopes that all have are left out. Keras numbers every scope when it traces a model again: the numbers are
    left out, too, unless that would make one layer of two with other weights.

    Args:
        operations: the names of all operations.
        weights: the weights that each operation takes.

    Example:
        >>> names = ["net_1/bn_1/batchnorm/mul_1", "net_1/conv_1_2/convolution"]
        >>> [place.scope for place in of_tensorflow(names, (), [["a"], ["b"]])]
        ['bn', 'conv_1']
    """
    paths = [_path(name, operations) for name in names]
    columns = zip(*(path for path in paths if path), strict=False)
    common = len([*takewhile(lambda parts: len({*parts}) == 1, columns)])
    paths = [path[common:] for path in paths]
    plain = [[re.sub(r"_\d+$", "", part) for part in path] for path in paths]
    traced = all(
        a != b for path, short in zip(paths, plain, strict=True) for a, b in zip(path, short, strict=True)
    )
    if not traced or _ambiguous(paths, plain, weights):
        plain = paths
    return [_place(path, short) for path, short in zip(paths, plain, strict=True)]


def _ambiguous(
    paths: Sequence[list[str]], plain: Sequence[list[str]], weights: Sequence[Collection[str]]
) -> bool:
    """Whether two scopes with other weights would have the same name."""
    owned: dict[str, dict[str, set[str]]] = {}
    for path, short, own in zip(paths, plain, weights, strict=True):
        owned.setdefault("/".join(short), {}).setdefault("/".join(path), set()).update(own)
    return any(len({frozenset(own) for own in calls.values() if own}) > 1 for calls in owned.values())


def _place(path: Sequence[str], plain: Sequence[str]) -> Place:
    modules = [part for short in plain for part in tf1_module(short).split(".") if part]
    calls = [
        f"{part}@{name.replace('.', '_')}"
        for name, short in zip(path, plain, strict=True)
        for part in tf1_module(short).split(".")
        if part
    ]
    return Place(".".join(modules), ".".join(calls))


def _path(name: str, operations: Collection[str]) -> list[str]:
    """The scopes of an operation; those of TensorFlow's functions, which end in one so named, left out."""
    if name.startswith(_PASSED):
        return []
    parts = name.split("/")
    whole = ["/".join(parts[: place + 1]) for place in range(len(parts) - 1)]
    return [
        part
        for part, scope in zip(parts, whole, strict=False)
        if part not in _OF_FUNCTIONS and scope not in operations
    ]
