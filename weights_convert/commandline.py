"""Shared by the two command lines, `weights-convert` and `parity`."""

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


def positive(text: str) -> int:
    """The type of an argument that is a number of things."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 10**6):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number above 0")
    return int(text)


def add_limits(command: argparse.ArgumentParser) -> None:
    """The options of every command that reads untrusted files."""
    group = command.add_argument_group("limits for untrusted files")
    group.add_argument(
        "--max-bytes", type=_size, metavar="SIZE",
        help="of all tensors, such as 20G (twice the file and half a gigabyte)",
    )  # fmt: skip
    group.add_argument("--max-tensors", type=_count, metavar="N", help=f"({DEFAULT.max_tensors:,})")
    nesting = f"lists within lists, groups within groups ({DEFAULT.max_depth})"
    group.add_argument("--max-depth", type=_count, metavar="N", help=nesting)


def limits_of(arguments: argparse.Namespace) -> Limits:
    """The limits from the options of a command; missing options have defaults."""
    given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Limits)}
    return Limits(**{name: value for name, value in given.items() if value is not None})


def setting(text: str) -> tuple[str, Any]:
    """`stride_in=conv1` -> ("stride_in", "conv1"); numbers, tuples, True and None as Python writes them."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: expected KEY=VALUE, such as stride_in=conv1")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # exceptions of literal_eval
        return key, value


def add_reading_options(command: argparse.ArgumentParser) -> None:
    """Options for facts that a file does not contain."""
    command.add_argument("--model", metavar="NAME", help="the architecture (list models), or FAMILY:NAME")
    command.add_argument(
        "--set", metavar="KEY=VALUE", type=setting, action="append", default=[], dest="settings",
        help="a keyword of the architecture, such as stride_in=conv1",
    )  # fmt: skip
    command.add_argument("--from", metavar="FAMILY", dest="family", help="origin of the file (list families)")
    command.add_argument("--key", metavar="ENTRY", help="the entry of a PyTorch file that holds the weights")
    command.add_argument(
        "--scope",
        metavar="NAME",
        help="variable scope of the network in a TF1 checkpoint, or its path in a Keras model",
    )
    command.add_argument("--ema", action="store_true", help="take the moving averages of a TF1 checkpoint")
    command.add_argument(
        "--prefix", metavar="THEIRS", help="beginning of the network's names, such as student."
    )
    command.add_argument(
        "--names", metavar="FILE", action="append",
        help="your own names, lines THEIRS = OURS; or one such pair, repeatable",
    )  # fmt: skip
    command.add_argument(
        "--apply-masks", action="store_true", help="apply the masks of pruned weights (x_orig, x_mask)"
    )
    command.add_argument(
        "--assume", action="store_true", help="accept defaults for keywords that the file does not specify"
    )
    add_limits(command)


def reading(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `load` from the options of a command."""
    plain = ("model", "family", "key", "scope", "ema", "prefix", "apply_masks", "assume")
    said = {name: getattr(arguments, name) for name in plain}
    names = _names(arguments.names) if arguments.names else None
    return said | {"names": names, "settings": dict(arguments.settings), "limits": limits_of(arguments)}


def _names(texts: list[str]) -> str | dict[str, str]:
    """A file of names, or the pairs of several options."""
    pairs = {}
    for text in texts:
        theirs, equals, ours = (part.strip() for part in text.partition("="))
        if not equals or Path(text).is_file():
            if len(texts) > 1:
                raise SpecError(f"--names {text}: expected one file, or pairs THEIRS=OURS")
            return text
        pairs[theirs] = ours
    return pairs


def checkpoint_file(text: str) -> str:
    """The type of an argument that names a checkpoint."""
    if text == "-":
        raise argparse.ArgumentTypeError(
            "a checkpoint is read from a file, not from stdin: its tensors are read in any order"
        )
    return text


def add_quiet(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--quiet", action="store_true", help="print errors, warnings and the JSON for `--json -` only"
    )


class Parser(argparse.ArgumentParser):
    """An argument parser with one-line errors."""

    def error(self, message: str) -> NoReturn:
        raise SpecError(f"{self.prog}: {message} (see {self.prog} --help)")


class Ended(KeyboardInterrupt):
    """The process received a signal to end; `exit_code` is 128 + its number."""

    def __init__(self, number: int):
        self.exit_code = 128 + number


@contextmanager
def ends_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise `Ended`, so that temporary files are removed as after Ctrl-C.

    Signals that are already ignored (`nohup`) or handled are not changed.
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
    except ValueError:  # not in the main thread, the only one that receives signals
        pass
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def exit_code(job: Callable[[], int]) -> int:
    """Run a command; print any error as one line on stderr and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # the terminal's encoding may not support a file's name
            stream.reconfigure(errors="backslashreplace")
    try:
        cautions: list[str] = []
        with ends_like_ctrl_c(), cautions_go_to(cautions.append):
            code = job()
        for text in cautions:  # at the end, so that an error is the only line
            print(f"warning: {text}", file=sys.stderr)  # noqa: T201
        sys.stdout.flush()  # now, while errors can still be reported
        return code
    except WeightsConvertError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    except BrokenPipeError:  # the reader has closed the pipe
        _discard_stdout()
        return 128 + 13  # the exit code for SIGPIPE; 0 would look like a verdict
    except OSError as error:  # the disk behind a redirected stdout is full
        where = f"{error.filename or 'standard output'}: {error.strerror}"
        print(where if error.errno else error, file=sys.stderr)  # noqa: T201
        _discard_stdout()
        return WriteError.exit_code
    except KeyboardInterrupt as error:
        print("interrupted; the output is unchanged or complete", file=sys.stderr)  # noqa: T201
        return getattr(error, "exit_code", 130)


def _discard_stdout() -> None:
    """Discard the buffer of stdout, so that the interpreter does not write it again when it ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


JSON, HTML = (b"{", b"["), (b"<!DOCTYPE html>",)  # first bytes of reports


def check_target(
    target: str | os.PathLike[str] | None, *files: str, begins: tuple[bytes, ...] = JSON
) -> None:
    """Raise `DestinationError` before the work starts if a report cannot be written.

    Args:
        target: the file of the report; "-" is stdout.
        files: other inputs and outputs, which the report must not replace.
        begins: first bytes of such reports: other files, which may be checkpoints, are not replaced.
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
            raise DestinationError(f"{target}: would replace an input or another output")
        if path.is_file() and path.stat().st_size and not _begins(path).startswith(begins):
            what = "exists already and is not a report of this kind"
            raise DestinationError(f"{target}: {what}; remove it or choose another name")
    except OSError as error:
        raise DestinationError(f"{target}: cannot be written ({error.strerror})") from error


def _begins(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(32)


def write_json(target: str | None, report: Any) -> None:
    """Write a report as JSON to a file, to stdout for "-", nowhere for None."""
    if target is None:
        return
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        write_report(target, text.encode())


def write_report(target: str | os.PathLike[str], report: bytes) -> None:
    """Write a report in one step, so that a reader sees the old or the new report.

    Raises:
        WriteError: the report cannot be written.
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
