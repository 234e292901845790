"""`predict` and `evaluate` of `recipes`: the same in three frameworks, from any container."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from parity_tests.compare import compare_models
from parity_tests.tests import exports
from parity_tests.tests.test_recipes_data import write_pictures
from recipes.__main__ import main
from recipes.classifier import classifier
from recipes.data import open_data
from recipes.initial import initial_weights
from recipes.predict import Disagreement, disagreements, input_of, logits_of, predict
from recipes.recipe import Recipe
from recipes.run import describe, network
from weights_convert import convert, load, load_model, model_spec, save
from weights_convert.errors import MismatchError, SourceError
from weights_convert.spec import AttentionSpec, ResNetSpec


@pytest.fixture
def kept(tmp_path) -> Path:
    """A network of three classes with the record of its training."""
    write_pictures(tmp_path / "animals", size=(12, 12))
    recipe, data = Recipe(model="se_resnet20", seed=3), open_data(str(tmp_path / "animals"), seed=3)
    path = tmp_path / "net.safetensors"
    save(initial_weights(network(recipe, data)[0], seed=0), path)
    path.with_suffix(".json").write_text(json.dumps(describe("torch", recipe, data)))
    return path


def test_three_frameworks_predict_the_same_from_three_containers(kept, tmp_path):
    data, given = open_data(str(tmp_path / "animals"), seed=3), input_of(kept)
    assert given.classes == ("cat", "dog", "emu")
    assert (given.size, given.seed) == (12, 3)
    reference = logits_of(data.test, given, classifier(kept, "torch"))
    assert reference.shape == (3, 3)
    for suffix, framework in ((".weights.h5", "keras"), (".ckpt", "tf1"), (".npz", "keras")):
        path = tmp_path / f"net{suffix}"
        convert(kept, path)
        assert np.abs(logits_of(data.test, given, classifier(path, framework)) - reference).max() < 1e-5


def test_a_float64_file_is_read_as_float32(kept, tmp_path):
    path = tmp_path / "wide.safetensors"
    convert(kept, path, dtype="float64")
    path.with_suffix(".json").write_bytes(kept.with_suffix(".json").read_bytes())
    test = open_data(str(tmp_path / "animals"), seed=3).test
    reference = logits_of(test, input_of(kept), classifier(kept, "torch"))
    for framework in ("torch", "keras", "tf1"):
        found = logits_of(test, input_of(path), classifier(path, framework))
        assert np.abs(found - reference).max() < 1e-5


def test_classes_that_nothing_names_are_assumed_to_be_those_of_the_folder(kept, tmp_path):
    kept.with_suffix(".json").unlink()
    with pytest.warns(UserWarning, match="nothing says how its pictures are prepared"):
        given = input_of(kept)
    test = open_data(str(tmp_path / "animals"), size=given.size).test
    with pytest.warns(UserWarning, match="assumed to be those of the pictures, in order"):
        assert logits_of(test, given, classifier(kept, "torch")).shape == (3, 3)


def test_the_commands_show_classes_and_accuracy(kept, tmp_path, capsys):
    picture = str(tmp_path / "animals" / "cat" / "0.png")
    assert main(["predict", picture, "--weights", str(kept), "--top", "2"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == picture
    assert len(shown) == 3
    shares = [float(line.split()[0].rstrip("%")) for line in shown[1:]]
    assert shares == sorted(shares, reverse=True)
    ((_, found),) = predict([Path(picture)], input_of(kept), classifier(kept, "torch"))
    assert found.sum() == pytest.approx(1)
    assert shares[0] == pytest.approx(100 * found.max(), abs=0.01)
    assert main(["evaluate", str(tmp_path / "animals"), "--weights", str(kept)]) == 0
    assert "of 3 test pictures of animals are classified correctly" in capsys.readouterr().out


def test_pictures_are_prepared_as_in_training(kept, tmp_path):
    from recipes.batches import evaluation_batches

    data = open_data(str(tmp_path / "animals"), seed=3)
    (batch,) = evaluation_batches(data.test, Recipe())
    assert np.abs(input_of(kept).prepared(data.test.images) - batch.images).max() < 1e-6


def test_a_file_without_a_record_takes_its_familys_input_or_says_what_is_assumed(tmp_path):
    path = tmp_path / "x.safetensors"
    save(initial_weights(model_spec("se_resnet20"), seed=0), path)
    with pytest.warns(
        UserWarning, match=r"nothing says how its pictures are prepared; assumed: RGB from 0 to 1"
    ):
        given = input_of(path)
    assert (given.size, given.classes[3]) == (32, "class 3")


def test_a_folder_that_grew_since_the_training_is_cautioned(kept, tmp_path, capsys):
    folder = tmp_path / "animals"
    assert main(["evaluate", str(folder), "--weights", str(kept)]) == 0
    assert capsys.readouterr().err == ""
    Image.fromarray(np.zeros((12, 12, 3), np.uint8)).save(folder / "cat" / "new.png")
    assert main(["evaluate", str(folder), "--weights", str(kept)]) == 0
    assert "and had 12 and 3 at the training; some test pictures" in capsys.readouterr().err


def test_wrong_inputs_are_refused_in_one_line(kept, tmp_path):
    with pytest.raises(SourceError, match="cannot be decoded"):
        list(predict([kept], input_of(kept), classifier(kept, "torch")))
    with pytest.raises(MismatchError, match=r"classes are cat, dog, emu .*of the pictures 0, 1"):
        logits_of(open_data("digits").test, input_of(kept), classifier(kept, "torch"))
    record = kept.with_suffix(".json")
    facts = json.loads(record.read_bytes())
    for changed, message in (
        (facts | {"classes": ["a"]}, "has 3 classes, but its record names 1"),
        ({"classes": []}, "its record lacks 'input'"),
        ([], "its record is none of a training"),
        (facts | {"input": facts["input"] | {"mean": "abc"}}, "its record is none of a training"),
        (facts | {"input": facts["input"] | {"mean": [0.5]}}, "takes images of 3 channels, but pictures"),
    ):
        record.write_text(json.dumps(changed))
        with pytest.raises((MismatchError, SourceError), match=message):
            input_of(kept)
    grey = tmp_path / "grey.safetensors"
    save(initial_weights(ResNetSpec(depths=(1, 1), in_channels=4), seed=0), grey)
    with (
        pytest.warns(UserWarning, match="nothing says"),
        pytest.raises(MismatchError, match="takes images of 4 channels"),
    ):
        input_of(grey)
    block = tmp_path / "block.safetensors"
    save(initial_weights(AttentionSpec(attention="se", channels=32), seed=0), block)
    with pytest.raises(MismatchError, match="has no classifier"):
        input_of(block)


def test_a_picture_is_turned_and_its_middle_is_taken(kept, tmp_path):
    pixels = np.zeros((40, 20, 3), np.uint8)
    pixels[10:30] = 255  # the middle square
    path = tmp_path / "tall.png"
    Image.fromarray(pixels).save(path)
    seen = []

    def classify(images: np.ndarray) -> np.ndarray:
        seen.append(images)
        return np.zeros((1, 3), np.float32)

    list(predict([path], input_of(kept)._replace(size=10), classify))
    assert seen[0].shape == (1, 10, 10, 3)
    assert seen[0].min() > 1.5  # all white


KEPT = sorted((Path(__file__).parents[2] / "recipes" / "weights").glob("*.safetensors"))
SE_RESNET20 = next(path for path in KEPT if path.stem == "se_resnet20_cifar10")


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_a_kept_network_is_that_of_its_card(path):
    card = json.loads(path.with_suffix(".json").read_bytes())
    assert hashlib.sha256(path.read_bytes()).hexdigest() == card["sha256"]
    with load(path) as checkpoint:
        assert checkpoint.model == card["recipe"]["model"]
    assert input_of(path).classes == tuple(card["classes"])
    assert f"`{path.name}`" in path.with_name("README.md").read_text()
    assert (
        f"{card['result']['test_accuracy']:.2%}".replace("%", " %") in path.with_name("README.md").read_text()
    )


def test_there_is_a_kept_network():
    assert KEPT


def sheet() -> tuple[np.ndarray, np.ndarray]:
    """The first 256 test pictures of CIFAR-10 and their labels."""
    here = Path(__file__).parent
    facts = json.loads((here / "cifar10_256.json").read_bytes())
    with Image.open(here / "cifar10_256.png") as image:
        pixels = np.asarray(image).reshape(16, 32, 16, 32, 3).transpose(0, 2, 1, 3, 4)
    return pixels.reshape(256, 32, 32, 3), np.array(facts["labels"])


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_a_kept_network_classifies_each_picture_equally_in_three_frameworks(path, tmp_path):
    card, given = json.loads(path.with_suffix(".json").read_bytes()), input_of(path)
    pixels, labels = sheet()
    logits = {}
    for framework, suffix in (("torch", ".safetensors"), ("keras", ".weights.h5"), ("tf1", ".ckpt")):
        own = tmp_path / f"net{suffix}"
        convert(path, own)
        logits[framework] = classifier(own, framework)(given.prepared(pixels))
    assert disagreements(logits) == []
    for found in logits.values():
        assert int((found.argmax(1) == labels).sum()) == card["result"]["correct_of_256"]
        assert np.abs(found - logits["torch"]).max() < 1e-4


def test_pictures_that_are_classified_differently_are_listed_with_their_margin():
    torch, keras = np.array([[0, 1, 5], [3, 2, 0], [1, 2, 3]]), np.array([[0, 1, 6], [2, 2.5, 0], [1, 2, 3]])
    assert disagreements({"torch": torch, "keras": keras, "tf1": torch}) == [
        Disagreement(1, {"torch": 0, "keras": 1, "tf1": 0}, 1.0)
    ]
    assert disagreements({"torch": torch, "keras": torch}) == []


def test_evaluate_compares_frameworks_picture_by_picture(kept, tmp_path, capsys):
    arguments = [
        "evaluate",
        str(tmp_path / "animals"),
        "--weights",
        str(kept),
        "--framework",
        "torch",
        "keras",
    ]
    assert main(arguments) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "in torch: " in shown[0]
    assert "in keras: " in shown[1]
    assert shown[2].startswith("0 of 3 pictures are classified differently; logits differ by at most ")


@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
def test_a_kept_network_in_low_precision_still_classifies(kind):
    import torch

    path = SE_RESNET20
    pixels, _ = sheet()
    images = input_of(path).prepared(pixels[:96]).transpose(0, 3, 1, 2)
    model = load_model(path, "torch", assume=True)
    if kind == "int8":
        artefact = exports.tflite(load_model(path, "keras", assume=True), quantised=True, images=images[:64])
    else:
        low = load_model(path, "torch", assume=True).bfloat16()
        artefact = torch.export.export(low, (torch.tensor(images[:1]).bfloat16(),))
    report = compare_models(model, artefact, images, top1=0.95)
    (accuracy,) = report.accuracy.values()
    assert accuracy.precision == kind
    assert report.holds, str(accuracy)
