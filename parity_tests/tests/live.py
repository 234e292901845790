"""Live networks for tests, and their expected and actual weights, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
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
from weights_convert import Checkpoint
from weights_convert.layouts import LAYOUTS
from weights_convert.spec import ResNetSpec, is_count

NETWORKS = {
    "none": tiny(groups=2, width_per_group=32, stem="deep", downsample_kernel=3, reduce_first=2),
    "se": tiny(attention="se", block="basic", stem="3x3", depths=(1, 2)),
    "cbam": tiny(attention="cbam", cbam_order="mean_max", cbam_spatial_bias=True, stride_in="conv1"),
    "eca": tiny(attention="eca", eca_kernel_sizes=(5, 3), bn_epsilon=1e-3),
    "bias_bn": tiny(norm="bias_bn", stem="deep_tiered", groups=2, width_per_group=32),
    "bias": tiny(norm="bias", attention="se", hidden_rule="absolute", stem="deep"),
}
each_network = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.quick) if name == "cbam" else name for name in NETWORKS]
)
TO_TENSORFLOW = {1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (2, 3, 1, 0)}  # by rank: enough for these tensors


def without_counts(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {name: checkpoint[name] for name in checkpoint if not is_count(name)}


def in_tensorflow(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """What TensorFlow must hold: name under the network's scope -> array."""
    names, arrays = LAYOUTS["tf1"].names(checkpoint.spec), without_counts(checkpoint)
    return {str(names[n]): a.transpose(TO_TENSORFLOW[a.ndim]) for n, a in arrays.items()}


def assert_same(actual: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    assert set(actual) == set(wanted)
    for name, array in wanted.items():
        assert (actual[name].dtype, actual[name].shape) == (array.dtype, array.shape), name
        assert actual[name].tobytes() == array.tobytes(), name


def torch_network(spec: ResNetSpec) -> torch.nn.Module:
    return torch_impl.ResNet(**spec.model_kwargs())


def keras_network(spec: ResNetSpec, **keywords: Any) -> keras.Model:
    return keras_impl.ResNet(**spec.model_kwargs(), **keywords)


def keras_values(layer: keras.Layer) -> dict[str, np.ndarray]:
    """A layer's variables by their path inside it, read with Keras."""
    return {v.path.partition("/")[2]: keras.ops.convert_to_numpy(v) for v in layer.weights}


def tf1_network(session: tf.Session, spec: ResNetSpec, **keywords: Any) -> tf.Tensor:
    """Build a network with random weights in a session; return its logits."""
    with session.graph.as_default():
        placeholder = tf.placeholder(tf.float32, (None, None, None, spec.in_channels), name="images")
        logits, _ = tf1_compat.resnet(placeholder, **spec.model_kwargs(), **keywords)
        session.run(tf.global_variables_initializer())
    return logits
