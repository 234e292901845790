"""The optimiser in a training checkpoint of PyTorch or Lightning: `optimizer.state_dict()` and the weights.

Its entries have integer keys, which count the parameters in the order of `model.parameters()`; that is also
the order of the weights in a state dict. The settings are in `param_groups`, the optimiser's class is not.
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
from weights_convert.formats.torch.objects import TensorRef
from weights_convert.optimizer.state import Facts, Found, NoOptimizer, Part, Weight, is_step, refuse

# kind -> keys that only its groups have together
_SHOWN_BY = {"sgd": {"momentum", "dampening", "nesterov"}, "adam": {"betas", "eps", "amsgrad"}}
_OTHERS = {  # a key of the groups, or of the state -> the class of torch.optim
    "momentum_decay": "NAdam",
    "centered": "RMSprop",
    "lr_decay": "Adagrad",
    "rho": "Adadelta",
    "etas": "Rprop",
    "lambd": "ASGD",
    "max_iter": "LBFGS",
    "exp_inf": "Adamax",
    "exp_avg_sq": "RAdam",
}
_FLAGS = ("nesterov", "maximize", "amsgrad", "dampening")  # 0 or False, or another algorithm
_NAMED_BY: dict[str, dict[str, tuple[str, int | None]]] = {  # our setting -> key of a group, and index
    "sgd": {
        "learning_rate": ("lr", None),
        "weight_decay": ("weight_decay", None),
        "momentum": ("momentum", None),
    },
    "adam": {
        "learning_rate": ("lr", None),
        "weight_decay": ("weight_decay", None),
        "beta_1": ("betas", 0),
        "beta_2": ("betas", 1),
        "epsilon": ("eps", None),
    },
}
_NEUTRAL = {  # keys of groups that change no number, or that are read
    "params", "param_names", "lr", "weight_decay", "momentum", "betas", "eps", "foreach", "differentiable",
    "fused", "capturable", "decoupled_weight_decay", "initial_lr", *_FLAGS,
}  # fmt: skip
_NAMED_BY["adamw"] = _NAMED_BY["adam"]
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
    group = _agreeing(where, groups)
    kind = _kind(where, group, state, facts)
    _check_group(where, group, facts)
    rows = MOMENTS[kind]
    by_weight = _by_weight(where, groups, state, weights)
    moments, of_state = _moments(reader, where, rows, by_weight, weights)
    counts = [of_state]
    settings = {ours: _number(where, group, key, index) for ours, (key, index) in _NAMED_BY[kind].items()}
    if kind == "sgd":
        counts = [reader.beside[key] for key in _STEPS if is_step(reader.beside.get(key))]
        moments = moments if settings["momentum"] else {}
    return Found(
        where, kind, settings, next(iter(counts), None), moments, used=[name.partition(".")[0], *_STEPS]
    )


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


def _other_states(beside: Mapping[Any, Any]) -> Iterator[tuple[str, Any, str]]:
    """Name, value and description of schedulers, scalers and averages, also among Lightning's callbacks."""
    callbacks = beside.get("callbacks")
    inner = callbacks.items() if isinstance(callbacks, dict) else ()
    for key, value in [*beside.items(), *inner]:
        if not isinstance(key, str) or isinstance(value, int | float | str | None):
            continue  # a setting of the training's code
        what = next((text for pattern, text in _STATES if pattern.fullmatch(key)), None)
        if what is None and isinstance(value, dict) and value.keys() >= _OF_SCHEDULER:
            what = _STATES[0][1]
        if what is not None:
            yield key, value, what


def _agreeing(where: str, groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings that all parameter groups have."""
    first = groups[0]
    for other in groups[1:]:
        for key in [*first, *(key for key in other if key not in first)]:
            if key not in ("params", "param_names") and not _same(first.get(key), other.get(key)):
                raise MismatchError(
                    f"{where} has parameter groups that differ in {label(key)!r}, which the other "
                    "frameworks' optimisers cannot: expected equal settings in all groups"
                )
    return first


def _same(first: Any, second: Any) -> bool:
    """Whether two settings are equal; lists in a file may contain themselves, and are compared by members."""
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        pairs = zip(first, second, strict=False)
        return len(first) == len(second) and all(a is b or _plainly_equal(a, b) for a, b in pairs)
    return first is second or _plainly_equal(first, second)


def _plainly_equal(first: Any, second: Any) -> bool:
    return isinstance(first, int | float | str) and isinstance(second, int | float | str) and first == second


def _kind(where: str, group: dict[str, Any], state: Mapping[Any, Any], facts: Facts) -> str:
    kind = next((kind for kind, keys in _SHOWN_BY.items() if keys <= group.keys()), None)
    first = next(iter(state.values()), None)
    shown = {*group, *(first if isinstance(first, dict) else ())}
    other = next(
        (title for key, title in _OTHERS.items() if key in shown and key not in _NEUTRAL), "of unknown class"
    )
    if kind is None:
        raise MismatchError(f"{where} is {other}, expected SGD, Adam or AdamW: others have no counterpart")
    if kind == "adam":
        decoupled = group.get("decoupled_weight_decay")
        if decoupled is None and group.get("weight_decay") and facts.optimizer is None:
            raise MismatchError(
                f"{where} is Adam or AdamW, which older PyTorch does not record; give optimizer=adam or "
                "optimizer=adamw (--optimizer optimizer=adamw)"
            )
        kind = "adamw" if decoupled or (decoupled is None and facts.optimizer == "adamw") else "adam"
    if facts.optimizer not in (None, kind):
        raise MismatchError(f"{where} is {kind}, not {facts.optimizer}")
    return kind


def _check_group(where: str, group: dict[str, Any], facts: Facts) -> None:
    for key in _FLAGS:
        if group.get(key):
            raise MismatchError(f"{where} has {key}={one_line(group[key], 20)}, which has no counterpart")
    for key in group:
        if key not in _NEUTRAL:
            refuse(where, f"the setting {label(key)!r}", label(key), facts)


def _number(where: str, group: Mapping[str, Any], key: str, index: int | None) -> float:
    value: Any = group.get(key)
    if index is not None:
        value = value[index] if isinstance(value, list | tuple) and len(value) == 2 else None
    if type(value) not in (int, float) or abs(value) > 1e300:
        raise MismatchError(f"{where} has {key}={one_line(describe(value), 40)}, expected a number")
    return float(value)


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
    order = _named(names, in_file) or in_file
    found = {}
    for index, name in zip(indices, order, strict=True):
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
    if type(value) is TensorRef:
        info, read = reader.tensor_of("step", value)
        value = float(read()) if info.shape == () else None
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
