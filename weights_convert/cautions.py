"""Warnings about missing facts that change the numbers: a `UserWarning`, in commands a line on stderr."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from weights_convert.errors import MismatchError, printable
from weights_convert.families import FAMILIES
from weights_convert.spec import TRAINING_ONLY, spec_values

if TYPE_CHECKING:
    from weights_convert.checkpoint import Checkpoint

_NO_REASON = (*TRAINING_ONLY, "channels")
_printer: ContextVar[Callable[[str], None] | None] = ContextVar("_printer", default=None)


def caution(text: str) -> None:
    """Issue a `UserWarning` at the line that called this package; a command prints it instead."""
    text = printable(text)
    if (say := _printer.get()) is not None:
        say(text)
        return
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "weights_convert":
        level, frame = level + 1, frame.f_back
    warnings.warn(text, UserWarning, stacklevel=level)


@contextmanager
def cautions_go_to(say: Callable[[str], None]) -> Iterator[None]:
    """Call `say` with each caution instead of issuing Python's warning."""
    token = _printer.set(say)
    try:
        yield
    finally:
        _printer.reset(token)


def caution_about(
    checkpoint: Checkpoint, model: Mapping[str, Any] | None = None, *, strict: bool = False
) -> None:
    """Warn about information that a checkpoint lacks. If warnings are errors, its file is closed.

    Args:
        model: the keywords of the live model that takes the weights, if these are assumed.
        strict: raise `MismatchError` instead.
    """
    try:
        for line in doubts(checkpoint, model):
            if strict:
                raise MismatchError(f"{line} (--strict)")
            caution(line)
    except BaseException:
        checkpoint.close()
        raise


def doubts(checkpoint: Checkpoint, model: Mapping[str, Any] | None = None) -> Iterable[str]:
    """Lines on assumed keywords, and on properties that names and shapes of a family's files cannot show.

    Keywords without effect on the output are listed but cause no line of their own: momenta and dropout
    matter only in training, and a block itself refuses inputs with other `channels`.
    """
    yield from (f"{checkpoint.path}: {text}" for text in checkpoint.liberties)
    whose, unsaid = checkpoint.path or "the weights", checkpoint.assumed
    if all(keyword in _NO_REASON for keyword in unsaid) and not checkpoint.cautions:
        return
    if model is None:
        values, taken = spec_values(checkpoint.spec, unsaid), "defaults used"
        if checkpoint.family is not None and FAMILIES[checkpoint.family].own is None:
            taken = f"as in {checkpoint.family}'s networks"
    else:
        values = ", ".join(f"{name}={model[name]!r}" for name in unsaid if name in model)
        taken = "the model's values used"
    if lines := [text for text in (values, *checkpoint.cautions) if text]:
        yield (
            f"{whose}: does not specify these keywords, {taken}: {'; '.join(lines)}; set them with "
            "settings={...} (--set KEY=VALUE), or accept them with assume=True (--assume)"
        )
