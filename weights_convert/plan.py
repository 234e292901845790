"""The plan of a conversion: every tensor's way from source to target, made before writing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from weights_convert.changes import as_in_family
from weights_convert.checkpoint import MAPPING_VERSION, Checkpoint
from weights_convert.errors import DestinationError, MismatchError, SpecError
from weights_convert.families import FAMILIES
from weights_convert.families.base import Family
from weights_convert.families.configs import STATED
from weights_convert.formats import FOLDER, format_for_writing
from weights_convert.formats.base import Format, TensorInfo
from weights_convert.identify.choice import find_family
from weights_convert.layouts import Stored
from weights_convert.mapping import OwnNames
from weights_convert.memory import DTYPES, dtype_of
from weights_convert.optimizer.state import TrainingState
from weights_convert.spec import COUNTS, parameters
from weights_convert.timm_folder import container_for


def _takes(container: Format) -> list[str]:
    """The families that a container may hold; a PyTorch file holds all that PyTorch can load."""
    if container.any_layout:
        return [name for name, family in FAMILIES.items() if family.written]
    return [
        name
        for name, family in FAMILIES.items()
        if container.own_family == "torch" and family.written and family.own is None
    ]


def _writable(name: str) -> Family:
    family = find_family(name)
    if not family.written:
        known = ", ".join(other.name for other in FAMILIES.values() if other.written)
        raise SpecError(f"the family {name!r} can only be read; expected one of {known}")
    return family


@dataclass
class Move:
    """One tensor's conversion. `sha256` (of its little-endian bytes) is known after writing."""

    canonical: str
    source_name: str
    target_name: str
    stored: Stored  # its layout in the target
    source: TensorInfo  # canonical shape
    target: TensorInfo
    sha256: str | None = None
    read: Callable[[], np.ndarray] | None = None  # of a tensor beside the checkpoint's

    @property
    def axes(self) -> tuple[int, ...] | None:
        """The transposition from canonical axes to the target's, or None."""
        return self.stored.axes


@dataclass
class Plan:
    """The steps of a conversion, before or after it: printed by `--dry-run`, recorded by `--json`."""

    source: str
    destination: Path
    container: Format
    family: str
    scope: str | None
    checkpoint: Checkpoint
    moves: list[Move]
    metadata: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    source_sha256: dict[str, str] = field(default_factory=dict)  # of its files, if requested
    training: TrainingState | None = None  # the optimiser, if it is carried
    carried: list[Move] = field(default_factory=list)  # its tensors

    @property
    def all_moves(self) -> list[Move]:
        """The weights, and what is carried with them."""
        return [*self.moves, *self.carried]

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        checkpoint = self.checkpoint
        source = {"path": self.source, "format": checkpoint.format, "family": checkpoint.family}
        return {
            "mapping_version": MAPPING_VERSION,
            "source": source | ({"sha256": self.source_sha256} if self.source_sha256 else {}),
            "destination": {
                "path": str(self.destination),
                "format": self.container.name,
                "family": self.family,
                "scope": self.scope,
            },
            "model": checkpoint.model,
            "spec": dataclasses.asdict(checkpoint.spec),
            "assumed": list(checkpoint.assumed),
            "tensors": [_line(move) for move in self.moves],
            **self._optimizer(),
            "left_out": {n: what for n, what in checkpoint.left_out.items() if n not in self._used()},
            "notes": [*checkpoint.notes, *self.notes],
            "warnings": self.warnings,
        }

    def _used(self) -> frozenset[str]:
        return frozenset() if self.training is None else self.training.used

    def _optimizer(self) -> dict[str, Any]:
        if self.training is None:
            return {}
        facts = {
            "kind": self.training.kind,
            "step": self.training.step,
            "settings": dict(self.training.settings),
        }
        return {"optimizer": facts | {"tensors": [_line(move) for move in self.carried]}}


def _line(move: Move) -> dict[str, Any]:
    """One tensor of a plan as plain JSON values."""
    return {
        "canonical": move.canonical,
        "source": move.source_name,
        "target": move.target_name,
        "axes": move.axes,
        "shape": move.target.shape,
        "dtype": move.target.dtype.name,
        "source_dtype": move.source.dtype.name,
        "sha256": move.sha256,
    }


def make_plan(
    checkpoint: Checkpoint,
    destination: str | Path,
    *,
    family: str | None = None,
    dtype: str | None = None,
    scope: str | None = None,
    names: OwnNames | None = None,
) -> Plan:
    """Plan the writing of a checkpoint; nothing is read or written.

    Raises:
        DestinationError: unknown suffix, or a layout that the container does not take.
        SpecError: an unknown family or dtype.
    """
    container = format_for_writing(destination)
    destination = Path(destination)
    target_family = _family_for(container, family or container.own_family, destination)
    family = target_family.name
    # a folder states what names do not show
    checkpoint = as_in_family(checkpoint, target_family, STATED if container is FOLDER else ())
    if container is FOLDER:
        container = container_for(checkpoint, target_family)
    if scope and family != "tf1":
        if checkpoint.family not in ("tf1", "keras"):  # otherwise it selected the network in the source
            raise DestinationError(
                f"{destination}: --scope applies to the tf1 layout, but the output is {family}"
            )
        scope = None
    if dtype is not None:
        dtype_of(dtype)

    if names is not None and container.own_family == "keras":
        raise DestinationError(
            f"{destination}: Keras finds weights by its own names; {names.origin} can name the tensors of "
            ".pth, .safetensors, .npz and .ckpt"
        )
    moves, counts = _moves(checkpoint, target_family, dtype, f"{scope.rstrip('/')}/" if scope else "")
    plan = Plan(
        str(checkpoint.path) if checkpoint.path else "a model in memory",
        destination,
        container,
        family,
        scope,
        checkpoint,
        moves,
        _metadata(checkpoint, family, counts, scope),
    )
    if names is not None:
        theirs = names.theirs((move.target_name for move in moves), f"{destination} ({family})")
        for move, name in zip(moves, theirs, strict=True):
            move.target_name = name
        plan.notes.append(f"the tensors are named by {names.origin}")
    changed = sorted({move.source.dtype.name for move in moves if move.source.dtype != move.target.dtype})
    if changed:
        plan.notes.append(f"dtype: {', '.join(changed)} becomes {dtype}, as asked")
    if counts:
        plan.notes.append(f"{len(counts)} {COUNTS} travel in the metadata: {family} has no place for them")
    return plan


def _family_for(container: Format, name: str, destination: Path) -> Family:
    """The family to write, if the container may hold it."""
    family, takes = _writable(name), [container.own_family, *_takes(container)]
    if name not in takes:
        only = ".npz and .safetensors only" if family.own else ".pth, .npz and .safetensors only"
        raise DestinationError(
            f"{destination}: the {name} layout goes into {only}; "
            f"{container.suffixes[0]} takes {', '.join(takes)}"
        )
    return family


def _moves(
    checkpoint: Checkpoint, family: Family, dtype: str | None, prefix: str
) -> tuple[list[Move], dict[str, int]]:
    """The conversion of every tensor, and the step counts that the target cannot hold as tensors."""
    layout, moves, counts = family.layout_of(checkpoint.spec), [], {}
    names = layout.names(checkpoint.spec)
    for parameter in parameters(checkpoint.spec):
        if (tensor := checkpoint.tensors.get(canonical := parameter.name)) is None:
            continue
        name, role = names[canonical], parameter.role
        if name is None and role == "count":
            counts[canonical] = count = int(checkpoint[canonical])
            if not 0 <= count < 2**63:
                raise MismatchError(f"{tensor.name} is {count}, expected a number of batches")
            continue
        if name is None:
            raise MismatchError(f"{family.name} has no place for {canonical}")
        stored = layout.stored(parameter)
        wanted = DTYPES[dtype] if dtype and role != "count" else tensor.info.dtype
        target = TensorInfo(stored.shape(tensor.info.shape), wanted)
        moves.append(Move(canonical, tensor.name, prefix + name, stored, tensor.info, target))
    return moves, counts


def _metadata(
    checkpoint: Checkpoint, family: str, counts: dict[str, int], scope: str | None
) -> dict[str, Any]:
    """The metadata of the output, which make the file self-describing."""
    metadata = {
        "mapping_version": MAPPING_VERSION,
        "family": family,
        "kind": checkpoint.spec.kind,
        "spec": dataclasses.asdict(checkpoint.spec),
        "assumed": list(checkpoint.assumed),
    }
    if counts:
        metadata[COUNTS] = counts
    if scope:
        metadata["scope"] = scope.rstrip("/")
    return metadata
