"""A user's own names: files and dicts of pairs, used for reading and for writing."""

from __future__ import annotations

import json

import numpy as np
import pytest

from parity_tests.judge import synthetic
from parity_tests.tests.test_foreign_inside import BODY, OUTSIDE, SPEC, STATE, file, put, read, renamed, same
from weights_convert import DestinationError, MismatchError, SpecError, convert, load, save
from weights_convert.formats import open_reader
from weights_convert.mapping import OwnNames

pytestmark = pytest.mark.quick

PAIRS = {
    "layer{s}.{b}.attention.squeeze.0": "layer{s}.{b}.se.fc1",
    "layer{s}.{b}.attention.squeeze.2": "layer{s}.{b}.se.fc2",
}
THEIRS = renamed(".se.fc2.", ".attention.squeeze.2.", renamed(".se.fc1.", ".attention.squeeze.0."))
CASES = {
    "modules": (THEIRS, PAIRS),
    "a module of modules": (renamed(".se.", ".gate."), {"layer{s}.{b}.gate": "layer{s}.{b}.se"}),
    "below a prefix": (put("encoder.", THEIRS) | OUTSIDE, PAIRS),
    "below a wrapper": (put("module.", THEIRS), PAIRS),
    "a tensor": (
        {"stem" if n == "conv1.weight" else n: a for n, a in STATE.items()},
        {"stem": "conv1.weight"},
    ),
    "a tensor and its module": (
        renamed("bn1.weight", "bn1.scale", STATE),
        {"bn1.scale": "bn1.weight"},
    ),
    "the beginning": (put("a.b.", STATE), {"a.b.": ""}),
    "a beginning and a module": (put("a.b.", THEIRS), PAIRS | {"a.b.": "module."}),
}


@pytest.mark.parametrize("case", CASES)
def test_reading(tmp_path, case):
    arrays, pairs = CASES[case]
    checkpoint, said = read(tmp_path, arrays, names=pairs)
    assert bool(said) == ("prefix" in case)
    assert same(checkpoint, STATE)


def counted(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As `Sequential(*resnet.children())` names the stages."""
    return {
        f"{int(name[5]) + 3}{name[6:]}" if name.startswith("layer") else name: a for name, a in arrays.items()
    }


def test_numbers_that_count_from_elsewhere(tmp_path):
    pairs = {
        "{s+3}.{b}.conv{n}": "layer{s}.{b}.conv{n}",
        "{s+3}.{b}.bn{n}": "layer{s}.{b}.bn{n}",
        "{s+3}.{b}.se.fc{n}": "layer{s}.{b}.se.fc{n}",
        "{s+3}.{b}.downsample.{n}": "layer{s}.{b}.downsample.{n}",
    }
    assert same(read(tmp_path, counted(STATE), names=pairs)[0], STATE)
    save(synthetic.weights(SPEC), tmp_path / "y.npz", names=pairs)
    with open_reader(tmp_path / "y.npz") as reader:
        assert list(reader.tensors) == list(counted(STATE))


def test_theirs_may_be_of_another_family(tmp_path):
    """The rest of the names are moskomule's."""
    theirs = renamed(".se.fc2.", ".se.fc.2.", renamed(".se.fc1.", ".gate.down.", renamed("fc.", "top.")))
    checkpoint, said = read(
        tmp_path, theirs, names={"layer{s}.{b}.gate.down": "layer{s}.{b}.se.fc.0", "top": "fc"}
    )
    assert (checkpoint.family, said) == ("moskomule", [])
    assert same(checkpoint, STATE)


@pytest.mark.parametrize("container", [".pth", ".safetensors", ".npz", ".ckpt"])
def test_writing_is_the_other_way_round(tmp_path, container):
    pairs = PAIRS | {"net.": ""}
    if container == ".ckpt":
        pairs = {"layer{s}_{b}/gate/{n}": "layer{s}_{b}/se/fc{n}", "net/": ""}
    source, target = tmp_path / "a.npz", tmp_path / f"b{container}"
    save(synthetic.weights(SPEC), source)
    plan = convert(source, target, names=pairs)
    assert "the tensors are named by names" in plan.notes
    with open_reader(target) as reader:
        names = set(reader.tensors)
    wanted = put("net.", THEIRS)
    if container == ".ckpt":
        assert {"net/conv1/kernel", "net/layer1_0/gate/1/kernel", "net/fc/bias"} <= names
    else:
        assert names == set(wanted)
    with load(target, names=pairs) as checkpoint:
        assert checkpoint.spec == SPEC
        assert all((checkpoint[name] == array).all() for name, array in STATE.items())
    plan = convert(target, tmp_path / "c.npz", names=pairs)
    assert "the tensors are named by names" not in plan.notes
    assert (tmp_path / "c.npz").read_bytes() == source.read_bytes()


def test_a_beginning_and_a_classifier_outside(tmp_path):
    theirs = put("encoder.", BODY) | {f"classifier.{n}": STATE[f"fc.{n}"] for n in ("weight", "bias")}
    pairs = {"encoder.": "", "classifier": "fc"}
    checkpoint, said = read(tmp_path, theirs, names=pairs)
    assert (said, checkpoint.family) == ([], "torch")
    assert same(checkpoint, STATE)
    save(synthetic.weights(SPEC), tmp_path / "y.npz", names=pairs)
    with open_reader(tmp_path / "y.npz") as reader:
        assert list(reader.tensors) == list(theirs)


def test_two_names_for_one_cannot_be_written(tmp_path):
    with pytest.raises(SpecError, match="'' has several names of theirs"):
        save(synthetic.weights(SPEC), tmp_path / "y.npz", names={"a.": "", "b.": ""})


def test_keras_has_its_own_names(tmp_path):
    save(synthetic.weights(SPEC), tmp_path / "a.npz")
    with pytest.raises(DestinationError, match="Keras finds weights by its own names"):
        convert(tmp_path / "a.npz", tmp_path / "b.weights.h5", names=PAIRS)


LINES = """
# attention
layer{s}.{b}.attention.squeeze.0 = layer{s}.{b}.se.fc1  # the first

layer{s}.{b}.attention.squeeze.2=layer{s}.{b}.se.fc2
"""


@pytest.mark.parametrize("text", [LINES, json.dumps(PAIRS, indent=1)])
def test_files(tmp_path, run, text):
    names = tmp_path / "names.txt"
    names.write_text(text)
    assert same(read(tmp_path, THEIRS, names=names)[0], STATE)
    ran = run("convert", tmp_path / "x.npz", tmp_path / "y.npz", "--names", names, "--assume")
    assert ran.code == 0, ran.err
    assert same(load(tmp_path / "y.npz", assume=True), STATE)
    ran = run("inspect", tmp_path / "x.npz", "--names", names, "--assume")
    assert f"--names {names}" in ran.out


def test_pairs_on_the_command_line(tmp_path, run):
    options = [word for pair in PAIRS.items() for word in ("--names", " = ".join(pair))]
    ran = run("convert", file(tmp_path, THEIRS), tmp_path / "y.npz", *options, "--assume")
    assert ran.code == 0, ran.err
    assert same(load(tmp_path / "y.npz", assume=True), STATE)
    ran = run("inspect", tmp_path / "x.npz", "--names", "a = b", "--names", "x.txt")
    assert (ran.code, "expected one file, or pairs THEIRS=OURS" in ran.err) == (2, True)


WRONG_FILES = {
    "a\n": r"line 1: 'a', expected THEIRS = OURS",
    "\na = b = c": r"line 2: 'a = b = c', expected THEIRS = OURS",
    "a = b\n# x\na = c": r"line 3: 'a' is named in line 1 already",
    "x.{s} = y.{b}": r"line 1: 'x\.\{s\}' = 'y\.\{b\}': expected the same numbers in braces",
    "x.{s}.{s} = y.{s}": r"once on both sides",
    "x.{s = y": r"expected a letter in braces",
    "x. = y": r"expected a separator at the end of both or of none",
    "x = ": r"expected a separator at the end of both or of none",
    "x = x": r"the same on both sides",
    "x{s}. = y{s}.": r"expected a beginning of names without numbers in braces",
    "": r"0 pairs of names",
    '{"a": "b",\n "c" "d"}': r"line 2: not JSON",
    '{"a": "b",\n "c": 1}': r"line 2: 1 is a int, expected a name",
    '{"a": "b", "a": "c"}': r"'a' is named twice",
    "x" * 600 + " = y": r"a name of 600 characters",
    "a" * 2_000_000: r"more than 1,048,576 bytes",
}


@pytest.mark.parametrize("text", WRONG_FILES, ids=range(len(WRONG_FILES)))
def test_wrong_files_are_refused_by_line(tmp_path, text):
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(SpecError, match=WRONG_FILES[text]) as caught:
        OwnNames.of(tmp_path / "names.txt")
    assert caught.value.message.startswith(str(tmp_path / "names.txt"))


def test_files_that_cannot_be_read(tmp_path, run):
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(SpecError, match="not UTF-8 text"):
        OwnNames.of(tmp_path / "names.txt")
    ran = run("inspect", file(tmp_path, STATE), "--names", tmp_path / "none.txt")
    assert (ran.code, "No such file" in ran.err) == (2, True)
    with pytest.raises(SpecError, match="a list, expected a dict"):
        load(tmp_path / "x.npz", names=["a"])


def test_a_pair_that_matches_nothing(tmp_path):
    (tmp_path / "names.txt").write_text("fc = fc2\nclasifier = fc\n")
    arrays = BODY | {"fc.weight": STATE["fc.weight"], "classifier.bias": STATE["fc.bias"]}
    with pytest.raises(MismatchError, match=r"names\.txt, line 2: 'clasifier' matches no tensor of .*x\.npz"):
        read(tmp_path, arrays, names=tmp_path / "names.txt")
    with pytest.raises(MismatchError, match=r"line 1: 'fc2' matches no tensor of .*y\.npz"):
        save(synthetic.weights(SPEC), tmp_path / "y.npz", names=tmp_path / "names.txt")


def test_two_tensors_of_one_name(tmp_path):
    with pytest.raises(
        MismatchError, match=r"'fc\.weight' and 'top\.weight' have the same name 'fc\.weight'"
    ):
        read(tmp_path, STATE | {"top.weight": STATE["fc.weight"]}, names={"top": "fc"})


def test_names_with_a_prefix(tmp_path):
    arrays = put("student.", THEIRS) | put("teacher.", THEIRS)
    checkpoint, _ = read(tmp_path, arrays, names=PAIRS, prefix="teacher")
    assert len(checkpoint.left_out) == len(STATE)
    assert same(checkpoint, STATE)
    with pytest.raises(MismatchError, match="holds 2 networks"):
        read(tmp_path, arrays, names=PAIRS)
