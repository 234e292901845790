"""Prints for the commands: wrapped tables on a terminal, tab-separated lines for a pipe."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from weights_convert import errors

if TYPE_CHECKING:
    from rich.table import Table


def output_for(arguments: argparse.Namespace) -> TextIO:
    """The stream for human text: stdout, or stderr if JSON goes to stdout; with --quiet it goes nowhere."""
    if getattr(arguments, "quiet", False):
        return io.StringIO()
    return sys.stderr if getattr(arguments, "json", None) == "-" else sys.stdout


def say(output: TextIO, text: str) -> None:
    output.write(f"{errors.printable(text)}\n")  # rich's print replaces tabs by spaces


def print_facts(output: TextIO, rows: Iterable[tuple[str, str]]) -> None:
    """Titles and texts: two wrapped columns on a terminal, one line each for a pipe."""
    if not output.isatty():  # avoids importing rich, 50 ms
        for title, text in rows:
            say(output, f"{title:<13} {text}")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for title, text in rows:
        table.add_row(Text(title, style="bold"), Text(errors.printable(text), overflow="fold"))
    _show(output, table, wrapped=True)


def print_table(output: TextIO, columns: Iterable[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on a terminal, tab-separated lines for a pipe."""
    rows = list(rows)
    if not output.isatty():
        for row in [list(columns), *rows]:
            output.write("\t".join(map(errors.printable, row)) + "\n")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, header_style="bold")
    for row in rows:
        table.add_row(*(Text(errors.printable(cell)) for cell in row))
    _show(output, table, wrapped=False)


def _show(output: TextIO, table: Table, wrapped: bool) -> None:
    from rich.console import Console

    Console(file=output, highlight=False, emoji=False).print(table, soft_wrap=not wrapped)


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on a terminal; nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("writing and reading back")
        yield lambda done, total: bar.update(task, completed=done, total=total)
