"""docs/report.md is correct: it lists all fields, and its code runs and prints the output shown."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from parity_tests.compare.power.result import Power, Sensitivity
from parity_tests.compare.report import SCHEMA, Coverage, Histogram, Point, Report, Training
from parity_tests.tests.example_reports import small

pytest_plugins = ["pytester"]

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "report.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def names(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_the_table_has_every_field():
    rows = re.findall(r"^\| `([\w.\[\]*]+)` \| [^|]+ \| [^|]+ \|$", TEXT, re.MULTILINE)
    assert len(rows) == len(set(rows))
    kinds = {
        "layers[].": Point,
        "training.": Training,
        "histogram.": Histogram,
        "coverage.*.": Coverage,
        "power.items[].": Sensitivity,
    }
    for prefix, kind in kinds.items():
        assert {row.removeprefix(prefix) for row in rows if row.startswith(prefix)} == names(kind)
    facts = {row.removeprefix("power.") for row in rows if row.startswith("power.") and "[" not in row}
    assert facts | {"items"} == set(Power().to_json())
    top = {row for row in rows if "." not in row}
    assert top == set(small().to_json())
    assert top >= names(Report)
    assert f"| `schema` | integer | {SCHEMA} |" in TEXT


def test_the_json_is_that_of_a_report():
    (block,) = blocks("json")
    facts = json.loads(block)
    assert facts == json.loads(json.dumps(small().to_json(), allow_nan=False))
    assert list(facts) == list(small().to_json())


def test_the_code_prints_what_it_says(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", blocks("python")[0]], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert [line.rstrip() for line in done.stdout.splitlines()] == blocks("text")[0].splitlines()
    assert "✗ no parity" in (tmp_path / "report.html").read_text(encoding="utf-8")


PRETEND = """
import sys, types
from parity_tests.compare.report import Point, Report

def compare_models(reference, candidate, inputs, *, names=None, dtype="float64"):
    assert inputs.shape == (2, 3, 32, 32)
    return Report("", "torch", ["keras"], dtype, layers=[Point("conv1", (), {"keras": 0.0}, 1e-12)])

layers = types.ModuleType("parity_tests.compare.layers")
layers.compare_models = compare_models
sys.modules["parity_tests.compare.layers"] = layers
"""


SMALL = "(torch_impl, name)(depths=(1, 1, 1))"  # in an ordinary run: three blocks instead of nine


@pytest.mark.parametrize("small", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_the_test_that_is_shown_passes(pytester, monkeypatch, small):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    if importlib.util.find_spec("parity_tests.compare.layers") is None:
        pytester.makeconftest(PRETEND)
    code = blocks("python")[1]
    assert "(torch_impl, name)()" in code
    pytester.makepyfile(test_it=code.replace("(torch_impl, name)()", SMALL) if small else code)
    command, *shown = blocks("console")[0].splitlines()
    arguments = command.removeprefix("$ python -m pytest ").split()
    ran = pytester.runpytest_subprocess("-p", "parity_tests.plugin", "-p", "no:cacheprovider", *arguments)
    ran.assert_outcomes(passed=2)
    for line in shown:
        ran.stdout.fnmatch_lines([re.sub(r"[\d.]+s$", "*s*", line)])
    assert (pytester.path / arguments[-1]).stat().st_size > 10_000


@pytest.mark.parametrize("name", ["report_holds.png", "report_differs.png"])
def test_the_pictures(name):
    assert f"](images/{name})" in TEXT
    picture = (DOCS / "images" / name).read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 200_000
