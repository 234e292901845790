"""The settings in `param_groups` of a PyTorch optimiser: our names for them, and what shows its class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weights_convert.errors import MismatchError
from weights_convert.formats.base import one_line
from weights_convert.formats.torch.entries import describe, label
from weights_convert.formats.torch.file import TorchReader
from weights_convert.formats.torch.objects import TensorRef
from weights_convert.optimizer.state import Facts, refuse

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
NAMED_BY: dict[str, dict[str, tuple[str, int | None]]] = {  # our setting -> key of a group, and index
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
NAMED_BY["adamw"] = NAMED_BY["adam"]
_LISTS = ("params", "param_names")


def with_numbers(reader: TorchReader, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups with numbers in the place of scalar tensors, such as `lr=torch.tensor(0.1)`."""

    def plain(name: str, value: Any) -> Any:
        if isinstance(value, list | tuple) and len(value) == 2:  # betas
            return tuple(number_of(reader, f"{name}.{n}", inner) for n, inner in enumerate(value))
        return number_of(reader, name, value)

    return [
        {
            key: value if key in _LISTS else plain(f"{label(key)} of group {number}", value)
            for key, value in group.items()
        }
        for number, group in enumerate(groups)
    ]


def number_of(reader: TorchReader, name: str, value: Any) -> Any:
    """The number in a scalar tensor; other values are returned unchanged."""
    if type(value) is not TensorRef or value.storage is None or value.shape != () or value.dtype.kind in "bc":
        return value
    return float(reader.tensor_of(name, value)[1]())


def group_of(kind: str, settings: Mapping[str, float]) -> dict[str, Any]:
    """The settings as `torch.optim` names them, without its flags: the inverse of `NAMED_BY`.

    >>> group_of("adam", dict(learning_rate=0.1, weight_decay=0.0, beta_1=0.9, beta_2=0.99, epsilon=1e-8))
    {'lr': 0.1, 'weight_decay': 0.0, 'betas': (0.9, 0.99), 'eps': 1e-08}
    """
    group: dict[str, Any] = {}
    for ours, (key, index) in NAMED_BY[kind].items():
        group[key] = settings[ours] if index is None else (*group.get(key, ()), settings[ours])
    return group


def settings_of(where: str, kind: str, group: Mapping[str, Any]) -> dict[str, float]:
    """The settings of a group, by our names."""
    return {ours: _number(where, group, key, index) for ours, (key, index) in NAMED_BY[kind].items()}


def agreeing(where: str, groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings that all parameter groups have."""
    first = groups[0]
    for other in groups[1:]:
        for key in [*first, *(key for key in other if key not in first)]:
            if key not in _LISTS and not _same(first.get(key), other.get(key)):
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


def kind_of(where: str, group: dict[str, Any], state: Mapping[Any, Any], facts: Facts) -> str:
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


def check_group(where: str, group: dict[str, Any], facts: Facts) -> None:
    for key in _FLAGS:
        if group.get(key):
            raise MismatchError(f"{where} has {key}={one_line(group[key], 20)}, which has no counterpart")
    for key in unknown_in(group):
        refuse(where, f"the setting {key!r}", key, facts)


def unknown_in(group: Mapping[str, Any]) -> list[str]:
    """The names of settings without a counterpart."""
    return [label(key) for key in group if key not in _NEUTRAL]


def _number(where: str, group: Mapping[str, Any], key: str, index: int | None) -> float:
    value: Any = group.get(key)
    if index is not None:
        value = value[index] if isinstance(value, list | tuple) and len(value) == 2 else None
    if type(value) not in (int, float) or abs(value) > 1e300:
        raise MismatchError(f"{where} has {key}={one_line(describe(value), 40)}, expected a number")
    return float(value)
