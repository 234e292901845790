"""What the two command lines, `weights-convert` and `parity`, share."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from weights_convert.errors import DestinationError, SpecError, WriteError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise SpecError(f"{self.prog}: {message} (see {self.prog} --help)")


class Ended(KeyboardInterrupt):
    """The process was asked to end; `exit_code` is the one that shells know for that."""

    def __init__(self, number: int):
        self.exit_code = 128 + number


@contextmanager
def ends_like_ctrl_c() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Ended`, so that what is temporary is removed as after Ctrl-C.

    Whoever starts the command keeps his word: what he ignores (`nohup`) or handles stays so.
    """

    def end(number: int, _frame: object) -> NoReturn:
        raise Ended(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    taken = []
    try:
        for number in numbers:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, end)
                taken.append(number)
    except ValueError:  # not in the main thread, where no signal arrives either
        pass
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


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
