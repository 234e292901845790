"""Make a named model: a network's constructor with other defaults; list the models and create one by name.

`torch_impl`, `keras_impl` and `tf1_compat` have the same file.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
Network = TypeVar("Network")

_MODELS: dict[str, Callable[..., Any]] = {}
_OF_KERAS = ("dtype", "trainable")  # keywords of every layer, behind `**keywords` in a signature
_OF_WEIGHTS = ("pretrained", "weights", "include_top", "checkpoint_path")  # as other projects call them
_ELSEWHERE = {  # keyword of other projects -> ours
    "act_layer": "activation",
    "aa_layer": "anti_aliasing",
    "output_stride": "dilations",
    "replace_stride_with_dilation": "dilations",
    "last_stride": "strides",
    "drop_rate": "dropout",
    "classes": "num_classes",
    "pooling": "global_pool",
}


def list_models(filter: str = "*") -> list[str]:
    """Return the names of the models, sorted.

    Args:
        filter: a pattern with `*` and `?`, such as "se_*".
    """
    return sorted(name for name in _MODELS if fnmatchcase(name, filter))


def create_model(name: str, *args: Any, **keywords: Any) -> Any:
    """Create a model by its name; the arguments are those of its constructor.

    Raises:
        ValueError: there is no such model; the message offers the nearest name.
        TypeError: there is no such keyword; the message offers the nearest one.
    """
    if name not in _MODELS:
        raise ValueError(f"there is no model {name!r}{_nearest(name, _MODELS)}; see list_models()")
    return _MODELS[name](*args, **keywords)


def with_defaults(build: Callable[P, Network], model: str, **defaults: Any) -> Callable[P, Network]:
    """Return `build` with other defaults, shown by its signature and `help()`.

    If `build` has a keyword `name`, its default becomes `model`.
    """
    is_class = isinstance(build, type)
    signature = inspect.signature(build.__init__ if is_class else build, eval_str=True)
    parameters = [parameter for parameter in signature.parameters.values() if parameter.name != "self"]
    other = defaults | ({"name": model} if "name" in signature.parameters else {})
    known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    known += _OF_KERAS if len(known) < len(parameters) else ()

    def constructor(*args: P.args, **keywords: P.kwargs) -> Network:
        _check_names(model, keywords, known)
        return build(*args, **{**other, **keywords})

    constructor.__name__ = constructor.__qualname__ = model
    constructor.__doc__ = f"`{build.__name__}` with the defaults {defaults}; it accepts the same keywords."
    constructor.__dict__["defaults"] = defaults
    constructor.__dict__["__signature__"] = signature.replace(
        parameters=[p.replace(default=other.get(p.name, p.default)) for p in parameters],
        return_annotation=build if is_class else signature.return_annotation,
    )
    _MODELS[model] = constructor
    return constructor


def _check_names(model: str, keywords: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise `TypeError` for a keyword that the network does not have."""
    for name in keywords:
        if name in known:
            continue
        if name in _OF_WEIGHTS:
            raise TypeError(
                f"{model}() got {name!r}, but a constructor only makes random weights; load a checkpoint "
                "with weights_convert.load_into(model, path), or model and weights with load_model(path)"
            )
        ours = _ELSEWHERE.get(name, "")
        hint = f"; did you mean {ours!r}?" if ours in known else _nearest(name, known)
        raise TypeError(f"{model}() has no keyword {name!r}{hint}")


def _nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'in_channels'?`, or nothing if no name is near."""
    found = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {found[0]!r}?" if found else ""
