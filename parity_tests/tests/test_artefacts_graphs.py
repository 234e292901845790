"""SavedModels and frozen graphs layer by layer: unbroken ones hold, and injected faults are named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_tests.compare import compare_models
from parity_tests.tests import exports
from parity_tests.tests.exports import IMAGES
from parity_tests.watch.trace import covers

DEFAULTS: dict[str, Any] = {"epsilon": 1e-3, "pool": "max", "activation": "relu6", "slope": 0.1, "order": 1}


def network(**changes: Any) -> Any:
    """A functional model of two branches; `changes` are faults of a port."""
    import keras

    c, layers = DEFAULTS | changes, keras.layers
    pool = layers.MaxPooling2D if c["pool"] == "max" else layers.AveragePooling2D
    x = images = keras.Input((12, 12, 3))
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="stem")(x)
    x = layers.BatchNormalization(epsilon=c["epsilon"], name="norm")(x)
    x = layers.Activation(c["activation"], name="act")(x)
    left = layers.DepthwiseConv2D(3, padding="same", name="left")(x)
    right = layers.Conv2D(4, 3, padding="same", groups=2, name="right")(x)
    x = layers.Concatenate(name="both")([left, right][:: c["order"]])
    x = layers.LeakyReLU(c["slope"], name="leaky")(pool(2, name="pool")(x))
    gate = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    gate = layers.Dense(8, activation="sigmoid", name="excite")(gate)
    x = layers.Multiply(name="scale")([x, gate])
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    model = keras.Model(images, layers.Dense(5, name="head")(x))
    for weight in model.weights:
        rng = np.random.default_rng([*weight.path.encode()])  # whatever the order of the layers
        positive = weight.name in ("gamma", "moving_variance")
        weight.assign(rng.uniform(0.5, 1.5, weight.shape) if positive else rng.normal(size=weight.shape) / 2)
    return model


def changed(layer: str, weight: int, factor: float) -> Any:
    model = network()
    own = model.get_layer(layer).weights[weight]
    own.assign(own * factor)
    return model


def exported(model: Any, kind: str, folder: Path) -> Path | bytes:
    if kind == "litert":
        return exports.tflite(model)
    if kind == "frozen":
        return exports.frozen(model, folder / "m.pb")
    return exports.saved_model(model, folder / "saved")


@pytest.mark.parametrize("kind", ["saved", "frozen", "litert"])
def test_an_unbroken_graph_holds_layer_by_layer(kind, tmp_path):
    model = network()
    report = compare_models(model, exported(model, kind, tmp_path), IMAGES)
    assert report.holds, report.why_not()
    assert report.culprits() == []
    assert not report.outputs_only
    (coverage,) = report.coverage.values()
    assert coverage["reference"].parameters[0] == coverage["reference"].parameters[1]
    named = {point.name for point in report.layers}
    assert named >= {"act", "left", "right", "both", "pool", "leaky", "excite", "mean", "head"}
    assert named >= {"stem", "norm"} or kind == "litert"  # which fuses them with the activation


@pytest.mark.parametrize("kind", ["saved", "litert"])
def test_keras_own_names_and_shared_layers_hold(kind, tmp_path):
    """The names of a fresh process, batch_normalization and batch_normalization_1, traced a second time."""
    import keras

    layers = keras.layers
    shared = layers.Conv2D(4, 3, padding="same", name="conv2d_1")
    x = images = keras.Input((12, 12, 3))
    x = layers.Conv2D(4, 3, name="conv2d")(x)
    x = layers.ReLU(name="re_lu")(layers.BatchNormalization(name="batch_normalization")(x))
    x = layers.BatchNormalization(name="batch_normalization_1")(shared(shared(x)))
    x = layers.GlobalAveragePooling2D(name="pool")(layers.ReLU(name="re_lu_1")(x))
    model = keras.Model(images, layers.Dense(5, name="dense")(x))
    for weight in model.weights:
        rng = np.random.default_rng([*weight.path.encode()])
        weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    report = compare_models(model, exported(model, kind, tmp_path), IMAGES)
    assert report.holds, report.why_not()
    named = {point.name for point in report.layers}
    assert named >= ({"batch_normalization", "conv2d_1", "conv2d_1#2"} if kind == "saved" else {"re_lu_1"})


def test_a_keras_port_of_a_torch_network_is_compared_through_its_export(tmp_path):
    import keras_impl
    import torch_impl
    from weights_convert import load_into, save, state_of

    small: Any = {"depths": (1, 1), "width": 8, "block": "basic", "stem": "3x3", "attention": "se"}
    module = exports.randomised(torch_impl.ResNet(**small, num_classes=5))
    model = keras_impl.ResNet(**small, num_classes=5)
    load_into(model, state_of(module))
    saved = exports.saved_model(model, tmp_path / "saved")
    images = np.random.default_rng(0).normal(size=(2, 3, 16, 16))
    report = compare_models(module, saved, images)
    assert report.holds, report.why_not()
    assert {"layer1.0.conv1", "layer2.0.se.fc1", "layer2.0.downsample.1"} <= {p.name for p in report.layers}
    save(state_of(module), tmp_path / "net.safetensors")
    command = ["-m", "parity_tests", str(tmp_path / "net.safetensors"), "--artifact", str(saved)]
    done = subprocess.run(
        [sys.executable, *command], check=False, capture_output=True, text=True, timeout=300
    )
    assert done.stderr == ""  # TensorFlow's own lines are kept off
    assert done.stdout.startswith("parity holds")
    block = model.get_layer("layer2_0")
    block.conv2.kernel.assign(block.conv2.kernel * 1.01)
    report = compare_models(module, exports.saved_model(model, tmp_path / "wrong"), images)
    assert report.culprits() == [(report.candidates[0], "layer2.0.conv2")]


FAULTS: dict[str, tuple[str, Any]] = {  # the name to find; changes of the network, or a layer's weight
    "epsilon": ("norm", {"epsilon": 1e-2}),
    "pool": ("pool", {"pool": "mean"}),
    "activation": ("act", {"activation": "relu"}),
    "slope": ("leaky", {"slope": 0.3}),
    "order": ("both", {"order": -1}),
    "kernel": ("stem", ("stem", 0, 1.001)),
    "depthwise kernel": ("left", ("left", 0, -1.0)),
    "grouped kernel": ("right", ("right", 0, 1.01)),
    "bias": ("excite", ("excite", 1, 0.0)),
    "variance": ("norm", ("norm", 3, 1.01)),
    "classes": ("head", ("head", 0, 1.001)),
}


ALIKE = ("slope", "kernel", "grouped kernel", "variance", "classes")  # each as another one above
MARKED = [pytest.param(fault, marks=[pytest.mark.exhaustive] * (fault in ALIKE)) for fault in FAULTS]


@pytest.mark.parametrize("fault", MARKED)
def test_a_fault_is_named_and_nothing_else(fault, tmp_path):
    wanted, change = FAULTS[fault]
    broken = network(**change) if isinstance(change, dict) else changed(*change)
    report = compare_models(network(), exported(broken, "saved", tmp_path), 10 * IMAGES)
    assert not report.holds
    found = report.first_divergence()
    assert wanted in {found.point.removeprefix("input of "), *found.culprits}, report.why_not()
    assert [name for name in found.culprits if not covers(name, wanted)] == [], report.why_not()


FUSED = {"epsilon": "act", "variance": "act", "kernel": "act", "order": "excite"}  # where LiteRT shows it


@pytest.mark.parametrize("fault", MARKED)
def test_a_fault_of_litert_is_named_at_the_end_of_its_group(fault, tmp_path):
    wanted, change = FAULTS[fault]
    broken = network(**change) if isinstance(change, dict) else changed(*change)
    report = compare_models(network(), exported(broken, "litert", tmp_path), 10 * IMAGES)
    assert not report.holds
    assert report.first_divergence().point == FUSED.get(fault, wanted), report.why_not()


def test_a_graph_with_a_loop_gives_outputs(tmp_path):
    import tensorflow as tf
    from torch import nn

    class Loop(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 12, 12, 3), tf.float32)])
        def double(self, images: Any) -> Any:
            return tf.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, 2.0 * y), (0, images))[1]

    class Eight(nn.Module):
        def forward(self, x: Any) -> Any:
            return 8 * x

    module = Loop()
    tf.saved_model.save(module, str(tmp_path / "loop"), signatures=module.double)
    report = compare_models(Eight(), tmp_path / "loop", IMAGES)
    assert report.holds
    assert report.outputs_only == ["savedmodel"]
    assert not compare_models(nn.Identity(), tmp_path / "loop", IMAGES).holds
