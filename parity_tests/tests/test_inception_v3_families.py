"""Other projects' Inception-v3: their files give their outputs here, and ours give our outputs there."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import torch

import torch_impl
from parity_tests.judge import synthetic
from parity_tests.judge.tolerances import relative_error
from parity_tests.tests.test_mobilenet_families import with_statistics
from weights_convert import MismatchError, convert, load, load_model
from weights_convert.families.inceptions_v3 import FAMILIES
from weights_convert.spec import InceptionV3Spec, changed

IMAGES = synthetic.images((79, 96))


def run(model: torch.nn.Module, images: np.ndarray = IMAGES) -> np.ndarray:
    with torch.inference_mode():
        return model.double().eval()(torch.from_numpy(images).double()).numpy()


@pytest.mark.parametrize("aux_logits", [True, False])
def test_torchvision(tmp_path, aux_logits):
    """With the transform of its pretrained weights, which no file shows."""
    inception = pytest.importorskip("torchvision.models").inception_v3
    keywords = {"aux_logits": aux_logits, "transform_input": True, "num_classes": 7, "init_weights": False}
    theirs = with_statistics(inception(weights=None, **keywords))
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    with load(tmp_path / "a.pth", settings={"transform_input": True}, assume=True) as checkpoint:
        assert (checkpoint.family, checkpoint.same_as) == ("torch", ("torchvision_inception",))
        assert checkpoint.spec == InceptionV3Spec(num_classes=7, aux_head=aux_logits, transform_input=True)
        convert(checkpoint, tmp_path / "b.ckpt")
    assert relative_error(run(load_model(tmp_path / "b.ckpt")), run(theirs)) < 1e-13
    convert(tmp_path / "b.ckpt", tmp_path / "c.pth", to_family="torchvision_inception")
    again = inception(weights=None, **keywords)
    again.load_state_dict(torch.load(tmp_path / "c.pth"))
    np.testing.assert_array_equal(run(again), run(theirs))


def test_pytorchcv(tmp_path):
    module = pytest.importorskip("pytorchcv.models.inceptionv3")
    theirs = with_statistics(module.inceptionv3(num_classes=7))
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    with load(tmp_path / "a.pth") as checkpoint:
        assert (checkpoint.family, checkpoint.assumed) == ("pytorchcv_inception_v3", ())
    assert relative_error(run(load_model(tmp_path / "a.pth")), run(theirs)) < 1e-13
    convert(tmp_path / "a.pth", tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "b.pth", to_family="pytorchcv_inception_v3")
    again = with_statistics(importlib.import_module(module.__name__).inceptionv3(num_classes=7))
    again.load_state_dict(torch.load(tmp_path / "b.pth"))
    np.testing.assert_array_equal(run(again), run(theirs))


def test_the_attention_that_moskomules_code_never_runs(tmp_path):
    """senet.pytorch/senet/se_inception.py adds SE layers to torchvision's network, whose forward has none."""
    spec = InceptionV3Spec(aux_head=True, num_classes=7)
    source = synthetic.weights(spec)
    inputs = (192, 256, 288, 288, 768, 768, 768, 768, 768, 1280, 2048)  # of each module, not its outputs
    names = [name for name in spec.stages() if name.startswith("Mixed")]
    state = {f"model.{name}": torch.from_numpy(np.array(array)) for name, array in source.items()}
    for name, width in zip([*names, "AuxLogits"], [*inputs, 768], strict=True):
        state[f"model.{name}.SELayer.fc.0.weight"] = torch.ones(width // 16, width)
        state[f"model.{name}.SELayer.fc.2.weight"] = torch.ones(width, width // 16)
    torch.save(state, tmp_path / "a.pth")
    with load(tmp_path / "a.pth", assume=True) as checkpoint:
        assert (checkpoint.family, checkpoint.spec) == ("torchvision_inception", spec)
        unused = "weights of an SE layer that its code never runs (12, 192)"
        assert checkpoint.left_out["model.Mixed_5b.SELayer.fc.0.weight"] == unused
        assert len(checkpoint.left_out) == 2 * 12
        assert all(checkpoint[name].tobytes() == source[name].tobytes() for name in source)


def keras_statistics(model: keras.Model) -> None:
    """Random batch norms, which have no gamma."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            assert layer.gamma is None
            for variable in layer.variables:
                reach = 0.4 if variable.name == "moving_variance" else 0.1
                variable.assign(variable + keras.random.uniform(variable.shape, -reach, reach))


def test_keras_applications(tmp_path):
    """Layers are counted in the order of creation, here not from the first on."""
    keras.utils.set_random_seed(0)
    keras.layers.Conv2D(1, 1)  # another layer of the session
    build: Callable[..., Any] = keras.applications.InceptionV3
    theirs = build(weights=None, input_shape=(79, 96, 3), classes=7, classifier_activation=None)
    keras_statistics(theirs)
    wanted = theirs.predict_on_batch(IMAGES.transpose(0, 2, 3, 1))
    theirs.save(tmp_path / "a.h5")
    with load(tmp_path / "a.h5") as checkpoint:
        assert (checkpoint.family, checkpoint.assumed) == ("keras_inception_v3", ())
        assert not checkpoint.spec.count_padding
        assert "its 94 batch norms have no scale, which is 1" in checkpoint.notes
    model = load_model(tmp_path / "a.h5")
    assert relative_error(run(model), wanted) < 1e-5
    counted = torch_impl.InceptionV3(**changed(checkpoint.spec, {"count_padding": True}).model_kwargs())
    counted.load_state_dict(model.state_dict())
    assert relative_error(run(counted), wanted) > 1e-3  # the comparison sees the padding


# --------------------------------------------------------------------------------------------------
# A graph with the names and operations of slim/nets/inception_v3.py, which no package installs

DOUBLE = ("0a_1x1 64", "0b_3x3 96", "0c_3x3 96")
LAST = (("0a_1x1 320",), None, ("0a_1x1 448", "0b_3x3 384", ("0c_1x3 384", "0d_3x1 384")))


def seventeen(width: int) -> tuple[tuple[Any, ...], ...]:
    long = ("0a_1x1 {0}", "0b_7x1 {0}", "0c_1x7 {0}", "0d_7x1 {0}", "0e_1x7 192")
    short = ("0a_1x1 {0}", "0b_1x7 {0}", "0c_7x1 192")
    branches = [tuple(step.format(width) for step in branch) for branch in (short, long)]
    return ("0a_1x1 192",), *branches, ("avg", "0b_1x1 192")


def thirty_five(first: str, second: str, projection: int) -> tuple[tuple[Any, ...], ...]:
    return ("0a_1x1 64",), (f"{first} 48", f"{second} 64"), DOUBLE, ("avg", f"0b_1x1 {projection}")


MODULES = {  # "name width" of each convolution; "/" for a name without Conv2d_, "3x3/2" for kernel and stride
    "5b": thirty_five("0a_1x1", "0b_5x5", 32),
    "5c": thirty_five("0b_1x1", "/Conv_1_0c_5x5", 64),
    "5d": thirty_five("0a_1x1", "0b_5x5", 64),
    "6a": (("1a_1x1 384 3x3/2",), ("0a_1x1 64", "0b_3x3 96", "1a_1x1 96 3x3/2"), ("max",)),
    "6b": seventeen(128),
    "6c": seventeen(160),
    "6d": seventeen(160),
    "6e": seventeen(192),
    "7a": (
        ("0a_1x1 192", "1a_3x3 320 3x3/2"),
        ("0a_1x1 192", "0b_1x7 192", "0c_7x1 192", "1a_3x3 192 3x3/2"),
        ("max",),
    ),
    "7b": (LAST[0], ("0a_1x1 384", ("0b_1x3 384", "0b_3x1 384")), LAST[2], ("avg", "0b_1x1 192")),
    "7c": (LAST[0], ("0a_1x1 384", ("0b_1x3 384", "0c_3x1 384")), LAST[2], ("avg", "0b_1x1 192")),
}


class Slim:
    """Operations of TF-slim's InceptionV3 on random variables."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)

    def variable(self, name: str, value: np.ndarray) -> tf.Tensor:
        return tf.get_variable(name, initializer=tf.constant(value))

    def conv(self, x: tf.Tensor, step: str, padding: str = "SAME") -> tf.Tensor:
        """A convolution, its batch norm without gamma (epsilon 0.001) and a ReLU."""
        name, width, *size = step.split()
        if size:
            padding = "VALID"
        kernel, _, stride = (size[0] if size else name.rpartition("_")[2]).partition("/")
        rows, columns = map(int, kernel.split("x"))
        shape = (rows, columns, int(x.shape[-1]), int(width))
        with tf.variable_scope(name[1:] if name[0] == "/" else f"Conv2d_{name}"):
            weights = self.random.normal(0, np.sqrt(2 / np.prod(shape[:3])), shape)
            x = tf.nn.conv2d(x, self.variable("weights", weights), int(stride or 1), padding)
            with tf.variable_scope("BatchNorm"):
                beta, mean = (
                    self.variable(n, self.random.normal(0, 0.1, shape[3])) for n in ("beta", "moving_mean")
                )
                variance = self.variable("moving_variance", self.random.uniform(0.5, 1.5, shape[3]))
            return tf.nn.relu(tf.nn.batch_normalization(x, mean, variance, beta, None, 0.001))

    def branch(self, x: tf.Tensor, steps: tuple[Any, ...]) -> tf.Tensor:
        for step in steps:
            if step == "avg":
                x = tf.nn.avg_pool2d(x, 3, 1, "SAME")
            elif step == "max":
                x = tf.nn.max_pool2d(x, 3, 2, "VALID")
            elif isinstance(step, tuple):
                x = tf.concat([self.conv(x, one) for one in step], 3)
            else:
                x = self.conv(x, step)
        return x

    def head(self, x: tf.Tensor, name: str) -> tf.Tensor:
        with tf.variable_scope(f"Conv2d_{name}"):
            shape = (1, 1, int(x.shape[-1]), 1001)
            kernel = self.variable("weights", self.random.normal(0, 0.05, shape))
            return tf.nn.conv2d(x, kernel, 1, "SAME") + self.variable(
                "biases", self.random.normal(0, 0.1, 1001)
            )

    def network(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        x = self.conv(self.conv(x, "1a_3x3 32 3x3/2"), "2a_3x3 32", "VALID")
        x = tf.nn.max_pool2d(self.conv(x, "2b_3x3 64"), 3, 2, "VALID")
        x = self.conv(self.conv(x, "3b_1x1 80", "VALID"), "4a_3x3 192", "VALID")
        x = tf.nn.max_pool2d(x, 3, 2, "VALID")
        for name, branches in MODULES.items():
            with tf.variable_scope(f"Mixed_{name}"):
                outputs = []
                for number, steps in enumerate(branches):
                    with tf.variable_scope(f"Branch_{number}"):
                        outputs.append(self.branch(x, steps))
                x = tf.concat(outputs, 3)
            if name == "6e":
                before = x
        with tf.variable_scope("AuxLogits"):
            aux = self.conv(tf.nn.avg_pool2d(before, 5, 3, "VALID"), "1b_1x1 128")
            aux = self.head(self.conv(aux, "2a_5x5 768", "VALID"), "2b_1x1")
        with tf.variable_scope("Logits"):
            logits = self.head(tf.reduce_mean(x, [1, 2], keepdims=True), "1c_1x1")
        return logits[:, 0, 0], aux[:, 0, 0]


def test_tf_slim(tmp_path: Path):
    images = synthetic.images((299, 299), batch=1)
    with tf.Graph().as_default(), tf.Session() as session, tf.variable_scope("InceptionV3"):
        wanted = Slim().network(tf.constant(images.transpose(0, 2, 3, 1).astype(np.float64)))
        session.run(tf.global_variables_initializer())
        logits, aux_logits = session.run(wanted)
        tf.train.Saver().save(session, str(tmp_path / "model.ckpt"), write_meta_graph=False)
    with load(tmp_path / "model.ckpt") as checkpoint:
        assert (checkpoint.family, checkpoint.assumed) == ("slim_inception_v3", ())
        assert (checkpoint.spec.num_classes, checkpoint.spec.aux_head) == (1001, True)
        assert checkpoint.feeds is not None
        assert "class 0 is the background" in checkpoint.feeds.classes
    with torch.inference_mode():
        features = (
            load_model(tmp_path / "model.ckpt").eval().forward_features(torch.from_numpy(images).double())
        )
    assert relative_error(features["logits"].numpy(), logits) < 1e-13
    assert relative_error(features["aux_logits"].numpy(), aux_logits) < 1e-13


@pytest.mark.quick
def test_a_file_that_lacks_some_scales_is_refused(tmp_path):
    """None at all is a network without them, some missing are a damaged file."""
    source = synthetic.weights(InceptionV3Spec(num_classes=2))
    (slim,) = [family for family in FAMILIES if family.name == "slim_inception_v3"]
    layout = slim.layout_of(source.spec)
    names = layout.names(source.spec)
    stored = {
        names[p.name]: layout.stored(p).to_file(np.array(source[p.name]))
        for p in synthetic.parameters(source.spec)
        if names[p.name] and p.name != "Mixed_5b.branch1x1.bn.weight"
    }
    np.savez(tmp_path / "a.npz", **stored)
    with pytest.raises(MismatchError, match="mismatches: 1"):
        load(tmp_path / "a.npz")
    scales = [name for name in stored if name.endswith("gamma")]
    np.savez(tmp_path / "b.npz", **{name: a for name, a in stored.items() if name not in scales})
    with load(tmp_path / "b.npz") as checkpoint:
        scale = checkpoint["Mixed_5b.branch1x1.bn.weight"]
        np.testing.assert_array_equal(scale, np.ones(64, np.float32))
        assert scale.dtype == np.float32


@pytest.mark.quick
def test_keras_counts_its_layers_from_anywhere(tmp_path):
    """The second network of a session, without a classifier, its tensors in the order of their names."""
    source = synthetic.weights(InceptionV3Spec(num_classes=0))
    convolutions = [name.removesuffix(".conv.weight") for name in source if name.endswith(".conv.weight")]
    stored = {}
    for number, unit in enumerate(convolutions, 95):
        norm = f"batch_normalization_{number}"
        stored[f"conv2d_{number}/kernel:0"] = np.array(source[f"{unit}.conv.weight"]).transpose(2, 3, 1, 0)
        stored[f"{norm}/beta:0"] = np.array(source[f"{unit}.bn.bias"])
        stored[f"{norm}/moving_mean:0"] = np.array(source[f"{unit}.bn.running_mean"])
        stored[f"{norm}/moving_variance:0"] = np.array(source[f"{unit}.bn.running_var"])
    np.savez(tmp_path / "a.npz", **dict(sorted(stored.items())))
    with load(tmp_path / "a.npz") as checkpoint:
        assert (checkpoint.family, checkpoint.spec.num_classes) == ("keras_inception_v3", 0)
        for name in source:
            if not name.endswith((".bn.weight", "num_batches_tracked")):
                assert checkpoint[name].tobytes() == source[name].tobytes(), name
