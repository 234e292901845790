"""Packaging: the bounds of versions, and the wheel."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from parity_tests.tests.test_isolation import ROOT

FILES = ("requirements.txt", ".ci/lowest.txt")
REQUIREMENT = re.compile(r"([A-Za-z0-9_-]+)(>=|==)([0-9.]+)")


def bounds(lines) -> dict[str, str]:
    """Package -> lowest allowed version."""
    found = [REQUIREMENT.fullmatch(line.split("#")[0].strip()) for line in lines]
    return {match[1].lower(): match[3] for match in found if match}


def test_ci_tests_the_lowest_versions_of_requirements():
    """`test_docs` compares requirements.txt with pyproject.toml."""
    required, lowest = ((ROOT / file).read_text(encoding="utf-8").splitlines() for file in FILES)
    assert bounds(lowest) == bounds(required) != {}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, because a build leaves folders beside its source."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".git", "build", "*.egg-info", "__pycache__", ".*_cache", "docs")
    source = shutil.copytree(ROOT, folder / "source", ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(folder), str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_has_the_data_the_commands_and_no_tests(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path)
    assert {"parity_tests/page/page.css", "parity_tests/judge/images/cat.jpg"} <= set(names)
    assert {f"{room}/py.typed" for room in ("torch_impl", "keras_impl", "tf1_compat")} <= set(names)
    assert [name for name in names if "test_" in name or "conftest" in name or "/tests/" in name] == []
    entry_points = next(tmp_path.glob("*.dist-info/entry_points.txt")).read_text(encoding="utf-8")
    for command in ("weights-convert", "parity"):
        assert f"{command} = " in entry_points
    code = "import parity_tests.__main__ as p, weights_convert.__main__ as w; w.main(['list', 'models'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "se_resnet50" in done.stdout


def test_the_description_names_the_packages_that_it_installs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        top = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        description = Parser().parsestr(archive.read(metadata).decode()).get_payload()
    assert len(top) == 5
    (sentence,) = re.findall(r"installs five packages: ([^.]*)\.", " ".join(description.split()))
    assert set(re.findall(r"`(\w+)`", sentence)) == top


THEIR_TESTS = """
import torch
from torch import nn


def network(epsilon):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=epsilon)).eval()


def test_same(parity):
    parity.assert_same(network(1e-5), network(1e-5), torch.rand(2, 3, 8, 8).numpy())


def test_differs(parity):
    parity.assert_same(network(1e-5), network(1e-3), torch.rand(2, 3, 8, 8).numpy())


def test_the_wheel_is_used():
    import weights_convert

    assert "site-packages" in weights_convert.__file__
"""


def test_the_pytest_plugin_in_a_project_of_others(wheel, tmp_path):
    """The wheel in a new environment, which borrows the frameworks: their tests have the fixture at once."""
    environment, project = tmp_path / "environment", tmp_path / "project"
    builder = venv.EnvBuilder()
    builder.create(environment)
    python = builder.ensure_directories(environment).env_exe

    def done(*command: str) -> str:
        outer = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        ran = subprocess.run(command, cwd=project, env=outer, capture_output=True, text=True, check=False)
        return ran.stdout + ran.stderr

    project.mkdir()
    (project / "test_port.py").write_text(THEIR_TESTS)
    inner = done(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(inner, "borrowed.pth").write_text("\n".join(site.getsitepackages()))
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", str(wheel)]
    assert "rror" not in done(*install)
    output = done(python, "-m", "pytest", "-p", "no:cacheprovider", "--parity-report", "out.html")
    assert "2 passed" in output, output
    assert "1 failed" in output
    assert "AssertionError: torch differs first at layer 1: " in output
    assert "parity: 2 comparisons, 1 differs; report out.html" in output.splitlines()
    assert "no parity" in (project / "out.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_every_action_is_pinned(path):
    used = re.findall(r"uses: (\S+)", path.read_text(encoding="utf-8"))
    assert [action for action in used if not re.search(r"@[0-9a-f]{40}$", action)] == []
