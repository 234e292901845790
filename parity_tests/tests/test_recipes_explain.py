"""`explain` and `curves` of `recipes`: the gates of attention blocks, and the pictures drawn of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.__main__ import main
from recipes.curves import draw as draw_curves
from recipes.curves import names_of, read
from recipes.explain import coloured, draw, explain
from recipes.initial import initial_weights
from recipes.predict import input_of
from weights_convert import Checkpoint, load, model_spec, save
from weights_convert.errors import DestinationError, MismatchError, SourceError

CAT = Path(__file__).parents[1] / "judge" / "images" / "cat.jpg"
pytestmark = pytest.mark.filterwarnings("ignore:.*nothing says how its pictures:UserWarning")


def network(folder: Path, name: str) -> Path:
    path = folder / f"{name}.safetensors"
    save(initial_weights(model_spec(name), seed=1), path)
    return path


@pytest.mark.parametrize("name", ["se_resnet20", "cbam_resnet20", "eca_resnet20"])
def test_three_frameworks_draw_the_same_picture(tmp_path, name):
    path = network(tmp_path, name)
    given = input_of(path)
    found = {framework: explain(CAT, path, given, framework) for framework in ("torch", "keras", "tf1")}
    wanted = found.pop("torch")
    attention = name.partition("_")[0]
    parts = ("cbam.channel", "cbam.spatial") if attention == "cbam" else (attention,)
    assert list(wanted.gates) == [
        f"layer{stage}.{block}.{part}" for stage in (1, 2, 3) for block in range(3) for part in parts
    ]
    assert set(wanted.kernels) == (set(wanted.gates) if attention == "eca" else set())
    for other in found.values():
        assert list(other.gates) == list(wanted.gates)
        for block, gate in wanted.gates.items():
            assert gate.dtype == np.float64
            assert np.abs(other.gates[block] - gate).max() < 1e-12
        assert draw(other, given.classes).tobytes() == draw(wanted, given.classes).tobytes()


def test_a_gate_is_what_the_block_multiplies_with(tmp_path):
    import torch

    from recipes.classifier import classifier
    from weights_convert import load_model

    path, gates = network(tmp_path, "se_resnet20"), {}
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3))
    classifier(path, "torch", "float64", gates)(images)
    model = load_model(path, "torch", dtype="float64", assume=True)
    seen = {}
    model.layer2[1].se.register_forward_hook(lambda _module, x, y: seen.update(ratio=y / x[0]))
    with torch.inference_mode():
        model(torch.from_numpy(images).permute(0, 3, 1, 2))
    ratio = seen["ratio"].numpy()
    assert np.nanmax(np.abs(ratio - gates["layer2.1.se"][:, :, None, None])) < 1e-12


def test_the_command_prints_ranges_and_draws_a_picture(tmp_path, capsys):
    path, picture = network(tmp_path, "cbam_resnet20"), tmp_path / "gates.png"
    assert main(["explain", str(CAT), "--weights", str(path), "--out", str(picture)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].split()[:3] == ["layer1.0.cbam.channel", "16", "channels"]
    assert shown[2].split()[:5] == ["layer1.0.cbam.spatial", "32", "x", "32", "places"]
    assert len(shown) == 1 + 18
    with Image.open(picture) as image:
        assert image.format == "PNG"
        seen = np.asarray(image)
    found = explain(CAT, path, input_of(path))
    strip = coloured(found.gates["layer1.0.cbam.channel"])  # 16 channels, 32 pixels each
    row = next(y for y in range(240, len(seen)) if np.array_equal(seen[y, 206:702:32], strip))
    assert np.array_equal(seen[row + 5, 206:702:32], strip)


def test_colours_are_those_of_the_scale():
    assert coloured(np.array([0, 0.25, 0.5, 1, 2])).tolist() == [
        [33, 60, 150], [140, 154, 198], [247, 247, 247], [178, 24, 43], [178, 24, 43],
    ]  # fmt: skip


def test_what_cannot_be_explained_is_refused_in_one_line(tmp_path, capsys):
    plain = network(tmp_path, "resnet20")
    with pytest.raises(MismatchError, match="has no SE, CBAM or ECA block"):
        explain(CAT, plain, input_of(plain))
    path = str(network(tmp_path, "se_resnet20"))
    copy = tmp_path / "cat.png"
    Image.new("RGB", (40, 40)).save(copy)
    before = copy.read_bytes()
    for out, message in (
        (tmp_path / "x.jpg", "ends in .png"),
        (tmp_path / "none" / "x.png", "its folder does not exist"),
        (copy, "is the picture to explain"),
    ):
        assert main(["explain", str(copy), "--weights", path, "--out", str(out)]) == 2
        assert message in capsys.readouterr().err
    assert copy.read_bytes() == before


def test_a_network_of_numbers_that_are_none_is_refused(tmp_path):
    path = network(tmp_path, "se_resnet20")
    with load(path) as checkpoint:
        arrays = {name: np.array(checkpoint[name]) for name in checkpoint}
        keywords = checkpoint.spec.model_kwargs()
    arrays["layer1.0.se.fc1.weight"][0] = np.nan
    with pytest.warns(UserWarning, match="16 values that are NaN"):
        save(Checkpoint.from_arrays(arrays, keywords), tmp_path / "nan.safetensors")
    with pytest.raises(MismatchError, match=r"values that are no numbers, in layer1\.0\.se"):
        explain(CAT, tmp_path / "nan.safetensors", input_of(tmp_path / "nan.safetensors"))


def test_trainings_of_the_same_name_are_told_apart(tmp_path):
    folders = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "b" / "_run"]
    assert [*names_of(folders)] == ["a/run", "b/run", "b/_run"]
    assert [*names_of(folders[1:])] == ["run", "_run"]


def rows(start: float) -> list[dict[str, float]]:
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "test_error", "learning_rate")
    return [{"epoch": float(n)} | dict.fromkeys(names, start / n) for n in (1, 2, 3)]


def test_curves_are_drawn_of_one_or_several_trainings(tmp_path):
    for name, runs in (
        ("one", {"a": rows(0.5)}),
        ("same", {"a": rows(0.5)}),
        ("other", {"a": rows(0.7)}),
        ("two", {"a": rows(0.5), "b": rows(0.7)}),
    ):
        draw_curves(runs, tmp_path / f"{name}.png")
    drawn = {path.stem: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert drawn["one"] == drawn["same"]
    assert len(set(drawn.values())) == 3
    for name, message in (
        ("x.gif", r"ends in \.png, \.svg or \.pdf"),
        ("none/x.png", "its folder does not exist"),
    ):
        with pytest.raises(DestinationError, match=message):
            draw_curves({"a": rows(0.5)}, tmp_path / name)


def test_a_folder_without_figures_is_refused(tmp_path):
    with pytest.raises(SourceError, match="cannot be read"):
        read(tmp_path)
    history = tmp_path / "history.csv"
    header = "epoch,learning_rate,train_loss,train_accuracy,test_loss,test_accuracy,test_error\n"
    for text, message in (
        ("", "no finished epoch"),
        (header, "no finished epoch"),
        ("epoch,a\n1,2\n", "is no history of a training"),
        (header.replace(",train_accuracy", "") + "1,1,1,1,1,1\n", "is no history of a training"),
        (header + "1,x,1,1,1,1,1\n", "is no history of a training"),
        (header + "1,2\n", "is no history of a training"),
    ):
        history.write_text(text)
        with pytest.raises(SourceError, match=message):
            read(tmp_path)
