"""Gradients in the three frameworks: with respect to the input, the stages and every parameter."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import torch

import keras_impl
import torch_impl
from parity_tests.compare.gradients import gradients, notes
from parity_tests.compare.networks import error
from parity_tests.compare.report import Point
from parity_tests.judge import synthetic, tolerances
from parity_tests.judge.synthetic import tiny
from weights_convert import Checkpoint, SpecError, model_spec, parameters
from weights_convert.spec import AttentionSpec, ResNetSpec

SPECS = {
    "se": tiny(attention="se"),
    "cbam": tiny(attention="cbam", depths=(1, 1)),
    "cbam_input": tiny(attention="cbam", block="basic", cbam_spatial_input="input", cbam_bn=False),
    "eca": tiny(attention="eca", block="basic"),
    "grouped": tiny(attention="se", groups=8, width_per_group=16, stem="deep_tiered", depths=(1, 1)),
    "sk": tiny(attention="sk", block="basic", sk_split=True, sk_min_hidden=4, depths=(1, 1)),
    "gn": tiny(depths=(1,), width=32, stem_width=32, norm="gn", block="basic"),
    "bias_bn": tiny(
        attention="cbam", norm="bias_bn", cbam_spatial_bias=True, depths=(1, 1)
    ),  # biases whose gradient is 0
    "bias": tiny(attention="eca", norm="bias"),
}
CANDIDATES = ("keras", "tf1")


def of(spec: ResNetSpec, **keywords) -> list[Point]:
    images = synthetic.images((33, 30), batch=3, channels=spec.in_channels)
    return gradients(synthetic.weights(spec), images, **keywords)


def failures(points: list[Point]) -> dict[tuple[str, str], float]:
    return {(c, point.name): point.errors[c] for point in points for c in point.failures()}


@pytest.mark.quick
@pytest.mark.parametrize("attention", ["se", "cbam"])
def test_one_block(attention):
    assert failures(of(tiny(attention=attention, block="basic", depths=(1,)))) == {}


# cases left out of an ordinary run are covered by others, or by test_one_block
EXHAUSTIVE = ("se", "cbam_input", "bias")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.exhaustive if n in EXHAUSTIVE else []) for n in SPECS]
)
def test_float64(name):
    points = of(SPECS[name])
    assert failures(points) == {}
    assert {tuple(point.errors) for point in points} == {CANDIDATES}


@pytest.mark.parametrize(
    "name",
    ["cbam", "grouped", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("se", "eca"))],
)
def test_float32_of_shallow_nets(name):
    points = of(SPECS[name], dtype="float32")
    assert failures(points) == {}
    assert all(point.noise is not None and math.isfinite(point.limit) for point in points)
    assert max(max(point.errors.values()) for point in points) > 1e-8, "float32 was not computed in float32"


def test_running_statistics():
    """In eval mode a bias before batch normalisation has a gradient, compared at its own scale."""
    assert failures(of(SPECS["bias_bn"], train=False)) == {}


@pytest.mark.quick
def test_every_gradient_is_there_in_order():
    points = of(SPECS["se"], frameworks=("torch",))
    stages = ["input", "stem", "layer1", "layer2", "pooled", "logits"]
    trainable = [p for p in parameters(SPECS["se"]) if p.trainable]
    assert [point.name for point in points] == [*stages, *(p.name for p in trainable)]
    assert [point.shape for point in points[6:]] == [p.shape for p in trainable]
    assert points[0].shape == (3, 3, 33, 30)
    assert points[2].shape == (3, 32, 9, 8)


@pytest.mark.quick
def test_deep_nets_have_no_float32_limit_but_a_noise():
    spec = tiny(depths=(2, 2, 1), block="basic")
    points = of(spec, dtype="float32", frameworks=("torch",))
    assert {point.limit for point in points} == {math.inf}
    assert all(0 <= point.noise < 1 for point in points)
    assert "have no limit" in notes(synthetic.weights(spec), "float32")[0]
    assert notes(synthetic.weights(spec), "float64") == []


@pytest.mark.quick
def test_dropout_is_off():
    dropped = dataclasses.replace(SPECS["se"], dropout=0.5)
    points = of(dropped, frameworks=("torch",), dtype="float32")
    assert max(point.noise for point in points) < 1e-4, "two runs of torch drew different dropouts"
    assert "dropout is off" in notes(synthetic.weights(dropped), "float64")[0]


# --------------------------------------------------------------------------------------------------
# Broken on purpose: changes of no output, or only of outputs in train mode


@pytest.mark.parametrize("candidate", CANDIDATES)
def test_detached_attention(candidate, monkeypatch):
    """A stop-gradient changes no output."""
    if candidate == "keras":
        whole = keras_impl.attention.mean
        stopped = lambda x, *axes: tf.stop_gradient(whole(x, *axes))  # noqa: E731
        monkeypatch.setattr(keras_impl.attention, "mean", stopped)
    else:
        conv1d = tf.nn.conv1d
        stopped = lambda z, *rest: conv1d(tf.stop_gradient(z), *rest)  # noqa: E731
        monkeypatch.setattr(tf.nn, "conv1d", stopped)
    points = of(SPECS["eca"])
    assert max(p.errors[candidate] for p in points) > 1e-3
    assert {c for c, _ in failures(points)} == {candidate}


def test_a_maximum_that_gives_its_gradient_to_one_of_the_ties(monkeypatch):
    """`adaptive_max_pool2d` has the same outputs as `amax`; after a ReLU there are ties."""
    spec = dataclasses.replace(SPECS["cbam_input"], relu_before_attention=True)
    weights = synthetic.weights(spec)
    zeroed = {n: 0 * a if n.endswith("layer1.0.bn2.weight") else a for n, a in weights.items()}
    weights = Checkpoint.from_arrays(zeroed, dataclasses.asdict(spec))
    assert failures(gradients(weights, synthetic.images((33, 30), batch=3))) == {}

    def forward(self: torch_impl.attention.ChannelAttention, x: torch.Tensor) -> torch.Tensor:
        maximum = torch.nn.functional.adaptive_max_pool2d(x, 1).flatten(1)
        gate = torch.sigmoid(self.mlp(x.mean((2, 3))) + self.mlp(maximum))
        return x * gate[:, :, None, None]

    monkeypatch.setattr(torch_impl.attention.ChannelAttention, "forward", forward)
    points = gradients(weights, synthetic.images((33, 30), batch=3))
    assert max(max(p.errors.values()) for p in points) > 1e-3


@pytest.mark.parametrize("epsilon", [1.001e-5])
def test_a_slightly_other_epsilon(epsilon, monkeypatch):
    init = keras_impl.attention.BatchNormalization.__init__
    monkeypatch.setattr(
        keras_impl.attention.BatchNormalization,
        "__init__",
        lambda self, **keywords: init(self, **(keywords | {"epsilon": epsilon})),
    )
    points = of(SPECS["se"], frameworks=("keras",))
    assert max(point.errors["keras"] for point in points) > 100 * tolerances.FLOAT64_GRADIENT
    assert points[0].failures() == ["keras"]


@pytest.mark.quick
def test_a_bias_whose_gradient_is_wrong_is_seen():
    """Biases are compared at the scale of their layer's weight if it is larger; this must not hide errors."""
    reference = {"fc.weight": np.full((2, 3), 10.0), "fc.bias": np.array([1.0, 2.0])}
    wrong = reference | {"fc.bias": np.array([1.0, 2.0 + 1e-8])}
    assert error("fc.bias", reference, reference) == 0
    assert error("fc.bias", wrong, reference) == pytest.approx(1e-9)
    vanishes = reference | {"fc.bias": np.zeros(2)}
    assert error("fc.bias", reference | {"fc.bias": np.array([1e-15, 0])}, vanishes) == pytest.approx(1e-16)
    assert error("fc.bias", wrong | {"fc.bias": np.array([1.0, np.nan])}, reference) == math.inf


# --------------------------------------------------------------------------------------------------
# Refused


@pytest.mark.quick
@pytest.mark.parametrize(
    ("spec", "keywords", "message"),
    [
        (SPECS["se"], {"frameworks": ("torch", "kears")}, "did you mean 'keras'"),
        (SPECS["se"], {"dtype": "float16"}, "expected float64 or float32"),
        (tiny(num_classes=1), {}, "one class"),
        (AttentionSpec(attention="se"), {}, "one se block, expected a whole network"),
    ],
)
def test_refused(spec, keywords, message):
    with pytest.raises(SpecError, match=message):
        gradients(synthetic.weights(spec), np.zeros((2, 3, 16, 16), np.float32), **keywords)


@pytest.mark.exhaustive
@pytest.mark.parametrize("model", ["se_resnext50_32x4d", "eca_resnet50", "cbam_resnet101", "senet154"])
def test_whole_networks(model):
    points = gradients(synthetic.weights(model_spec(model)), synthetic.images((64, 64), batch=4))
    assert failures(points) == {}
