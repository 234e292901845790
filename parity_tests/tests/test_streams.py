"""Where the commands read and print: `--quiet`, and `-` for stdin where a stream is enough."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from parity_tests.__main__ import main as parity
from parity_tests.judge.synthetic import arrays_with
from parity_tests.tests.test_isolation import ROOT
from weights_convert import SpecError, frameworks, load_model
from weights_convert.frameworks import FOLDERS, PACKAGES

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("folder")]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("convert good.pth x.npz", 0),
        ("convert good.pth x.npz --dry-run", 0),
        ("inspect good.pth good.ckpt", 0),
        ("diff good.pth good.npz", 0),
        ("diff good.pth other.npz --assume", 1),
        ("check plan.json good.npz", 0),
        ("check plan.json other.npz --assume", 1),
    ],
)
def test_quiet_leaves_the_exit_code(run, line, code):
    np.savez("other.npz", **arrays_with({"fc.bias": np.zeros(5, np.float32)}))
    assert run("convert", "good.pth", "y.npz", "--json", "plan.json").code == 0
    loud = run(*line.split())
    Path("x.npz").unlink(missing_ok=True)
    assert (loud.code, bool(loud.out)) == (code, True)
    assert run(*line.split(), "--quiet") == (code, "", "")


def test_quiet_keeps_json_warnings_and_errors(run):
    ran = run("inspect", "good.pth", "--quiet", "--json", "-")
    assert (json.loads(ran.out)["format"], ran.err) == ("torch", "")
    np.savez("plain.npz", **arrays_with({}))
    assert run("convert", "plain.npz", "x.npz", "--quiet").err.startswith("warning: plain.npz: ")
    ran = run("inspect", "none.pth", "--quiet")
    assert (ran.code, ran.err) == (2, "none.pth: there is no such file\n")


def test_quiet_leaves_only_the_exit_code_of_the_main_job(capsys):
    line = ["good.pth", "--frameworks", "torch", "--dtype", "float64", "--size", "32"]
    code = parity(line)
    assert "layer1" in capsys.readouterr().out
    assert parity([*line, "--quiet"]) == code
    assert capsys.readouterr().out == ""


STDIN = "a checkpoint is read from a file, not from stdin: its tensors are read in any order"


@pytest.mark.parametrize(
    "line", ["convert - x.npz", "inspect good.pth -", "diff - good.pth", "diff good.pth -"]
)
def test_a_checkpoint_is_not_read_from_stdin(run, unchanged, line):
    with unchanged():
        ran = run(*line.split())
    assert (ran.code, ran.out) == (2, "")
    assert re.search(rf"argument \w+: {re.escape(STDIN)} \(see weights-convert \w+ --help\)$", ran.lines[0])


def test_other_commands_refuse_it_too(run, capsys):
    assert run("check", "plan.json", "-").code == 2
    assert parity(["-"]) == 2
    assert STDIN in capsys.readouterr().err
    assert run("convert", "good.pth", "-").lines[0].startswith("-: unknown suffix, expected one of .pth")
    Path("-").write_bytes(Path("good.pth").read_bytes())
    assert run("inspect", "./-").code == 0


def test_a_manifest_comes_from_stdin(run, monkeypatch):
    """`weights-convert convert A B --json - | weights-convert check - B`."""
    manifest = run("convert", "good.pth", "x.npz", "--json", "-").out
    monkeypatch.setattr(sys, "stdin", io.StringIO(manifest))
    assert run("check", "-", "x.npz") == (0, "as recorded: 24 tensors\n", "")
    monkeypatch.setattr(sys, "stdin", io.StringIO("[]"))
    ran = run("check", "-", "x.npz")
    assert ran.err == "-: not a manifest of `weights-convert convert --json FILE`\n"


# --------------------------------------------------------------------------------------------------
# Hints at missing packages


def test_hints_name_packages_that_the_project_requires():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {
        re.split(r"[><=\[]", line)[0] for group in project["optional-dependencies"].values() for line in group
    }
    assert {package for packages in PACKAGES.values() for package in packages.split()} <= required


@pytest.mark.parametrize("framework", FOLDERS)
def test_the_folder_of_the_networks_is_missing(monkeypatch, framework):
    """As in a copy of weights_convert alone; no package index has that folder."""
    find = importlib.util.find_spec
    missing = FOLDERS[framework]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    message = (
        f"{framework}: {missing}, which holds the network, is not installed; "
        "copy that folder of this project beside weights_convert"
    )
    with pytest.raises(SpecError, match=f"^{re.escape(message)}$"):
        load_model("good.pth", framework)


def test_another_missing_module_is_named_without_a_package(monkeypatch):
    """A framework that itself misses something."""

    def fail(_name):
        raise ModuleNotFoundError("No module named 'optree'", name="optree")

    monkeypatch.setattr("weights_convert.frameworks.importlib.import_module", fail)
    with pytest.raises(SpecError, match=r"^keras: optree is not installed$"):
        frameworks.adapter("keras")
