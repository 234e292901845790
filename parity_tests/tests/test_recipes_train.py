"""Training with `recipes`: the same in three frameworks, resumed after a kill, refused in one line."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from recipes.__main__ import main
from recipes.data import open_data
from recipes.monitor import Monitor, Progress, TrainingError
from recipes.pictures import Data
from recipes.recipe import Recipe
from recipes.run import train
from weights_convert import load
from weights_convert.errors import DestinationError, SourceError, SpecError, WriteError

# of Lightning's and TensorBoard's own code, with every new version of Python and PyTorch
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

FRAMEWORKS = ("torch", "keras", "tf1")
# 4 steps an epoch; rates and momentum are exact in float32, which Keras and TF1 cast them to
RECIPE = Recipe(
    model="se_resnet20", epochs=3, batch_size=16, learning_rate=2**-4, momentum=0.875, weight_decay=2**-13,
    drop_every=1, drop_factor=0.5, dtype="float64", label_smoothing=0.125,
)  # fmt: skip


class Killed(BaseException):
    """Stops a training at once, as a kill does: nothing is saved after it."""


@pytest.fixture(scope="module")
def few() -> Data:
    data = open_data("digits")
    return Data("digits", data.train.take(np.arange(70)), data.test.take(np.arange(20)))


def weights_in(folder: Path, name: str = "last") -> dict[str, bytes]:
    with load(folder / f"{name}.safetensors") as checkpoint:
        return {tensor: checkpoint[tensor].tobytes() for tensor in checkpoint}


@pytest.fixture(scope="module")
def whole(few, tmp_path_factory) -> dict[str, Path]:
    """A whole training in each framework, with the losses of its steps."""
    folders = {}
    for framework in FRAMEWORKS:
        folder = folders[framework] = tmp_path_factory.mktemp(framework) / "run"
        losses: list[float] = []
        train(framework, RECIPE, few, folder, on_step=lambda p, losses=losses: losses.append(p.last_loss))
        (folder / "losses.json").write_text(json.dumps(losses))
    return folders


def test_three_frameworks_have_the_same_losses_and_weights(whole):
    losses = {
        name: np.array(json.loads((folder / "losses.json").read_bytes())) for name, folder in whole.items()
    }
    assert losses["torch"].shape == (12,)
    assert losses["torch"][-1] < 0.95 * losses["torch"][0]
    for framework in ("keras", "tf1"):
        assert np.abs(losses[framework] - losses["torch"]).max() < 1e-12
        with load(whole["torch"] / "last.safetensors") as a, load(whole[framework] / "last.safetensors") as b:
            for name in a:
                if not name.endswith("num_batches_tracked"):
                    assert np.abs(a[name] - b[name]).max() < 1e-10, name


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    "kill_at", [5, *(pytest.param(step, marks=pytest.mark.exhaustive) for step in (2, 8))]
)
def test_a_killed_training_gives_the_same_weights_when_resumed(framework, kill_at, few, whole, tmp_path):
    """There are states after the steps 1, 2, 3 ..., and none of the step that was killed."""

    def kill(progress: Progress) -> None:
        if progress.step == kill_at:
            raise Killed

    with pytest.raises(Killed):
        train(framework, RECIPE, few, tmp_path, save_every=1, on_step=kill)
    train(framework, RECIPE, few, tmp_path, save_every=1, resume=True)
    assert weights_in(tmp_path) == weights_in(whole[framework])
    assert (tmp_path / "history.csv").read_bytes() == (whole[framework] / "history.csv").read_bytes()


def states(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "state").glob("*"))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_figures_are_those_of_every_epoch(framework, whole):
    rows = list(csv.DictReader((whole[framework] / "history.csv").read_text().splitlines()))
    assert [float(row["learning_rate"]) for row in rows] == [2**-4, 2**-5, 2**-6]
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert all(float(row["test_error"]) == 1 - float(row["test_accuracy"]) for row in rows)
    names = ["best.safetensors", "history.csv", "last.safetensors", "run.json", "state", "tensorboard"]
    assert sorted(p.name for p in whole[framework].iterdir() if p.name != "losses.json") == names
    assert states(whole[framework]) == ["12"]
    assert any((whole[framework] / "tensorboard").rglob("events*"))
    facts = json.loads((whole[framework] / "run.json").read_bytes())
    assert facts["classes"] == list("0123456789")
    assert facts["input"]["size"] == [8, 8]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_loss_that_is_no_number_ends_the_training_and_keeps_the_state(framework, few, tmp_path):
    recipe = Recipe(model="resnet20", epochs=2, batch_size=16, learning_rate=1e30)
    with pytest.raises(
        TrainingError, match=r"step [234]: the loss is (nan|inf).*try a lower --learning-rate"
    ):
        train(framework, recipe, few, tmp_path, save_every=1)
    assert len(states(tmp_path)) == 1


def test_a_full_disk_keeps_the_state_before(tmp_path):
    monitor = Monitor(tmp_path, 10, rate=lambda _: 0.1)

    def full(folder: Path) -> None:
        (folder / "part").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    monitor.progress.step = 1
    monitor.save_state(lambda folder: (folder / "weights").write_bytes(b"whole"))
    monitor.progress.step = 2
    with pytest.raises(WriteError, match=r"state/2: could not be written .*No space.*after step 1 is kept"):
        monitor.save_state(full)
    assert states(tmp_path) == ["1"]
    assert Monitor(tmp_path, 10, rate=lambda _: 0.1).resume() == tmp_path / "state" / "1"


def test_a_state_that_a_kill_left_half_written_is_not_resumed(tmp_path):
    monitor = Monitor(tmp_path, 10, rate=lambda _: 0.1)
    monitor.progress.step = 1
    monitor.save_state(lambda folder: (folder / "weights").write_bytes(b"whole"))
    shutil.copytree(tmp_path / "state" / "1", tmp_path / "state" / "2.partial")
    assert monitor.resume() == tmp_path / "state" / "1"


def test_resuming_another_training_is_refused(few, whole, tmp_path):
    folder = shutil.copytree(whole["torch"], tmp_path / "run")
    changes = {"model": "resnet20", "batch_size": 8, "seed": 1}
    for name, value in changes.items():
        recipe = Recipe(**{**vars(RECIPE), name: value})
        with pytest.raises(
            SpecError, match=rf"was trained with {name} .*, not {value!r}; resume with the same"
        ):
            train("torch", recipe, few, folder, resume=True)
    with pytest.raises(SpecError, match="was trained with framework 'torch', not 'keras'"):
        train("keras", RECIPE, few, folder, resume=True)
    with pytest.raises(DestinationError, match="holds a training; give --resume, or another --out"):
        train("torch", RECIPE, few, folder)
    with pytest.raises(SourceError, match="holds no training to resume"):
        train("torch", RECIPE, few, tmp_path / "none", resume=True)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_command_trains_on_a_folder_of_pictures(framework, tmp_path, capsys, monkeypatch):
    from parity_tests.tests.test_recipes_data import write_pictures

    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "animals", each=10, size=(12, 12))
    Path("recipe.toml").write_text('model = "eca_resnet20"\nepochs = 5\nbatch_size = 8\n')
    options = ["--framework", framework, "--data", "animals", "--recipe", "recipe.toml", "--epochs", "1"]
    assert main(["train", *options]) == 0
    out = capsys.readouterr().out
    assert (
        f"eca_resnet20 in {framework}: 272,046 parameters; animals: 24 pictures to train and 6 to test" in out
    )
    folder = f"runs/{framework}-eca_resnet20-animals"
    assert f"{folder}: last.safetensors, best.safetensors, history.csv" in out
    with load(f"{folder}/last.safetensors") as checkpoint:
        assert (checkpoint.model, checkpoint.spec.num_classes) == ("eca_resnet20", 3)
    assert main(["train", *options]) == 2
    assert main(["train", "--data", "nowhere"]) == 2
    assert main(["train", "--model", "resnet21"]) == 2
    errors = capsys.readouterr().err.splitlines()
    begins = [f"{folder}: holds a training", "nowhere: is no folder", "there is no model 'resnet21'"]
    assert [line.startswith(begin) for line, begin in zip(errors, begins, strict=True)] == [True] * 3


def test_a_training_begins_with_the_weights_of_a_file(few, whole, tmp_path):
    recipe = Recipe(model="se_resnet20", epochs=1, batch_size=64, learning_rate=0.0, dtype="float64")
    train("torch", recipe, few, tmp_path, weights=whole["torch"] / "last.safetensors")
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    before, after = weights_in(whole["torch"]), weights_in(tmp_path)
    assert [name for name in after if after[name] != before[name] and not name.endswith(statistics)] == []
