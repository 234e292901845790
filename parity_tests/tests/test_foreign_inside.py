"""The network inside a file: prefixes, several networks, tensors outside it, and classifiers elsewhere."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torch_impl
from parity_tests.judge import synthetic
from parity_tests.judge.synthetic import tiny
from parity_tests.tests.test_vgg import outputs
from weights_convert import Checkpoint, MismatchError, SourceError, convert, load, load_model

pytestmark = pytest.mark.quick

Arrays = dict[str, np.ndarray]
SPEC = tiny(attention="se")
WEIGHTS = synthetic.weights(SPEC)
STATE: Arrays = {name: np.array(array) for name, array in WEIGHTS.items()}
BODY = {name: array for name, array in STATE.items() if not name.startswith("fc.")}
CLASSES, FEATURES = STATE["fc.weight"].shape


def put(prefix: str, arrays: Arrays) -> Arrays:
    return {prefix + name: array for name, array in arrays.items()}


def file(folder: Path, arrays: Arrays) -> Path:
    np.savez(folder / "x.npz", **arrays)
    return folder / "x.npz"


def renamed(old: str, new: str, arrays: Arrays = STATE) -> Arrays:
    return {name.replace(old, new, 1): array for name, array in arrays.items()}


def read(folder: Path, arrays: Arrays, **options: Any) -> tuple[Checkpoint, list[str]]:
    """The checkpoint and its warnings, but those of keywords that no file of this kind specifies."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checkpoint = load(file(folder, arrays), **options)
    texts = [str(warning.message) for warning in caught]
    return checkpoint, [text for text in texts if "does not specify these keywords" not in text]


def same(checkpoint: Checkpoint, wanted: Arrays) -> bool:
    arrays = dict(checkpoint.items())
    checkpoint.close()
    return arrays.keys() == wanted.keys() and all((arrays[n] == wanted[n]).all() for n in wanted)


# --------------------------------------------------------------------------------------------------
# Prefixes


PREFIXES = [
    "encoder.",
    "base_model.",
    "student.",
    "backbone.body.",
    "module.a.0.net.",
    "se.fc1.",
    "layer1.0.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("arrays", [STATE, BODY], ids=["whole", "headless"])
def test_any_common_prefix_is_found_and_said(tmp_path, prefix, arrays):
    checkpoint, said = read(tmp_path, put(prefix, arrays))
    assert f"removed the prefix {prefix!r}" in checkpoint.notes
    assert (said, checkpoint.left_out) == ([], {})
    assert checkpoint.spec.num_classes == (CLASSES if arrays is STATE else 0)
    assert same(checkpoint, arrays)


def test_counts_of_a_profiler_are_left_out(tmp_path):
    counts = {f"{name.rpartition('.')[0]}.total_ops": np.ones(1) for name in STATE}
    checkpoint, said = read(tmp_path, put("model.", STATE | counts) | {"total_params": np.ones(1)})
    assert (said, len(checkpoint.left_out)) == ([], len(counts) + 1)
    assert same(checkpoint, STATE)


@pytest.mark.parametrize("prefix", ["encoder.", "module.a.0.net."])
def test_a_prefix_is_found_in_the_names_of_any_family(tmp_path, prefix):
    theirs = renamed(".se.fc2.", ".se.fc.2.", renamed(".se.fc1.", ".se.fc.0."))
    checkpoint, said = read(tmp_path, put(prefix, theirs) | {"loss.weight": np.ones(3)})
    assert checkpoint.family == "moskomule"
    assert said == [f"{tmp_path}/x.npz: 1 tensor is outside resnet and left out: loss.weight"]
    assert same(checkpoint, STATE)


def test_a_prefix_that_one_tensor_of_the_network_lacks(tmp_path):
    arrays = put("encoder.", {n: a for n, a in STATE.items() if n != "layer2.0.conv1.weight"})
    with pytest.raises(MismatchError) as caught:
        read(tmp_path, arrays | {"encoder.layer2.0.conv1.wieght": np.ones(3)})
    assert caught.value.details == (
        f"missing: encoder.layer2.0.conv1.weight {STATE['layer2.0.conv1.weight'].shape}",
        "extra: encoder.layer2.0.conv1.wieght (3,); did you mean 'encoder.layer2.0.conv1.weight'?",
    )


# --------------------------------------------------------------------------------------------------
# Several networks


BOTH = put("student.", STATE) | put("teacher.module.", {n: a * 2 for n, a in STATE.items()})


def test_several_networks_are_listed_with_the_option_that_chooses(tmp_path):
    with pytest.raises(MismatchError, match="holds 2 networks; choose one") as caught:
        read(tmp_path, BOTH)
    lines = caught.value.details
    assert [line.partition("  ")[0] for line in lines] == ["--prefix student.", "--prefix teacher.module."]
    assert all(line.endswith(f": {len(STATE)} tensors)") for line in lines)


@pytest.mark.parametrize("prefix", ["student.", "student", "teacher.module.", "teacher"])
def test_the_prefix_chooses(tmp_path, prefix):
    checkpoint, said = read(tmp_path, BOTH, prefix=prefix)
    assert said == []
    assert len(checkpoint.left_out) == len(STATE)
    assert set(checkpoint.left_out.values()) == {f"outside the prefix '{prefix.rstrip('.')}.'"}
    factor = 2 if prefix.startswith("teacher") else 1
    assert same(checkpoint, {name: array * factor for name, array in STATE.items()})


def test_another_networks_classifier_is_not_taken(tmp_path):
    """MoCo v3: the momentum encoder's projection fits the other encoder too."""
    arrays = put("base.", BODY) | put("momentum.", BODY) | {"momentum.fc.0.weight": STATE["fc.weight"]}
    with pytest.raises(MismatchError, match="holds 2 networks; choose one") as caught:
        read(tmp_path, arrays)
    assert sorted(line.partition("  ")[0] for line in caught.value.details) == [
        "--prefix base.",
        "--prefix momentum.",
    ]


def test_averaged_weights_beside_raw_ones(tmp_path):
    arrays = STATE | put("ema.", STATE)
    with pytest.raises(MismatchError) as caught:
        read(tmp_path, arrays)
    assert [line.partition("  ")[0] for line in caught.value.details] == ["--prefix ''", "--prefix ema."]
    assert same(read(tmp_path, arrays, prefix="ema.")[0], STATE)


def test_an_incomplete_second_network_is_left_out(tmp_path):
    part = {n: a for n, a in STATE.items() if n != "conv1.weight"}
    checkpoint, said = read(tmp_path, put("student.", STATE) | put("teacher.", part))
    assert f"{len(part)} tensors are outside" in said[0]
    assert same(checkpoint, STATE)


def test_a_prefix_that_does_not_exist(tmp_path):
    with pytest.raises(SourceError, match="no name begins with 'studnet'; did you mean 'student'"):
        read(tmp_path, BOTH, prefix="studnet")


# --------------------------------------------------------------------------------------------------
# Tensors outside


OUTSIDE = {"criterion.weight": np.ones(5), "fpn.0.weight": np.ones((2, 2, 1, 1)), "queue": np.ones((3, 4))}


@pytest.mark.parametrize("prefix", ["", "model."])
def test_tensors_outside_are_listed_and_left_out(tmp_path, prefix):
    checkpoint, said = read(tmp_path, OUTSIDE | put(prefix, STATE))
    assert checkpoint.left_out == {n: f"outside the network {a.shape}" for n, a in OUTSIDE.items()}
    assert len(said) == 1
    assert "3 tensors are outside resnet and left out: criterion.weight, fpn.0.weight, queue" in said[0]
    assert same(checkpoint, STATE)


def test_many_tensors_outside_are_one_line(tmp_path):
    checkpoint, said = read(tmp_path, STATE | {f"decoder.{i}.weight": np.ones(1) for i in range(100)})
    checkpoint.close()
    assert len(said) == 1
    assert said[0].endswith("decoder.3.weight, decoder.4.weight, ...")


def test_strict_refuses_them(tmp_path, run):
    with pytest.raises(MismatchError, match=r"3 tensors are outside .* \(--strict\)") as caught:
        read(tmp_path, STATE | OUTSIDE, strict=True)
    assert caught.value.details[0] == "outside: criterion.weight (5,)"
    assert run("convert", tmp_path / "x.npz", tmp_path / "y.pth", "--strict").code == 2
    assert not (tmp_path / "y.pth").exists()
    ran = run("convert", tmp_path / "x.npz", tmp_path / "y.pth")
    assert (ran.code, "left out: queue (outside the network (3, 4))" in ran.out) == (0, True), ran.err
    assert "3 tensors are outside" in ran.err


@pytest.mark.parametrize("name", ["layer1.0.extra.weight", "layer2.x", "bn1.scale", "conv1.weight2"])
def test_an_unknown_tensor_inside_the_network_refuses(tmp_path, name):
    with pytest.raises(MismatchError) as caught:
        read(tmp_path, put("encoder.", STATE | {name: np.ones(3)}) | OUTSIDE)
    assert f"extra: encoder.{name} (3,)" in "\n".join(caught.value.details)


def test_a_block_amid_other_tensors_is_no_network(tmp_path):
    block = {n.removeprefix("layer1.0.se."): a for n, a in STATE.items() if n.startswith("layer1.0.se.")}
    checkpoint, said = read(tmp_path, put("gate.", block))
    assert (checkpoint.describe(), said) == ("one se block", [])
    checkpoint.close()
    with pytest.raises(MismatchError):
        read(tmp_path, put("gate.", block) | OUTSIDE)


def test_metadata_do_not_prevent_it(tmp_path):
    """A state dict of this project's network inside another module holds the network's keywords."""
    inner = torch_impl.ResNet(**SPEC.model_kwargs())
    outer = torch.nn.ModuleDict({"encoder": inner, "criterion": torch.nn.Linear(2, 3)})
    torch.save(outer.state_dict(), tmp_path / "x.pth")
    with pytest.warns(UserWarning, match=r"2 tensors are outside .*criterion\.weight"):
        checkpoint = load(tmp_path / "x.pth")
    assert (checkpoint.spec, checkpoint.assumed) == (SPEC, ())
    assert same(checkpoint, {name: t.numpy() for name, t in inner.state_dict().items()})


# --------------------------------------------------------------------------------------------------
# Classifiers


HEADS = ["fc.1", "classifier", "head.fc", "last_linear", "classifier.1", "head", "top.linear"]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_a_classifier_under_another_name_is_assumed(tmp_path, head, prefix):
    arrays = put(prefix, BODY) | {f"{head}.{n}": STATE[f"fc.{n}"] for n in ("weight", "bias")}
    checkpoint, said = read(tmp_path, arrays)
    assert len(said) == 1
    assert f"'{head}' is assumed to be the classifier 'fc'" in said[0]
    assert f"took '{head}' as the classifier 'fc'" in checkpoint.notes
    assert same(checkpoint, STATE)
    with pytest.raises(MismatchError, match=r"is assumed to be the classifier .*\(--strict\)"):
        read(tmp_path, arrays, strict=True)
    checkpoint, said = read(tmp_path, arrays, names={head: f"{prefix}fc"})
    assert said == []
    assert same(checkpoint, STATE)


def test_a_classifier_elsewhere_without_a_bias(tmp_path):
    checkpoint, said = read(tmp_path, put("encoder.", BODY) | {"head.fc.weight": STATE["fc.weight"]})
    assert checkpoint.spec.head_bias is False
    assert len(said) == 1
    assert "'head.fc', without a bias (head_bias=False), is assumed to be the classifier 'fc'" in said[0]
    assert same(checkpoint, {name: array for name, array in STATE.items() if name != "fc.bias"})


def linear(rows: int, columns: int) -> Arrays:
    return {"weight": np.ones((rows, columns), np.float32), "bias": np.ones(rows, np.float32)}


def test_of_two_classifiers_the_user_chooses(tmp_path):
    arrays = (
        put("encoder.", BODY) | put("head.", linear(3, FEATURES)) | put("classifier.", linear(4, FEATURES))
    )
    with pytest.raises(MismatchError, match="holds 2 tensors that may be its classifier") as caught:
        read(tmp_path, arrays)
    options = ["--names 'head = encoder.fc'", "--names 'classifier = encoder.fc'"]
    assert list(caught.value.details) == options
    checkpoint, _ = read(tmp_path, arrays, names={"head": "encoder.fc"})
    assert checkpoint.spec.num_classes == 3
    checkpoint.close()
    checkpoint, _ = read(tmp_path, arrays, settings={"num_classes": 0})
    assert same(checkpoint, BODY)


NO_HEADS = {
    "of two layers": put("fc.0.", linear(8, FEATURES)) | put("fc.2.", linear(3, 8)),
    "of other features": put("classifier.", linear(3, FEATURES + 1)),
    "with another name": put("projection.", linear(3, FEATURES)),
    "a convolution": {"classifier.weight": np.ones((3, FEATURES, 1, 1), np.float32)},
    "with a norm": put("head.", linear(3, FEATURES)) | {"head.norm.weight": np.ones(3)},
}


@pytest.mark.parametrize("case", NO_HEADS)
def test_what_is_no_classifier_is_left_out(tmp_path, case):
    checkpoint, said = read(tmp_path, BODY | NO_HEADS[case])
    assert "it has no classifier: num_classes=0" in checkpoint.notes
    assert len(said) == 1
    assert "outside" in said[0]
    option = "if 'projection' is its classifier, say --names 'projection = fc'"
    assert (option in said[0]) == (case == "with another name")
    assert same(checkpoint, BODY)


@pytest.mark.parametrize("framework", ["torch", "keras", "tf1"])
def test_the_numbers_are_right(tmp_path, framework):
    images = synthetic.images((32, 33))
    wanted = outputs(load_model(file(tmp_path, STATE), framework, assume=True), framework, images)
    arrays = put("encoder.", BODY) | put("classifier.1.", {n: STATE[f"fc.{n}"] for n in ("weight", "bias")})
    model = load_model(file(tmp_path, arrays | OUTSIDE), framework, assume=True)
    assert (outputs(model, framework, images) == wanted).all()


# --------------------------------------------------------------------------------------------------
# A new classifier


def test_convert_writes_a_new_classifier(tmp_path, run):
    ran = run(
        "convert", file(tmp_path, BODY), tmp_path / "y.npz", "--new-head", "--num-classes", 3, "--assume"
    )
    assert (ran.code, "a new classifier of 3 classes with random values" in ran.out) == (0, True), ran.err
    with load(tmp_path / "y.npz", assume=True) as checkpoint:
        arrays = dict(checkpoint.items())
    assert all((arrays[name] == BODY[name]).all() for name in BODY)
    bound = FEATURES**-0.5
    assert arrays["fc.weight"].shape == (3, FEATURES)
    assert bound / 2 < np.abs(arrays["fc.weight"]).max() <= bound
    convert(tmp_path / "x.npz", tmp_path / "z.npz", new_head=True, num_classes=3, assume=True)
    assert (tmp_path / "y.npz").read_bytes() == (tmp_path / "z.npz").read_bytes()


def test_a_new_classifier_needs_its_option(tmp_path, run):
    convert(file(tmp_path, STATE), tmp_path / "y.npz", new_head=True, assume=True)
    with load(tmp_path / "y.npz", assume=True) as checkpoint:
        assert checkpoint["fc.weight"].shape == (CLASSES, FEATURES)
        assert (checkpoint["fc.weight"] != STATE["fc.weight"]).any()
    ran = run("convert", tmp_path / "x.npz", tmp_path / "z.npz", "--num-classes", CLASSES + 1)
    assert (ran.code, "--new-head writes a new classifier" in ran.err) == (2, True), ran.err
    ran = run("convert", file(tmp_path, BODY), tmp_path / "z.npz", "--new-head")
    assert (ran.code, "expected --num-classes N" in ran.err) == (2, True), ran.err
