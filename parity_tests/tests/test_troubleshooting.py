"""docs/troubleshooting.md and the code: quoted messages exist, and messages with advice are quoted."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from parity_tests.tests.test_isolation import ROOT

pytestmark = pytest.mark.quick

ROOMS = ("torch_impl", "keras_impl", "tf1_compat", "weights_convert", "parity_tests", "recipes")
QUOTED = re.findall(r"^\| `(.+)` \| ", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.M)
TODO = (
    "build|call|choose|compare|convert|copy|create|give|import|load|omit|pair|pass|raise|read|remove|rename"
)
ADVICE = re.compile(rf"[;:,] (?:if you trust the file, )?(?:{TODO}|save|set|switch|use)\b")


def texts(source: str) -> Iterator[str]:
    """The string literals of a module without docstrings; `\\0` stands for a formatted value."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    formatted = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    parts = {id(part) for node in formatted for part in node.values}
    for node in formatted:
        yield "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docstrings | parts
        ):
            yield node.value


@cache
def messages() -> list[str]:
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py") if "tests" not in path.parts]
    return sorted({text for path in files for text in texts(path.read_text(encoding="utf-8"))})


def pattern(quoted: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part.strip()) for part in quoted.split("...")), re.DOTALL)


def test_quotations_are_found():
    assert len(QUOTED) > 40


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_exists_in_the_code(quoted):
    assert any(pattern(quoted).search(text) for text in messages())


def test_every_message_with_advice_is_quoted():
    patterns = [pattern(quoted) for quoted in QUOTED]
    advising = [text for text in messages() if ADVICE.search(text)]
    missing = [text for text in advising if not any(found.search(text) for found in patterns)]
    assert missing == [], "add them to docs/troubleshooting.md"


def test_the_literals_of_a_module():
    source = '"""Docstring; use it."""\nx = f"a {b}; " "use c"\ny = "d" "e"\n'
    assert sorted(texts(source)) == ["a \0; use c", "de"]
