"""The contents of a PyTorch file: finds the state dict and describes everything else.

A file of `torch.save` may be a state dict, or a training checkpoint with one or several of them among epochs,
optimizer states and command line arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from weights_convert.errors import SourceError, nearest
from weights_convert.formats.torch.objects import (
    ArrayRef,
    ArrayType,
    Function,
    Latin1,
    Opaque,
    Storage,
    TensorRef,
)

# Keys of the state dict in training checkpoints, in order of preference: raw weights before averaged ones.
ENTRIES = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "params_ema",
    "ema",
)
TOP = "."  # name of the file's top level
MAX_DEPTH = 3  # of nested entries
MAX_LISTED = 20  # lines below an error, names in a note
_MOST_LOOKED_AT = 200_000  # most values counted for descriptions


class Entry(NamedTuple):
    """A mapping that holds tensors directly."""

    steps: tuple[str, ...]  # the keys of its path
    tensors: dict[str, TensorRef]
    metadata: list[Any]  # metadata of this project's networks


def choose(path: Path, root: Any, key: str | None) -> tuple[Entry, list[str]]:
    """The state dict in `root`, or the entry `key` if given, and notes about the choice."""
    mapping = _as_mapping(root)
    entries = _entries(mapping, _is_tensor) if isinstance(mapping, dict) else {}
    if not entries and isinstance(mapping, dict):
        entries = _entries(mapping, _is_array)
    if not entries:
        raise _nothing_to_choose(path, root)
    shown = islice(entries.items(), MAX_LISTED)
    listed = [f"{label(name)!r}: {_tensors(len(entry.tensors))}" for name, entry in shown]
    if key is not None and key not in entries:
        found = f" (it is {describe(mapping[key])})" if key in mapping else nearest(key, entries)
        raise SourceError(f"{path}: no entry {key!r} that holds tensors{found}; there are", listed)
    name = key if key is not None else _preferred(entries)
    if name is None:
        raise SourceError(f"{path}: {len(entries)} entries hold tensors; choose one with --key", listed)
    others = ", ".join(repr(label(other)) for other in list(entries)[:MAX_LISTED] if other != name)
    note = f"took the entry {label(name)!r}; others that hold tensors: {others} (choose with --key)"
    return entries[name], [note] if others and key is None else []


def left_out(root: Mapping, chosen: Entry) -> Iterator[tuple[str, str]]:
    """Name and description of everything except the chosen tensors and their parents."""
    mapping, prefix, look = _as_mapping(root), "", _Look()
    for step in chosen.steps:
        yield from ((prefix + label(n), describe(value, look)) for n, value in mapping.items() if n != step)
        mapping, prefix = _as_mapping(mapping[step]), f"{prefix}{label(step)}."
    rest = ((name, value) for name, value in mapping.items() if name not in chosen.tensors)
    yield from ((prefix + label(name), describe(value, look)) for name, value in rest)


def beside(root: Any, chosen: Entry) -> dict[Any, Any]:
    """The entries beside the chosen one, and beside its parents."""
    mapping = _as_mapping(root)
    found: dict[Any, Any] = {}
    for step in chosen.steps:
        found |= {name: value for name, value in mapping.items() if name != step}
        mapping = _as_mapping(mapping[step])
    return found or {name: value for name, value in mapping.items() if name not in chosen.tensors}


class _Look:
    """A budget for inspecting values: a large container may be contained in many others."""

    def __init__(self) -> None:
        self.left = _MOST_LOOKED_AT


def describe(value: Any, look: _Look | None = None) -> str:
    """A short description of any value that the unpickler can produce."""
    match value:
        case Opaque() | Function():
            return short(value.path)
        case ArrayRef():
            return short(f"{value.dtype} array {value.shape}") if value.storage else "numpy.ndarray"
        case TensorRef():
            return short(f"{value.dtype} tensor {value.shape}") if value.storage else "tensor without data"
        case Storage():
            return short(value.kind)
        case dict() | list() | tuple() | set() | frozenset():
            kind = "dict" if isinstance(value, dict) else type(value).__name__
            count = _count_tensors(value, look or _Look())
            return f"{kind} of {len(value)}" + (f" ({_tensors(count)})" if count else "")
        case bytes() | bytearray() | Latin1():
            return f"{'bytearray' if isinstance(value, bytearray) else 'bytes'} of {len(value)}"
        case ArrayType():
            return "numpy.dtype"
        case None | bool():
            return str(value)
        case int() if value.bit_length() > 64:  # str() refuses very long ints
            return f"int of {value.bit_length()} bits"
        case int() | float():
            return f"{type(value).__name__} {value}"
        case str():
            return f"str {short(ascii(value[:100]))}"
    return type(value).__name__


def label(name: object) -> str:
    """The key of an entry as text of bounded length."""
    return short(name if isinstance(name, str) else describe(name).removeprefix("int "))


def short(text: str, limit: int = 60) -> str:
    """One printable line of at most `limit` characters."""
    text = text[: limit + 1]
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _entries(root: dict, counts: Callable[[Any, Any], bool]) -> dict[str, Entry]:
    """Dotted name -> every mapping that holds tensors directly; outer mappings first."""
    found: dict[str, Entry] = {}
    seen: dict[int, dict[str, TensorRef]] = {}  # a mapping may be reached in several ways, or contain itself
    level: list[tuple[tuple[str, ...], dict]] = [((), root)]
    members: dict[int, Any] = {}  # of the lists
    for _ in range(MAX_DEPTH + 1):
        inner = []
        for steps, mapping in level:
            if id(mapping) not in seen:
                seen[id(mapping)] = {n: value for n, value in mapping.items() if counts(n, value)}
                for name, value in mapping.items():
                    if isinstance(name, str) and isinstance(value, dict | list | tuple):
                        if id(value) not in members:
                            members[id(value)] = _as_mapping(value)
                        inner.append(((*steps, name), members[id(value)]))
            if tensors := seen[id(mapping)]:
                metadata = getattr(mapping, "metadata", [])
                found.setdefault(".".join(steps) or TOP, Entry(steps, tensors, metadata))
        level = inner
    return found


def _as_mapping(value: Any) -> Any:
    """The mappings in a list or a tuple by their numbers; any other value unchanged."""
    if isinstance(value, list | tuple):
        return {str(number): member for number, member in enumerate(value) if isinstance(member, dict)}
    return value


def _is_tensor(name: Any, value: Any) -> bool:
    return isinstance(name, str) and type(value) is TensorRef and value.storage is not None


def _is_array(name: Any, value: Any) -> bool:
    """NumPy's arrays count only in a file without torch's tensors: beside them they are other facts."""
    return isinstance(name, str) and isinstance(value, ArrayRef) and value.storage is not None


def _preferred(entries: Mapping[str, Entry]) -> str | None:
    known = next((name for name in ENTRIES if name in entries), None)
    if TOP not in entries:
        return known or (next(iter(entries)) if len(entries) == 1 else None)
    # training scripts store single tensors beside the state dict: the best accuracy, a step count
    fewer = known is not None and len(entries[TOP].tensors) < len(entries[known].tensors)
    return known if fewer else TOP


def _nothing_to_choose(path: Path, root: Any) -> SourceError:
    what = describe(root)
    if isinstance(root, Opaque):
        return SourceError(
            f"{path}: a pickled {what} object, expected a state dict; "
            "load it where its class is defined and save model.state_dict()"
        )
    items = islice(root.items(), MAX_LISTED) if isinstance(root, dict) else ()
    return SourceError(
        f"{path}: {what}, expected a mapping from names to tensors, such as model.state_dict()",
        [f"{label(name)}: {describe(value)}" for name, value in items],
    )


def _tensors(count: int) -> str:
    return f"{count} tensor{'s' * (count != 1)}"


def _count_tensors(value: Any, look: _Look) -> int:
    count, seen, waiting = 0, set(), [value]
    while waiting and look.left:
        look.left -= 1
        value = waiting.pop()
        if id(value) in seen:  # a list may be reached in very many ways, or contain itself
            continue
        seen.add(id(value))
        if isinstance(value, TensorRef):
            count += value.storage is not None
        elif isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            waiting.extend(value)
    return count
