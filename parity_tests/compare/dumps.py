"""Dumps: a run recorded on one machine and compared with on another, as one `.safetensors` file.

It holds the images, every layer's output in float64, the rounding noise measured there, and what made them.
No framework is needed to read one, and torch not to compare with one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from parity_tests.compare.environment import environment
from parity_tests.compare.trace import Call, Trace
from weights_convert.errors import SourceError, WriteError

_IMAGES, _KEY = "images", "parity"
VERSION = 1


class Dump(NamedTuple):
    """A recorded run: a `Tracer` whose one answer is known."""

    path: str
    images: np.ndarray
    outputs: dict[str, np.ndarray]
    noise: dict[str, float]
    facts: dict[str, Any]
    framework: str = "dump"
    dtype: str = "float64"

    def trace(self, images: np.ndarray, *, train: bool = False) -> Trace:
        if train or not np.array_equal(images, self.images):
            raise SourceError(f"{self.path}: was recorded for other images, or not in training")
        nothing = np.empty(0)
        return {name: Call(nothing, output) for name, output in self.outputs.items()}

    def alone(self, inputs: Mapping[str, np.ndarray], *, train: bool = False) -> dict[str, np.ndarray]:
        del inputs, train
        return {}  # it was not recorded

    def statistics(self) -> Mapping[str, np.ndarray]:
        return {}


def write_dump(path: Path, images: np.ndarray, trace: Trace, noise: Mapping[str, float], title: str) -> None:
    """Record a run.

    Raises:
        WriteError: the file cannot be written.
    """
    from safetensors.numpy import save_file

    facts = {"version": VERSION, "title": title, "order": list(trace), "noise": dict(noise)}
    facts["environment"] = environment()
    tensors = {name: np.asarray(call.output, np.float64, order="C") for name, call in trace.items()}
    tensors[_IMAGES] = np.asarray(images, order="C")
    try:
        save_file(tensors, path, {_KEY: json.dumps(facts, sort_keys=True)})
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror or error})") from error
    except Exception as error:  # safetensors has an exception of its own
        raise WriteError(f"{path}: cannot be written ({error})") from error


def read_dump(path: Path) -> Dump:
    """What `write_dump` recorded.

    Raises:
        SourceError: the file cannot be read, or is not a dump.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            facts = json.loads((file.metadata() or {})[_KEY])
            outputs = {name: file.get_tensor(name) for name in facts["order"]}
            images = file.get_tensor(_IMAGES)
            noise = {str(name): float(value) for name, value in facts["noise"].items()}
    except FileNotFoundError:
        raise SourceError(f"{path}: there is no such file") from None
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{path}: not a dump of a run, as `python -m parity_tests MODEL --dump FILE` writes it "
            f"({type(error).__name__})"
        ) from None
    return Dump(str(path), images, outputs, noise, facts)
