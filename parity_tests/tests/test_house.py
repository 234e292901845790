"""The order of the rooms: allowed imports, including imports inside functions, and no circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[2]
IMPLEMENTATIONS = ("torch_impl", "keras_impl", "tf1_compat")
ROOMS = [  # a room imports only rooms of earlier lines; rooms of one line do not import each other
    IMPLEMENTATIONS,
    ("weights_convert",),
    ("parity_tests.judge",),
    ("parity_tests.watch",),
    ("parity_tests.compare",),
    ("parity_tests.page",),
    ("parity_tests",),
    ("recipes",),
    ("benchmarks", "fuzz"),
]
FREE = "parity_tests.quiet_start"  # imported by command lines before everything else
# `weights_convert.transfer` runs both models, which only the harness can; it works without it otherwise
UPWARD = {("weights_convert.frameworks.transfer", "parity_tests.compare.matching")}


def modules() -> dict[str, Path]:
    """Every module of the product by its dotted name."""
    found = {}
    for top in (
        "torch_impl",
        "keras_impl",
        "tf1_compat",
        "weights_convert",
        "parity_tests",
        "recipes",
        "benchmarks",
        "fuzz",
    ):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[:2] != ("parity_tests", "tests"):
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(name: str) -> Iterator[str]:
    """The modules of this project that a module imports anywhere, except for the type checker."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            targets = [f"{module}.{alias.name}" for alias in node.names]
            targets = [target if target in MODULES else module for target in targets]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            targets = [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []
        else:
            continue
        allowed = {name, *(other for one, other in UPWARD if one == name)}
        yield from (target for target in targets if target in MODULES and target not in allowed)


def walk(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from walk(node)


@cache
def graph() -> dict[str, set[str]]:
    return {name: set(imported(name)) for name in MODULES}


def room(name: str) -> int:
    """The line in `ROOMS` of the longest name that matches."""
    fits = [(len(r), i) for i, line in enumerate(ROOMS) for r in line if f"{name}.".startswith(f"{r}.")]
    return max(fits)[1]


def test_no_room_imports_a_later_one():
    wrong = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in sorted(others)
        if room(other) > room(name) and other != FREE
    ]
    assert wrong == []


def test_implementations_import_no_other_room():
    tops = {name: name.partition(".")[0] for name in MODULES}
    wrong = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in others
        if tops[name] in IMPLEMENTATIONS and tops[other] != tops[name]
    ]
    assert wrong == []


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in edges[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            component = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(component) > 1:
                found.append(sorted(component))

    for name in edges:
        if name not in index:
            visit(name)
    return found


def test_there_are_no_circles():
    assert circles(graph()) == []


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


@pytest.mark.parametrize("room", IMPLEMENTATIONS)
def test_the_first_equation_stands_near_the_top(room):
    lines = (ROOT / room / "attention.py").read_text(encoding="utf-8").splitlines()
    assert any("sigmoid(W2 relu(W1 mean(x)))" in line for line in lines[:60])
