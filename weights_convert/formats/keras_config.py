"""The keywords in the `config.json` of a `.keras` file, or in the `model_config` of an older `.h5`.

Keras writes there how a model is made: class names and keywords, as plain JSON. Only the keywords of this
project's own `ResNet` are taken; nothing is imported, made or run because of what stands there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weights_convert.errors import SourceError
from weights_convert.formats.base import parse_metadata
from weights_convert.limits import Limits
from weights_convert.spec import KINDS

# as `register_keras_serializable("samenet")` names the classes -> kind of network
_OURS = {f"samenet>{kind.network}": kind.kind for kind in KINDS.values() if kind.network}
_KERAS_OWN = ("name", "trainable", "dtype")  # what every layer's config has besides


def keywords_in_config(text: str | bytes, path: Path, limits: Limits) -> dict[str, Any]:
    """What the config says of a network of this project, as metadata; {} for any other model.

    Raises:
        SourceError: it is no JSON object, or (`LimitError`) too long or too deep.
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
    """What one or both of two places say; `SourceError` where they say different keywords."""
    if first and second:
        ours, theirs = first.get("spec"), second.get("spec")
        if isinstance(ours, dict) and isinstance(theirs, dict) and ours != theirs:
            name = next((k for k in ours if k not in theirs or ours[k] != theirs[k]), min(theirs, default=""))
            raise SourceError(
                f"{path}: says two things about {name!r}: {ours.get(name)!r} beside its weights and "
                f"{theirs.get(name)!r} in its config; save the model again"
            )
    return first or second
