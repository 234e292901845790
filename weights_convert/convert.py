"""`convert` and `save`: carry out a plan.

Tensors pass one at a time. The output goes to a temporary file beside the destination, is flushed to disk,
read back and verified (sha256 of each tensor), and then moved to its place (`atomic`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weights_convert import atomic, changes
from weights_convert.cautions import caution, caution_about, doubts
from weights_convert.checkpoint import Checkpoint
from weights_convert.errors import DestinationError, MismatchError, SpecError, WeightsConvertError, WriteError
from weights_convert.formats import open_reader
from weights_convert.formats.base import Format
from weights_convert.frameworks import state_of
from weights_convert.limits import Limits
from weights_convert.loading import opened
from weights_convert.mapping import OwnNames
from weights_convert.memory import DTYPES, not_finite, sha256
from weights_convert.optimizer.state import Facts, facts_of
from weights_convert.optimizer.writing import carry as carry_optimizer
from weights_convert.plan import Move, Plan, make_plan

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
    ema: bool = False,
    prefix: str | None = None,
    names: Mapping[str, str] | str | Path | None = None,
    apply_masks: bool = False,
    num_classes: int | None = None,
    new_head: bool = False,
    reorder_classes: str | Path | None = None,
    fold_bn: bool = False,
    fold_bias: bool = False,
    carry: bool | Mapping[str, Any] | Facts = False,
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
        src, model, settings, from_family, key, ema, prefix, apply_masks, assume, limits: as in `load`.
        names: as in `load`; if no pair matches the source, they are the names in the destination.
        dst: the suffix selects the container (`.pth`, `.safetensors`, `.npz`, `.weights.h5`, `.ckpt`).
        to_family: the layout to write; default: the container's own.
        dtype: of the floating-point tensors; default: unchanged. Moments of an optimiser stay at least
            float32.
        scope: the variable scope of the network in a TF1 checkpoint, source or destination; its path in the
            Keras model of a source.
        num_classes: of the new classifier.
        new_head: write a new classifier with random values, instead of the source's or of none.
        reorder_classes: a permutation file, see `changes.read_permutation`.
        fold_bn: fold batch norms into the convolutions, for inference; see `changes.fold_bn`.
        fold_bias: fold biases before batch norms into the running means; see `changes.fold_bias`.
        carry: True to carry the state of the optimiser too; or a dict with the facts that the source does
            not hold: `optimizer` ("sgd", "adam", "adamw"), `learning_rate` (at the stop), `momentum`,
            `weight_decay`, `beta_1`, `beta_2`, `epsilon`, `step`; the rate to go on with,
            `next_learning_rate`; `schedule`, True if a Keras destination computes it; and `leave_out`, names
            of states without a counterpart, each of them in the file.
        strict: NaN and infinity, and what `load` refuses with it, are errors, not warnings.
        overwrite: replace an existing destination.
        dry_run: only plan.
        hash_source: add the sha256 of the source's files to the plan.
        progress: called with (bytes done, bytes in all).

    Returns:
        The plan, with every tensor's sha256 unless `dry_run`.

    Raises:
        WeightsConvertError: see its subclasses; the destination is unchanged.
    """
    facts = None if carry is False else facts_of(carry)
    if facts is not None:
        _check_combination(ema=ema, apply_masks=apply_masks, new_head=new_head, num_classes=num_classes,
                           reorder_classes=reorder_classes, fold_bn=fold_bn, fold_bias=fold_bias)  # fmt: skip
    own = None if names is None else OwnNames.of(names)
    of_source = own if own and _match(own, src, key, limits) else None
    with opened(
        src,
        model=model,
        settings=settings,
        family=from_family,
        key=key,
        scope=scope,
        ema=ema,
        prefix=prefix,
        names=of_source,
        apply_masks=apply_masks,
        strict=strict,
        limits=limits,
    ) as checkpoint:
        if not assume:
            caution_about(checkpoint, strict=strict)  # before anything is written
        if new_head:
            checkpoint = changes.new_head(checkpoint, num_classes)
        elif num_classes not in (None, getattr(checkpoint.spec, "num_classes", None)):
            raise SpecError(
                f"{src}: num_classes={num_classes}, but {checkpoint.describe()} has "
                f"{getattr(checkpoint.spec, 'num_classes', 0)}; --new-head writes a new classifier"
            )
        if reorder_classes is not None:
            checkpoint = _reordered(checkpoint, reorder_classes)
        if fold_bias:
            checkpoint = changes.fold_bias(checkpoint)
        if fold_bn:
            checkpoint = changes.fold_bn(checkpoint, DTYPES.get(dtype or ""))
        named = own if of_source is None else None
        plan = make_plan(checkpoint, dst, family=to_family, dtype=dtype, scope=scope, names=named)
        plan.warnings += [] if assume else doubts(checkpoint)
        if facts is not None:
            if named is not None and plan.container.name == "torch":
                raise SpecError(
                    f"{dst}: names of its own would be in another order; omit carry (--with-optimizer)"
                )
            lines = carry_optimizer(plan, checkpoint.training_state(facts))
            for line in [] if assume else lines:
                if strict:
                    raise MismatchError(f"{line} (--strict)")
                plan.warnings.append(line)
                caution(line)
        if dry_run:
            check_destination(plan.destination, plan.container, overwrite)
        else:
            if hash_source:
                plan.source_sha256 = checkpoint.source.sha256()
            execute(plan, strict=strict, overwrite=overwrite, progress=progress)
        return plan


def save(
    source: Checkpoint | Any,
    path: str | Path,
    *,
    family: str | None = None,
    dtype: str | None = None,
    scope: str | None = None,
    names: Mapping[str, str] | str | Path | None = None,
    strict: bool = False,
    overwrite: bool = False,
) -> Plan:
    """Write a checkpoint or a live model (as `state_of` reads it); arguments and errors as in `convert`.

    `names` are the user's own, {theirs: ours} or a file, of the tensors in the destination.
    """
    checkpoint = source if isinstance(source, Checkpoint) else state_of(source)
    own = None if names is None else OwnNames.of(names)
    plan = make_plan(checkpoint, path, family=family, dtype=dtype, scope=scope, names=own)
    execute(plan, strict=strict, overwrite=overwrite)
    return plan


def _check_combination(**changes: Any) -> None:
    """Raise `SpecError` for a change of the network, whose optimiser would be another one."""
    for name, value in changes.items():
        if value not in (None, False):
            option = f"--{name.replace('_', '-')}"
            raise SpecError(
                f"{option}: changes the weights, but not the optimiser; omit carry (--with-optimizer)"
            )


def _match(names: OwnNames, src: str | Path, key: str | None, limits: Limits | None) -> bool:
    with open_reader(src, key, limits) as reader:
        return names.match_any(reader.tensors)


def _reordered(checkpoint: Checkpoint, path: str | Path) -> Checkpoint:
    classes = getattr(checkpoint.spec, "num_classes", None)
    if not classes:
        raise MismatchError(f"{checkpoint.path}: {checkpoint.describe()} has no classes to reorder")
    order = changes.read_permutation(path, classes)
    return changes.reorder_classes(checkpoint, order, str(path))


def check_destination(path: Path, container: Format, overwrite: bool) -> None:
    """Raise `DestinationError` if the folder does not exist or the file exists."""
    files = container.files(path)
    if container.whole_folder:
        _check_folder(path)
        return
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


def _check_folder(path: Path) -> None:
    """Raise `DestinationError` unless a folder is new or empty: others are not replaced in one step."""
    try:
        if not path.absolute().parent.is_dir():
            raise DestinationError(f"{path}: the folder {str(path.parent)!r} does not exist")
        if os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
            raise DestinationError(f"{path}: exists already; choose a new folder, or remove this one")
    except OSError as error:
        raise DestinationError(f"{path}: cannot be written ({error.strerror})") from error


def _exists(file: Path) -> DestinationError:
    return DestinationError(f"{file}: exists already; --overwrite (in Python overwrite=True) replaces it")


def _place_of(path: Path, container: Format) -> Path:
    """The place of the files: for a format of a single file the target of a symbolic link."""
    return atomic.real(path) if container.files(path) == [path] else path


def execute(plan: Plan, *, strict: bool, overwrite: bool, progress: Progress | None = None) -> None:
    """Write, verify and move to the destination; set each move's sha256 and issue the plan's warnings."""
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
    """A function to call for each tensor written and for each tensor read back."""
    total, done = 2 * sum(move.target.nbytes for move in plan.all_moves), 0

    def advance(move: Move) -> None:
        nonlocal done
        done += move.target.nbytes
        if progress is not None:
            progress(done, total)

    return advance


def _write(plan: Plan, temporary: Path, strict: bool, advance: Callable[[Move], None]) -> None:
    """Write all tensors."""
    assert plan.container.write is not None  # checked by format_for_writing
    moves = {move.target_name: move for move in plan.all_moves}

    def read(name: str) -> np.ndarray:
        array = _converted(plan, moves[name], strict)
        moves[name].sha256 = sha256(array)
        advance(moves[name])
        return array

    try:
        plan.container.write(
            temporary, {name: move.target for name, move in moves.items()}, read, plan.metadata
        )
    except WeightsConvertError as error:  # a writer knows only the temporary name
        error.message = error.message.replace(str(temporary), str(plan.destination))
        raise


def _converted(plan: Plan, move: Move, strict: bool) -> np.ndarray:
    """A tensor ready for writing: checked for NaN and infinity, cast, transposed."""
    array = plan.checkpoint[move.canonical] if move.read is None else move.read()
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
    """Raise `WriteError` unless the file holds exactly the expected contents."""
    try:
        with plan.container.open(temporary) as reader:
            names = {move.target_name for move in plan.all_moves}
            if set(reader.tensors) != names or reader.metadata != _as_read(plan.metadata):
                raise WriteError(f"{plan.destination}: the output reads back with other names or metadata")
            for move in plan.all_moves:
                array = reader.read(move.target_name)
                if (array.shape, array.dtype, sha256(array)) != (*move.target, move.sha256):
                    raise WriteError(f"{plan.destination}: {move.target_name} does not read back as written")
                del array  # before reading the next one
                advance(move)
    except WriteError:
        raise
    except WeightsConvertError as error:
        raise WriteError(f"{plan.destination}: the output cannot be read back ({error.message})") from error


def _as_read(metadata: Any) -> Any:
    """Metadata after a round trip through JSON: tuples become lists."""
    if isinstance(metadata, Mapping):
        return {key: _as_read(value) for key, value in metadata.items()}
    return [_as_read(value) for value in metadata] if isinstance(metadata, (list, tuple)) else metadata
