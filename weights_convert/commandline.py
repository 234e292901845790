"""What the two command lines, `weights-convert` and `parity`, share."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NoReturn

from weights_convert.errors import DestinationError, SpecError, WriteError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise SpecError(f"{self.prog}: {message} (see {self.prog} --help)")


def check_json_target(target: str | None, *files: str) -> None:
    """Raise `DestinationError` before any work is done for a report that could not be put there."""
    if target is None or target == "-":
        return
    path = Path(target)
    try:
        if not path.parent.is_dir():
            raise DestinationError(f"{target}: the folder {str(path.parent)!r} does not exist")
        if path.is_dir():
            raise DestinationError(f"{target}: is a directory, expected a file name")
        if path.resolve() in [Path(file).resolve() for file in files]:
            raise DestinationError(f"{target}: would replace what is read or written there")
    except OSError as error:
        raise DestinationError(f"{target}: cannot be written ({error.strerror})") from error


def write_json(target: str | None, report: Any) -> None:
    """Write facts for a machine to a file, to stdout for "-", nowhere for None."""
    if target is None:
        return
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
        return
    try:
        Path(target).write_text(text, encoding="utf-8")
    except OSError as error:
        raise WriteError(f"{target}: could not be written ({error.strerror})") from error
