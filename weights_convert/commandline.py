"""What the two command lines, `weights-convert` and `parity`, share."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from weights_convert.errors import DestinationError, SpecError, WriteError
from weights_convert.limits import DEFAULT, Limits, parse_size


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 16):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number")
    return int(text)


def add_limits(command: argparse.ArgumentParser) -> None:
    """The options of every command that reads files, which may be anyone's."""
    group = command.add_argument_group("what files are believed")
    group.add_argument(
        "--max-bytes", type=_size, metavar="SIZE",
        help="of all tensors, such as 20G (twice the file and half a gigabyte)",
    )  # fmt: skip
    group.add_argument("--max-tensors", type=_count, metavar="N", help=f"({DEFAULT.max_tensors:,})")
    nesting = f"lists within lists, groups within groups ({DEFAULT.max_depth})"
    group.add_argument("--max-depth", type=_count, metavar="N", help=nesting)


def limits_of(arguments: argparse.Namespace) -> Limits:
    """The limits that the options of a command say; the defaults for those that are not given."""
    given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Limits)}
    return Limits(**{name: value for name, value in given.items() if value is not None})


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
