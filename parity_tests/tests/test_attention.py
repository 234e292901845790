"""Every single attention block in each framework against the NumPy judge, and its invalid keywords."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import torch

import keras_impl
import tf1_compat
import torch_impl
from parity_tests.judge import synthetic, tolerances
from parity_tests.judge.numpy_reference.attention import attention_block
from parity_tests.judge.synthetic import ATTENTION_SPECS
from weights_convert import AttentionSpec, Checkpoint, load_into

SIZES = [(7, 7), (8, 6), (1, 1), (5, 14)]


def keywords(spec: AttentionSpec) -> dict[str, object]:
    """The block's keywords, from the keywords of networks."""
    if spec.attention == "se":
        return {"reduction": spec.reduction, "hidden_rule": spec.hidden_rule, "bias": spec.se_bias}
    if spec.attention == "eca":
        return {"kernel_size": spec.eca_kernel_size, "padding": spec.eca_padding}
    return {
        "reduction": spec.reduction,
        "hidden_rule": spec.hidden_rule,
        "mlp_bias": spec.cbam_mlp_bias,
        "order": spec.cbam_order,
        "kernel_size": spec.cbam_kernel_size,
        "bn": spec.cbam_bn,
        "bn_momentum": spec.cbam_bn_momentum,
        "bn_epsilon": spec.bn_epsilon,
        "spatial_bias": spec.cbam_spatial_bias,
        "spatial_input": spec.cbam_spatial_input,
    }


CLASSES = {"se": "SqueezeExcitation", "cbam": "CBAM", "eca": "ECA"}
FUNCTIONS = {"se": "squeeze_excitation", "cbam": "cbam", "eca": "eca"}


def run_torch(spec: AttentionSpec, weights: Checkpoint, *images: np.ndarray) -> list[np.ndarray]:
    block = getattr(torch_impl, CLASSES[spec.attention])(spec.channels, **keywords(spec))
    block = block.to(torch.from_numpy(images[0]).dtype).eval()
    load_into(block, weights)
    return [block(torch.from_numpy(x)).detach().numpy() for x in images]


def run_keras(spec: AttentionSpec, weights: Checkpoint, *images: np.ndarray) -> list[np.ndarray]:
    block = getattr(keras_impl, CLASSES[spec.attention])(**keywords(spec), dtype=images[0].dtype.name)
    block.build((None, None, None, spec.channels))
    load_into(block, weights)
    outputs = [block(x.transpose(0, 2, 3, 1)) for x in images]
    return [keras.ops.convert_to_numpy(y).transpose(0, 3, 1, 2) for y in outputs]


def run_tf1(spec: AttentionSpec, weights: Checkpoint, *images: np.ndarray) -> list[np.ndarray]:
    with tf.Graph().as_default(), tf.Session() as session:
        x = tf.placeholder(images[0].dtype, (None, None, None, spec.channels))
        y = getattr(tf1_compat, FUNCTIONS[spec.attention])(x, **keywords(spec), scope="block")
        load_into(session, weights, scope="block")
        outputs = [session.run(y, {x: given.transpose(0, 2, 3, 1)}) for given in images]
        return [output.transpose(0, 3, 1, 2) for output in outputs]


RUN: dict[str, Callable[..., list[np.ndarray]]] = {
    "torch": run_torch,
    "keras": run_keras,
    "tf1": run_tf1,
}


@pytest.mark.quick
@pytest.mark.parametrize("framework", RUN)
@pytest.mark.parametrize("name", ATTENTION_SPECS)
def test_float64(name, framework):
    spec = ATTENTION_SPECS[name]
    weights = synthetic.weights(spec)
    images = [synthetic.images(size, 2, spec.channels, seed) for seed, size in enumerate(SIZES)]
    for x, y in zip(
        images, RUN[framework](spec, weights, *(x.astype(np.float64) for x in images)), strict=True
    ):
        reference = attention_block(x.astype(np.float64), weights, spec)
        assert tolerances.relative_error(y, reference) <= tolerances.FLOAT64


@pytest.mark.parametrize("framework", RUN)
@pytest.mark.parametrize("name", ATTENTION_SPECS)
def test_float32(name, framework):
    spec = ATTENTION_SPECS[name]
    weights = synthetic.weights(spec)
    x = synthetic.images((9, 8), channels=spec.channels)
    reference = attention_block(x, weights, spec)
    noise = tolerances.relative_error(
        *run_torch(spec, weights, x), *run_torch(spec, weights, x.astype(np.float64))
    )
    error = tolerances.relative_error(*RUN[framework](spec, weights, x), reference)
    assert error <= tolerances.float32_limit(noise)


@pytest.mark.quick
@pytest.mark.parametrize("name", ATTENTION_SPECS)
def test_the_block_does_something(name):
    """Otherwise equality with the judge would prove nothing."""
    spec = ATTENTION_SPECS[name]
    x = synthetic.images((9, 8), channels=spec.channels)
    y = attention_block(x, synthetic.weights(spec), spec)
    assert tolerances.relative_error(y, x) > 0.1


@pytest.mark.quick
def test_keras_blocks_learn_their_channels_and_check_them():
    block = keras_impl.SqueezeExcitation(reduction=4)
    assert block(np.zeros((1, 2, 2, 24), np.float32)).shape == (1, 2, 2, 24)
    with pytest.raises(ValueError, match=r"input of shape .* expected \(N, H, W, 16\)"):
        keras_impl.SqueezeExcitation(16).build((None, 2, 2, 24))


@pytest.mark.parametrize("name", ATTENTION_SPECS)
def test_keras_blocks_in_a_functional_model_save_and_load(name, tmp_path):
    spec = ATTENTION_SPECS[name]
    inputs = keras.Input((6, 5, spec.channels))
    block = getattr(keras_impl, CLASSES[spec.attention])(**keywords(spec))
    model = keras.Model(inputs, block(inputs))
    load_into(block, synthetic.weights(spec))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(2, 6, 5, spec.channels)).astype(np.float32)
    np.testing.assert_array_equal(model(x), again(x))


@pytest.mark.quick
@pytest.mark.parametrize(
    ("block", "bad"),
    [
        ("SqueezeExcitation", {"hidden_rule": "round"}),
        ("CBAM", {"order": "avg_max"}),
        ("CBAM", {"spatial_input": "output"}),
        ("CBAM", {"hidden_rule": "round"}),
    ],
)
def test_wrong_keyword_values_are_refused(block, bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}='.*': expected one of"):
        getattr(torch_impl, block)(16, **bad)
    with pytest.raises(ValueError, match=f"{next(iter(bad))}='.*': expected one of"):
        getattr(keras_impl, block)(16, **bad)
    function = {"SqueezeExcitation": "squeeze_excitation", "CBAM": "cbam"}[block]
    with tf.Graph().as_default(), pytest.raises(ValueError, match=f"{next(iter(bad))}='.*': expected one of"):
        getattr(tf1_compat, function)(tf.zeros((1, 4, 4, 16)), **bad)
