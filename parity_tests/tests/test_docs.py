"""The documentation is correct: its code runs, prints the output shown, and its tables match."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from weights_convert.__main__ import main as weights_convert_main
from weights_convert.checks import CHOICES
from weights_convert.spec import MODELS, ResNetSpec, count_parameters, model_spec

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_readme_lists_every_model_with_its_parameters():
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d,]+) \| yes \| yes \| yes \|$", README, re.MULTILINE))
    assert rows == {name: f"{count_parameters(model_spec(name)):,}" for name in MODELS}


OPTIMIZE = ("optimize_for_inference", "torch.Size([8, 10])")
EXAMPLES = [  # a word in the example, its output, the environment
    ("cbam.pth", "True", {}),
    pytest.param(*OPTIMIZE, {"TORCH_COMPILE_DISABLE": "1"}, id="optimize, not compiled"),
    pytest.param(*OPTIMIZE, {}, id="optimize", marks=pytest.mark.exhaustive),  # a minute
]


@pytest.mark.parametrize(("word", "printed", "environment"), EXAMPLES)
def test_the_readme_example_prints_what_it_says(word, printed, environment, tmp_path):
    """In a separate process, in an empty folder, as a reader would run it."""
    code = next(block for block in blocks("python") if word in block)
    if "optimize" in word and not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler")
    assert len(code.splitlines()) <= 10
    assert f"# {printed}\n" in code
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, printed), done.stderr[-2000:]


def test_the_readme_imports_exist():
    code = next(block for block in blocks("python") if "from tf1_compat" in block)
    exec(compile(code, "README.md", "exec"), {})


def test_the_readme_commands_print_what_they_say(tmp_path, monkeypatch):
    """Every `$ weights-convert` line runs, and its output contains the lines shown below it."""
    from parity_tests.judge.synthetic import weights
    from weights_convert import save

    save(weights(model_spec("se_resnet20")), tmp_path / "model.pth")
    monkeypatch.chdir(tmp_path)
    shell = next(block for block in blocks("console") if "$ weights-convert" in block)
    for part in re.split(r"^\$ weights-convert ", shell, flags=re.MULTILINE)[1:]:
        command, *shown = part.splitlines()
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            assert weights_convert_main(command.split()) == 0
        assert set(shown) <= set(printed.getvalue().splitlines()), printed.getvalue()


def without_numbers(text: str) -> list[str]:
    """Lines without measured figures and times, with single blanks."""
    text = re.sub(r"\d(\.\d)?e-\d\d", "#", text)
    text = re.sub(r"\(weakest: \S+\)", "(weakest: #)", text)
    text = re.sub(r"\(\d+ s\)", "(# s)", text)
    text = re.sub(r"\d{1,3}(,\d{3})+", "#", text)
    return [re.sub(r" +", " ", line).strip() for line in text.strip().splitlines()]


def test_the_readme_shows_the_main_job():
    """The table under the first command is the main job's output, except for figures of the machine."""
    block = next(block for block in blocks("console") if "python -m parity_tests" in block)
    shown = without_numbers(block.split("\n", 1)[1])
    unset = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-m", "parity_tests"],
        cwd=ROOT,
        env=unset,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    printed = without_numbers(done.stdout)
    assert shown == printed


def test_both_set_up_commands_stand_in_the_readme_and_ci_uses_the_second():
    install = "python -m pip install -r requirements.txt"
    assert f"    {install} && python -m parity_tests\n" in README
    assert f"    {install} && python -m pytest\n" in README
    assert "README.md" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_requirements_are_those_of_the_package():
    """requirements.txt lists all dependencies with pyproject's lower bounds, and the project itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = set(project["dependencies"])
    for name, extra in project["optional-dependencies"].items():
        if name in ("fuzz", "benchmarks"):  # run by hand, not in tests
            continue
        wanted |= {requirement for requirement in extra if not requirement.startswith("samenet")}
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert {line for line in lines if line and not line.startswith("#")} == wanted | {"-e ."}


def test_the_table_of_keywords_is_the_spec():
    text = (ROOT / "docs" / "keywords.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\w+) \| (.+?) \| .*\|$", text, re.MULTILINE))
    rows.pop("keyword")
    fields = {field.name: field for field in dataclasses.fields(ResNetSpec)}
    assert set(rows) == set(fields)
    for name, values in rows.items():
        default = "None" if name == "stem_pool" else repr(fields[name].default).replace("'", '"')
        assert values.split(", ")[0] == default or values == default, name
        if name in CHOICES:
            assert [value.strip('"') for value in values.split(", ")] == list(map(str, CHOICES[name]))


def test_every_link_of_the_readme_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
