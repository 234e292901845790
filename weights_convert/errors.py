"""Errors: one line with what was received, what was expected and what to do; a list may follow.

Every error of this package is a `WeightsConvertError`. `exit_code` is the exit code of the command line: 2
for bad usage or bad input, 3 if the output cannot be written.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from itertools import islice

_MOST_TIED = 8
_MOST_SHOWN = 20  # lines of a list
_LONGEST_HINTED, _MOST_HINTS = 200, 2_000  # characters, names: the search takes 15 us per name


class WeightsConvertError(Exception):
    """Base class of the errors of `weights_convert`.

    Args:
        message: one line: what was received, what was expected, what to do.
        details: lines of a list that follows the message, such as all missing tensors.
    """

    exit_code = 2

    def __init__(self, message: str, details: Sequence[str] = ()):
        super().__init__(message)
        self.message = message
        self.details = tuple(details)

    def __str__(self) -> str:
        """The message with some of the list: at most 20 lines, and no step counts among them."""
        telling = [line for line in self.details if "num_batches_tracked" not in line] or self.details
        lines = list(telling[:_MOST_SHOWN])
        if hidden := len(self.details) - len(lines):
            lines.append(f"and {hidden} more (in Python error.details, in commands --json FILE)")
        return "\n".join([printable(self.message), *(f"  {printable(line)}" for line in lines)])


class SpecError(WeightsConvertError):
    """An unknown architecture, or an invalid keyword or value."""


class SourceError(WeightsConvertError):
    """A file that cannot be read: missing, truncated, damaged, of an unknown or refused kind."""


class MismatchError(WeightsConvertError):
    """Tensors, shapes, dtypes or keywords that do not match their target."""


class DestinationError(WeightsConvertError):
    """An invalid destination: the file exists, its folder does not, or its suffix is unknown."""


class WriteError(WeightsConvertError):
    """The output could not be written or verified; the destination is unchanged."""

    exit_code = 3


def printable(text: str) -> str:
    """One line without control characters, for names from untrusted files.

    >>> printable("se_resnet50"), printable("a\\nb")
    ('se_resnet50', 'a\\\\nb')
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def nearest(name: str, names: Iterable[str], likeness: float = 0.6) -> str:
    """The hint `; did you mean 'x'?` for a mistyped name, or "".

    >>> nearest("se_resnet5", ["se_resnet50", "resnet18"])
    "; did you mean 'se_resnet50'?"
    """
    near = list(islice((other for other in names if len(other) <= _LONGEST_HINTED), _MOST_HINTS))
    found = difflib.get_close_matches(name, near, n=_MOST_TIED, cutoff=likeness)
    if not found:
        return ""

    def rank(other: str) -> tuple[float, int, int]:
        ratio = difflib.SequenceMatcher(None, other, name).ratio()
        return -ratio, abs(len(other) - len(name)), near.index(other)

    return f"; did you mean {min(found, key=rank)!r}?"
