"""The keywords in the `config.json` of a `.keras` file, or in the `model_config` of an older `.h5`.

Keras describes the construction of a model there: class names and keywords, as plain JSON. Only the keywords
of this project's `ResNet` are used; nothing is imported, created or run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weights_convert.errors import SourceError
from weights_convert.formats.base import parse_metadata
from weights_convert.limits import Limits
from weights_convert.spec import KINDS

# name of the class by `register_keras_serializable("samenet")` -> kind of network
_OURS = {f"samenet>{kind.network}": kind.kind for kind in KINDS.values() if kind.network}
_KERAS_OWN = ("name", "trainable", "dtype")  # keywords of every layer's config


def keywords_in_config(text: str | bytes, path: Path, limits: Limits) -> dict[str, Any]:
    """Metadata from the config of a network of this project; {} for any other model.

    Raises:
        SourceError: the config is not a JSON object, or (`LimitError`) too long or too deep.
    """
    config = parse_metadata(text, path, limits, "config")
    names = [str(config.get(key)) for key in ("registered_name", "class_name")]
    if (ours := next((name for name in names if name in _OURS), None)) is None:
        return {}
    keywords = config.get("config")
    if not isinstance(keywords, dict):
        raise SourceError(f"{path}: its config of {ours} has no keywords, expected an object of them")
    return {"kind": _OURS[ours], "spec": {k: v for k, v in keywords.items() if k not in _KERAS_OWN}}


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
