"""Pooling at every size and padding rule, also for negative inputs, where zero and -inf padding differ."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import torch

import keras_impl.layers
import tf1_compat.layers
from parity_tests.judge.numpy_reference.resnet import average_pool_2x2, max_pool
from torch_impl.blocks import Bottleneck
from torch_impl.layers import STEM_POOLS

SIZES = [(7, 7), (8, 8), (7, 8), (2, 3), (12, 5)]


def inputs(size: tuple[int, int]) -> np.ndarray:
    """Negative values only: zeros of a padded edge would be the maximum."""
    return -1 - np.random.default_rng(0).random((2, 3, *size))


def in_keras(function, *arguments) -> np.ndarray:
    x, *rest = arguments
    images = keras.ops.convert_to_tensor(x.transpose(0, 2, 3, 1), "float64")
    return keras.ops.convert_to_numpy(function(images, *rest)).transpose(0, 3, 1, 2)


def in_tf1(function, *arguments) -> np.ndarray:
    x, *rest = arguments
    with tf.Graph().as_default(), tf.Session() as session:
        images = tf.placeholder(tf.float64, (None, None, None, 3))  # sizes unknown to the graph
        return session.run(function(images, *rest), {images: x.transpose(0, 2, 3, 1)}).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("rule", STEM_POOLS)
def test_max_pool(rule, size):
    x = inputs(size)
    reference = max_pool(x, rule)
    np.testing.assert_array_equal(STEM_POOLS[rule]()(torch.from_numpy(x)).numpy(), reference)
    np.testing.assert_array_equal(in_keras(keras_impl.layers.max_pool, x, rule), reference)
    np.testing.assert_array_equal(in_tf1(tf1_compat.layers.max_pool, x, rule), reference)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_average_pool(size):
    x = inputs(size)
    reference = average_pool_2x2(x)
    block = Bottleneck(3, 1, 2, downsample_pool="avg")
    pooled = block.downsample_pool(torch.from_numpy(x)).numpy()
    for values in (
        pooled,
        in_keras(keras_impl.layers.average_pool, x),
        in_tf1(tf1_compat.layers.average_pool, x),
    ):
        np.testing.assert_allclose(values, reference, rtol=1e-14)
