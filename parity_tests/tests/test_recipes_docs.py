"""docs/training.md: its commands print what it shows, and its recipe is one."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from parity_tests.tests.doc_blocks import blocks_of
from recipes.__main__ import main
from recipes.recipe import Recipe, read_recipe

ROOT = Path(__file__).parents[2]
BLOCKS = blocks_of((ROOT / "docs" / "training.md").read_text(encoding="utf-8"))


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


def without_figures(line: str) -> str:
    """A line without losses and accuracies, which differ between processors."""
    return re.sub(r"\d+\.\d+(e-\d+)?|\d+ of", "#", line.rstrip())


def test_the_recipe_is_read(tmp_path):
    (block,) = (block for block in BLOCKS if block.language == "toml")
    path = tmp_path / "recipe.toml"
    path.write_text(block.text)
    assert read_recipe(path, {}) == Recipe(epochs=20, schedule="one-cycle", learning_rate=0.2)
