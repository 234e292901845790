"""Counting the values that most tensors show, for the inference of networks and attention blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from weights_convert.spec import Spec

Shapes = Mapping[str, tuple[int, ...]]
BN_LEAVES = ("weight", "bias", "running_mean", "running_var")


class Inferred(NamedTuple):
    """A spec, and its keywords that no tensor shows."""

    spec: Spec
    assumed: tuple[str, ...]


def inferred(spec: Spec) -> Inferred:
    return Inferred(spec, tuple(keyword for keyword in spec.unseen if spec.matters_unseen(keyword)))


def most(values: Iterable[Any]) -> Any:
    """The most common value; the first one of equally common values."""
    return Counter(values).most_common(1)[0][0]


def first_axes(shapes: Shapes, names: Iterable[str]) -> list[int]:
    """The lengths of the first axes of these tensors, if they exist."""
    return [shape[0] for name in names if (shape := shapes.get(name)) and shape[0]]


def of_rank(shapes: Shapes, name: str, rank: int) -> tuple[int, ...] | None:
    shape = shapes.get(name)
    return shape if shape is not None and len(shape) == rank and all(shape) else None
