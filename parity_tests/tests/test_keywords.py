"""Constructors refuse the same arguments in the same words in each framework, and accept NumPy's scalars."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import torch

import keras_impl
import tf1_compat
import torch_impl
from parity_tests.judge.synthetic import tiny
from weights_convert import state_of

FUNCTIONS = {
    "SqueezeExcitation": "squeeze_excitation",
    "ChannelAttention": "channel_attention",
    "SpatialAttention": "spatial_attention",
    "CBAM": "cbam",
    "ECA": "eca",
}


def torch_block(block: str, **keywords: Any) -> None:
    channels = () if block == "SpatialAttention" else (16,)
    getattr(torch_impl, block)(*channels, **keywords)


def keras_block(block: str, **keywords: Any) -> None:
    """Not built: the constructor refuses a wrong value."""
    getattr(keras_impl, block)(**keywords)


def tf1_block(block: str, **keywords: Any) -> None:
    with tf.Graph().as_default():
        getattr(tf1_compat, FUNCTIONS[block])(tf.zeros((1, 4, 4, 16)), **keywords)


def torch_network(**keywords: Any) -> None:
    with torch.device("meta"):
        torch_impl.ResNet(**keywords)


def tf1_network(**keywords: Any) -> None:
    with tf.Graph().as_default():
        tf1_compat.resnet(tf.zeros((1, 32, 32, 3)), **keywords)


BLOCKS = {"torch": torch_block, "keras": keras_block, "tf1": tf1_block}
NETWORKS = {"torch": torch_network, "keras": keras_impl.ResNet, "tf1": tf1_network}


def refusals(build: dict[str, Callable[..., Any]], *arguments: Any, **keywords: Any) -> dict[str, str]:
    """The error of each framework."""
    errors = {}
    for framework, function in build.items():
        with pytest.raises(ValueError, match="expected") as caught:
            function(*arguments, **keywords)
        errors[framework] = str(caught.value)
    return errors


BAD_OF_A_BLOCK = [
    ("SqueezeExcitation", {"reduction": 0}, "reduction=0: expected an int of at least 1"),
    ("SqueezeExcitation", {"reduction": -4}, "reduction=-4: expected an int of at least 1"),
    ("ChannelAttention", {"reduction": 2.5}, "reduction=2.5: expected an int of at least 1"),
    ("ChannelAttention", {"reduction": True}, "reduction=True: expected an int of at least 1"),
    ("CBAM", {"reduction": 0}, "reduction=0: expected an int of at least 1"),
    ("CBAM", {"kernel_size": 4}, "kernel_size=4: expected an odd int of at least 1"),
    ("CBAM", {"kernel_size": -3}, "kernel_size=-3: expected an odd int of at least 1"),
    ("CBAM", {"bn_epsilon": -1.0}, "bn_epsilon=-1.0: expected a finite float of at least 0"),
    ("SpatialAttention", {"kernel_size": 6}, "kernel_size=6: expected an odd int of at least 1"),
    ("SpatialAttention", {"kernel_size": 0}, "kernel_size=0: expected an odd int of at least 1"),
    ("SpatialAttention", {"bn_momentum": "0.1"}, "bn_momentum='0.1': expected a finite float of at least 0"),
    ("ECA", {"kernel_size": 2}, "kernel_size=2: expected an odd int of at least 1"),
    ("ECA", {"kernel_size": 0}, "kernel_size=0: expected an odd int of at least 1"),
    ("ECA", {"kernel_size": 3.0}, "kernel_size=3.0: expected an odd int of at least 1"),
]
BAD_OF_A_NETWORK = [
    ({"cbam_kernel_size": 4}, "cbam_kernel_size=4: expected an odd int of at least 1"),
    ({"cbam_kernel_size": 0}, "cbam_kernel_size=0: expected an odd int of at least 1"),
    ({"eca_kernel_sizes": (3, 4)}, "eca_kernel_sizes=4: expected an odd int of at least 1"),
    ({"eca_kernel_sizes": (0, 3)}, "eca_kernel_sizes=0: expected an odd int of at least 1"),
    ({"eca_kernel_sizes": (3,)}, "eca_kernel_sizes=(3,): expected 2, one per stage, or None"),
    ({"eca_kernel_sizes": [3, 5, 7]}, "eca_kernel_sizes=(3, 5, 7): expected 2, one per stage, or None"),
    ({"eca_kernel_sizes": ()}, "eca_kernel_sizes=(): expected 2, one per stage, or None"),
    ({"num_classes": -1}, "num_classes=-1: expected an int of at least 0"),
    ({"num_classes": "10"}, "num_classes='10': expected an int of at least 0"),
    ({"in_channels": 3.0}, "in_channels=3.0: expected an int of at least 1"),
    ({"reduction": 0}, "reduction=0: expected an int of at least 1"),
    ({"reduction": -16}, "reduction=-16: expected an int of at least 1"),
    ({"depths": (1, 0)}, "depths=0: expected an int of at least 1"),
    ({"dropout": 2}, "dropout=2: expected a probability below 1, such as 0.2"),
    ({"dropout": -0.5}, "dropout=-0.5: expected a finite float of at least 0"),
    ({"bn_epsilon": float("nan")}, "bn_epsilon=nan: expected a finite float of at least 0"),
    ({"bn_momentum": None}, "bn_momentum=None: expected a finite float of at least 0"),
    ({"se_bias": "False"}, "se_bias='False': expected one of True, False"),
]


@pytest.mark.quick
@pytest.mark.parametrize(("block", "bad", "text"), BAD_OF_A_BLOCK)
def test_a_block_refuses_with_the_same_text(block, bad, text):
    assert refusals(BLOCKS, block, **bad) == dict.fromkeys(BLOCKS, text)


@pytest.mark.quick
@pytest.mark.parametrize(("bad", "text"), BAD_OF_A_NETWORK)
def test_a_network_refuses_with_the_same_text(bad, text):
    """Even if its attention does not use the value."""
    for attention in ("none", "cbam", "eca"):
        keywords = tiny(attention=attention).model_kwargs() | bad
        assert refusals(NETWORKS, **keywords) == dict.fromkeys(NETWORKS, text)


@pytest.mark.quick
@pytest.mark.parametrize("block", ["SqueezeExcitation", "ChannelAttention", "CBAM", "ECA"])
@pytest.mark.parametrize("channels", [0, -8, 16.0])
def test_channels_are_ints_of_at_least_1(block, channels):
    """In the frameworks that have the argument."""
    for room in (torch_impl, keras_impl):
        with pytest.raises(ValueError, match=f"channels={channels}: expected an int of at least 1"):
            getattr(room, block)(channels)


NUMPY = {
    "depths": np.array([1, 1]),
    "width": np.int32(8),
    "stem_width": np.uint8(8),
    "num_classes": np.int64(5),
    "in_channels": np.int16(3),
    "reduction": np.int64(4),
    "downsample_kernel": np.int64(3),
    "cbam_kernel_size": np.int64(3),
    "eca_kernel_sizes": list(np.array([3, 5])),
    "bn_epsilon": np.float32(1e-3),
    "bn_momentum": np.float64(0.25),
    "cbam_bn_momentum": np.float16(0.5),
    "dropout": np.float32(0.5),
    "cbam_spatial_bias": np.True_,
    "se_bias": np.False_,
}
PLAIN = {
    "depths": (1, 1),
    "width": 8,
    "stem_width": 8,
    "num_classes": 5,
    "in_channels": 3,
    "reduction": 4,
    "downsample_kernel": 3,
    "cbam_kernel_size": 3,
    "eca_kernel_sizes": (3, 5),
    "bn_epsilon": float(np.float32(1e-3)),
    "bn_momentum": 0.25,
    "cbam_bn_momentum": 0.5,
    "dropout": 0.5,
    "cbam_spatial_bias": True,
    "se_bias": False,
}


def specs_of_networks(session: tf.Session, **keywords: Any) -> dict[str, Any]:
    with session.graph.as_default():
        tf1_compat.resnet(tf.zeros((1, 32, 32, 3)), **keywords)
        session.run(tf.global_variables_initializer())
    return {
        "torch": state_of(torch_impl.ResNet(**keywords)).spec,
        "keras": state_of(keras_impl.ResNet(**keywords)).spec,
        "tf1": state_of(session).spec,
    }


@pytest.mark.quick
@pytest.mark.parametrize("attention", ["se", "cbam", "eca"])
def test_numpy_scalars_are_plain_numbers(attention, session):
    given = tiny(attention=attention).model_kwargs() | NUMPY
    wanted = tiny(attention=attention, **PLAIN)
    assert specs_of_networks(session, **given) == dict.fromkeys(NETWORKS, wanted)
    for implementation in (torch_impl, keras_impl):
        config = implementation.ResNet(**given).config
        assert json.loads(json.dumps(dict(config))) == json.loads(json.dumps(wanted.model_kwargs()))


@pytest.mark.quick
def test_a_keras_block_of_numpy_scalars_saves_and_loads(tmp_path):
    inputs = keras.Input((6, 5, 16))
    keywords = {"reduction": np.int64(4), "kernel_size": np.int64(3), "bn_epsilon": np.float32(1e-3)}
    x = keras_impl.CBAM(np.int64(16), **keywords, bn_momentum=np.float32(0.5))(inputs)
    x = keras_impl.SqueezeExcitation(np.int64(16), np.int64(4))(x)
    model = keras.Model(inputs, keras_impl.ECA(np.int64(16), np.int64(5))(x))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(2, 6, 5, 16)).astype(np.float32)
    np.testing.assert_array_equal(model(x), again(x))


# --------------------------------------------------------------------------------------------------
# Inputs of wrong shapes

WITH_CHANNELS = ["SqueezeExcitation", "ChannelAttention", "CBAM", "ECA"]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("block", "keywords"), [*((block, {}) for block in WITH_CHANNELS), ("ECA", {"kernel_size": 3})]
)
def test_other_channels_are_refused(block, keywords):
    module, layer = (getattr(room, block)(64, **keywords) for room in (torch_impl, keras_impl))
    with pytest.raises(ValueError, match=r"input of shape \(2, 32, 7, 6\), expected \(N, 64, H, W\)"):
        module(torch.zeros(2, 32, 7, 6))
    with pytest.raises(ValueError, match=r"input of shape \(2, 7, 6, 32\), expected \(N, H, W, 64\)"):
        layer(np.zeros((2, 7, 6, 32), np.float32))
    layer.build((None, 7, 6, 64))
    with pytest.raises(ValueError, match=r"expected axis -1 of input shape to have value 64"):  # Keras's own
        layer(np.zeros((2, 7, 6, 32), np.float32))


@pytest.mark.quick
@pytest.mark.parametrize("block", FUNCTIONS)
def test_inputs_of_three_axes_are_refused(block):
    channels = () if block == "SpatialAttention" else (16,)
    wanted = "C" if block == "SpatialAttention" else "16"
    with pytest.raises(ValueError, match=rf"input of shape \(16, 7, 6\), expected \(N, {wanted}, H, W\)"):
        getattr(torch_impl, block)(*channels)(torch.zeros(16, 7, 6))
    with pytest.raises(ValueError, match=rf"input of shape \(7, 6, 16\), expected \(N, H, W, {wanted}\)"):
        getattr(keras_impl, block)(*channels)(np.zeros((7, 6, 16), np.float32))
    with (
        tf.Graph().as_default(),
        pytest.raises(ValueError, match=r"input of shape \(7, 6, 16\), expected \(N, H, W, C\)"),
    ):
        getattr(tf1_compat, FUNCTIONS[block])(tf.zeros((7, 6, 16)))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("block", WITH_CHANNELS)
def test_the_check_is_not_in_the_way_of_tracing(block):
    module, x = getattr(torch_impl, block)(16).eval(), torch.rand(2, 16, 7, 6)
    for traced in (
        torch.jit.script(module),
        torch.jit.trace(module, x),
        torch.fx.symbolic_trace(module),
        torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("n")},)).module(),
        torch.compile(module, backend="aot_eager", fullgraph=True),
    ):
        torch.testing.assert_close(traced(x), module(x))
        torch.testing.assert_close(traced(torch.cat([x, x])), module(torch.cat([x, x])))
