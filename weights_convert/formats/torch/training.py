"""A training checkpoint of PyTorch: {"state_dict": ..., "optimizer": optimizer.state_dict(), "step": ...}.

Its tensors have names here: `state_dict.NAME`, and `optimizer.state.NUMBER.KEY`.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from weights_convert.errors import SourceError
from weights_convert.formats.base import Reader, TensorInfo
from weights_convert.formats.given import Given
from weights_convert.formats.torch.file import TorchReader
from weights_convert.formats.torch.groups import group_of
from weights_convert.formats.torch.objects import TensorRef
from weights_convert.formats.torch.optimizer import MOMENTS
from weights_convert.formats.torch.writer import integer, items, state_dict, text, write_torch
from weights_convert.limits import DEFAULT, Limits

STATE_DICT, _STATE = "state_dict.", "optimizer.state."
_FLAGS: dict[str, Any] = {"maximize": False, "foreach": None, "differentiable": False, "fused": None}
_OF_ADAM = {"amsgrad": False, "capturable": False}
_OF_KIND: dict[str, dict[str, Any]] = {
    "sgd": {"dampening": 0, "nesterov": False},
    "adam": {**_OF_ADAM, "decoupled_weight_decay": False},
    "adamw": {**_OF_ADAM, "decoupled_weight_decay": True},
}


def moment_name(kind: str, number: int, moment: str) -> str:
    """The name of a moment, or of Adam's `step`, of the parameter with this number.

    >>> moment_name("sgd", 3, "b")
    'optimizer.state.3.momentum_buffer'
    """
    row = MOMENTS[kind]
    return f"{_STATE}{number}.{row.get(moment, moment)}"


def write_training(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str], np.ndarray],
    metadata: Mapping[str, Any],
    *,
    kind: str,
    settings: Mapping[str, float],
    step: int,
    count: int,
) -> None:
    """Write a training checkpoint for `torch.load(path)` with `weights_only=True`.

    Args:
        settings: of the optimiser, with PyTorch's learning rate.
        count: the number of parameters.
    """
    group = {**group_of(kind, settings), **_OF_KIND[kind], **_FLAGS, "params": list(range(count))}
    write_torch(path, tensors, read, metadata, partial(_root, group=group, step=step))


def _root(pickled: Mapping[str, bytes], group: Mapping[str, Any], step: int) -> bytes:
    """The pickle of the whole checkpoint, of the pickles of its tensors."""
    weights = {
        n.removeprefix(STATE_DICT): tensor for n, tensor in pickled.items() if n.startswith(STATE_DICT)
    }
    state: dict[int, dict[str, bytes]] = {}
    for name, tensor in pickled.items():
        if name.startswith(_STATE):
            number, key = name.removeprefix(_STATE).split(".")
            state.setdefault(int(number), {})[key] = tensor
    optimizer = {
        "state": _dict({integer(number): _dict(_keys(entry)) for number, entry in state.items()}),
        "param_groups": _value([dict(group)]),
    }
    return _dict(
        _keys(
            {"state_dict": state_dict(weights), "optimizer": _dict(_keys(optimizer)), "step": integer(step)}
        )
    )


def _keys(entries: Mapping[str, bytes]) -> dict[bytes, bytes]:
    return {text(name): value for name, value in entries.items()}


def _dict(entries: Mapping[bytes, bytes]) -> bytes:
    return pickle.EMPTY_DICT + items(entries)


def _value(value: Any) -> bytes:
    """The pickle of settings: numbers, texts, None, lists, tuples, and dicts of them."""
    match value:
        case None:
            return pickle.NONE
        case bool():
            return pickle.NEWTRUE if value else pickle.NEWFALSE
        case int():
            return integer(value)
        case float():
            return pickle.BINFLOAT + struct.pack(">d", value)
        case str():
            return text(value)
        case dict():
            return _dict({text(key): _value(inner) for key, inner in value.items()})
        case tuple():
            return pickle.MARK + b"".join(map(_value, value)) + pickle.TUPLE
        case list():
            return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(_value, value)) + pickle.APPENDS
    raise TypeError(f"{type(value).__name__} in the settings of an optimiser")


class TrainingReader(Reader):
    """A training checkpoint with the tensors of its optimiser, by the names of this module."""

    format = "torch"

    def __init__(self, reader: TorchReader):
        super().__init__(reader.path, reader.limits)
        self._reader, self.metadata = reader, reader.metadata
        self._reads: dict[str, Callable[[], np.ndarray]] = {
            f"{STATE_DICT}{name}": partial(reader.read, name) for name in reader.tensors
        }
        self.tensors = {f"{STATE_DICT}{name}": info for name, info in reader.tensors.items()}
        optimizer = reader.beside.get("optimizer")
        state = optimizer.get("state") if isinstance(optimizer, dict) else None
        if not isinstance(state, dict):
            raise SourceError(f"{reader.path}: has no entry 'optimizer' with a state")
        for number, entry in state.items():
            for key, ref in entry.items():
                if isinstance(ref, TensorRef):
                    name = f"{_STATE}{number}.{key}"
                    self.tensors[name], self._reads[name] = reader.tensor_of(name, ref)

    def read(self, name: str) -> np.ndarray:
        return self._reads[name]()

    def close(self) -> None:
        super().close()
        self._reader.close()


def open_training(source: Path | Given, key: str | None = None, limits: Limits = DEFAULT) -> TrainingReader:
    """Open a file of `write_training`, to compare it with what was written."""
    return TrainingReader(TorchReader(Given.of(source, limits), key))
