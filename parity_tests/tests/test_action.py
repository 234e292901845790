"""The GitHub action: its two scripts run with a stand-in for Python, and the documented example uses it."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from parity_tests.tests.doc_blocks import blocks_of
from parity_tests.tests.test_isolation import ROOT

ACTION = ROOT / ".github/actions/parity/action.yml"
TEXT = ACTION.read_text(encoding="utf-8")
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="the action runs in bash")


def script(step: str) -> str:
    """The lines of a step's `run: |`."""
    found = re.search(rf"- name: {step}\n(?:.*\n)*?( +)run: \|\n((?:\1  .*\n)+)", TEXT)
    return "".join(line[len(found[1]) + 2 :] + "\n" for line in found[2].splitlines())


def keys(section: str) -> set[str]:
    """The names below `inputs:` or `outputs:`."""
    return set(re.findall(r"^  (\w+):", TEXT.partition(f"\n{section}:\n")[2].partition("\n\n")[0], re.M))


@pytest.fixture
def act(tmp_path):
    """Runs a step with a `python` that records its arguments: exit code, those arguments, outputs."""

    def act(step: str, code: int = 0, **environment: str) -> tuple[int, list[str], dict[str, str]]:
        python, outputs = tmp_path / "bin/python", tmp_path / "outputs"
        python.parent.mkdir(exist_ok=True)
        python.write_text(
            f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/arguments\necho /cache\nexit {code}\n'
        )
        python.chmod(0o755)
        outputs.write_text("")
        variables = {"PATH": f"{python.parent}:/usr/bin:/bin", "GITHUB_OUTPUT": str(outputs), **environment}
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script(step)]  # as the runner
        ran = subprocess.run(
            command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False
        )
        arguments = (tmp_path / "arguments").read_text().splitlines()
        return (
            ran.returncode,
            arguments,
            dict(line.split("=", 1) for line in outputs.read_text().splitlines()),
        )

    return act


@needs_bash
@pytest.mark.parametrize(("code", "verdict"), [(0, "holds"), (1, "fails"), (2, None), (3, None)])
def test_outputs_are_the_verdict_and_the_report(act, code, verdict):
    inputs = {
        "CHECKPOINT": "my net.pth",
        "REFERENCE": "ref",
        "FRAMEWORKS": "keras",
        "DTYPE": "",
        "REPORT": "o.html",
    }
    returned, arguments, outputs = act("Compare", code, **inputs)
    assert returned == code
    assert arguments == [
        *(
            "-m",
            "parity_tests",
            "my net.pth",
            "--against",
            "ref",
            "--report",
            "o.html",
            "--frameworks",
            "keras",
        )
    ]
    assert outputs == ({"verdict": verdict, "report": "o.html"} if verdict else {})
    assert keys("outputs") == {"verdict", "report"}


@needs_bash
def test_several_frameworks_and_a_dtype(act):
    inputs = {
        "CHECKPOINT": "a",
        "REFERENCE": "b",
        "FRAMEWORKS": "torch  tf1",
        "DTYPE": "float64",
        "REPORT": "c",
    }
    _, arguments, _ = act("Compare", 0, **inputs)
    assert arguments[-5:] == ["--frameworks", "torch", "tf1", "--dtype", "float64"]


@needs_bash
@pytest.mark.parametrize(
    ("frameworks", "extras"), [("keras", "parity,keras"), ("torch  tf1 ", "parity,torch,tf1")]
)
def test_only_the_frameworks_that_it_was_asked_for(act, frameworks, extras):
    code, arguments, outputs = act("Choose the packages", ACTION=str(ACTION.parent), FRAMEWORKS=frameworks)
    assert (code, arguments) == (0, ["-m", "pip", "cache", "dir"])
    assert outputs["what"] == f"{ROOT}[{extras}]"
    assert outputs["cache"] == "/cache"
    assert re.fullmatch(rf"{extras}-\d+-\d+", outputs["key"])
    assert 'run: python -m pip install "$WHAT"' in TEXT
    assert "key: samenet-${{ runner.os }}-${{ runner.arch }}-${{ steps.packages.outputs.key }}" in TEXT


def test_the_documented_example_uses_its_inputs_and_outputs():
    page = (ROOT / "docs/harness.md").read_text(encoding="utf-8")
    (shown,) = (block.text for block in blocks_of(page) if block.language == "yaml")
    of_action, of_upload = shown.split("- uses: ")[1:]
    assert of_action.startswith("OWNER/samenet/.github/actions/parity@")
    assert set(re.findall(r"^    (\w+):", of_action, re.M)) <= keys("inputs")
    assert set(re.findall(r"steps\.parity\.outputs\.(\w+)", of_upload)) <= keys("outputs")
    assert "id: parity" in of_action
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    assert of_upload.split("\n")[0] in workflow  # the same pinned version


def test_every_output_is_of_a_step_with_that_id():
    assert set(re.findall(r"steps\.(\w+)\.outputs", TEXT)) == set(re.findall(r"^ +id: (\w+)", TEXT, re.M))
