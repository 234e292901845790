"""The documentation is correct: its code runs, prints the output shown, and its tables match."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from parity_tests.tests.doc_blocks import blocks_of, broken_links
from parity_tests.tests.doc_blocks import run as run_blocks
from weights_convert.__main__ import main as weights_convert_main
from weights_convert.spec import (
    MODELS,
    InceptionSpec,
    InceptionV3Spec,
    MobileNetSpec,
    ResNetSpec,
    ShuffleNetSpec,
    VGGSpec,
    count_parameters,
    model_spec,
)
from weights_convert.spec.checks import CHOICES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {page.relative_to(ROOT).as_posix(): page for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))}


def blocks(language: str) -> list[str]:
    return [block.text for block in blocks_of(README) if block.language == language]


# --------------------------------------------------------------------------------------------------
# Every block of every page


def save_ours(folder: Path) -> None:
    from parity_tests.judge.synthetic import weights
    from weights_convert import save

    save(weights(model_spec("se_resnet20")), folder / "model.pth")


def save_theirs(folder: Path) -> None:
    """Two files of pytorchcv; in the large one each tensor is a single number that is expanded."""
    import torch
    from pytorchcv.model_provider import get_model

    torch.save(get_model("seresnet20_cifar10").state_dict(), folder / "seresnet20.pth")
    with torch.device("meta"):
        large = get_model("seresnet50").state_dict()
    zeros = {name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for name, tensor in large.items()}
    torch.save(zeros, folder / "seresnet50.pth")


RUN = {  # page whose blocks run in order -> the reader's files
    "docs/index.md": save_ours,
    "docs/from-pytorch.md": None,
    "docs/from-keras.md": None,
    "docs/from-tf1.md": None,
    "docs/families.md": save_theirs,
    "docs/walk.md": None,
    "docs/fine-tuning.md": None,
    "docs/features.md": None,
    "docs/blocks.md": None,
    "docs/export.md": None,
    "docs/serving.md": None,
    "docs/keras.md": None,
    "docs/tf1.md": None,
}
ELSEWHERE = {  # page -> beginning of other blocks -> the test that checks them
    "README.md": {
        "$ python -m pip install": "test_the_readme_shows_the_main_job",
        "import torch, torch_impl": "test_the_readme_example_prints_what_it_says",
        "from torch_impl import se_resnext50_32x4d": "test_the_readme_imports_exist",
        "$ weights-convert": "test_the_readme_commands_print_what_they_say",
    },
    "CONTRIBUTING.md": {"python -m pip install -r requirements.txt": ".ci/run"},
    "docs/harness.md": {
        "from parity_tests.compare import": "test_the_imports_of_the_harness_page_exist",
        "$ python docs/examples/compare_a_pair.py": "test_closer.py",
        "$ python docs/examples/compare_an_export.py": "test_artefacts_onnx.py",
        "$ python -m parity_tests weights.pth --artifact": "test_artefacts_refused.py",
        "$ python docs/examples/transfer_weights.py": "test_transfer.py",
        "- uses: ": "test_action.py",
    },
    "docs/report.md": {"": "test_report_docs.py"},
    "docs/training.md": {"": "test_recipes_docs.py"},
    "docs/extending.md": {"    names=TORCHVISION": "test_the_names_of_the_example_are_those_of_the_family"},
}


@pytest.mark.parametrize("name", RUN)
def test_a_page_shows_the_output_of_its_blocks(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if RUN[name]:
        RUN[name](tmp_path)
    text = PAGES[name].read_text(encoding="utf-8")
    present = run_blocks(text, commands={"weights-convert"})
    if os.environ.get("DOCS_REFRESH"):
        PAGES[name].write_text(present, encoding="utf-8")
    assert present.splitlines() == text.splitlines()


@pytest.mark.parametrize("name", PAGES)
def test_no_block_is_unchecked(name):
    for block in blocks_of(PAGES[name].read_text(encoding="utf-8")):
        if name not in RUN:
            assert any(block.text.startswith(start) for start in ELSEWHERE.get(name, ())), block.text
        elif block.language != "python":
            assert block.language == "console", block.text
            assert block.text.startswith("$ ")


def test_the_imports_of_the_harness_page_exist():
    text = PAGES["docs/harness.md"].read_text(encoding="utf-8")
    code = next(block.text for block in blocks_of(text) if block.language == "python")
    exec(next(line for line in code.splitlines() if line.startswith("from ")), {})
    compile(code, "harness.md", "exec")


def test_the_names_of_the_example_are_those_of_the_family():
    (block,) = blocks_of(PAGES["docs/extending.md"].read_text(encoding="utf-8"))
    assert block.text in (ROOT / "weights_convert/families/cbam.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name):
    assert broken_links(PAGES[name]) == []


@pytest.mark.parametrize("name", PAGES)
def test_every_source_file_named_exists(name):
    """`weights_convert/plan.py` in the text: a file or a folder of the repository, or a module."""
    folders = "|".join(re.escape(folder.name) for folder in ROOT.iterdir() if folder.is_dir())
    for path in re.findall(rf"`((?:{folders})/[\w./]*)`", PAGES[name].read_text(encoding="utf-8")):
        assert (ROOT / path).exists() or (ROOT / f"{path}.py").exists(), path


def test_the_site_has_every_page():
    settings = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    nav = set(re.findall(r'= "([\w-]+\.md)"', settings))
    assert nav == {page.name for page in (ROOT / "docs").glob("*.md")}


def test_the_api_reference_has_every_name():
    import weights_convert

    listed = re.findall(
        r"^::: weights_convert\.(?:\w+\.)?(\w+)$", PAGES["docs/api.md"].read_text(encoding="utf-8"), re.M
    )
    assert {*listed, "MODELS"} == set(weights_convert.__all__)


# --------------------------------------------------------------------------------------------------
# The README


def test_the_readme_lists_every_model_with_its_parameters():
    cells = dict(re.findall(r"`(\w+)` ([\d,]+)(?= \|)", README))
    assert cells == {name: f"{count_parameters(model_spec(name)):,}" for name in MODELS}


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
    save_ours(tmp_path)
    save_theirs(tmp_path)
    monkeypatch.chdir(tmp_path)
    shell = "".join(block for block in blocks("console") if "$ weights-convert" in block)
    for part in re.split(r"^\$ weights-convert ", shell, flags=re.MULTILINE)[1:]:
        command, *shown = part.splitlines()
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            assert weights_convert_main(shlex.split(command, comments=True)) == 0
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
        if name in ("fuzz", "benchmarks", "docs"):  # in no test
            continue
        wanted |= {requirement for requirement in extra if not requirement.startswith("samenet")}
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert {line for line in lines if line and not line.startswith("#")} == wanted | {"-e ."}


def test_the_tables_of_keywords_are_the_specs():
    text = (ROOT / "docs" / "keywords.md").read_text(encoding="utf-8")
    row = re.compile(r"^\| (\w+) \| (.+?) \| .*\|$", re.MULTILINE)
    kinds = {
        "": ResNetSpec,
        "## VGG": VGGSpec,
        "## Inception": InceptionSpec,
        "## Inception-v3": InceptionV3Spec,
        "## MobileNet": MobileNetSpec,
        "## ShuffleNet": ShuffleNetSpec,
    }
    tables = [dict(row.findall(part)) for part in re.split("|".join(filter(None, kinds)), text)]
    for own, kind in zip(tables, kinds.values(), strict=True):
        rows = tables[0] | own
        fields = {field.name: field for field in dataclasses.fields(kind)}
        assert set(fields) <= set(rows)
        for name in set(rows) & set(fields):
            default = "None" if name == "stem_pool" else repr(fields[name].default).replace("'", '"')
            assert rows[name].split(", ")[0] == default or rows[name] == default, name
            if name in CHOICES:
                assert {value.strip('"') for value in rows[name].split(", ")} == set(map(str, CHOICES[name]))
    known = {field.name for kind in kinds.values() for field in dataclasses.fields(kind)}
    assert {name for table in tables for name in table} - {"keyword"} == known


# --------------------------------------------------------------------------------------------------
# The counts of places in CONTRIBUTING


def product_files(*words: str) -> set[str]:
    """The modules that users install and that hold one of these words."""
    rooms = ("torch_impl", "keras_impl", "tf1_compat", "weights_convert", "parity_tests")
    paths = [path for room in rooms for path in (ROOT / room).rglob("*.py") if "tests" not in path.parts]
    pattern = re.compile(rf"\b({'|'.join(words)})\b")
    found = [path for path in paths if pattern.search(path.read_text(encoding="utf-8"))]
    return {path.relative_to(ROOT).as_posix() for path in found}


def test_a_model_is_a_row_of_the_spec_and_one_text_in_three_folders():
    """By models that no example uses; the spec derives some names from others."""
    found = product_files("resnet56", "cbam_resnet34", "eca_resnet56")
    (spec,) = [path for path in found if path.startswith("weights_convert/spec")]
    assert found == {spec, *(f"{room}/models.py" for room in ("torch_impl", "keras_impl", "tf1_compat"))}
    assert f"The {len(MODELS)} models" in README
    assert f"{len(MODELS)} named models" in PAGES["docs/index.md"].read_text(encoding="utf-8")


@pytest.mark.parametrize("family", ["luuuyi", "moskomule", "tutorial_cbam"])
def test_a_family_of_checkpoints_is_a_file_of_its_folder(family):
    assert {Path(path).parent.as_posix() for path in product_files(family)} == {"weights_convert/families"}
