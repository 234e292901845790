"""Train mode in the three frameworks: outputs by batch statistics, running variance without bias."""

from __future__ import annotations

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import torch

import keras_impl
import tf1_compat
import torch_impl
from parity_tests.judge import synthetic, tolerances
from parity_tests.judge.synthetic import tiny
from weights_convert import Checkpoint, load_into, state_of
from weights_convert.spec import ResNetSpec

GROUPED = {"groups": 8, "width_per_group": 16, "depths": (1, 1)}
SPECS = {
    "grouped_se": tiny(**GROUPED, attention="se"),
    "grouped_cbam": tiny(**GROUPED, attention="cbam", cbam_bn_momentum=0.05),
    "eca": tiny(attention="eca", block="basic", bn_momentum=0.3),
    "grouped_sk": tiny(**GROUPED, attention="sk", sk_min_hidden=4),
    "gn": tiny(depths=(1, 1), width=32, stem_width=32, norm="gn", block="basic"),
    "bias_bn": tiny(**GROUPED, norm="bias_bn", stem="deep_tiered"),
    "bias": tiny(**GROUPED, norm="bias", attention="cbam"),
    "blurred_dilated": tiny(
        **GROUPED | {"depths": (1, 1, 1)},
        strides=(1, 2, 1),
        dilations=(1, 1, 2),
        anti_aliasing="blur",
        stem_pool="conv",
        activation="gelu",
        global_pool="catavgmax",
        downsample_pool="avg",
        head_bias=False,
    ),
    "circular": tiny(
        attention="eca",
        block="basic",
        eca_padding="circular",
        strides=(1, 1),
        anti_aliasing="avg",
        activation="silu",
        global_pool="avgmax",
    ),
}
SIZE = (33, 30)
GRADIENTS = {"weight": ("kernel", (3, 2, 0, 1)), "bias": ("bias", (0,))}  # in TensorFlow, axes to torch's
quick = partial(pytest.param, marks=pytest.mark.quick)
Step = tuple[np.ndarray, Checkpoint]


def step_torch(spec: ResNetSpec, weights: Checkpoint, x: np.ndarray, dtype: str) -> Step:
    model = torch_impl.ResNet(**spec.model_kwargs()).to(getattr(torch, dtype)).train()
    load_into(model, weights)
    logits = model(torch.from_numpy(x.astype(dtype)))
    return logits.detach().numpy(), state_of(model)


def step_keras(spec: ResNetSpec, weights: Checkpoint, x: np.ndarray, dtype: str) -> Step:
    model = keras_impl.ResNet(**spec.model_kwargs(), dtype=dtype)
    load_into(model, weights)
    logits = model(x.astype(dtype).transpose(0, 2, 3, 1), training=True)
    return keras.ops.convert_to_numpy(logits), state_of(model)


def step_tf1(spec: ResNetSpec, weights: Checkpoint, x: np.ndarray, dtype: str) -> Step:
    with tf.Graph().as_default(), tf.Session() as session:
        images = tf.placeholder(dtype, (None, None, None, spec.in_channels))
        logits, _ = tf1_compat.resnet(images, is_training=True, **spec.model_kwargs())
        load_into(session, weights)
        updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
        value, *_ = session.run([logits, *updates], {images: x.astype(dtype).transpose(0, 2, 3, 1)})
        return value, state_of(session)


STEPS = {"torch": step_torch, "keras": step_keras, "tf1": step_tf1}


@pytest.mark.parametrize("framework", ["keras", "tf1"])
@pytest.mark.parametrize("name", [quick(name) if name == "grouped_se" else name for name in SPECS])
def test_float64_outputs_and_statistics(name, framework):
    spec, x = SPECS[name], synthetic.images(SIZE, batch=3)
    weights = synthetic.weights(spec)
    logits, state = step_torch(spec, weights, x, "float64")
    others, other = STEPS[framework](spec, weights, x, "float64")
    assert tolerances.relative_error(others, logits) <= tolerances.FLOAT64
    moved = [tensor for tensor in other if "running" in tensor]
    for tensor in moved:
        assert tolerances.relative_error(other[tensor], state[tensor]) <= tolerances.FLOAT64, tensor
        assert tolerances.relative_error(other[tensor], weights[tensor]) > 1e-4, f"{tensor} was not updated"
    assert bool(moved) == any("running" in tensor for tensor in state)


@pytest.mark.parametrize("name", SPECS)
def test_float32_outputs_and_statistics(name):
    spec, x = SPECS[name], synthetic.images(SIZE, batch=3)
    weights = synthetic.weights(spec)
    logits, state = step_torch(spec, weights, x, "float64")
    single = {framework: step(spec, weights, x, "float32") for framework, step in STEPS.items()}

    def check(what: str, reference: np.ndarray, values: dict[str, np.ndarray]) -> None:
        limit = tolerances.float32_limit(tolerances.relative_error(values["torch"], reference))
        for framework, value in values.items():
            assert tolerances.relative_error(value, reference) <= limit, (what, framework)

    check("logits", logits, {framework: value for framework, (value, _) in single.items()})
    for tensor in state:
        if "running" in tensor:
            check(
                tensor, state[tensor], {framework: other[tensor] for framework, (_, other) in single.items()}
            )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("network", "leaf"),
    [
        ("grouped_se", "weight"),
        pytest.param("bias_bn", "weight", marks=pytest.mark.exhaustive),
        ("bias_bn", "bias"),
        pytest.param("bias", "weight", marks=pytest.mark.exhaustive),
        pytest.param("bias", "bias", marks=pytest.mark.exhaustive),
    ],
)
def test_grouped_gradients_exist_and_agree(network, leaf, dtype):
    """The gradients of a grouped convolution, partly missing in TensorFlow on a CPU, and of its bias."""
    spec = SPECS[network]
    weights, x = synthetic.weights(spec), synthetic.images((16, 16), batch=2)
    name, of_tf, axes = f"layer1.0.conv2.{leaf}", *GRADIENTS[leaf]

    model = torch_impl.ResNet(**spec.model_kwargs()).to(getattr(torch, dtype)).eval()
    load_into(model, weights)
    model(torch.from_numpy(x.astype(dtype))).square().sum().backward()
    reference = model.get_parameter(name).grad.numpy()

    other = keras_impl.ResNet(**spec.model_kwargs(), dtype=dtype)
    load_into(other, weights)
    import tensorflow as tf2

    tensor = getattr(other.layer1[0].conv2, of_tf)
    with tf2.GradientTape() as tape:
        loss = tf2.reduce_sum(other(x.astype(dtype).transpose(0, 2, 3, 1), training=False) ** 2)
    of_keras = tape.gradient(loss, tensor.value).numpy().transpose(axes)

    with tf.Graph().as_default(), tf.Session() as session:
        images = tf.constant(x.astype(dtype).transpose(0, 2, 3, 1))
        logits, _ = tf1_compat.resnet(images, **spec.model_kwargs())
        load_into(session, weights)
        variable = next(v for v in tf.trainable_variables() if v.op.name == f"layer1_0/conv2/{of_tf}")
        gradient = tf.gradients(tf.reduce_sum(logits**2), variable)
        of_tf1 = session.run(gradient)[0].transpose(axes)

    limit = tolerances.FLOAT64 if dtype == "float64" else tolerances.FLOAT32_SHALLOW_GRADIENT
    assert tolerances.relative_error(of_keras, reference) <= limit
    assert tolerances.relative_error(of_tf1, reference) <= limit


@pytest.mark.quick
def test_one_value_per_channel_leaves_the_variance_finite():
    """n / (n - 1) is undefined for n = 1: the variance stays 0, as in TensorFlow's fused op."""
    layer = keras_impl.attention.BatchNormalization(momentum=0.5)
    layer(np.ones((1, 1, 1, 2), np.float32), training=True)
    np.testing.assert_allclose(layer.moving_variance, [0.5, 0.5])


def test_dropout_acts_in_training_only():
    spec, x = tiny(dropout=0.5, depths=(1,)), synthetic.images((16, 16))
    weights = synthetic.weights(spec)
    model = torch_impl.ResNet(**spec.model_kwargs())
    load_into(model, weights)
    other = keras_impl.ResNet(**spec.model_kwargs())
    load_into(other, weights)
    nhwc = x.transpose(0, 2, 3, 1)
    torch.manual_seed(0)
    keras.utils.set_random_seed(0)
    assert not torch.equal(model.train()(torch.from_numpy(x)), model(torch.from_numpy(x)))
    assert torch.equal(model.eval()(torch.from_numpy(x)), model(torch.from_numpy(x)))
    assert not np.array_equal(other(nhwc, training=True), other(nhwc, training=True))
    assert np.array_equal(other(nhwc, training=False), other(nhwc, training=False))
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(0)
        logits, _ = tf1_compat.resnet(tf.constant(nhwc), is_training=True, **spec.model_kwargs())
        load_into(session, weights)
        assert not np.array_equal(session.run(logits), session.run(logits))
