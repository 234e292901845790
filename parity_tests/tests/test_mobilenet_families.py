"""Other projects' MobileNetV1: their files give their outputs here, and ours give our outputs there."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import torch

from parity_tests.judge import synthetic
from parity_tests.judge.tolerances import relative_error
from weights_convert import convert, load, load_model
from weights_convert.families import FAMILIES
from weights_convert.spec import MobileNetSpec, model_spec

IMAGES = synthetic.images((65, 50))
TORCH = {  # family -> module and model
    "pytorchcv_mobilenet": ("pytorchcv.models.mobilenet", "mobilenet_w1"),
    "timm_mobilenet": ("timm.models.efficientnet", "mobilenetv1_100"),
}


def with_statistics(model: torch.nn.Module) -> torch.nn.Module:
    """In float64, with random batch norms: mean 0 and variance 1 hide mistakes."""
    torch.manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            for tensor in (layer.weight.data, layer.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (layer.bias.data, layer.running_mean):
                tensor.normal_(0, 0.1)
    if hasattr(model, "features"):
        model.features.final_pool = torch.nn.AdaptiveAvgPool2d(1)  # theirs is for 224 x 224 only
    return model.double().eval()


def run(model: torch.nn.Module) -> np.ndarray:
    with torch.inference_mode():
        return model.double().eval()(torch.from_numpy(IMAGES).double()).numpy()


@pytest.mark.parametrize("family", TORCH)
def test_pytorch_files_are_read_and_written(tmp_path, family):
    module, name = TORCH[family]
    theirs = with_statistics(getattr(pytest.importorskip(module), name)(num_classes=7))
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    wanted = run(theirs)
    with load(tmp_path / "a.pth") as checkpoint:
        assert (checkpoint.family, checkpoint.assumed) == (family, ())
        assert checkpoint.spec.activation == ("relu6" if "timm" in family else "relu")
    assert relative_error(run(load_model(tmp_path / "a.pth")), wanted) < 1e-13
    convert(tmp_path / "a.pth", tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "b.pth", to_family=family)
    again = with_statistics(getattr(importlib.import_module(module), name)(num_classes=7))
    again.load_state_dict(torch.load(tmp_path / "b.pth"))
    np.testing.assert_array_equal(run(again), wanted)


def test_keras_applications(tmp_path):
    """With the padding that only odd sizes show, and a classifier stored as a 1x1 convolution."""
    keras.utils.set_random_seed(0)
    theirs = keras.applications.MobileNet((65, 50, 3), weights=None, classifier_activation=None, classes=7)
    norms = [layer for layer in theirs.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for variable in (variable for norm in norms for variable in norm.variables):
        reach = 0.4 if variable.name in ("gamma", "moving_variance") else 0.1
        variable.assign(variable + keras.random.uniform(variable.shape, -reach, reach))
    wanted = theirs.predict_on_batch(IMAGES.transpose(0, 2, 3, 1))
    theirs.save(tmp_path / "a.h5")
    with load(tmp_path / "a.h5") as checkpoint:
        assert (checkpoint.family, checkpoint.spec.stride_padding) == ("keras_mobilenet", "keras")
    assert relative_error(run(load_model(tmp_path / "a.h5")), wanted) < 1e-5


@pytest.mark.quick
def test_keras_2_names_its_depthwise_kernels_otherwise():
    layout = FAMILIES["keras_mobilenet"].layout_of(model_spec("mobilenet_v1"))
    assert layout.parse("conv_dw_2/depthwise_kernel:0") == "stage2.0.conv1.weight"
    assert layout.parse("conv_pw_13_bn/moving_variance:0") == "stage5.1.bn2.running_var"


def slim(x: tf.Tensor, outputs: int, number: str, stride: int, kind: str, random: Any) -> tf.Tensor:
    """A convolution of TF-slim's MobilenetV1: its names, SAME padding, ReLU6, epsilon 0.001."""
    with tf.variable_scope(f"Conv2d_{number}"):
        inputs, size = int(x.shape[-1]), 1 if kind == "pointwise" else 3
        shape = (size, size, inputs, 1 if kind == "depthwise" else outputs)
        values = random.normal(0, np.sqrt(2 / (size * size * (1 if kind == "depthwise" else inputs))), shape)
        kernel = tf.get_variable(
            "depthwise_weights" if kind == "depthwise" else "weights", initializer=tf.constant(values)
        )
        conv = tf.nn.depthwise_conv2d if kind == "depthwise" else tf.nn.conv2d
        x = conv(x, kernel, [1, stride, stride, 1], "SAME")
        with tf.variable_scope("BatchNorm"):
            beta, mean = (
                tf.get_variable(name, initializer=tf.constant(random.normal(0, 0.1, x.shape[-1])))
                for name in ("beta", "moving_mean")
            )
            gamma, variance = (
                tf.get_variable(name, initializer=tf.constant(random.uniform(0.5, 1.5, x.shape[-1])))
                for name in ("gamma", "moving_variance")
            )
        return tf.nn.relu6(tf.nn.batch_normalization(x, mean, variance, beta, gamma, 0.001))


def test_tf_slim(tmp_path: Path):
    """A graph with the names and operations of slim/nets/mobilenet_v1.py, which no package installs."""
    random, spec = np.random.default_rng(0), MobileNetSpec()
    units = [
        (width, 2 if stage and not index else 1)
        for stage, (depth, width) in enumerate(zip(spec.depths, spec.widths, strict=True))
        for index in range(depth)
    ]
    with tf.Graph().as_default(), tf.Session() as session, tf.variable_scope("MobilenetV1"):
        x = slim(tf.constant(IMAGES.transpose(0, 2, 3, 1).astype(np.float64)), 32, "0", 2, "full", random)
        for number, (width, stride) in enumerate(units, 1):
            x = slim(x, 0, f"{number}_depthwise", stride, "depthwise", random)
            x = slim(x, width, f"{number}_pointwise", 1, "pointwise", random)
        with tf.variable_scope("Logits/Conv2d_1c_1x1"):
            values = random.normal(0, 0.05, (1, 1, 1024, 1001))
            kernel = tf.get_variable("weights", initializer=tf.constant(values))
            bias = tf.get_variable("biases", initializer=tf.constant(random.normal(0, 0.1, 1001)))
        x = tf.nn.conv2d(tf.reduce_mean(x, [1, 2], keepdims=True), kernel, 1, "SAME") + bias
        session.run(tf.global_variables_initializer())
        wanted = session.run(x)[:, 0, 0]
        tf.train.Saver().save(session, str(tmp_path / "model.ckpt"), write_meta_graph=False)
    with load(tmp_path / "model.ckpt") as checkpoint:
        assert (checkpoint.family, checkpoint.spec.num_classes) == ("slim_mobilenet", 1001)
    assert relative_error(run(load_model(tmp_path / "model.ckpt")), wanted) < 1e-13
