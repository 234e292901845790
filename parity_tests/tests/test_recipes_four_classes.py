"""Four classes of one's own, from scratch and from kept weights, as docs/training.md shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from parity_tests.tests.test_recipes_predict import SE_RESNET20, sheet
from recipes.__main__ import main
from recipes.cifar10 import CLASSES
from recipes.curves import read

FOUR = ("cat", "dog", "ship", "truck")


def write_four(folder: Path) -> None:
    pixels, labels = sheet()
    for number, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        if CLASSES[label] in FOUR:
            (folder / CLASSES[label]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / CLASSES[label] / f"{number}.png")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of TensorBoard's code
def test_four_classes_from_scratch_and_from_kept_weights(tmp_path, capsys):
    write_four(tmp_path / "four")
    common = ["train", "--data", str(tmp_path / "four"), "--epochs", "4", "--batch-size", "20", "--seed", "1"]
    runs = {name: tmp_path / "runs" / name for name in ("scratch", "tuned")}
    assert main([*common, "--size", "32", "--out", str(runs["scratch"])]) == 0
    tuned = [*common, "--size", "32", "--learning-rate", "0.01", "--weights", str(SE_RESNET20)]
    assert main([*tuned, "--out", str(runs["tuned"])]) == 0
    assert "4 classes" in capsys.readouterr().out
    scratch, kept = (read(folder)[-1]["test_accuracy"] for folder in runs.values())
    assert kept > max(0.6, scratch)  # four epochs of 80 pictures from scratch are chance
    out = tmp_path / "both.png"
    assert main(["curves", *map(str, runs.values()), "--out", str(out)]) == 0
    with Image.open(out) as picture:
        assert picture.format == "PNG"
