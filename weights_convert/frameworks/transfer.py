"""Weights between any two live models: `match` finds the layers that belong together, `transfer` moves them.

Both models have to run for that. Therefore the harness (`parity_tests`) does the matching and the verdict; it
is imported when one of these functions is called.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from weights_convert import atomic
from weights_convert.errors import MismatchError, SourceError, SpecError
from weights_convert.frameworks.live_layers import array_of, planned, read, write

Names = Mapping[str, str] | str | Path | None


@dataclass
class Pair:
    """Two layers that belong together.

    Attributes:
        source, target: their names; how: the way the pair was found.
        tensors: role -> sha256 of the "source" tensor and of the target's tensor "before" and "after".
    """

    source: str
    target: str
    how: str
    tensors: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass
class Certificate:
    """The record of a transfer: its pairs, and the verdict of the harness on the two models afterwards."""

    pairs: list[Pair]
    holds: bool
    verdict: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def save(self, path: str | Path) -> None:
        """Write the certificate as JSON, for `transfer(..., replay=path)`."""
        with atomic.replacing(Path(path)) as temporary:
            temporary.write_text(json.dumps(self.to_json(), indent=1) + "\n", "utf-8")


def match(source: Any, target: Any, inputs: Any, *, names: Names = None) -> list[Pair]:
    """The layers with weights of two live models that belong together.

    By equal names, equal weights, equal outputs, shapes and the layers that feed them. The weights of the
    target need not be loaded.

    Args:
        source, target: torch modules or Keras models.
        inputs: as for `parity_tests.compare.compare_models`, such as an array (N, C, H, W).
        names: pairs that you state: layer of the source -> layer of the target, or a JSON file of them.

    Raises:
        MismatchError: a layer has no counterpart, or several; the message lists them.
    """
    return [Pair(*pair) for pair in _harness().match_layers(source, target, inputs, names)]


def transfer(
    source: Any, target: Any, inputs: Any, *, names: Names = None, replay: str | Path | None = None
) -> Certificate:
    """Move the weights of one live model into another: all of them or none.

    Args:
        source, target, inputs, names: as for `match`.
        replay: the certificate of an earlier transfer: its pairs are used, and the tensors must be the same.

    Raises:
        MismatchError: a layer has no counterpart or several, shapes differ, or the certificate does.
    """
    recorded = _recorded(replay) if replay is not None else None
    names = names if recorded is None else {pair.source: pair.target for pair in recorded}
    harness = _harness()
    pairs = match(source, target, inputs, names=names)
    layers = harness.live_layers(source), harness.live_layers(target)
    given = {pair.source: _of(pair, lambda pair=pair: read(layers[0][pair.source])) for pair in pairs}
    before = _values(pairs, layers[1], given)
    done: set[str] = set()
    try:
        _write(pairs, layers[1], given, before)
        for _ in pairs:  # each round can show one more flattened input, behind the one before
            rows = harness.flattened_inputs(source, target, inputs, pairs)
            wrong = {name: rows[name] for name in rows if name not in done and "kernel" in given[name]}
            if not wrong:
                break
            done |= wrong.keys()
            for name, order in wrong.items():
                given[name]["kernel"] = order(given[name]["kernel"])
            _write(pairs, layers[1], given, before)
        if recorded is not None:
            _check(pairs, recorded)
        report = harness.verdict(source, target, inputs, pairs)
    except BaseException:
        for _, tensor, array in before.values():
            write(tensor, array)
        raise
    certificate = Certificate(pairs, report.holds, report.why_not() or "parity holds")
    if not report.holds:
        warnings.warn(f"the weights are moved, but {certificate.verdict}", UserWarning, stacklevel=2)
    return certificate


Before = dict[tuple[str, str], tuple[str, Any, np.ndarray]]  # (layer, role) -> sha256, live tensor, old array


Given = Mapping[str, Mapping[str, np.ndarray]]  # layer of the source -> role -> array


def _plan(
    pairs: list[Pair], layers: Mapping[str, Any], given: Given
) -> list[tuple[Pair, str, Any, np.ndarray]]:
    """Pair, role, live tensor and new array of every tensor of the target; nothing is written."""
    return [
        (pair, *line)
        for pair in pairs
        for line in _of(pair, lambda pair=pair: planned(layers[pair.target], given[pair.source]))
    ]


def _values(pairs: list[Pair], layers: Mapping[str, Any], given: Given) -> Before:
    """The values of the target before anything is written."""
    return {
        (pair.target, role): (_sha(array_of(tensor)), tensor, array_of(tensor))
        for pair, role, tensor, _ in _plan(pairs, layers, given)
    }


def _write(pairs: list[Pair], layers: Mapping[str, Any], given: Given, before: Before) -> None:
    """Write all tensors, and note their sha256."""
    for pair, role, tensor, array in _plan(pairs, layers, given):
        write(tensor, array)
        hashes = {"before": before[pair.target, role][0], "after": _sha(array)}
        source = given[pair.source].get(role)
        pair.tensors[role] = hashes | ({"source": _sha(source)} if source is not None else {})


def _of(pair: Pair, work: Any) -> Any:
    try:
        return work()
    except SpecError as error:
        raise MismatchError(f"{pair.source} and {pair.target}: {error}") from error


def _sha(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _recorded(path: str | Path) -> list[Pair]:
    try:
        found = json.loads(Path(path).read_text("utf-8"))
        return [Pair(**pair) for pair in found["pairs"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"replay={str(path)!r}: expected a certificate of transfer ({type(error).__name__})"
        ) from error


def _check(pairs: list[Pair], recorded: list[Pair]) -> None:
    """Raise `MismatchError` unless the tensors written are those of the certificate."""
    wanted = {(p.target, role): hashes["after"] for p in recorded for role, hashes in p.tensors.items()}
    found = {(p.target, role): hashes["after"] for p in pairs for role, hashes in p.tensors.items()}
    for key in {**wanted, **found}:
        if wanted.get(key) != found.get(key):
            raise MismatchError(
                f"the {key[1]} of {key[0]} is not the one of the certificate; nothing was changed"
            )


def _harness() -> ModuleType:
    if importlib.util.find_spec("parity_tests") is None:
        raise SpecError("matching live models needs the package parity_tests, which is not installed")
    return importlib.import_module("parity_tests.compare.matching")
