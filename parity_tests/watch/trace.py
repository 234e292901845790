"""Watching a model run: the input and output of every layer, by the same names in every framework.

A `Tracer` knows one live model. Names are module paths ("layer1.0.conv1"); a layer that runs twice appears
a second time as "name#2"; of a layer that returns several tensors each has a path: "name 0", "name state.h".
Arrays are (N, C, H, W), (N, C, L) or (N, C) in every framework. The model's own code is not touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from weights_convert import import_order  # noqa: F401  (before any framework)


class Call(NamedTuple):
    """One tensor that a run of a layer gave.

    Attributes:
        input: the first tensor that the layer was given; of no elements where it was given none.
        output: what it gave.
        layer: its name without number of the call and path; "" for the model's own output.
    """

    input: np.ndarray
    output: np.ndarray
    layer: str = ""


OUTPUT = "output"  # the name of the model's own output, the last of a trace


class Trace(dict[str, Call]):
    """The calls in execution order, what is inside a layer before the layer; the model's outputs at the end.

    Attributes:
        outputs: the names of the model's outputs.
        opaque: the outputs that are neither tensors nor numbers, so that nothing can be compared with them.
    """

    def __init__(self, calls: Mapping[str, Call] | None = None) -> None:
        super().__init__(calls or {})
        self.outputs: list[str] = []
        self.opaque: list[str] = []

    def finish(
        self, images: np.ndarray, found: Iterable[tuple[str, np.ndarray]], opaque: Iterable[str] = ()
    ) -> Trace:
        """Add the model's outputs by their paths; a layer that is called "output" keeps its name."""
        taken = any(call.layer == OUTPUT for call in self.values())
        name = f"model {OUTPUT}" if taken else OUTPUT
        for path, array in found:
            self.outputs.append(joined(name, path))
            self[self.outputs[-1]] = Call(images, array)
        self.opaque = [joined(name, path) for path in opaque]
        return self


class Weights(NamedTuple):
    """How many tensors a layer has of its own, and how many numbers are in them."""

    tensors: int
    parameters: int


class Tracer(Protocol):
    """One live model that can be watched, whole or layer by layer."""

    @property
    def framework(self) -> str:
        """ "torch", "keras", "tf1" or "dump"."""

    @property
    def dtype(self) -> str:
        """In which it computes."""

    @property
    def notes(self) -> Sequence[str]:
        """What a reader should know of how it is watched."""

    def trace(self, images: np.ndarray, *, train: bool = False) -> Trace:
        """Run the model on (N, C, H, W) and record every layer."""

    def alone(self, inputs: Mapping[str, np.ndarray], *, train: bool = False) -> dict[str, np.ndarray]:
        """Each layer's output for an input of its own; a layer that cannot be run alone is left out."""

    def statistics(self) -> Mapping[str, np.ndarray]:
        """Running statistics by canonical name, as they are now, after a run in train mode.

        Means and variances of batch normalisation, and whatever else the run has moved.
        """

    def unbiased(self) -> Mapping[str, np.ndarray]:
        """The running variances that are known to be biased, as they would be with n / (n - 1)."""

    def weighted(self) -> Mapping[str, Weights]:
        """The layers that have weights of their own, after a run; "" for what is the model's itself.

        None of them may be missing on the other side.
        """

    def randomness(self) -> Any:
        """The state of the random numbers that the model draws from: another after some were drawn."""

    def restore(self) -> None:
        """Put back what training has moved in a model that belongs to somebody."""


class TF1Model(NamedTuple):
    """A TensorFlow 1 network, as `compare_models` takes it.

    Attributes:
        session: with the weights in it.
        images: the placeholder, (N, H, W, C).
        outputs: the network's last tensor, or several in lists, tuples or mappings.
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


def joined(name: str, path: str) -> str:
    """The name of one of several tensors."""
    return f"{name} {path}" if path else name


def covers(entry: str, name: str) -> bool:
    """Whether `name` is `entry`, a call or a tensor of it, or inside it."""
    return name == entry or name.startswith((f"{entry}.", f"{entry}#", f"{entry} "))


def channels_first(array: np.ndarray) -> np.ndarray:
    """(N, ..., C) -> (N, C, ...)."""
    return np.moveaxis(array, -1, 1) if array.ndim > 2 else array


def channels_last(array: np.ndarray) -> np.ndarray:
    """(N, C, ...) -> (N, ..., C), contiguous."""
    return np.asarray(np.moveaxis(array, 1, -1), order="C") if array.ndim > 2 else array
