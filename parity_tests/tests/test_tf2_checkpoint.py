"""TF2's object checkpoints and SavedModels are read by the names of their variables, without TensorFlow."""

from __future__ import annotations

from pathlib import Path

import pytest

import keras_impl
from parity_tests.judge import synthetic
from parity_tests.judge.synthetic import tiny
from parity_tests.tests.test_vgg import outputs
from weights_convert import MismatchError, SourceError, load, load_into, load_model, save
from weights_convert.formats.tf1.checkpoint import open_tf1
from weights_convert.formats.tf1.objects import GRAPH, names_of, text_in
from weights_convert.formats.tf1.place import data_path, index_path
from weights_convert.formats.tf1.proto import parse_text_entry
from weights_convert.formats.tf1.table import WireError, read_table, varint
from weights_convert.limits import DEFAULT, LimitError, Limits

SPEC = tiny(attention="se", depths=(1,), stem="3x3", block="basic")
WEIGHTS = synthetic.weights(SPEC)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    model = keras_impl.ResNet(**SPEC.model_kwargs())
    save(WEIGHTS, path := tmp_path_factory.mktemp("tf2") / "x.npz")
    load_into(model, path, assume=True)
    return model


@pytest.fixture(scope="module")
def saved_model(network, tmp_path_factory) -> Path:
    """As Keras's `export` writes it: a variable is in two lists of the file."""
    import tensorflow as tf

    module = tf.Module()
    module.variables_list = [variable.value for variable in network.weights]
    module._all_variables = [variable.value for variable in network.weights]
    folder = tmp_path_factory.mktemp("tf2") / "exported"
    tf.saved_model.save(module, folder)
    return folder


@pytest.mark.parametrize("file", ["", "saved_model.pb", "variables/variables.index"])
def test_a_saved_model(saved_model, file):
    with load(saved_model / file, assume=True) as checkpoint:
        assert checkpoint.family == "tf1"
        assert checkpoint.describe() == "an unnamed resnet"
        wanted = {name: array for name, array in WEIGHTS.items() if "num_batches" not in name}
        assert checkpoint.keys() == wanted.keys()
        assert all((checkpoint[name] == array).all() for name, array in wanted.items())
    with pytest.warns(UserWarning, match=r"does not specify these keywords, defaults used: .*bn_epsilon"):
        load(saved_model).close()


def test_the_numbers_are_right(saved_model, network):
    images = synthetic.images((32, 33))
    wanted = outputs(network, "keras", images)
    assert (outputs(load_model(saved_model, "keras", assume=True), "keras", images) == wanted).all()


def test_keras_skips_layers_in_lists(network, tmp_path):
    """`tf.train.Checkpoint` of a Keras 3 model lacks the stages: one sentence says what to do."""
    import tensorflow as tf

    tf.train.Checkpoint(model=network).write(str(tmp_path / "x"))
    with pytest.raises(
        MismatchError, match="TF2 object checkpoint or SavedModel that holds no whole"
    ) as caught:
        load(tmp_path / "x")
    assert any(line.startswith("res_net") for line in caught.value.details)


def object_checkpoint(folder: Path) -> Path:
    import tensorflow as tf

    part = tf.train.Checkpoint
    optimizer = part(m=tf.Variable([1.0], name="net/a/kernel"))
    same = part(kernel=tf.Variable([3.0], name="net/a/kernel"))
    network = part(_kernel=tf.Variable([2.0], name="net/a/kernel"), unnamed=tf.Variable([4.0]))
    whole = part(net=network, other=same, optimizer=optimizer)
    return Path(whole.save(str(folder / "x")))


def test_names(tmp_path):
    with open_tf1(object_checkpoint(tmp_path)) as reader:
        assert {name: reader.read(name).tolist() for name in reader.tensors} == {
            "net/a/kernel": [2.0],
            "net/unnamed/.ATTRIBUTES/VARIABLE_VALUE": [4.0],
            "other/kernel/.ATTRIBUTES/VARIABLE_VALUE": [3.0],  # its name is taken
        }
        assert sorted(reader.left_out.values()) == [
            "graph of Python objects",
            "optimizer state",
            "step count",
        ]


def test_another_version_of_a_variable_keeps_its_key():
    keys = ["a/x", "b/x", "_all_variables/0"]
    found = names_of([key + VALUE for key in keys], graph(dict.fromkeys(keys, "x")), Path("p"), DEFAULT)
    assert found.names == {f"a/x{VALUE}": "x", f"b/x{VALUE}": f"b/x{VALUE}"}
    assert found.left_out == {f"_all_variables/0{VALUE}": "another copy of x"}


# --------------------------------------------------------------------------------------------------
# Damage

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def field(number: int, value: bytes) -> bytes:
    return varint(8 * number + 2) + varint(len(value)) + value


def graph(names: dict[str, str]) -> bytes:
    """A graph of objects with one attribute each."""
    attributes = (field(2, name.encode()) + field(3, f"{key}{VALUE}".encode()) for key, name in names.items())
    return b"".join(field(1, field(2, attribute)) for attribute in attributes)


def test_too_many_objects():
    with pytest.raises(LimitError, match=r"objects or more, limit 5\d*; if you trust the file"):
        names_of([], field(1, b"") * 60, Path("p"), Limits(max_tensors=10))


@pytest.mark.parametrize("data", [b"", b"\x05abcd", b"\x01\0\0\0\0a", b"\xff\xff\xff\xff\x7f\0\0\0\0a"])
def test_a_damaged_text(data):
    with pytest.raises(WireError):
        text_in(data, 0)


@pytest.mark.parametrize("at", [0, 3, 20, -1])
def test_a_damaged_graph_is_one_line(tmp_path, at, run):
    prefix = object_checkpoint(tmp_path)
    entry = parse_text_entry(read_table(index_path(prefix), DEFAULT)[GRAPH.encode()])
    file = data_path(prefix, 0, 1)
    data = bytearray(file.read_bytes())
    data[entry.offset + (at if at >= 0 else entry.size - 1)] ^= 1
    file.write_bytes(data)
    with pytest.raises(SourceError, match=GRAPH):
        load(prefix)
    assert run("inspect", prefix).code == 2
