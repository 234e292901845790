"""`convert` and `save`: the plan carried out.

Tensors pass one at a time. They go to a temporary file beside the destination, which is flushed to disk and
meanwhile read back and compared with what was meant (sha256 of each tensor), and only then put in its place
(`atomic`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weights_convert import atomic, changes
from weights_convert.cautions import caution, caution_about, doubts
from weights_convert.checkpoint import Checkpoint
from weights_convert.errors import DestinationError, MismatchError, SpecError, WeightsConvertError, WriteError
from weights_convert.formats.base import Format
from weights_convert.limits import Limits
from weights_convert.loading import opened
from weights_convert.memory import not_finite, sha256
from weights_convert.plan import DTYPES, Move, Plan, make_plan

Progress = Callable[[int, int], None]  # bytes done, bytes in all


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    model: str | None = None,
    settings: Mapping[str, Any] | None = None,
    from_family: str | None = None,
    to_family: str | None = None,
    key: str | None = None,
    dtype: str | None = None,
    scope: str | None = None,
    reorder_classes: str | Path | None = None,
    fold_bn: bool = False,
    fold_bias: bool = False,
    strict: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    hash_source: bool = False,
    assume: bool = False,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Convert a checkpoint into another container or layout; no framework is imported.

    Args:
        src, model, settings, from_family, key, assume, limits: as in `load`.
        dst: the suffix says the container (`.pth`, `.safetensors`, `.npz`, `.weights.h5`, `.ckpt`).
        to_family: the layout to write, by default the container's own.
        dtype: of the floating-point tensors; by default each keeps its own.
        scope: the variable scope of the network in a TF1 checkpoint, on whichever side that is.
        reorder_classes: a permutation file, see `changes.read_permutation`.
        fold_bn: batch norms go into the convolutions, for inference; see `changes.fold_bn`.
        fold_bias: biases before batch norms go into the running means; see `changes.fold_bias`.
        strict: NaN and infinity are errors, not warnings.
        overwrite: replace an existing destination.
        dry_run: only plan.
        hash_source: put the sha256 of the source's files into the plan.
        progress: called with (bytes done, bytes in all).

    Returns:
        The plan, with every tensor's sha256 unless `dry_run`.

    Raises:
        WeightsConvertError: see its subclasses; the destination is then as it was before.
    """
    with opened(
        src, model=model, settings=settings, family=from_family, key=key, scope=scope, limits=limits
    ) as checkpoint:
        if not assume:
            caution_about(checkpoint)  # before anything is written
        if reorder_classes is not None:
            checkpoint = _reordered(checkpoint, reorder_classes)
        if fold_bias:
            checkpoint = changes.fold_bias(checkpoint)
        if fold_bn:
            checkpoint = changes.fold_bn(checkpoint, DTYPES.get(dtype or ""))
        plan = make_plan(checkpoint, dst, family=to_family, dtype=dtype, scope=scope)
        plan.warnings += [] if assume else doubts(checkpoint)
        if dry_run:
            check_destination(plan.destination, plan.container, overwrite)
        else:
            if hash_source:
                plan.source_sha256 = checkpoint.source.sha256()
            execute(plan, strict=strict, overwrite=overwrite, progress=progress)
        return plan


def save(
    checkpoint: Checkpoint,
    path: str | Path,
    *,
    family: str | None = None,
    dtype: str | None = None,
    scope: str | None = None,
    strict: bool = False,
    overwrite: bool = False,
) -> Plan:
    """Write a checkpoint (of a file or a live model); arguments and errors as in `convert`."""
    if not isinstance(checkpoint, Checkpoint):
        kind = type(checkpoint).__name__
        raise SpecError(
            f"{path}: cannot save a {kind}; `state_of(model)` gives the checkpoint of a live model"
        )
    plan = make_plan(checkpoint, path, family=family, dtype=dtype, scope=scope)
    execute(plan, strict=strict, overwrite=overwrite)
    return plan


def _reordered(checkpoint: Checkpoint, path: str | Path) -> Checkpoint:
    classes = getattr(checkpoint.spec, "num_classes", None)
    if classes is None:
        raise MismatchError(f"{checkpoint.path}: {checkpoint.describe()} has no classes to reorder")
    order = changes.read_permutation(path, classes)
    return changes.reorder_classes(checkpoint, order, str(path))


def check_destination(path: Path, container: Format, overwrite: bool) -> None:
    """Raise `DestinationError` for a folder that is not there or a file that is."""
    files = container.files(path)
    try:
        folder = _place_of(path, container).parent
        if not folder.is_dir():
            raise DestinationError(f"{path}: the folder {str(folder)!r} does not exist")
        for file in (path, *files):
            if file.is_dir():
                raise DestinationError(f"{file}: is a directory, expected a file name")
            if file.exists() and not file.is_file():
                raise DestinationError(f"{file}: is a device or a pipe, expected a file name")
        if path not in files and path.exists():
            raise DestinationError(
                f"{path}: is a file, which would hide the checkpoint of this prefix; choose another name"
            )
        existing = [file for file in files if file.exists()]
    except OSError as error:  # a name too long, a folder that may not be searched
        raise DestinationError(f"{path}: cannot be written ({error.strerror})") from error
    if existing and not overwrite:
        raise _exists(existing[0])


def _exists(file: Path) -> DestinationError:
    return DestinationError(f"{file}: exists already; --overwrite (in Python overwrite=True) replaces it")


def _place_of(path: Path, container: Format) -> Path:
    """Where the files are to be: a container that is one file is written through a symbolic link."""
    return atomic.real(path) if container.files(path) == [path] else path


def execute(plan: Plan, *, strict: bool, overwrite: bool, progress: Progress | None = None) -> None:
    """Write, read back, put in place. Fills in each move's sha256, and warns as the plan's warnings say."""
    container, place = plan.container, _place_of(plan.destination, plan.container)
    advance, known = _progress(plan, progress), len(plan.warnings)
    atomic.sweep(place, container.orphans)
    check_destination(plan.destination, container, overwrite)
    try:
        with atomic.workplace(place) as temporary:
            _write(plan, temporary, strict, advance)
            with atomic.flushing(container.files(temporary)):
                plan.checkpoint.source.check()
                _read_back(plan, temporary, advance)
            try:
                plan.warnings += atomic.put(temporary, place, container.place, container.orphans, overwrite)
            except FileExistsError as error:
                raise _exists(plan.destination) from error
            except OSError as error:
                raise WriteError(
                    f"{plan.destination}: could not be renamed into place ({error.strerror})"
                ) from error
    except OSError as error:
        raise WriteError(f"{plan.destination}: could not be written ({error.strerror or error})") from error
    for text in plan.warnings[known:]:
        caution(text)


def _progress(plan: Plan, progress: Progress | None) -> Callable[[Move], None]:
    """A function to call once for each tensor that is written, and again for each that is read back."""
    total, done = 2 * sum(move.target.nbytes for move in plan.moves), 0

    def advance(move: Move) -> None:
        nonlocal done
        done += move.target.nbytes
        if progress is not None:
            progress(done, total)

    return advance


def _write(plan: Plan, temporary: Path, strict: bool, advance: Callable[[Move], None]) -> None:
    """Write all tensors."""
    assert plan.container.write is not None  # format_for_writing gives no other
    moves = {move.target_name: move for move in plan.moves}

    def read(name: str) -> np.ndarray:
        array = _converted(plan, moves[name], strict)
        moves[name].sha256 = sha256(array)
        advance(moves[name])
        return array

    try:
        plan.container.write(
            temporary, {name: move.target for name, move in moves.items()}, read, plan.metadata
        )
    except WeightsConvertError as error:  # a writer knows no other name
        error.message = error.message.replace(str(temporary), str(plan.destination))
        raise


def _converted(plan: Plan, move: Move, strict: bool) -> np.ndarray:
    """A tensor as it is to be written: checked for NaN and infinity, cast, transposed."""
    array = plan.checkpoint[move.canonical]
    if count := not_finite(array):
        message = f"{move.source_name} has {count} values that are NaN or infinite"
        if strict:
            raise MismatchError(f"{plan.source}: {message} (--strict)")
        plan.warnings.append(f"{plan.source}: {message}")
    if array.dtype != move.target.dtype:
        with np.errstate(over="ignore", invalid="ignore"):
            cast = array.astype(move.target.dtype)
        beyond = np.isfinite(array) & ~np.isfinite(cast)
        if bool(beyond.any()):
            largest = float(np.abs(array[beyond].astype(np.float64)).max())
            wider = "bfloat16 or float32" if move.target.dtype == np.float16 else "float64"
            raise MismatchError(
                f"{plan.source}: {move.source_name} would lose values: {largest:g} is beyond "
                f"{move.target.dtype.name}; use --dtype {wider}"
            )
        array = cast
    return move.stored.to_file(array)


def _read_back(plan: Plan, temporary: Path, advance: Callable[[Move], None]) -> None:
    """Raise `WriteError` unless the file holds exactly what was meant."""
    try:
        with plan.container.open(temporary) as reader:
            names = {move.target_name for move in plan.moves}
            if set(reader.tensors) != names or reader.metadata != _as_read(plan.metadata):
                raise WriteError(
                    f"{plan.destination}: what was written reads back with other names or metadata"
                )
            for move in plan.moves:
                array = reader.read(move.target_name)
                if (array.shape, array.dtype, sha256(array)) != (*move.target, move.sha256):
                    raise WriteError(f"{plan.destination}: {move.target_name} does not read back as written")
                del array  # before the next one is read
                advance(move)
    except WriteError:
        raise
    except WeightsConvertError as error:
        raise WriteError(
            f"{plan.destination}: what was written cannot be read back ({error.message})"
        ) from error


def _as_read(metadata: Any) -> Any:
    """Metadata as JSON gives them back: tuples as lists."""
    if isinstance(metadata, Mapping):
        return {key: _as_read(value) for key, value in metadata.items()}
    return [_as_read(value) for value in metadata] if isinstance(metadata, (list, tuple)) else metadata
