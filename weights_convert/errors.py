"""Errors for people: one line says what was received, what was expected and what to do; a list may follow.

Every error of this package is a `WeightsConvertError`. `exit_code` is what the command line ends
with: 2 for bad usage or bad input, 3 when the output could not be written.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from itertools import islice

_MOST_TIED = 8
_LONGEST_HINTED, _MOST_HINTS = 200, 2_000  # letters of a name, names: the search is slow, 15 us for each


class WeightsConvertError(Exception):
    """Base of all errors raised on purpose by `weights_convert`.

    Args:
        message: one line: what was received, what was expected, what to do.
        details: lines of a list that follows the message (every missing tensor, say).
    """

    exit_code = 2

    def __init__(self, message: str, details: Sequence[str] = ()):
        super().__init__(message)
        self.message = message
        self.details = tuple(details)

    def __str__(self) -> str:
        return "\n".join([printable(self.message), *(f"  {printable(line)}" for line in self.details)])


class SpecError(WeightsConvertError):
    """An architecture that does not exist, or a keyword or value that it does not take."""


class SourceError(WeightsConvertError):
    """A file that cannot be read: missing, truncated, damaged, of an unknown or refused kind."""


class MismatchError(WeightsConvertError):
    """Tensors, shapes, dtypes or keywords that do not fit where they are to go."""


class DestinationError(WeightsConvertError):
    """A destination that cannot be accepted: it exists, its folder does not, its suffix is unknown."""


class WriteError(WeightsConvertError):
    """The output could not be written or did not read back; the destination is as it was before."""

    exit_code = 3


def printable(text: str) -> str:
    """One line without control characters: names come from files that anyone may have written.

    >>> printable("se_resnet50"), printable("a\\nb")
    ('se_resnet50', 'a\\\\nb')
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def nearest(name: str, names: Iterable[str], likeness: float = 0.6) -> str:
    """The hint `; did you mean 'x'?` for a mistyped name, or nothing; of equally near ones the first.

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
