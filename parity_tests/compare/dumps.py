"""Dumps: a run recorded in one `.safetensors` file, for comparison on another machine.

A dump holds the images, every layer's input and output in float64 (an input that is another layer's output is
stored once), the rounding noise measured there, and the environment. Reading it needs no framework.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parity_tests.compare.environment import environment
from parity_tests.watch.inputs import NONE, Beside
from parity_tests.watch.trace import OUTPUT, Call, Fingerprint, Trace, Weights
from weights_convert import atomic
from weights_convert.errors import SourceError, WriteError

_IMAGES, _KEY = "images", "parity"
VERSION = 1


@dataclass(eq=False)
class Dump:
    """A recorded run: a `Tracer` that knows only the images of the recording."""

    path: str
    images: np.ndarray
    calls: Trace
    noise: dict[str, dict[str, float]]  # dtype -> layer -> noise
    facts: dict[str, Any]
    beside: Beside = NONE
    framework: str = "dump"
    dtype: str = "float64"
    notes: tuple[str, ...] = ()
    same_axes: bool = True

    def trace(self, images: np.ndarray, *, train: bool = False) -> Trace:
        if train or not np.array_equal(images, self.images):
            raise SourceError(f"{self.path}: was recorded with other images or not in train mode")
        found = Trace(self.calls)
        found.outputs = list(self.calls.outputs)
        return found

    def run_alone(
        self, inputs: Mapping[str, np.ndarray], *, train: bool = False
    ) -> dict[str, np.ndarray | str]:
        del train
        return dict.fromkeys(inputs, "a recording has no layers that could run")

    def run_corrected(
        self, images: np.ndarray, outputs: Mapping[str, Sequence[np.ndarray]], *, train: bool = False
    ) -> Trace:
        del images, outputs, train
        return Trace()  # a recording cannot run

    def statistics(self) -> Mapping[str, np.ndarray]:
        return {}

    def unbiased(self) -> Mapping[str, np.ndarray]:
        return {}

    def weighted(self) -> Mapping[str, Weights]:
        sizes = self.facts.get("weights", {})  # earlier versions recorded only the names
        return {name: Weights(*sizes.get(name, (0, 0))) for name in self.facts["weighted"]}

    def settings(self, name: str) -> Mapping[str, float]:
        del name
        return {}

    def fingerprints(self) -> Mapping[str, Sequence[Fingerprint]]:
        return {}  # not recorded

    def randomness(self) -> Any:
        return None

    def stir(self) -> None:
        pass

    def restore(self) -> None:
        """A recording has no state."""


def write_dump(
    path: Path,
    images: np.ndarray,
    trace: Trace,
    noise: Mapping[str, Mapping[str, float]],
    weighted: Iterable[str] | Mapping[str, Weights],
    title: str,
) -> None:
    """Record a run with the `noise` of each dtype and the `weighted` layers, which have weights.

    Raises:
        WriteError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    facts: dict[str, Any] = {
        "version": VERSION,
        "title": title,
        "order": list(trace),
        "noise": {d: dict(n) for d, n in noise.items()},
    }
    facts["environment"] = environment()
    tensors = {name: _plain(call.output) for name, call in trace.items()}
    tensors[_IMAGES] = np.asarray(images, order="C")
    facts["weighted"] = sorted(weighted)
    if isinstance(weighted, Mapping):
        facts["weights"] = {name: list(size) for name, size in weighted.items()}
    facts["outputs"] = list(getattr(trace, "outputs", ())) or [OUTPUT]
    facts["layers"] = {name: call.layer for name, call in trace.items()}
    facts["inputs"] = {}
    known: dict[bytes, str] = {}  # digest -> name of the stored tensor
    for name, call in trace.items():
        value = _plain(call.input)
        stored = known.setdefault(_digest(value), f"input of {name}")
        tensors.setdefault(stored, value)
        facts["inputs"][name] = stored
        known.setdefault(_digest(tensors[name]), name)
    try:
        with atomic.replacing(path) as temporary:
            save_file(tensors, temporary, {_KEY: json.dumps(facts, sort_keys=True)})
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror or error})") from error
    except SafetensorError as error:
        raise WriteError(f"{path}: cannot be written ({error})") from error


def _plain(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float64, order="C")


def _digest(array: np.ndarray) -> bytes:
    return hashlib.sha256(repr(array.shape).encode() + array.tobytes()).digest()


def read_dump(path: Path) -> Dump:
    """Read a file of `write_dump`.

    Raises:
        SourceError: the file cannot be read, or is not a dump.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            facts = json.loads((file.metadata() or {})[_KEY])
            inputs, _ = facts["inputs"], list(facts["weighted"])
            # earlier versions recorded one output, and one tensor per layer
            layers = facts.get("layers", {})
            calls = Trace()
            for name in facts["order"]:
                layer = str(layers.get(name, "" if name == OUTPUT else name.partition("#")[0]))
                calls[name] = Call(file.get_tensor(inputs[name]), file.get_tensor(name), layer)
            calls.outputs = [name for name in facts.get("outputs", [OUTPUT]) if name in calls]
            weights = {name: Weights(*map(int, size)) for name, size in facts.get("weights", {}).items()}
            facts["weights"] = weights
            images = file.get_tensor(_IMAGES)
            noise = {
                dtype: {str(name): float(value) for name, value in found.items()}
                for dtype, found in facts["noise"].items()
            }
    except FileNotFoundError:
        raise SourceError(f"{path}: there is no such file") from None
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{path}: not a dump, expected a file of `python -m parity_tests MODEL --dump FILE` "
            f"({type(error).__name__})"
        ) from None
    return Dump(str(path), images, calls, noise, facts)
