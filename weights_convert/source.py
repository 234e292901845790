"""The files that a checkpoint is read from, and whether they stay what they are while they are read."""

from __future__ import annotations

import hashlib
from pathlib import Path

from weights_convert.errors import SourceError
from weights_convert.formats.given import Given, facts_of

_CHUNK = 1 << 20


class Source:
    """A source as it is now. Ask `check` once all of it has been read."""

    def __init__(self, given: Given | None):
        self._before = {} if given is None else given.facts()

    def check(self) -> None:
        """Raise `SourceError` if any of the files is another one by now, or was written to."""
        now = facts_of([*self._before])
        for file in self._before:
            if self._before[file] != now.get(file):
                raise SourceError(
                    f"{file}: changed while it was read; convert it again once it stays as it is"
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
