"""Watching a model run: the input and output of every layer, by the same names in every framework.

A `Tracer` knows one live model. Names are module paths ("layer1.0.conv1"); a layer that runs twice appears
a second time as "name#2". Arrays are (N, C, H, W), (N, C, L) or (N, C) in every framework. The model's own
code is not touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from weights_convert import import_order  # noqa: F401  (before any framework)
from weights_convert.errors import SpecError


class Call(NamedTuple):
    """One layer's run."""

    input: np.ndarray
    output: np.ndarray


Trace = dict[str, Call]  # in execution order, what is inside a layer before the layer
OUTPUT = "output"  # the name of the model's own output, the last of a trace


class Tracer(Protocol):
    """One live model that can be watched, whole or layer by layer."""

    @property
    def framework(self) -> str:
        """ "torch", "keras", "tf1" or "dump"."""

    @property
    def dtype(self) -> str:
        """In which it computes."""

    def trace(self, images: np.ndarray, *, train: bool = False) -> Trace:
        """Run the model on (N, C, H, W) and record every layer."""

    def alone(self, inputs: Mapping[str, np.ndarray], *, train: bool = False) -> dict[str, np.ndarray]:
        """Each layer's output for an input of its own; a layer that cannot be run alone is left out."""

    def statistics(self) -> Mapping[str, np.ndarray]:
        """Running means and variances by canonical name, as they are now."""

    def weighted(self) -> set[str]:
        """The layers that have weights of their own: none of them may be missing on the other side."""

    def restore(self) -> None:
        """Put back what training has moved in a model that belongs to somebody."""


class TF1Model(NamedTuple):
    """A TensorFlow 1 network, as `compare_models` takes it.

    Attributes:
        session: with the weights in it.
        images: the placeholder, (N, H, W, C).
        outputs: the network's last tensor.
        scope: the variable scope of the network; "" for none.
    """

    session: Any
    images: Any
    outputs: Any
    scope: str = ""


def numbered(name: str, seen: dict[str, int]) -> str:
    """`name` at its first call, `name#2` at its second."""
    seen[name] = seen.get(name, 0) + 1
    return name if seen[name] == 1 else f"{name}#{seen[name]}"


def channels_first(array: np.ndarray) -> np.ndarray:
    """(N, ..., C) -> (N, C, ...)."""
    return np.moveaxis(array, -1, 1) if array.ndim > 2 else array


def channels_last(array: np.ndarray) -> np.ndarray:
    """(N, C, ...) -> (N, ..., C), contiguous."""
    return np.asarray(np.moveaxis(array, 1, -1), order="C") if array.ndim > 2 else array


_KERAS = "keras.src.layers.layer.Layer"


def _bases(model: Any) -> set[str]:
    return {f"{base.__module__}.{base.__name__}" for base in type(model).__mro__}


def is_torch(model: Any) -> bool:
    """Whether a model is a torch module; a Keras layer on the torch backend is one too, and is Keras's."""
    bases = _bases(model)
    return "torch.nn.modules.module.Module" in bases and _KERAS not in bases


def tracer_of(model: Any, dtype: str) -> Tracer:
    """The tracer of a torch module, a Keras model or a `TF1Model`, computing in `dtype`.

    Raises:
        SpecError: it is none of these, or it cannot be had in `dtype`; the message says what to do.
    """
    if isinstance(model, TF1Model):
        from parity_tests.compare.tf1_trace import TF1Tracer

        return TF1Tracer(model, dtype)
    if is_torch(model):
        from parity_tests.compare.torch_trace import TorchTracer

        return TorchTracer(model, dtype)
    if _KERAS in _bases(model):
        from parity_tests.compare.keras_trace import KerasTracer

        return KerasTracer(model, dtype)
    raise SpecError(
        f"{type(model).__module__}.{type(model).__qualname__} is neither a torch module, a Keras model nor "
        "a parity_tests.compare.TF1Model(session, images, outputs)"
    )
