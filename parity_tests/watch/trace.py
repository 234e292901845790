"""Tracing a model: the input and output of every layer, under the same names in every framework.

A `Tracer` belongs to one live model. Names are module paths ("layer1.0.conv1"); the second call of a layer is
"name#2"; several tensors of one layer have paths: "name 0", "name state.h". Images are (N, C, H, W) in every
framework: Keras and TF1 have their last axis moved, in every array with more than two axes. `compare.views`
undoes this where an array is no image. The model's code is not changed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from parity_tests.judge import tolerances
from parity_tests.watch.inputs import Beside
from weights_convert import import_order  # noqa: F401  (before any framework)


class Call(NamedTuple):
    """One output tensor of a layer's call.

    Attributes:
        input: the first input tensor of the layer; empty if there was none.
        output: the output tensor.
        layer: its name without the number of the call and the path; "" for the model's output.
        others: the other input tensors, positional and by keyword.
        inside: the value before the activation that a Keras layer applies to its output; None for others.
    """

    input: np.ndarray
    output: np.ndarray
    layer: str = ""
    others: tuple[np.ndarray, ...] = ()
    inside: np.ndarray | None = None


# what Keras adds to the message of a layer: colours, the name of the method, and all its arguments
_AROUND = re.compile(
    "\x1b\\[[0-9;]*m|Exception encountered when calling [^\n]*\n|Arguments received by .*", re.DOTALL
)
OUTPUT = "output"  # name of the model's output, the last call of a trace


class Trace(dict[str, Call]):
    """The calls in execution order, inner layers before outer ones; the model's outputs at the end.

    Attributes:
        outputs: the names of the model's outputs.
        opaque: outputs that are neither tensors nor numbers and cannot be compared.
        moved: whether the last axis of every array with more than two was moved to the second place.
        exported: whether it is of an exported graph, which need not show every layer.
        fused: layer whose weights another layer of an exported graph has -> that layer.
    """

    def __init__(self, calls: Mapping[str, Call] | None = None) -> None:
        super().__init__(calls or {})
        self.outputs: list[str] = []
        self.opaque: list[str] = []
        self.moved = False
        self.exported = False
        self.fused: dict[str, str] = {}

    def finish(
        self, images: np.ndarray, found: Iterable[tuple[str, np.ndarray]], opaque: Iterable[str] = ()
    ) -> Trace:
        """Add the model's outputs by their paths; a layer named "output" keeps its name."""
        taken = any(call.layer == OUTPUT for call in self.values())
        name = f"model {OUTPUT}" if taken else OUTPUT
        for path, array in found:
            self.outputs.append(joined(name, path))
            self[self.outputs[-1]] = Call(images, array)
        self.opaque = [joined(name, path) for path in opaque]
        return self


class Weights(NamedTuple):
    """The number of a layer's own tensors, and of the numbers in them."""

    tensors: int
    parameters: int


Fingerprint = tuple[str, tuple[int, ...]]  # what any layout keeps: a hash of the values, the sorted sizes


def fingerprint(weight: np.ndarray) -> Fingerprint:
    """The same for a weight in any order of its axes and numbers; constant weights share no hash."""
    values = np.sort(np.abs(weight.astype(np.float32)), axis=None)
    shape = tuple(sorted(size for size in weight.shape if size > 1))
    if not values.size or values[0] == values[-1]:
        return "", shape
    return hashlib.sha256(values.tobytes()).hexdigest(), shape


class Tracer(Protocol):
    """Traces one live model, as a whole or layer by layer."""

    @property
    def framework(self) -> str:
        """ "torch", "keras", "tf1" or "dump"."""

    @property
    def dtype(self) -> str:
        """The dtype of the computation."""

    beside: Beside  # the inputs beside the first one
    same_axes: bool  # whether it takes images with torch's axes; otherwise Keras and TF1 have channels last

    @property
    def notes(self) -> Sequence[str]:
        """Notes for the report."""

    def trace(self, images: np.ndarray, *, train: bool = False) -> Trace:
        """Run the model on (N, C, H, W) and record every layer."""

    def run_alone(
        self, inputs: Mapping[str, np.ndarray], *, train: bool = False
    ) -> dict[str, np.ndarray | str]:
        """Each layer's output for a given input, or the reason why it cannot run alone."""

    def run_corrected(
        self, images: np.ndarray, outputs: Mapping[str, Sequence[np.ndarray]], *, train: bool = False
    ) -> Trace:
        """A trace in which every layer's output is replaced by the nearest of `outputs` before it is used.

        The trace has the outputs before they are replaced: a layer that only inherits an error is right here,
        whatever stands between the layers. An array of another shape replaces nothing. An exception ends
        the trace early.
        """

    def statistics(self) -> Mapping[str, np.ndarray]:
        """Running statistics by canonical name after a run in train mode.

        Means and variances of batch normalisation, and any other state that the run has changed.
        """

    def unbiased(self) -> Mapping[str, np.ndarray]:
        """The running variances that are known to be biased, multiplied by n / (n - 1)."""

    def weighted(self) -> Mapping[str, Weights]:
        """The layers with their own weights, after a run; "" for the model's own.

        The other model must have a counterpart for each.
        """

    def settings(self, name: str) -> Mapping[str, float]:
        """The small constants of the layer of a call: its epsilon, the slope of an activation."""

    def fingerprints(self) -> Mapping[str, Sequence[Fingerprint]]:
        """The fingerprints of each layer's own weights and statistics, for pairing layers."""

    def randomness(self) -> Any:
        """The state of the model's random generators, which changes when it draws numbers."""

    def stir(self) -> None:
        """Make the weights random until `restore`, so that no layer is without effect."""

    def restore(self) -> None:
        """Undo changes that training made in the user's model."""


class TF1Model(NamedTuple):
    """A TensorFlow 1 network for `compare_models`.

    Attributes:
        session: holds the weights.
        images: the placeholder, (N, H, W, C).
        outputs: the network's last tensor, or several in lists, tuples or mappings.
        scope: the variable scope of the network; "" for none.
    """

    session: Any
    images: Any
    outputs: Any
    scope: str = ""


SETTINGS = {"eps": "epsilon", "epsilon": "epsilon", "negative_slope": "slope"}  # attribute -> its meaning


def settings_of(layer: Any) -> dict[str, float]:
    """The constants of a layer in torch or Keras by their meaning, as far as they are numbers."""
    found = {
        meaning: getattr(layer, name, None) for name, meaning in SETTINGS.items() if hasattr(layer, name)
    }
    return {meaning: float(value) for meaning, value in found.items() if isinstance(value, (int, float))}


def stirred(weight: np.ndarray) -> np.ndarray:
    """A random weight of the same shape and dtype, positive like a variance, and neither large nor small."""
    found = np.random.default_rng(weight.size).uniform(0.5, 1.5, weight.shape)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], weight.shape) if weight.ndim > 1 else 1.0
    fan = max(1, weight.size // max(weight.shape, default=1)) if weight.ndim > 1 else 1
    return (found * signs / np.sqrt(fan)).astype(weight.dtype)


def base_name(name: str) -> str:
    """The layer's name in the name of a call or of one of its tensors."""
    return name.partition(" ")[0].partition("#")[0]


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


def is_index(array: np.ndarray) -> bool:
    """Whether an input holds indices, which stay integers, and not the values of pixels."""
    return array.dtype in (np.int32, np.int64)


def nearest(found: np.ndarray, outputs: Sequence[np.ndarray]) -> np.ndarray:
    """The array of `outputs` that `found` stands for, or `found` itself if none has its shape.

    The first one, unless another is clearly nearer: where everything is wrong, the nearest is chance.
    """
    fitting = [array for array in outputs if array.shape == found.shape and array.dtype.kind == "f"]
    if found.dtype.kind != "f" or not fitting:
        return found
    errors = [tolerances.relative_error(found, array) for array in fitting]
    return fitting[errors.index(min(errors)) if min(errors) < errors[0] / 2 else 0]


def reason_of(error: Exception) -> str:
    """A framework's exception in one line."""
    return f"{type(error).__name__}: {' '.join(_AROUND.sub('', str(error)).split())[:160]}"


def channels_first(array: np.ndarray) -> np.ndarray:
    """(N, ..., C) -> (N, C, ...)."""
    return np.moveaxis(array, -1, 1) if array.ndim > 2 else array


def channels_last(array: np.ndarray) -> np.ndarray:
    """(N, C, ...) -> (N, ..., C), contiguous."""
    return np.asarray(np.moveaxis(array, 1, -1), order="C") if array.ndim > 2 else array
