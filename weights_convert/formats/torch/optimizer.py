"""The optimiser in a training checkpoint of PyTorch or Lightning: `optimizer.state_dict()` and the weights.

Its entries have integer keys, which count the parameters of its groups. One group has the order of
`model.parameters()`, that of the weights in a state dict; several need names. The settings are in
`param_groups` (`groups.py`), the optimiser's class is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from weights_convert.errors import MismatchError, SourceError
from weights_convert.formats.base import one_line
from weights_convert.formats.torch.entries import describe, label
from weights_convert.formats.torch.file import TorchReader
from weights_convert.formats.torch.groups import (
    agreeing,
    check_group,
    kind_of,
    number_of,
    settings_of,
    unknown_in,
    with_numbers,
)
from weights_convert.formats.torch.objects import TensorRef
from weights_convert.optimizer.state import Facts, Found, NoOptimizer, Part, Weight, is_step, refuse

MOMENTS = {"sgd": {"b": "momentum_buffer"}, "adam": {"m": "exp_avg", "v": "exp_avg_sq"}}
MOMENTS["adamw"] = MOMENTS["adam"]
_STEPS = ("global_step", "step", "iteration", "iterations")
# other states of a training, by their keys; an empty one is none
_STATES = (
    (re.compile(r"(?i:.*sched.*)"), "the state of a learning rate scheduler"),
    (re.compile(r"(?i:.*scaler.*|.*scaling_state)|MixedPrecision|amp"), "the state of a GradScaler"),
    (
        re.compile(r"(?i:(.*[_.])?(ema|swa)([_.].*)?|.*averag.*)|.*EMA.*|current_model_state"),
        "moving averages",
    ),
)
_OF_SCHEDULER = {"last_epoch", "_step_count"}


def optimizer_of_torch(reader: TorchReader, weights: Sequence[Weight], facts: Facts) -> Found:
    """The optimiser beside the state dict of a file.

    Raises:
        NoOptimizer: there is none.
        MismatchError: it has no counterpart, or does not fit the weights.
        SourceError: it is damaged.
    """
    where = f"{reader.path}: its"
    name, groups, state = _only_one(reader)
    for key, value, what in _other_states(reader.beside):
        if value:
            refuse(f"{where} entry {label(key)!r}", what, key, facts)
    where = f"{where} optimiser {name!r}"
    group = agreeing(where, with_numbers(reader, groups))
    kind = kind_of(where, group, state, facts)
    check_group(where, group, facts)
    rows = MOMENTS[kind]
    by_weight = _by_weight(where, groups, state, weights)
    moments, of_state = _moments(reader, where, rows, by_weight, weights)
    counts = [of_state]
    settings = settings_of(where, kind, group)
    if kind == "sgd":
        counts = [reader.beside[key] for key in _STEPS if is_step(reader.beside.get(key))]
    used = [name.partition(".")[0], *_STEPS]
    others = [key for key, _ in _contents(reader.beside) if label(key) not in used] + unknown_in(group)
    return Found(where, kind, settings, next(iter(counts), None), moments, used=used, others=others)


def _only_one(reader: TorchReader) -> tuple[str, list[dict[str, Any]], dict[Any, Any]]:
    """The name, the groups and the state of the file's optimiser."""
    found = []
    for name, value in reader.beside.items():
        members = value if isinstance(value, list | tuple) else [value]
        states = [member for member in members if isinstance(member, dict) and "param_groups" in member]
        found += [
            (label(name) if value is one else f"{label(name)}.{n}", one) for n, one in enumerate(states)
        ]
    if not found:
        raise NoOptimizer(f"{reader.path}: holds no state of an optimiser, expected optimizer.state_dict()")
    if len(found) > 1:
        raise MismatchError(
            f"{reader.path}: {len(found)} optimisers, expected one: {', '.join(n for n, _ in found)}"
        )
    name, state = found[0]
    groups, inner = state["param_groups"], state.get("state")
    plain = isinstance(groups, list) and groups and all(isinstance(group, dict) for group in groups)
    if not plain or not isinstance(inner, dict):
        raise SourceError(f"{reader.path}: its optimiser {name!r} is damaged: {describe(groups)} as groups")
    return name, groups, inner


def _contents(beside: Mapping[Any, Any]) -> list[tuple[str, Any]]:
    """The entries with a name, and those of Lightning's callbacks."""
    callbacks = beside.get("callbacks")
    inner = callbacks.items() if isinstance(callbacks, dict) else ()
    return [(key, value) for key, value in [*beside.items(), *inner] if isinstance(key, str)]


def _other_states(beside: Mapping[Any, Any]) -> Iterator[tuple[str, Any, str]]:
    """Name, value and description of schedulers, scalers and averages."""
    for key, value in _contents(beside):
        if isinstance(value, int | float | str | None):
            continue  # a setting of the training's code
        what = next((text for pattern, text in _STATES if pattern.fullmatch(key)), None)
        if what is None and isinstance(value, dict) and value.keys() >= _OF_SCHEDULER:
            what = _STATES[0][1]
        if what is not None:
            yield key, value, what


def _by_weight(
    where: str, groups: list[dict[str, Any]], state: Mapping[Any, Any], weights: Sequence[Weight]
) -> dict[str, dict[str, Any]]:
    """Name of a weight in the file -> its entry of the state, {} if it has none."""
    indices: list[Any] = []
    names: list[Any] = []
    for group in groups:
        for of_group, key in ((indices, "params"), (names, "param_names")):
            values = group.get(key, [])
            of_group += values if isinstance(values, list | tuple) else [None]
    in_file = [name for weight in weights for name in weight.names]
    if (
        not all(type(index) is int for index in indices)
        or len({*indices}) != len(in_file)
        or len(indices) != len(in_file)
    ):
        raise MismatchError(
            f"{where} has {len(indices)} parameters, but the network has {len(in_file)} trainable tensors"
        )
    order = _named(names, in_file)
    if order is None and len(groups) > 1:
        raise MismatchError(
            f"{where} has {len(groups)} parameter groups without the weights' names, so their order is "
            "unknown; pass model.named_parameters() in the groups, or model.parameters() as one group"
        )
    found = {}
    for index, name in zip(indices, order or in_file, strict=True):
        entry = state.get(index, {})
        if not isinstance(entry, dict):
            raise SourceError(f"{where} is damaged: {describe(entry)} as the state of {name}")
        found[name] = entry
    return found


def _named(names: list[Any], in_file: Sequence[str]) -> list[str] | None:
    """The weights' names in the file by the optimiser's own names of them, which may lack a prefix."""
    if len(names) != len(in_file) or not all(isinstance(name, str) for name in names):
        return None
    for prefix in {name.removesuffix(names[0]) for name in in_file if name.endswith(names[0])}:
        if sorted(prefix + name for name in names) == sorted(in_file):
            return [prefix + name for name in names]
    return None


def _moments(
    reader: TorchReader,
    where: str,
    rows: Mapping[str, str],
    by_weight: Mapping[str, Mapping[str, Any]],
    weights: Sequence[Weight],
) -> tuple[dict[str, dict[str, Part]], int]:
    """The moments of every weight, zeros for one without a state, and Adam's step."""
    moments: dict[str, dict[str, Part]] = {moment: {} for moment in rows}
    steps = set()
    infos = {name: info for w in weights for name, info in zip(w.names, w.infos, strict=True)}
    for name, entry in by_weight.items():
        held = {key: value for key, value in entry.items() if value is not None}
        if unknown := [key for key in held if key not in (*rows.values(), "step")]:
            raise MismatchError(
                f"{where} has the state {label(unknown[0])!r} of {name}, which has no counterpart"
            )
        steps.add(_step(reader, where, held.get("step")) if held else 0)
        for moment, key in rows.items():
            part = _part(reader, f"{key} of {name}", held.get(key), infos[name])
            if part.info.shape != infos[name].shape:
                shapes = f"{part.info.shape}, expected {infos[name].shape}"
                raise MismatchError(
                    f"{where} has {key} of {name} with shape {shapes}: another order of parameters"
                )
            moments[moment][name] = part
    if len(rows) > 1 and len(steps) > 1:
        raise MismatchError(
            f"{where} has done {min(steps)} to {max(steps)} steps of its parameters, expected one count"
        )
    return moments, max(steps)


def _step(reader: TorchReader, where: str, value: Any) -> int:
    """A count of steps, in newer files a tensor."""
    value = number_of(reader, "step", value)
    if type(value) is float and value.is_integer():
        value = int(value)
    if value is not None and not is_step(value):
        raise SourceError(f"{where} is damaged: {one_line(describe(value), 40)} as a count of steps")
    return value or 0


def _part(reader: TorchReader, name: str, value: Any, like: Any) -> Part:
    if value is None:
        return Part(like, f"{name} (none yet)", lambda: np.zeros(like.shape, like.dtype))
    if type(value) is not TensorRef or value.storage is None:
        raise SourceError(f"{reader.path}: {name} is {describe(value)}, expected a tensor")
    info, read = reader.tensor_of(name, value)
    return Part(info, name, read)
