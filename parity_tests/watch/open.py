"""The framework of a live model or an exported artefact, and the tracer for it."""

from __future__ import annotations

from typing import Any

from parity_tests.watch.exported.base import Exported
from parity_tests.watch.exported.kinds import FILES, opened
from parity_tests.watch.trace import TF1Model, Tracer
from weights_convert.errors import SpecError

_KERAS = "keras.src.layers.layer.Layer"
_SCRIPT = "torch.jit._script.ScriptModule"


def _bases(model: Any) -> set[str]:
    return {f"{base.__module__}.{base.__name__}" for base in type(model).__mro__}


def is_torch(model: Any) -> bool:
    """Whether a model is a torch module that Python runs.

    A Keras layer on the torch backend counts as Keras, and a TorchScript module as an exported artefact.
    """
    bases = _bases(model)
    return "torch.nn.modules.module.Module" in bases and not bases & {_KERAS, _SCRIPT}


def is_keras(model: Any) -> bool:
    return _KERAS in _bases(model)


def tracer_of(model: Any, dtype: str, *, as_it_is: bool = False) -> Tracer:
    """The tracer of a torch module, a Keras model or a `TF1Model` in `dtype`, or an artefact's in its own.

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
    artefact = opened(model)
    if isinstance(artefact, Exported):
        return artefact
    if is_keras(model):
        from parity_tests.watch.keras import KerasTracer

        return KerasTracer(model, dtype)
    raise SpecError(
        f"{type(model).__module__}.{type(model).__qualname__} is neither a torch module, a Keras model, "
        "a parity_tests.compare.TF1Model(session, images, outputs), a Callable(fn) nor an exported artefact "
        f"({FILES}, a SavedModel's folder, or such an object)"
    )
