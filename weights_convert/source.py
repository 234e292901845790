"""The files of a checkpoint, and a check that they do not change while they are read."""

from __future__ import annotations

import hashlib
from pathlib import Path

from weights_convert.errors import SourceError
from weights_convert.formats.given import Given, facts_of

_CHUNK = 1 << 20


class Source:
    """The current state of a source. Call `check` after reading all of it."""

    def __init__(self, given: Given | None):
        self._before = {} if given is None else given.facts()

    def check(self) -> None:
        """Raise `SourceError` if any of the files is another one by now, or was written to."""
        now = facts_of([*self._before])
        for file in self._before:
            if self._before[file] != now.get(file):
                raise SourceError(
                    f"{file}: changed while it was read; convert it again when no other program writes to it"
                )

    def sha256(self) -> dict[str, str]:
        """File name -> sha256."""
        return {file.name: _sha256(file) for file in self._before}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()
