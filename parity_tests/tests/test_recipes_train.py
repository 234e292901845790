"""Training with `recipes`: the same in three frameworks, resumed after a kill, refused in one line."""

from __future__ import annotations

import csv
import json
import resource
import shutil
import signal
from dataclasses import replace
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
from weights_convert.errors import DestinationError, MismatchError, SourceError, SpecError, WriteError

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
    names = [
        "best.safetensors",
        "curves.png",
        "history.csv",
        "last.safetensors",
        "run.json",
        "state",
        "tensorboard",
    ]
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


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_file_that_the_system_refuses_is_one_error_and_keeps_the_state(framework, few, tmp_path):
    """A limit on the size of files stands for a full disk: no write beyond it succeeds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(progress: Progress) -> None:
        if progress.step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))

    try:
        with pytest.raises(WriteError, match=r"state/2: could not be written .*after step 1 is kept"):
            train(framework, RECIPE, few, tmp_path, save_every=1, on_step=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert states(tmp_path) == ["1"]


@pytest.mark.parametrize(
    "framework", ["torch", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("keras", "tf1"))]
)
def test_ctrl_c_ends_a_training_as_it_ends_other_commands(framework, few, tmp_path):
    handler = signal.getsignal(signal.SIGINT)

    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # Lightning exits with 1
        train(framework, RECIPE, few, tmp_path, on_step=interrupt)
    assert signal.getsignal(signal.SIGINT) is handler


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


def test_a_finished_training_goes_on_for_more_epochs(few, whole, tmp_path):
    folder = tmp_path / "run"
    train("torch", Recipe(**{**vars(RECIPE), "epochs": 2}), few, folder)
    train("torch", RECIPE, few, folder, resume=True)
    assert weights_in(folder) == weights_in(whole["torch"])
    assert (folder / "run.json").read_bytes() == (whole["torch"] / "run.json").read_bytes()


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
    assert main(["train", "--model", "vgg16_bn"]) == 2
    assert main(["train", "--model", "bn_inception"]) == 2
    assert main(["train", "--weights", "recipe.toml", "--out", "other"]) == 2
    assert not Path("other").exists()
    errors = capsys.readouterr().err.splitlines()
    begins = [
        f"{folder}: holds a training",
        "nowhere: is no folder",
        "there is no model 'resnet21'",
        "images of 8 x 8: expected at least 32 x 32",
        "images with 8 rows or columns: ",
        "recipe.toml: ",
    ]
    assert [line[: len(begin)] for line, begin in zip(errors, begins, strict=True)] == begins


def test_another_network_is_refused_as_first_weights(few, whole, tmp_path):
    recipe = Recipe(model="eca_resnet20", epochs=1, batch_size=64)
    with pytest.raises(
        MismatchError, match=r"last\.safetensors: has se_resnet20.*not the network of the recipe"
    ):
        train("torch", recipe, few, tmp_path / "run", weights=whole["torch"] / "last.safetensors")
    assert not (tmp_path / "run").exists()


def test_a_network_for_other_classes_gets_a_new_classifier(whole, tmp_path):
    from parity_tests.tests.test_recipes_data import write_pictures

    write_pictures(tmp_path / "animals", each=10, size=(8, 8))
    data = open_data(str(tmp_path / "animals"))
    grey = Data(
        "animals",
        *(replace(p, images=p.images[..., :1], mean=(0.5,), std=(0.5,)) for p in (data.train, data.test)),
    )
    recipe = Recipe(model="se_resnet20", epochs=1, batch_size=8, learning_rate=0.0, dtype="float64")
    train("torch", recipe, grey, tmp_path / "run", weights=whole["torch"] / "last.safetensors")
    before, after = weights_in(whole["torch"]), weights_in(tmp_path / "run")
    assert after["layer3.2.conv2.weight"] == before["layer3.2.conv2.weight"]
    with load(tmp_path / "run" / "last.safetensors") as checkpoint:
        assert checkpoint["fc.weight"].shape == (3, 64)


def test_a_training_begins_with_the_weights_of_a_file(few, whole, tmp_path):
    recipe = Recipe(model="se_resnet20", epochs=1, batch_size=64, learning_rate=0.0, dtype="float64")
    train("torch", recipe, few, tmp_path, weights=whole["torch"] / "last.safetensors")
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    before, after = weights_in(whole["torch"]), weights_in(tmp_path)
    assert [name for name in after if after[name] != before[name] and not name.endswith(statistics)] == []


def test_a_training_in_float64_leaves_the_default_of_keras():
    import keras

    from recipes.keras_trainer import _computing_in

    keras.utils.clear_session()  # also forgets the default, which is made on first use
    with _computing_in("float64"):
        assert keras.layers.Dense(1, dtype="float64").compute_dtype == "float64"
        keras.losses.MeanSquaredError()
        keras.layers.Dense(1)
    assert keras.layers.Dense(1).compute_dtype == keras.config.floatx() == "float32"
