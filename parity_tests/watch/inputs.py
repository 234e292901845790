"""The inputs of a comparison: one array, several in order, or several by keyword."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from weights_convert.errors import SpecError

Inputs = np.ndarray | Sequence[np.ndarray] | Mapping[str, np.ndarray]


class Beside(NamedTuple):
    """The inputs beside the first one, the same in every run.

    Attributes:
        name: the keyword of the first input; "" for inputs in order.
        others: keyword ("" for inputs in order) and array of each further input.
    """

    name: str = ""
    others: tuple[tuple[str, np.ndarray], ...] = ()


NONE = Beside()


def split(inputs: Any) -> tuple[np.ndarray, Beside]:
    """The first input and the ones beside it.

    Raises:
        SpecError: they are no arrays of numbers.

    Example:
        >>> first, beside = split({"tokens": np.zeros((2, 5), int), "mask": np.ones((2, 5))})
        >>> first.shape, beside.name, [name for name, _ in beside.others]
        ((2, 5), 'tokens', ['mask'])
    """
    if isinstance(inputs, Mapping):
        named = [(str(name), _numbers(array)) for name, array in inputs.items()]
    elif isinstance(inputs, (list, tuple)) and inputs and all(isinstance(x, np.ndarray) for x in inputs):
        named = [("", _numbers(array)) for array in inputs]
    else:
        named = [("", _numbers(inputs))]
    if not named:
        raise SpecError("no inputs, expected an array, a list of arrays, or a dict of them by keyword")
    (name, first), *others = named
    if first.ndim < 2 or not first.size:
        raise SpecError(f"inputs {first.dtype} {first.shape}, expected images as (N, C, H, W), at least one")
    return first, Beside(name, tuple(others))


def _numbers(inputs: Any) -> np.ndarray:
    try:
        array = np.array(inputs)
    except ValueError:
        array = np.empty((), object)
    if array.dtype.kind not in "fiu":
        raise SpecError(
            f"inputs {array.dtype} {array.shape}, expected numbers: images as (N, C, H, W), "
            "a list of arrays, or a dict of them by keyword"
        )
    return array
