"""docs/training.md: its commands print what it shows, and its recipe is one."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from parity_tests.tests.doc_blocks import blocks_of, run
from recipes.__main__ import main
from recipes.recipe import Recipe, read_recipe

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "training.md"
BLOCKS = blocks_of(PAGE.read_text(encoding="utf-8"))
CARRIED = re.compile(r"^## Stop in one framework.*?(?=^## )", re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of TensorBoard's code
def test_the_commands_print_what_the_page_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "parity_tests" / "judge" / "images" / "cat.jpg", tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for block in BLOCKS:
        if block.language == "console":
            for command in re.split(r"^\$ python -m recipes ", block.text, flags=re.M)[1:]:
                arguments, *shown = command.splitlines()
                assert main(arguments.split()) == 0
                printed = capsys.readouterr().out.splitlines()
                if shown:
                    assert list(map(without_figures, printed)) == list(map(without_figures, shown))


def test_the_training_goes_on_as_the_page_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    section = CARRIED.search(text)[0]
    present = run(section, commands={"weights-convert"})
    if os.environ.get("DOCS_REFRESH"):
        PAGE.write_text(text.replace(section, present), encoding="utf-8")
    assert present.splitlines() == section.splitlines()


def without_figures(line: str) -> str:
    """A line without losses and accuracies, which differ between processors."""
    return re.sub(r"\d+\.\d+(e-\d+)?|\d+ of", "#", line.rstrip())


def test_the_recipe_is_read(tmp_path):
    (block,) = (block for block in BLOCKS if block.language == "toml")
    path = tmp_path / "recipe.toml"
    path.write_text(block.text)
    assert read_recipe(path, {}) == Recipe(epochs=20, schedule="one-cycle", learning_rate=0.2)
