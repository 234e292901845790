"""What the two command lines, `weights-convert` and `parity`, share."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from weights_convert import atomic
from weights_convert.cautions import cautions_go_to
from weights_convert.errors import DestinationError, SpecError, WeightsConvertError, WriteError
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


def setting(text: str) -> tuple[str, Any]:
    """`stride_in=conv1` -> ("stride_in", "conv1"); numbers, tuples, True and None as Python writes them."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: expected KEY=VALUE, such as stride_in=conv1")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # what literal_eval raises
        return key, value


def add_reading_options(command: argparse.ArgumentParser) -> None:
    """What the user knows of a file and the file does not say."""
    command.add_argument("--model", metavar="NAME", help="the architecture (list models), or FAMILY:NAME")
    command.add_argument(
        "--set", metavar="KEY=VALUE", type=setting, action="append", default=[], dest="settings",
        help="a keyword of the architecture, such as stride_in=conv1",
    )  # fmt: skip
    command.add_argument("--from", metavar="FAMILY", dest="family", help="whose file it is (list families)")
    command.add_argument("--key", metavar="ENTRY", help="the entry of a PyTorch file that holds the weights")
    command.add_argument("--scope", metavar="NAME", help="variable scope of the network in a TF1 checkpoint")
    command.add_argument(
        "--assume", action="store_true", help="accept the defaults for what the file does not say"
    )
    add_limits(command)


def reading(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `load` that the options of a command say."""
    said = {name: getattr(arguments, name) for name in ("model", "family", "key", "scope", "assume")}
    return said | {"settings": dict(arguments.settings), "limits": limits_of(arguments)}


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


def exit_code(job: Callable[[], int]) -> int:
    """Do a command's work; whatever goes wrong is one line on stderr, and the exit code for it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file's name may be beyond the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        cautions: list[str] = []
        with ends_like_ctrl_c(), cautions_go_to(cautions.append):
            code = job()
        for text in cautions:  # at the end: where nothing was done, the error is the only line
            print(f"warning: {text}", file=sys.stderr)  # noqa: T201
        sys.stdout.flush()  # now, while what goes wrong can be said
        return code
    except WeightsConvertError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    except BrokenPipeError:  # the reader of a pipe has seen enough
        _discard_stdout()
        return 128 + 13  # as of others that SIGPIPE ends; 0 might be taken for a verdict
    except OSError as error:  # the disk behind a redirected stdout is full
        where = f"{error.filename or 'standard output'}: {error.strerror}"
        print(where if error.errno else error, file=sys.stderr)  # noqa: T201
        _discard_stdout()
        return WriteError.exit_code
    except KeyboardInterrupt as error:
        print("interrupted; what is written is as it was before, or complete", file=sys.stderr)  # noqa: T201
        return getattr(error, "exit_code", 130)


def _discard_stdout() -> None:
    """Send what is still in its buffer nowhere, so that the interpreter does not try again at its end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


JSON, HTML = (b"{", b"["), (b"<!DOCTYPE html>",)  # how reports begin


def check_target(
    target: str | os.PathLike[str] | None, *files: str, begins: tuple[bytes, ...] = JSON
) -> None:
    """Raise `DestinationError` before any work is done for a report that could not be put there.

    Args:
        target: where it is to go; "-" is stdout.
        files: what is read or written besides, which it is not to replace.
        begins: how a report of its kind begins: nothing else is replaced, for it may be a checkpoint.
    """
    if target is None or str(target) == "-":
        return
    path = Path(target)
    try:
        if not path.parent.is_dir():
            raise DestinationError(f"{target}: the folder {str(path.parent)!r} does not exist")
        if path.is_dir():
            raise DestinationError(f"{target}: is a directory, expected a file name")
        if os.path.realpath(path) in map(os.path.realpath, files):
            raise DestinationError(f"{target}: would replace what is read or written there")
        if path.is_file() and path.stat().st_size and not _begins(path).startswith(begins):
            what = "exists already and is no report of this kind"
            raise DestinationError(f"{target}: {what}; remove it or choose another name")
    except OSError as error:
        raise DestinationError(f"{target}: cannot be written ({error.strerror})") from error


def _begins(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(32)


def write_json(target: str | None, report: Any) -> None:
    """Write facts for a machine to a file, to stdout for "-", nowhere for None."""
    if target is None:
        return
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        write_report(target, text.encode())


def write_report(target: str | os.PathLike[str], report: bytes) -> None:
    """Write a report in one step, so that a reader sees the earlier one or this one.

    Raises:
        WriteError: it could not be written.
    """
    path = Path(target)
    try:
        if path.exists() and not path.is_file():  # /dev/null, a pipe
            path.write_bytes(report)
            return
        with atomic.replacing(path) as temporary:
            temporary.write_bytes(report)
    except OSError as error:
        raise WriteError(f"{target}: could not be written ({error.strerror})") from error
