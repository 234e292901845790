"""The pytest plugin, in separate processes, with a fake comparison."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CONFTEST = """
import sys, types
from parity_tests.compare.report import Point, Report

def compare_models(reference, candidate, inputs, *, names=None, dtype="float64"):
    error = abs(reference - candidate)
    point = Point("layer1.bn", (2,), {"candidate": error}, 0.5)
    return Report("untitled", "reference", ["candidate"], dtype, images=(inputs,), layers=[point])

layers = types.ModuleType("parity_tests.compare.layers")
layers.compare_models = compare_models
sys.modules["parity_tests.compare.layers"] = layers
"""
TESTS = """
import pytest

def test_same(parity):
    report = parity.assert_same(1, 1, 5, dtype="float32")
    assert (report.title, report.dtype, report.images) == ("test_it.py::test_same", "float32", (5,))

def test_differs(parity):
    parity.assert_same(1, 2, 5)

@pytest.mark.parametrize("name", ["<b>"])
def test_compare(parity, name):
    assert parity.compare(1, 1, 5).holds
    assert parity.compare(1, 1, 5).title.endswith("[<b>] #2")

def test_other():
    pass
"""


@pytest.fixture
def start(pytester, monkeypatch):
    """Runs pytest on TESTS with the plugin, installed or not."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_it=TESTS)

    def start(*arguments: str):
        return pytester.runpytest_subprocess("-p", "parity_tests.plugin", *arguments)

    return start


def test_the_page_holds_every_comparison(start, pytester):
    ran = start("--parity-report", "out.html")
    ran.assert_outcomes(passed=3, failed=1)
    ran.stdout.fnmatch_lines(
        [
            "E*AssertionError: candidate differs first at layer layer1.bn: 1.0e+00, limit 5.0e-01",
            "parity: 4 comparisons, 1 differs; report out.html",
        ]
    )
    text = (pytester.path / "out.html").read_text(encoding="utf-8")
    places = [
        text.index(f">test_it.py::{name}</a>")
        for name in ("test_same", "test_differs", "test_compare[&lt;b&gt;]", "test_compare[&lt;b&gt;] #2")
    ]
    assert places == sorted(places)
    assert text.count("✓ parity holds") == 3
    assert text.count("✗ no parity") == 1
    assert "candidate differs first at layer layer1.bn: 1.0e+00, limit 5.0e-01" in text


def test_without_the_option_only_the_line(start, pytester):
    ran = start("-k", "same or compare")
    ran.assert_outcomes(passed=2, deselected=2)
    ran.stdout.fnmatch_lines(["parity: 3 comparisons, parity holds"])
    assert not list(pytester.path.glob("*.html"))
    ran = start("-k", "other")
    ran.stdout.no_fnmatch_line("parity:*")
    ran = start("-k", "same", "--parity-report", "out.html")
    ran.stdout.fnmatch_lines(["parity: 1 comparison, parity holds; report out.html"])


def test_a_comparison_in_a_fixture_that_fails_is_kept(start, pytester):
    pytester.makepyfile(
        test_it="""
import pytest

@pytest.fixture
def compared(parity):
    parity.assert_same(1, 2, 5)

def test_it(compared):
    pass
"""
    )
    ran = start("--parity-report", "out.html")
    ran.assert_outcomes(errors=1)
    ran.stdout.fnmatch_lines(["parity: 1 comparison, 1 differs; report out.html"])


def test_a_report_that_cannot_be_written(start, pytester):
    ran = start("--parity-report", "missing/out.html")
    assert ran.ret == pytest.ExitCode.USAGE_ERROR
    ran.stderr.fnmatch_lines(["*--parity-report missing/out.html: the folder 'missing' does not exist"])
    pytester.makepyfile(
        test_it="""
def test_it(parity):
    parity.compare(1, 1, 5)
    import os
    os.mkdir("out.html")
"""
    )
    ran = start("--parity-report", "out.html")
    ran.assert_outcomes(passed=1)
    ran.stdout.fnmatch_lines(
        ["parity: 1 comparison, parity holds; out.html: could not be written (Is a directory)"]
    )


def test_in_several_processes(start, pytester):
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    ran = start("-p", "xdist", "-n", "2", "--parity-report", "out.html")
    ran.assert_outcomes(passed=3, failed=1)
    ran.stdout.fnmatch_lines(["parity: 4 comparisons, 1 differs; report out.html"])
    first = (pytester.path / "out.html").read_bytes()
    start("-p", "xdist", "-n", "3", "--parity-report", "out.html")
    assert (pytester.path / "out.html").read_bytes() == first


def test_loading_it_imports_nothing_heavy():
    heavy = {"torch", "tensorflow", "keras", "jax", "numpy", "rich", "h5py", "weights_convert"}
    code = f"import sys, parity_tests.plugin; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_it_is_registered():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["entry-points"]["pytest11"] == {"parity_tests.plugin": "parity_tests.plugin"}
    assert "page/page.css" in project["tool"]["setuptools"]["package-data"]["parity_tests"]
