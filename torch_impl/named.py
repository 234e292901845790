"""Make a named model: a network's constructor with other defaults.

`torch_impl`, `keras_impl` and `tf1_compat` have the same file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
Network = TypeVar("Network")


def with_defaults(build: Callable[P, Network], model: str, **defaults: Any) -> Callable[P, Network]:
    """Return `build` with other defaults, shown by its signature and `help()`.

    If `build` has a keyword `name`, its default becomes `model`.
    """
    is_class = isinstance(build, type)
    signature = inspect.signature(build.__init__ if is_class else build, eval_str=True)
    parameters = [parameter for parameter in signature.parameters.values() if parameter.name != "self"]
    other = defaults | ({"name": model} if "name" in signature.parameters else {})

    def constructor(*args: P.args, **keywords: P.kwargs) -> Network:
        return build(*args, **{**other, **keywords})

    constructor.__name__ = constructor.__qualname__ = model
    constructor.__doc__ = f"`{build.__name__}` with the defaults {defaults}; it accepts the same keywords."
    constructor.__dict__["defaults"] = defaults
    constructor.__dict__["__signature__"] = signature.replace(
        parameters=[p.replace(default=other.get(p.name, p.default)) for p in parameters],
        return_annotation=build if is_class else signature.return_annotation,
    )
    return constructor
