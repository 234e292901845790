"""The keywords in the `config.json` of a `.keras` file, or in the `model_config` of an older `.h5`.

Keras describes the construction of a model there: class names and keywords, as plain JSON. Only the keywords
of this project's networks are used; nothing is imported, created or run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from weights_convert.errors import SourceError
from weights_convert.formats.base import parse_metadata
from weights_convert.limits import Limits
from weights_convert.spec import KINDS

# name of the class by `register_keras_serializable("samenet")` -> kind of network
_OURS = {f"samenet>{kind.network}": kind.kind for kind in KINDS.values() if kind.network}
_PART = "samenet>Keywords"  # the layer with the keywords in a functional model made of a network's layers
_KERAS_OWN = ("name", "trainable", "dtype")  # keywords of every layer's config


def keywords_in_config(text: str | bytes, path: Path, limits: Limits) -> dict[str, dict[str, Any]]:
    """Metadata from the config of every network of this project in a model, by the names of their layers.

    The name of the model itself is "", also for a functional model made of a network's layers.

    Raises:
        SourceError: the config is not a JSON object, or (`LimitError`) too long or too deep.
    """
    config = parse_metadata(text, path, limits, "config")
    found = {}
    for inner in _objects(config):
        names = [str(inner.get(key)) for key in ("registered_name", "class_name")]
        keywords = inner.get("config")
        if inner is config and "module" not in config and _is_ours(names[1], keywords):  # an older `.h5`
            names.append(f"samenet>{names[1]}")
        if (ours := next((name for name in names if name in _OURS), None)) is not None:
            if not isinstance(keywords, dict):
                raise SourceError(f"{path}: its config of {ours} has no keywords, expected an object of them")
            spec = {k: v for k, v in keywords.items() if k not in _KERAS_OWN}
            name = "" if inner is config else str(keywords.get("name"))
            found[name] = {"kind": _OURS[ours], "spec": spec}
        elif _PART in names and isinstance(keywords, dict):
            found[""] = parse_metadata(keywords.get("metadata"), path, limits, f"config of {_PART}")
    return found


def _is_ours(class_name: str, keywords: Any) -> bool:
    """Whether a class has the name and the keywords of one of this project's networks."""
    kinds = [kind for kind in KINDS.values() if kind.network == class_name and isinstance(keywords, dict)]
    return any({*keywords} - {*_KERAS_OWN} == {field.name for field in fields(kind)} for kind in kinds)


def _objects(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every object in a config, the outermost first."""
    waiting: list[Any] = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def agreeing(path: Path, first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The metadata from two places of a file; `SourceError` if they contradict each other."""
    if first and second:
        ours, theirs = first.get("spec"), second.get("spec")
        if isinstance(ours, dict) and isinstance(theirs, dict) and ours != theirs:
            name = next((k for k in ours if k not in theirs or ours[k] != theirs[k]), min(theirs, default=""))
            raise SourceError(
                f"{path}: contradictory values of {name!r}: {ours.get(name)!r} beside its weights, "
                f"{theirs.get(name)!r} in its config; save the model again"
            )
    return first or second
