"""The framework of a live model, and the tracer for it."""

from __future__ import annotations

from typing import Any

from parity_tests.watch.trace import TF1Model, Tracer
from weights_convert.errors import SpecError

_KERAS = "keras.src.layers.layer.Layer"


def _bases(model: Any) -> set[str]:
    return {f"{base.__module__}.{base.__name__}" for base in type(model).__mro__}


def is_torch(model: Any) -> bool:
    """Whether a model is a torch module. A Keras layer on the torch backend counts as Keras."""
    bases = _bases(model)
    return "torch.nn.modules.module.Module" in bases and _KERAS not in bases


def tracer_of(model: Any, dtype: str, *, as_it_is: bool = False) -> Tracer:
    """The tracer of a torch module, a Keras model or a `TF1Model`, computing in `dtype`.

    `as_it_is`: keep half precision in a torch module. (A Keras model always keeps it.)

    Raises:
        SpecError: the model is none of these or does not run in `dtype`; the message gives a remedy.
    """
    if isinstance(model, TF1Model):
        from parity_tests.watch.tf1 import TF1Tracer

        return TF1Tracer(model, dtype)
    if is_torch(model):
        from parity_tests.watch.torch import TorchTracer

        return TorchTracer(model, dtype, as_it_is=as_it_is)
    if _KERAS in _bases(model):
        from parity_tests.watch.keras import KerasTracer

        return KerasTracer(model, dtype)
    raise SpecError(
        f"{type(model).__module__}.{type(model).__qualname__} is neither a torch module, a Keras model nor "
        "a parity_tests.compare.TF1Model(session, images, outputs)"
    )
