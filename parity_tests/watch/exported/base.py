"""The base of every exported artefact: inputs in its layout and dtype, batches of its size, its outputs.

An artefact computes in its own precision. It has no train mode, and its weights do not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from parity_tests.watch.inputs import Beside
from parity_tests.watch.trace import (
    Call,
    Fingerprint,
    Trace,
    Weights,
    channels_first,
    channels_last,
    is_index,
)
from weights_convert.errors import SpecError

Values = Sequence[tuple[str, np.ndarray]]  # path and array of each output
LOW = ("bfloat16", "float16", "int8")  # precisions that no limit of float32 fits


class Slot(NamedTuple):
    """An input or output as the artefact declares it.

    Attributes:
        name: of the tensor; "" if it has none.
        dtype: of NumPy; None if it is not declared.
        shape: with None for a size that may vary; None if it is not declared.
        step, zero: of a quantised tensor: value = step * (stored - zero); step 0 for others.
    """

    name: str
    dtype: np.dtype | None = None
    shape: tuple[int | None, ...] | None = None
    step: float = 0.0
    zero: int = 0


class Exported:
    """Traces an artefact as one step: its inputs and its outputs.

    A kind of artefact sets `inputs` and `precision`, and defines `call`.

    Attributes:
        framework: the kind, for the report.
        channels_last: whether this kind usually has its channels last.
        either_axes: whether both layouts are tried; False if the layout is stated.
        outputs_only: whether nothing but the outputs is seen.
        precision: "float64", "float32", or one of `LOW`.
        step: the quantisation step of the first output; 0 if it has none.
        inputs: as the artefact declares them; empty if it declares none.
    """

    framework = "exported"
    channels_last = False
    either_axes = True
    outputs_only = True
    precision = "float32"
    step = 0.0

    def __init__(self, what: str) -> None:
        self.what = what
        self.inputs: list[Slot] = []
        self.beside = Beside()
        self.same_axes = not self.channels_last
        self.notes: list[str] = []

    def call(self, given: Sequence[np.ndarray]) -> Values:
        """Run the artefact on arrays in its own layout, in the order of `inputs`."""
        raise NotImplementedError

    @property
    def dtype(self) -> str:
        return "float64" if self.precision == "float64" else "float32"

    def layouts(self, images: np.ndarray) -> list[bool]:
        """The values of `same_axes` to try, those that fit the declared shape, the usual one first."""
        if not self.either_axes:
            return [self.same_axes]
        usual = not self.channels_last
        shape = self.inputs[0].shape if self.inputs else None
        if images.ndim < 3 or shape is None:
            return [usual] if images.ndim < 3 else [usual, not usual]
        fitting = [same for same in (usual, not usual) if _fits(shape, _arranged(images, same).shape)]
        return fitting or [usual]

    def trace(self, images: np.ndarray, *, train: bool = False) -> Trace:
        self._check_eval(train)
        values = self._in_batches(images)
        calls = self._new_trace()
        given = images if is_index(images) else np.array(images, self.dtype)
        return calls.finish(given, [(path, self._canonical(array)) for path, array in values])

    def _check_eval(self, train: bool) -> None:
        if train:
            raise SpecError(f"{self.what} is exported and has no train mode; compare it with train=False")

    def _new_trace(self) -> Trace:
        calls = Trace()
        calls.moved = self.channels_last or not self.same_axes
        return calls

    def _canonical(self, array: np.ndarray) -> np.ndarray:
        return channels_first(array) if self.channels_last or not self.same_axes else array

    def _in_batches(self, images: np.ndarray) -> Values:
        parts = [self.call(batch) for batch in self._batches(images)]
        if len(parts) == 1:
            return parts[0]
        return [
            (path, np.concatenate([part[i][1] for part in parts])) for i, (path, _) in enumerate(parts[0])
        ]

    def _batches(self, images: np.ndarray) -> Iterator[list[np.ndarray]]:
        """The inputs in the artefact's layout and dtype; in parts if it takes fewer images at once."""
        given = self._given(images)
        most = self.inputs[0].shape[0] if self.inputs and self.inputs[0].shape else None
        if not most or len(given[0]) % most:
            yield given
            return
        for start in range(0, len(given[0]), most):
            yield [array[start : start + most] for array in given]

    def _given(self, images: np.ndarray) -> list[np.ndarray]:
        named = [(self.beside.name, images), *self.beside.others]
        slots = self._slots([name for name, _ in named])
        return [
            self._fitted(_arranged(array, self.same_axes), slot)
            for (_, array), slot in zip(named, slots, strict=True)
        ]

    def _input_names(self) -> list[str]:
        return [self.beside.name, *(name for name, _ in self.beside.others)]

    def _slots(self, names: Sequence[str]) -> list[Slot]:
        """The declared input of each given one: by keyword, else in order."""
        if not self.inputs:
            return [Slot(name) for name in names]
        known = {slot.name: slot for slot in self.inputs}
        listed = ", ".join(slot.name for slot in self.inputs)
        if any(names) and {*names} != {*known}:
            raise SpecError(f"{self.what} takes the inputs {listed}; received {', '.join(names)}")
        if len(names) != len(self.inputs):
            raise SpecError(f"{self.what} takes {len(self.inputs)} inputs ({listed}); received {len(names)}")
        return [known[name] for name in names] if any(names) else self.inputs

    def _fitted(self, array: np.ndarray, slot: Slot) -> np.ndarray:
        batch = (None, *slot.shape[1:]) if slot.shape else slot.shape
        if batch is not None and not _fits(batch, array.shape):
            wanted = ", ".join("N" if i == 0 else str(n or "?") for i, n in enumerate(batch))
            raise SpecError(f"{self.what} takes inputs ({wanted}); received {array.shape}")
        if slot.step and slot.dtype is not None:
            limits = np.iinfo(slot.dtype)
            stored = np.round(array.astype(np.float64) / slot.step) + slot.zero
            return np.clip(stored, limits.min, limits.max).astype(slot.dtype)
        if slot.dtype is None:
            return array if is_index(array) else array.astype(self.dtype)
        if slot.dtype.kind in "iu" and array.dtype.kind == "f" and not np.array_equal(array, np.round(array)):
            raise SpecError(f"{self.what} takes whole numbers ({slot.dtype}); received fractions")
        return array.astype(slot.dtype)

    def run_alone(
        self, inputs: Mapping[str, np.ndarray], *, train: bool = False
    ) -> dict[str, np.ndarray | str]:
        del train
        return dict.fromkeys(inputs, f"{self.what} shows no layers")

    def run_corrected(
        self, images: np.ndarray, outputs: Mapping[str, Sequence[np.ndarray]], *, train: bool = False
    ) -> Trace:
        del images, outputs, train
        return Trace()

    def statistics(self) -> Mapping[str, np.ndarray]:
        return {}

    def unbiased(self) -> Mapping[str, np.ndarray]:
        return {}

    def weighted(self) -> Mapping[str, Weights]:
        return {}

    def settings(self, name: str) -> Mapping[str, float]:
        del name
        return {}

    def fingerprints(self) -> Mapping[str, Sequence[Fingerprint]]:
        return {}

    def randomness(self) -> Any:
        return None

    def stir(self) -> None:
        """An artefact's weights are fixed."""

    def restore(self) -> None:
        """Nothing was changed."""


def call_of(images: np.ndarray, output: np.ndarray, layer: str, others: Sequence[np.ndarray] = ()) -> Call:
    return Call(images, output, layer, tuple(others))


def _arranged(array: np.ndarray, same_axes: bool) -> np.ndarray:
    return array if same_axes or is_index(array) else channels_last(array)


def _fits(declared: Sequence[int | None], shape: Sequence[int]) -> bool:
    """Whether a shape agrees with a declared one; the first axis, of the images, is not looked at."""
    pairs = list(zip(declared, shape, strict=False))[1:]
    return len(declared) == len(shape) and all(want is None or want == size for want, size in pairs)


def paths(names: Sequence[str]) -> list[str]:
    """The paths of outputs with these names: "" for a single one."""
    return [""] if len(names) == 1 else list(names)


def slots_of(shape: Sequence[Any] | None) -> tuple[int | None, ...] | None:
    """A declared shape with None for every size that is not a positive number."""
    if shape is None:
        return None
    return tuple(size if isinstance(size, int) and size > 0 else None for size in shape)


def lowest(kinds: Sequence[str]) -> str:
    """The precision of an artefact with tensors of these dtypes: the lowest one."""
    for low in ("int8", "float16", "bfloat16", "float32", "float64"):
        if low in kinds:
            return low
    return "float32"


def file_of(path: Path, suffixes: Sequence[str] = ()) -> Path:
    """A path that exists, or a clear line."""
    if not path.exists():
        raise SpecError(f"{path}: no such file or folder")
    if suffixes and path.is_dir():
        raise SpecError(f"{path}: is a folder, expected a file {' or '.join(suffixes)}")
    return path
