"""How the graph functions are called: in a graph, with a bool for training, with tensors or NumPy arrays."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import tf1_compat
from parity_tests.judge import synthetic
from parity_tests.judge.synthetic import tiny
from weights_convert import load_model, save

EAGER = (
    "tf1_compat builds graphs: call it inside tf.Graph().as_default(), after tf.compat.v1."
    "disable_eager_execution(), or in tf.compat.v1.wrap_function in the place of tf.function"
)
SMALL = {"block": "basic", "depths": (1,), "width": 8, "stem": "3x3", "stem_width": 8}
FUNCTIONS = {  # every public function that creates variables
    "squeeze_excitation": tf1_compat.squeeze_excitation,
    "channel_attention": tf1_compat.channel_attention,
    "spatial_attention": tf1_compat.spatial_attention,
    "cbam": tf1_compat.cbam,
    "eca": tf1_compat.eca,
    "basic_block": partial(tf1_compat.basic_block, planes=16, scope="block"),
    "bottleneck": partial(tf1_compat.bottleneck, planes=4, scope="block"),
    "resnet": partial(tf1_compat.resnet, in_channels=16, **SMALL),
    "se_resnet20": partial(tf1_compat.se_resnet20, in_channels=16),
}


@pytest.fixture
def graph():
    with tf.Graph().as_default() as graph:
        yield graph


@pytest.mark.quick
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("array", [np.asarray, tf.constant], ids=["numpy", "tensor"])
def test_eager_mode_is_refused(name, array):
    """Every call would create new random variables."""
    assert tf.executing_eagerly()
    with pytest.raises(RuntimeError, match=f"^{re.escape(EAGER)}$"):
        FUNCTIONS[name](array(np.zeros((1, 8, 8, 16), np.float32)))


def test_a_loaded_network_is_refused_in_eager_mode(tmp_path):
    save(synthetic.weights(tiny(attention="se")), tmp_path / "model.pth")
    network = load_model(tmp_path / "model.pth", "tf1")
    with pytest.raises(RuntimeError, match=re.escape(EAGER)):
        network(np.zeros((1, 32, 32, 3), np.float32))


@pytest.mark.quick
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.usefixtures("graph")
def test_numpy_arrays_are_accepted(name, dtype):
    y = FUNCTIONS[name](np.zeros((1, 8, 8, 16), dtype))
    assert (y[0] if isinstance(y, tuple) else y).dtype == dtype


WITH_MODE = ["spatial_attention", "cbam", "resnet", "se_resnet20"]


@pytest.mark.quick
@pytest.mark.parametrize("name", WITH_MODE)
@pytest.mark.parametrize("keywords", [{}, {"bn": False}])
@pytest.mark.usefixtures("graph")
def test_the_mode_is_a_python_bool(name, keywords):
    if keywords and "resnet" in name:
        keywords = {"norm": "bias"}
    x = np.zeros((1, 8, 8, 16), np.float32)
    with pytest.raises(
        TypeError, match="is_training: expected a Python bool, got 'False'; build one graph for"
    ):
        FUNCTIONS[name](x, is_training="False", **keywords)
    message = r"is_training: expected a Python bool, got <tf.Tensor 'mode:0' .*>; build one graph for each"
    with pytest.raises(TypeError, match=message):
        FUNCTIONS[name](x, is_training=tf.placeholder(tf.bool, (), "mode"), **keywords)
    for number in (0, None):
        with pytest.raises(TypeError, match="expected a Python bool"):
            FUNCTIONS[name](x, is_training=number, **keywords)
    assert tf.global_variables() == []
    FUNCTIONS[name](x, is_training=np.True_, **keywords)
