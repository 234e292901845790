"""Nested outputs: the path of each tensor, and pairs of the outputs of two models."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The values in nested outputs with their paths: "" for a single tensor, else "y.0".

    Paths hold the keys of mappings and dataclasses, the fields of named tuples, and the indices of lists and
    tuples. None is not an output.
    """
    inner = _opened(value)
    if inner is None:
        yield path, value
        return
    for key, item in inner:
        yield from leaves(item, f"{path}.{key}" if path else str(key))


def _opened(value: Any) -> list[tuple[Any, Any]] | None:
    """Keys and items of a container, [] for None, None for anything else."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return None


def arrays(
    value: Any, is_tensor: Callable[[Any], bool], convert: Callable[[Any], np.ndarray]
) -> tuple[list[tuple[str, np.ndarray]], list[str]]:
    """The leaves of `value` as arrays, and the paths of leaves that are neither tensors nor numbers."""
    found, opaque = [], []
    for path, leaf in leaves(value):
        if is_tensor(leaf):
            found.append((path, convert(leaf)))
        elif isinstance(leaf, (numbers.Number, np.ndarray, np.generic)) and np.asarray(leaf).dtype != object:
            found.append((path, np.asarray(leaf)))
        else:
            opaque.append(path)
    return found, opaque


def tensors(value: Any, is_tensor: Callable[[Any], bool]) -> list[Any]:
    """The tensors in nested inputs or outputs, without plain numbers."""
    return [leaf for _, leaf in leaves(value) if is_tensor(leaf)]


def replaced(value: Any, found: Mapping[str, Any], path: str = "") -> Any:
    """`value` with the leaves at these paths replaced; a container of unknown kind is returned unchanged."""
    inner = _opened(value)
    if inner is None:
        return found.get(path, value)
    items = [replaced(item, found, f"{path}.{key}" if path else str(key)) for key, item in inner]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*items)
    if type(value) in (list, tuple):
        return type(value)(items)
    if type(value) is dict:
        return dict(zip(value, items, strict=True))
    return value


def paired(reference: Sequence[str], candidate: Sequence[str]) -> dict[str, str]:
    """Candidate's output -> the reference's output: by name, or by index if one side has only indices.

    A single output on each side always forms a pair.
    """
    if set(reference) == set(candidate):
        return {name: name for name in candidate}
    places = _places(reference) or _places(candidate)
    if len(reference) == len(candidate) and (len(reference) == 1 or places):
        return dict(zip(candidate, reference, strict=True))
    return {name: name for name in candidate if name in reference}


def _places(names: Sequence[str]) -> bool:
    """Whether these outputs form a list or tuple: "output 0", "output 1", ..."""
    return [name.rpartition(" ")[2] for name in names] == [str(i) for i in range(len(names))]
