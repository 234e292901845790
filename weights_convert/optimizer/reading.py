"""The optimiser of a checkpoint as a `TrainingState`: moments get the layout of their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from weights_convert.errors import MismatchError
from weights_convert.formats.base import Reader, TensorInfo
from weights_convert.formats.hdf5.keras import KerasReader
from weights_convert.formats.hdf5.optimizer import optimizer_of_keras
from weights_convert.formats.tf1.optimizer import optimizer_of_tf1
from weights_convert.formats.torch.optimizer import optimizer_of_torch
from weights_convert.identify.reading import Reading
from weights_convert.layouts import Stored
from weights_convert.optimizer.state import (
    Facts,
    Found,
    NoOptimizer,
    Part,
    TrainingState,
    Weight,
    check_left_out,
    settled,
)
from weights_convert.spec import Parameter

_READERS: dict[str, Callable[[Any, Sequence[Weight], Facts], Found]] = {
    "torch": optimizer_of_torch,
    "keras": optimizer_of_keras,
    "tf1": optimizer_of_tf1,
}


def training_state(
    reader: Reader, reading: Reading, known: Mapping[str, Parameter], facts: Facts
) -> TrainingState:
    """The optimiser in a file, in PyTorch's terms and by canonical names; moments are read on demand.

    Args:
        reading: the names of the network's tensors in the file.
        known: canonical name -> parameter.

    Raises:
        NoOptimizer: the file holds none.
        MismatchError: it has no counterpart, or does not fit the weights or the facts.
    """
    if reader.format not in _READERS:
        raise NoOptimizer(f"{reader.path}: a {reader.format} file holds no state of an optimiser")
    if isinstance(reader, KerasReader) and (
        reading.family.own is None or (reader.functional and not reading.prefix)
    ):
        raise MismatchError(
            f"{reader.path}: does not show the order of its optimiser's variables, expected a network of "
            "keras_impl; save the network itself, compiled"
        )
    trained = {name: reading.names[name] for name in known if known[name].trainable and name in reading.names}
    found = _READERS[reader.format](reader, _weights(reader, trained), facts)
    check_left_out(str(reader.path), found.others, facts)
    settings, step = settled(found, facts)
    plain = found.kind == "sgd" and settings.get("momentum") == 0
    held = {} if plain else found.moments  # without momentum b is the gradient, and in no formula
    divisor = _divisor(found, settings) if held and found.divisor is not None else None
    moments = {
        moment: {
            name: _canonical([parts[n] for n in names], reading.layout.stored(known[name]), divisor)
            for name, names in trained.items()
        }
        for moment, parts in held.items()
    }
    following = facts.next_learning_rate
    return TrainingState(
        path=str(reader.path),
        kind=found.kind,
        settings=settings,
        next_learning_rate=settings.get("learning_rate") if following is None else following,
        schedule=facts.schedule,
        step=step,
        moments=moments,
        used=frozenset(found.used),
        assumed=found.assumed,
    )


def _divisor(found: Found, settings: Mapping[str, float]) -> float:
    if "learning_rate" not in settings:
        raise MismatchError(
            f"{found.where} has no learning rate, by which its momentum is scaled; "
            "give the rate at the stop as learning_rate=... (--optimizer learning_rate=...)"
        )
    if not settings["learning_rate"]:
        raise MismatchError(
            f"{found.where} has learning_rate=0, by which its momentum cannot be divided; "
            "save it at a rate above 0"
        )
    assert found.divisor is not None
    return found.divisor(settings)


def _weights(reader: Reader, trained: Mapping[str, tuple[str, ...]]) -> list[Weight]:
    """The trainable tensors in the optimiser's order.

    In a PyTorch file that is the order of the state dict. A Keras file is sorted by name, and the network's
    variables have the canonical order.
    """
    if reader.format == "keras":
        return [Weight(c, names, tuple(reader.tensors[n] for n in names)) for c, names in trained.items()]
    place = {name: number for number, name in enumerate(reader.tensors)}
    weights = [Weight(c, names, tuple(reader.tensors[n] for n in names)) for c, names in trained.items()]
    return sorted(weights, key=lambda weight: place[weight.names[0]])


def _canonical(parts: Sequence[Part], stored: Stored, divisor: float | None) -> Part:
    """A moment in PyTorch's layout and scale."""
    shape, dtype = parts[0].info
    if len(parts) > 1:
        shape = (*shape[:-1], sum(part.info.shape[-1] for part in parts))

    def read() -> np.ndarray:
        arrays = [part.read() for part in parts]
        array = stored.to_canonical(arrays[0] if len(arrays) == 1 else np.concatenate(arrays, -1))
        return array if divisor is None else in_float64(np.divide, array, divisor, array.dtype)

    return Part(TensorInfo(stored.canonical_shape(shape), dtype), parts[0].name, read)


def in_float64(
    operation: Callable[..., Any], array: np.ndarray, factor: float, dtype: np.dtype
) -> np.ndarray:
    """The array multiplied or divided by a number, computed in float64 and rounded to a dtype."""
    return np.asarray(operation(array.astype(np.float64), factor)).astype(dtype)
