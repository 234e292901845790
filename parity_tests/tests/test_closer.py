"""Detailed comparisons: layers on the command line, dumps, the sweep, and models of other projects."""

from __future__ import annotations

import copy
import json
import runpy
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import torch

import tf1_compat
import torch_impl
from parity_tests.__main__ import main
from parity_tests.compare import TF1Model, compare_models
from parity_tests.compare.dumps import read_dump, write_dump
from parity_tests.compare.investigate import investigate
from parity_tests.compare.investigate import live as live_network
from parity_tests.compare.layers import compare_tracers, torch_noise
from parity_tests.judge import synthetic
from parity_tests.judge.synthetic import tiny
from parity_tests.watch.open import tracer_of
from weights_convert import MismatchError, SourceError, SpecError, load_into, load_model, save
from weights_convert.spec import ResNetSpec

SPEC = tiny(attention="cbam", downsample_pool="avg")
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "compare_a_pair.py"


def torch_model(spec: ResNetSpec) -> torch.nn.Module:
    model = torch_impl.ResNet(**spec.model_kwargs())
    load_into(model, synthetic.weights(spec))
    return model


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_layer_is_seen_in_every_framework(dtype):
    """The same layers in the same order; layers of only one framework are reported."""
    report = investigate(
        "x", synthetic.weights(SPEC), synthetic.images((33, 30)), dtype=dtype, gradients=False
    )
    assert report.holds, report.first_divergence()
    names = [point.name for point in report.layers]
    for layer in [
        *("conv1", "bn1", "layer1.0.conv2", "layer1.0.cbam.channel.fc1", "layer1.0.cbam.channel.fc1#2"),
        *("layer1.0.cbam.spatial.conv", "layer1.0.cbam", "layer1.0", "layer2.0.downsample.0", "fc"),
    ]:
        assert layer in names
    assert names.index("layer1.0.conv1") < names.index("layer1.0.bn1") < names.index("layer1.0")
    compared = {"keras", "tf1", "tf1-keras"}
    compared |= {"torch", "keras-torch", "tf1-torch"} if dtype == "float32" else set()
    for point in report.layers:
        if point.name not in ("act1", "maxpool", "layer2.0.downsample_pool", "dropout"):
            assert set(point.errors) == compared, point.name
            assert all(error is not None for error in point.isolated.values()), point.name
    assert any("maxpool" in note for note in report.notes)


def test_nothing_is_left_in_the_models():
    model, other = torch_model(SPEC), keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Conv2D(2, 3)])
    before = keras.Layer.__call__
    compare_models(
        torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3)), other, np.ones((1, 3, 4, 4)), names={"0": "conv2d"}
    )
    assert keras.Layer.__call__ is before
    with pytest.raises(MismatchError, match="no counterpart for conv1"):
        compare_models(model, other, np.ones((1, 3, 4, 4)))
    assert keras.Layer.__call__ is before
    assert not any(layer._forward_hooks for layer in model.modules())
    assert next(model.parameters()).dtype == torch.float32


def test_a_tensorflow_graph_is_compared():
    spec = tiny(attention="eca")
    with tf.Graph().as_default(), tf.Session() as session:
        images = tf.placeholder("float64", (None, None, None, 3))
        logits, _ = tf1_compat.resnet(images, scope="net", **spec.model_kwargs())
        load_into(session, synthetic.weights(spec))
        report = compare_models(
            torch_model(spec), TF1Model(session, images, logits, "net"), synthetic.images()
        )
        assert report.holds
        assert "layer1.1.eca.conv" in [point.name for point in report.layers]
        with pytest.raises(SpecError, match="the TF1 network computes in float64, expected float32"):
            compare_models(
                torch_model(spec), TF1Model(session, images, logits), synthetic.images(), dtype="float32"
            )


def test_what_cannot_be_compared_is_said():
    with pytest.raises(
        SpecError, match=r"builtins\.dict is neither a torch module, .* nor an exported artefact"
    ):
        compare_models({}, {}, np.ones((1, 3, 4, 4)))
    with pytest.raises(SpecError, match="dtype='float16': expected 'float64' or 'float32'"):
        compare_models(torch.nn.ReLU(), torch.nn.ReLU(), np.ones((1, 3, 4, 4)), dtype="float16")


def test_zero_padding_of_a_max_pool_shows_in_front_of_negative_values():
    """After a ReLU it changes nothing, so this project's networks cannot show it."""
    theirs = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.MaxPool2d(3, 2, 1))
    torch.nn.init.constant_(theirs[0].bias, -10)
    state = [p.detach().numpy() for p in theirs.parameters()]
    layers = [
        keras.layers.Conv2D(4, 1, name="0"),
        keras.layers.ZeroPadding2D(1),
        keras.layers.MaxPooling2D(3, 2, name="1"),
    ]
    ours = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    ours.get_layer("0").set_weights([state[0].transpose(2, 3, 1, 0), state[1]])
    report = compare_models(theirs, ours, synthetic.images((8, 8)))
    divergence = report.first_divergence()
    assert divergence is not None
    assert divergence.point == "1"  # the padding belongs to it
    assert report.culprits() == [("keras", "1")]


def functional() -> keras.Model:
    """A functional Keras model with a merge, dropout and a batch norm."""
    x = inputs = keras.Input((6, 6, 3))
    y = keras.layers.Conv2D(3, 3, padding="same", name="conv")(x)
    y = keras.layers.BatchNormalization(name="bn")(y)
    y = keras.layers.Add(name="add")([x, y])
    y = keras.layers.Dropout(0.5, name="dropout")(keras.layers.GlobalAveragePooling2D(name="pool")(y))
    return keras.Model(inputs, keras.layers.Dense(2, name="fc")(y))


@pytest.mark.parametrize("train", [False, True])
def test_a_model_against_itself_holds_and_is_left_as_it_was(train):
    model = functional()
    before = [w.copy() for w in model.get_weights()]
    report = compare_models(model, model, synthetic.images((6, 6)), dtype="float32", train=train)
    assert report.holds, report.first_divergence()
    assert [p.name for p in report.layers if "." not in p.name][-2:] == ["fc", "output"]
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_layers_in_dicts_and_private_attributes_are_seen():
    class Odd(keras.Model):
        def __init__(self):
            super().__init__()
            self.parts = {"a": [keras.layers.Dense(2, name="first")]}
            self._hidden = keras.layers.Dense(2, name="second")

        def call(self, x):
            return self._hidden(self.parts["a"][0](x))

    model = Odd()
    report = compare_models(model, model, np.ones((2, 3)), dtype="float32")
    assert [point.name for point in report.layers] == ["parts.a.0", "second", "output"]


class Two(torch.nn.Module):
    """Two tensors in, a tuple out."""

    def __init__(self):
        super().__init__()
        self.gate, self.fc = Gate(), torch.nn.Linear(3, 3)

    def forward(self, x):
        return self.gate(self.fc(x), x), x


class Gate(torch.nn.Module):
    def forward(self, x, y):
        return x * y


def test_layers_of_several_tensors_are_compared_in_the_network_only():
    model = Two()
    report = compare_models(model, model, np.ones((2, 3)))
    assert [(point.name, point.isolated.get("torch") is None) for point in report.layers] == [
        ("fc", False),
        ("gate", True),
        ("output 0", True),
        ("output 1", True),
    ]
    assert report.holds


def test_a_layer_that_is_not_called_is_a_difference():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    report = compare_models(model, model[:1], np.ones((2, 3)))
    divergence = report.first_divergence()
    assert divergence is not None
    assert (divergence.point, divergence.error) == ("1", float("inf"))
    with pytest.raises(
        MismatchError,
        match="names=: no layers for 'fcc'; the reference has 0, 1, output; the candidate 0, 1, output",
    ):
        compare_models(model, model, np.ones((2, 3)), names={"fcc": "0"})
    with pytest.raises(SpecError, match=r"the torch model does not run on inputs \(2, 4\)"):
        compare_models(model, model, np.ones((2, 4)))
    with pytest.raises(SpecError, match=r"inputs float64 \(0, 3\)"):
        compare_models(model, model, np.ones((0, 3)))


def test_dropout_does_not_hide_what_comes_after_it():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(0.5), torch.nn.Linear(3, 3))
    other = torch.nn.Sequential(*list(model))
    images = np.random.default_rng(0).normal(size=(4, 3))
    assert compare_models(model, other, images, train=True).holds
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken[2].bias += 1
    assert not compare_models(model, broken, images, train=True).holds


def test_the_example_finds_the_mistake(capsys):
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert capsys.readouterr().out.splitlines() == [
        "epsilon 0.001: norm [('keras', 'norm')]",
        "epsilon 1e-05: parity holds []",
    ]


@pytest.mark.exhaustive  # test_report_docs runs such a test in an ordinary run
def test_the_example_runs_in_pytest(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "parity_tests.plugin",
        "-p",
        "no:cacheprovider",
    ]
    command += ["--parity-report", str(tmp_path / "report.html"), str(EXAMPLE.with_name("test_a_port.py"))]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    assert "parity: 1 comparison, parity holds" in ran.stdout
    assert "docs/examples/test_a_port.py" in (tmp_path / "report.html").read_text().replace("\\", "/")


# --------------------------------------------------------------------------------------------------
# Dumps


def test_a_dump_says_the_same_as_the_run(tmp_path):
    images, model = synthetic.images((33, 30)), torch_model(SPEC)
    tracer = tracer_of(model, "float64")
    trace, noise = tracer.trace(images), {"float64": torch_noise(model, images, "float64")}
    write_dump(tmp_path / "x.safetensors", images, trace, noise, tracer.weighted(), "a title")
    dump = read_dump(tmp_path / "x.safetensors")
    assert dump.facts["title"] == "a title"
    assert dump.noise == noise
    again = dump.trace(dump.images)
    assert list(again) == list(trace)
    for name, call in trace.items():
        assert again[name].output.tobytes() == call.output.tobytes()
        assert again[name].input.tobytes() == call.input.tobytes()
    with live_network("keras", SPEC, synthetic.weights(SPEC), "float64") as (candidate, _):
        live = compare_tracers(tracer, {"keras": candidate}, images, noise=noise["float64"])
        recorded = compare_tracers(dump, {"keras": candidate}, images, noise=dump.noise["float64"])
    assert live.holds
    assert [point.errors for point in live.layers] == [point.errors for point in recorded.layers]
    assert [point.isolated for point in live.layers] == [point.isolated for point in recorded.layers]
    with pytest.raises(SourceError, match="was recorded with other images"):
        dump.trace(images + 1)


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, None])
def test_what_is_no_dump(tmp_path, content):
    path = tmp_path / "x.safetensors"
    if content is None:
        save(synthetic.weights(SPEC), path)
    else:
        path.write_bytes(content)
    with pytest.raises(SourceError, match="not a dump, expected"):
        read_dump(path)


# --------------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def network(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    save(synthetic.weights(SPEC), "net.pth")
    return "net.pth"


def test_layers_and_the_exit_code(network, capsys):
    assert main([network, "--layers", "--size", "33", "--dtype", "float64"]) == 0
    assert "parity holds: net.pth, float64" in capsys.readouterr().out


def test_against_a_dump_of_other_weights(network, capsys):
    assert main([network, "--dump", "ref.safetensors", "--size", "32"]) == 0
    options = ["--against", "ref.safetensors", "--frameworks", "keras", "--dtype", "float64"]
    assert main([network, *options]) == 0
    other = synthetic.weights(SPEC, seed=1)
    arrays = dict(synthetic.weights(SPEC)) | {"layer1.1.conv2.weight": other["layer1.1.conv2.weight"]}
    save(synthetic.checkpoint(arrays, SPEC), "other.pth")
    capsys.readouterr()
    assert main(["other.pth", *options, "--json", "facts.json", "--report", "page.html"]) == 1
    assert "keras differs first at layer layer1.1.conv2" in capsys.readouterr().out
    facts = json.loads(Path("facts.json").read_text())[0]
    assert facts["culprits"] == [["keras", "layer1.1.conv2"]]
    assert "layer1.1.conv2" in Path("page.html").read_text()


def test_what_is_not_in_the_file_can_be_said(network, capsys):
    np.savez("bare.npz", **synthetic.weights(SPEC))  # without metadata, which would contain the epsilon
    options = ["--frameworks", "torch", "--dtype", "float64", "--size", "33"]
    assert main(["bare.npz", *options, "--set", "bn_epsilon=0.001", "--json", "facts.json"]) == 0
    assert main([network, *options, "--model", "se_resnet18"]) == 2
    assert "do not match se_resnet18" in capsys.readouterr().err
    assert main(["se_resnet20", *options, "--set", "reduction=4", "--json", "facts.json"]) == 0
    assert json.loads(Path("facts.json").read_text())[0]["parameters"] == 280_958


@pytest.mark.parametrize("native", ["keras", "tf1"])
def test_files_that_the_frameworks_saved_themselves(native, network, session):
    """They have no step counts; torch keeps its own."""
    if native == "keras":
        load_model(network, "keras").save_weights("native.weights.h5")
        path = "native.weights.h5"
    else:
        with session.graph.as_default():
            load_model(network, "tf1")(tf.zeros((1, 33, 33, 3)))
            session.run(tf.global_variables_initializer())
            path = tf.train.Saver().save(session, "./native.ckpt")
    assert main([path, "--dtype", "float64", "--size", "33"]) == 0


@pytest.mark.parametrize("option", ["--json", "--report", "--dump"])
def test_a_report_replaces_no_checkpoint(option, network, capsys):
    before = Path(network).read_bytes()
    assert main(["se_resnet20", "--frameworks", "keras", option, network]) == 2
    assert "net.pth: exists already and is not a report of this kind" in capsys.readouterr().err
    assert Path(network).read_bytes() == before


BAD = [
    ("se_resnet20 --key model", "--key applies to a file, but se_resnet20 is a model; omit --key"),
    ("se_resnet20 --from timm", "--from applies to a file, but se_resnet20 is a model; omit --from"),
    ("se_resnet20 --set reductoin=4", "there is no keyword 'reductoin'; did you mean 'reduction'?"),
    ("net.pth --against none", "none: there is no such file"),
    ("net.pth --against net.pth", "net.pth: not a dump, expected"),
    ("net.pth net.pth --dump x", "--dump, --against and --artifact take one model or checkpoint"),
    ("net.pth --report none/x.html", "the folder 'none' does not exist"),
    ("net.pth --dump none/x", "the folder 'none' does not exist"),
    ("net.pth --dump net.pth", "net.pth: would replace an input or another output"),
    ("net.pth --layers --json net.pth", "net.pth: would replace an input or another output"),
    ("net.pth --report x --json x", "x: would replace an input or another output"),
    ("net.pth --dump d --report r", "--dump does not go with --report"),
    ("net.pth --sweep --dtype float64", "--sweep does not go with --dtype"),
    ("net.pth --layers --frameworks torch --dtype float64", "torch in float64 is the reference"),
    ("net.pth --size 0 --layers", "'0': expected a whole number above 0"),
    ("net.pth --train-steps many", "'many': expected a whole number above 0"),
    ("net.pth --layers --images none", "none: there is no such folder of images"),
]


@pytest.mark.usefixtures("network")
@pytest.mark.parametrize(("line", "message"), BAD)
def test_bad_input_is_one_line(capsys, line, message):
    try:
        code = main(line.split())
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1
