"""Plain English: a ratchet on the patterns that make a reader start a sentence again.

Counted in the comments, docstrings and string literals of every Python file, and in every Markdown file.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[2]
MOST = 0
RIDDLES = [
    re.compile(pattern)
    for pattern in (
        r"(?:^|[.!?:]\s+)(?:What|Who|Whose|Whoever|Which)\b(?![^.?!]*\?)",  # opens a sentence, no question
        r"(?i)\b(?:nobody|somebody|who (?:is|needs|reads))\b",
        r"(?i)\bbeliev(?:e|ed)\b",
        r"(?i)\b(?:cannot|can) be[.,;:)]",
        r"(?i)\b(?:file|option|name)s? (?:says?|tells?)\b",
        r"(?i)\bso[.;,)]",  # closes a clause
        r"(?i)\bis to (?:be|go|have)\b",
    )
]
RENAMED = {"said", "lonely", "put", "has", "concerns", "misfits", "feeds", "alone"}
ROOMS = ("torch_impl", "keras_impl", "tf1_compat", "parity_tests")


def tracked(*patterns: str) -> list[Path]:
    """The repository's files, or what an unpacked copy without .git has."""
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *patterns], cwd=ROOT, capture_output=True, text=True
    )
    names = listing.stdout.splitlines() if listing.returncode == 0 else []
    paths = [ROOT / name for name in names] or [p for pattern in patterns for p in ROOT.rglob(pattern)]
    return sorted(path for path in paths if path.is_file() and path != Path(__file__))


def python_texts(source: str) -> Iterator[tuple[int, str]]:
    """Each string literal and each block of comments, with its first line's number."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.JoinedStr, ast.Constant))]
    parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(
                    getattr(part, "value", "{}") if isinstance(part, ast.Constant) else "{}"
                    for part in node.values
                ),
            )
        elif isinstance(node.value, str) and id(node) not in parts:
            yield node.lineno, node.value
    block: list[tokenize.TokenInfo] = []
    comments = (
        t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT
    )
    for token in comments:
        follows = block and token.start == (block[-1].start[0] + 1, block[-1].start[1])
        if block and not follows:
            yield comment(block)
            block = []
        block.append(token)
    if block:
        yield comment(block)


def comment(block: list[tokenize.TokenInfo]) -> tuple[int, str]:
    return block[0].start[0], "\n".join(token.string.lstrip("# ") for token in block)


def markdown_texts(source: str) -> Iterator[tuple[int, str]]:
    """Each paragraph, list item, table cell and line of code, without the marks around it."""
    for number, line in enumerate(source.splitlines(), 1):
        for cell in line.split("|"):
            yield number, cell.strip().lstrip("#>*-`0123456789. ").strip()


def riddles(texts: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Line and words of each hit."""
    for first, text in texts:
        for pattern in RIDDLES:
            for match in pattern.finditer(text):
                start = match.end() - len(match[0].lstrip(".!?: \n"))
                yield (
                    first + text.count("\n", 0, start),
                    " ".join(text[max(0, start - 30) : start + 60].split()),
                )


def test_prose_is_read_once():
    hits = []
    for path in tracked("*.py", "*.md"):
        texts = python_texts if path.suffix == ".py" else markdown_texts
        for line, words in sorted(riddles(texts(path.read_text(encoding="utf-8")))):
            hits.append(f"{path.relative_to(ROOT)}:{line}: {words}")
    message = f"{len(hits)} riddles, expected at most {MOST}; write them subject first, in the field's words:"
    assert len(hits) <= MOST, "\n".join([message, *hits])


def test_identifiers_name_what_they_hold():
    """Functions, arguments, variables and attributes of the product's rooms, the tests aside."""
    wrong = []
    for path in tracked(*(f"{room}/*.py" for room in ROOMS)):
        if "tests" in path.relative_to(ROOT).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            stored = isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store)
            if stored:
                name = node.id if isinstance(node, ast.Name) else node.attr
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                name = node.name
            else:
                name = node.arg if isinstance(node, ast.arg) else ""
            if name.strip("_") in RENAMED:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}")
    assert wrong == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ('"""Whose a file is, names say."""', [1, 1]),
        ("x = 1  # made.\n# Who needs it\n#\n# nobody asks", [2, 2, 4]),
        ('x = f"{y} cannot be, or " "is to be done"', [1, 1]),
        ('"""One line.\n\nWhich file? The option says so.\n"""', [3, 3]),
        ('"""The origin of a file is detected."""\n# which file it is\nso = 1', []),
    ],
)
def test_riddles_are_found_in_python(source, lines):
    assert sorted(line for line, _ in riddles(python_texts(source))) == lines


def test_riddles_are_found_in_markdown():
    source = "# What a file is\n\n| Who is it? | Believe it |\n- it is so.\n"
    assert sorted(line for line, _ in riddles(markdown_texts(source))) == [1, 3, 3, 4]
