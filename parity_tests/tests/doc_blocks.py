"""The code blocks of a Markdown page: run in order as a reader would, with their output.

`DOCS_REFRESH=1 python -m pytest -n 0 parity_tests/tests/test_docs.py` writes the output of now.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FENCED = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PRINTS = re.compile(r"^(\s*print\(.*\))  # (.*)$", re.MULTILINE)  # print(x)  # what it prints
_ELISION = "..."  # a line of its own: any number of lines that are not shown


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, and where the text begins in the page."""

    language: str
    text: str
    start: int

    @property
    def first_line(self) -> str:
        return self.text.split("\n", 1)[0]


def blocks_of(text: str) -> list[Block]:
    return [Block(found[1], found[2], found.start(2)) for found in _FENCED.finditer(text)]


def run(text: str, commands: set[str]) -> str:
    """Run the Python blocks and the console blocks with these commands; the page with their output of now.

    Python blocks share one namespace. An output that is shown in part keeps its `...` line where it stands.
    """
    namespace: dict[str, Any] = {"__name__": "page"}
    present, end = [], 0
    for block in blocks_of(text):
        present += [text[end : block.start], _present(block, namespace, commands)]
        end = block.start + len(block.text)
    return "".join([*present, text[end:]])


def _present(block: Block, namespace: dict[str, Any], commands: set[str]) -> str:
    if block.language == "python" and _can_run(block):
        with contextlib.redirect_stderr(io.StringIO()):  # log lines of libraries
            printed = iter(_printed(exec, compile(block.text, "page", "exec"), namespace))
        shown = _PRINTS.sub(lambda found: f"{found[1]}  # {next(printed, '')}", block.text)
        return shown + "".join(f"# also prints: {line}\n" for line in printed)
    if block.language == "console":
        parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
        return "".join(_command(part, commands) for part in parts)
    return block.text


def _can_run(block: Block) -> bool:
    """Whether the packages are installed that a first line `# pip install NAME ...` names."""
    names = block.first_line.removeprefix("# pip install ")
    return names == block.first_line or all(importlib.util.find_spec(name) for name in names.split())


def _command(part: str, commands: set[str]) -> str:
    command, _, shown = part.partition("\n")
    name, *arguments = shlex.split(command, comments=True)
    assert name in commands, f"{command}: not run here"
    printed = _printed(_run_command, _main(name), arguments)
    lines = shown.splitlines()
    if _ELISION in lines:
        head, tail = lines.index(_ELISION), len(lines) - lines.index(_ELISION) - 1
        assert len(printed) > head + tail, f"{command}: nothing is left out"
        printed = [*printed[:head], _ELISION, *printed[len(printed) - tail :]]
    return "\n".join([f"$ {command}", *(line.rstrip() for line in printed)]) + "\n"


def _main(name: str) -> Any:
    from weights_convert.__main__ import main

    return {"weights-convert": main}[name]


def _run_command(main: Any, arguments: list[str]) -> None:
    """Run a command with stderr among its output, as on a terminal."""
    with contextlib.redirect_stderr(sys.stdout):
        main(arguments)


def _printed(function: Any, *arguments: Any) -> list[str]:
    """The lines that a function prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        function(*arguments)
    return output.getvalue().splitlines()


def broken_links(page: Path) -> list[str]:
    """The links of a page to files and headings that do not exist; links to other sites are not followed."""
    text = _FENCED.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        file = page.parent / target if target else page
        if re.match(r"[a-z]+:", link):
            continue
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            broken.append(link)
    return broken


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}
