"""`optimize_for_inference` in the three frameworks gives the same numbers and keeps the original weights."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import torch
from keras import layers as L

import keras_impl
import tf1_compat
import torch_impl
from parity_tests.judge import synthetic, tolerances
from parity_tests.judge.synthetic import tiny
from parity_tests.watch.build import RUNNERS, same_bits
from weights_convert import Checkpoint, load_into, state_of
from weights_convert.changes import fold_bn
from weights_convert.spec import MobileNetSpec, ShuffleNetSpec, Spec, VGGSpec

SPECS = {
    "grouped_se": tiny(depths=(1, 1), groups=8, width_per_group=16, attention="se", bn_epsilon=1e-3),
    "cbam": tiny(attention="cbam"),
    "cbam_without_bn": tiny(attention="cbam", cbam_bn=False, block="basic"),
    "cbam_bias": tiny(depths=(1, 1), attention="cbam", cbam_spatial_bias=True, cbam_order="mean_max"),
    "eca": tiny(attention="eca", stem="deep", downsample_pool="avg"),
    "sk": tiny(depths=(1, 1), attention="sk", sk_split=True, sk_min_hidden=4, norm="bias_bn"),
    "gn": tiny(depths=(1,), width=32, stem_width=32, norm="gn", attention="cbam"),
    "bias_bn": tiny(depths=(1, 1), norm="bias_bn", stem="deep_tiered", dropout=0.5),
    "bias": tiny(norm="bias", attention="cbam"),
    "shufflenet": ShuffleNetSpec(
        depths=(1, 1),
        widths=(12, 24),
        stem_width=6,
        num_classes=5,
        attention="se",
        concat_order="shortcut_branch",
    ),
    "mobilenet": MobileNetSpec(
        depths=(1, 1), widths=(8, 12), stem_width=8, num_classes=5, attention="cbam", stride_padding="same"
    ),
    "vgg": VGGSpec(
        depths=(2, 1), widths=(8, 12), head_width=16, num_classes=5, attention="cbam", reduction=4
    ),
    "vgg_bias": VGGSpec(depths=(1,), widths=(8,), head_width=16, num_classes=0, norm="bias"),
}
ORDINARY = ("grouped_se", "cbam_bias", "bias_bn", "mobilenet", "shufflenet", "vgg")
Optimized = tuple[np.ndarray, Checkpoint | None, Checkpoint]  # logits, its weights, the plain ones


def optimized_torch(spec: Spec, weights: Checkpoint, x: np.ndarray, dtype: str) -> Optimized:
    model = getattr(torch_impl, spec.network)(**spec.model_kwargs()).to(getattr(torch, dtype))
    load_into(model, weights)
    fast = torch_impl.optimize_for_inference(model, compile=False)
    with torch.inference_mode():
        logits = fast(torch.from_numpy(x.astype(dtype)))
    assert model.training
    assert not fast.training
    return logits.numpy(), state_of(fast), state_of(model)


def optimized_keras(spec: Spec, weights: Checkpoint, x: np.ndarray, dtype: str) -> Optimized:
    model = getattr(keras_impl, spec.network)(**spec.model_kwargs(), dtype=dtype)
    load_into(model, weights)
    fast = keras_impl.optimize_for_inference(model)
    assert model.trainable
    assert not fast.trainable_variables
    logits = fast.predict_on_batch(x.astype(dtype).transpose(0, 2, 3, 1))
    return logits, state_of(fast), state_of(model)


def optimized_tf1(spec: Spec, weights: Checkpoint, x: np.ndarray, dtype: str) -> Optimized:
    with tf.Graph().as_default(), tf.Session() as session:
        images = tf.placeholder(dtype, (None, None, None, spec.input_channels))
        getattr(tf1_compat, spec.network.lower())(
            images, is_training=True, scope="net", **spec.model_kwargs()
        )
        load_into(session, weights)
        graph_def = tf1_compat.optimize_for_inference(session)
        state = state_of(session)
    assert not [node.name for node in graph_def.node if "Variable" in node.op]
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(graph_def, name="")
        logits = session.run("logits:0", {"images:0": x.astype(dtype).transpose(0, 2, 3, 1)})
    return logits, None, state


OPTIMIZED: dict[str, Callable[..., Optimized]] = {
    "torch": optimized_torch,
    "keras": optimized_keras,
    "tf1": optimized_tf1,
}


@pytest.mark.parametrize("framework", OPTIMIZED)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ORDINARY else pytest.mark.exhaustive) for n in SPECS]
)
def test_the_numbers_are_those_of_the_plain_network(name, framework):
    spec, x = SPECS[name], synthetic.images((37, 45))
    weights = synthetic.weights(spec)
    plain = RUNNERS[framework](spec, weights, x, "float64").points["logits"]
    logits, _, state = OPTIMIZED[framework](spec, weights, x, "float64")
    assert tolerances.relative_error(logits, plain) < tolerances.FLOAT64
    assert same_bits(weights, state, "float64") == []

    noise = tolerances.relative_error(RUNNERS["torch"](spec, weights, x, "float32").points["logits"], plain)
    logits, fast, _ = OPTIMIZED[framework](spec, weights, x, "float32")
    assert tolerances.relative_error(logits, plain) < tolerances.float32_limit(noise)
    if fast is not None and spec.norm != "bias":  # the converter folds the same, bit for bit
        assert same_bits(fold_bn(weights), fast, "float32") == []


@pytest.mark.parametrize("framework", OPTIMIZED)
def test_something_was_folded(framework):
    """Without the statistics of its batch norms the network gives other numbers: the test above can fail."""
    spec, x = SPECS["cbam"], synthetic.images((37, 45))
    weights = synthetic.weights(spec)
    plain = RUNNERS[framework](spec, weights, x, "float64").points["logits"]
    other = dict(weights)
    other["layer2.0.downsample.1.running_mean"] = other["layer2.0.downsample.1.running_mean"] + 1e-9
    logits, _, _ = OPTIMIZED[framework](spec, synthetic.checkpoint(other, spec), x, "float64")
    assert tolerances.relative_error(logits, plain) > tolerances.FLOAT64


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own import
def test_compiled_torch_gives_the_same_numbers():
    spec, x = tiny(attention="se", depths=(1,), groups=8, width_per_group=16), synthetic.images((32, 32))
    model = torch_impl.ResNet(**spec.model_kwargs()).eval()
    load_into(model, synthetic.weights(spec))
    fast = torch_impl.optimize_for_inference(model)
    with torch.inference_mode():
        plain, logits = model(torch.from_numpy(x)).numpy(), fast(torch.from_numpy(x)).numpy()
    assert tolerances.relative_error(logits, plain) < 4e-6


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own import
def test_every_shape_of_images_is_compiled(monkeypatch):
    """More than torch's own limit (8, here 2), beyond which it runs uncompiled."""
    spec = tiny(depths=(1,), width=1, stem_width=1, stem="3x3", block="basic")
    fast = torch_impl.optimize_for_inference(torch_impl.ResNet(**spec.model_kwargs()))
    # traced for each shape, but without running a C++ compiler
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(recompile_limit=2):
        for size in range(4, 8):
            fast(torch.zeros(1, 3, size, size))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4


class Wraps(keras.Model):
    """A subclass, which has no config of its structure."""

    def __init__(self, spec: Spec):
        super().__init__()
        self.net = keras_impl.ResNet(**spec.model_kwargs())


WRAPPED: dict[str, Callable[[keras.Model], keras.Model]] = {
    "sequential": lambda net: keras.Sequential([L.Input((37, 45, 3)), L.Rescaling(0.5), net, L.Dense(3)]),
    "nested": lambda net: keras.Sequential([keras.Sequential([L.Input((37, 45, 3)), L.Rescaling(0.5), net])]),
    "functional": lambda net: keras.Model(net.input, L.Dense(3)(net(net.input))),
}


@pytest.mark.parametrize("wrap", WRAPPED)
def test_a_keras_model_with_a_network_in_it(wrap):
    spec, x = (
        SPECS["vgg" if wrap == "nested" else "cbam_bias"],
        synthetic.images((37, 45)).transpose(0, 2, 3, 1),
    )
    net = getattr(keras_impl, spec.network)(**spec.model_kwargs())
    load_into(net, synthetic.weights(spec))
    model = WRAPPED[wrap](net)
    fast = keras_impl.optimize_for_inference(model)
    assert not fast.trainable_variables
    assert model.trainable_variables
    plain = model.predict_on_batch(x)
    assert tolerances.relative_error(fast.predict_on_batch(x), plain) < 4e-6
    assert same_bits(fold_bn(synthetic.weights(spec)), state_of(fast), "float32") == []


def test_other_models_are_refused(session):
    with pytest.raises(TypeError, match="received a Linear, expected a network of torch_impl"):
        torch_impl.optimize_for_inference(torch.nn.Linear(1, 1))
    for other in (keras.layers.Dense(1), keras.Sequential([keras.layers.Dense(1)]), Wraps(SPECS["eca"])):
        with pytest.raises(
            TypeError, match=f"received a {type(other).__name__}, expected a network of keras_impl"
        ):
            keras_impl.optimize_for_inference(other)
    with session.graph.as_default():
        for scope in ("a", "b"):
            tf1_compat.resnet(tf.zeros((1, 32, 32, 3)), scope=scope, **SPECS["eca"].model_kwargs())
        session.run(tf.global_variables_initializer())
    with pytest.raises(ValueError, match=r"scope=None: expected one of the graph's networks, .*'a', 'b'"):
        tf1_compat.optimize_for_inference(session)
    assert tf1_compat.optimize_for_inference(session, "b").node
