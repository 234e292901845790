"""What a file does not say and changes the numbers: a `UserWarning`, in commands a line on stderr."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from weights_convert.errors import printable
from weights_convert.spec import TRAINING_ONLY, spec_values

if TYPE_CHECKING:
    from weights_convert.checkpoint import Checkpoint

_NO_REASON = (*TRAINING_ONLY, "channels")
_printer: ContextVar[Callable[[str], None] | None] = ContextVar("_printer", default=None)


def caution(text: str) -> None:
    """A `UserWarning` at the line that called this package; in a command what it prints instead."""
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
    """Have `say` called with each caution, in place of Python's warning."""
    token = _printer.set(say)
    try:
        yield
    finally:
        _printer.reset(token)


def caution_about(checkpoint: Checkpoint, model: Mapping[str, Any] | None = None) -> None:
    """Caution against what a checkpoint does not say. Where cautions are errors, its file is closed.

    Args:
        model: the keywords of the live model that takes the weights, where these are what is assumed.
    """
    try:
        for line in doubts(checkpoint, model):
            caution(line)
    except BaseException:
        checkpoint.close()
        raise


def doubts(checkpoint: Checkpoint, model: Mapping[str, Any] | None = None) -> Iterable[str]:
    """A line on what is assumed, and what names and shapes of a family's files cannot show.

    What no output depends on is listed with the rest, but is no reason for a line: momenta and dropout matter
    in training only, where people set their own, and a block refuses inputs of other `channels` by itself.
    """
    whose, unsaid = checkpoint.path or "the weights", checkpoint.assumed
    if not all(keyword in _NO_REASON for keyword in unsaid):
        if model is None:
            values, taken = spec_values(checkpoint.spec, unsaid), "defaults taken"
        else:
            values = ", ".join(f"{name}={model[name]!r}" for name in unsaid if name in model)
            taken = "taken as the model has them"
        if values:
            yield (
                f"{whose}: does not say these keywords, {taken}: {values}; say what they are with "
                "settings={...} (--set KEY=VALUE), or accept them with assume=True (--assume)"
            )
    yield from checkpoint.cautions
