"""The given Keras model itself is compared, not a model rebuilt from its config.

Also: models with two outputs for one input, on either side.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from keras import layers as L
from keras import ops
from torch import nn

import torch_impl
import weights_convert
from parity_tests.compare import assert_parity, compare_models
from parity_tests.judge import synthetic
from parity_tests.judge.synthetic import tiny
from weights_convert import SpecError, load_into

X = np.random.default_rng(0).normal(size=(2, 3, 8, 8))
SPEC = tiny(attention="se", depths=(1, 1))


def ours() -> tuple[torch.nn.Module, keras.Model]:
    """A network of this project and its float32 Keras port, loaded from a file."""
    model = torch_impl.ResNet(**SPEC.model_kwargs()).eval()
    load_into(model, synthetic.weights(SPEC))
    with tempfile.TemporaryDirectory() as folder:
        weights_convert.save(synthetic.weights(SPEC), f"{folder}/a.npz")
        return model, weights_convert.load_model(f"{folder}/a.npz", "keras")


def sequential(**layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential()
    for name, layer in layers.items():
        net.add_module(name, layer)
    for parameter in net.parameters():
        parameter.data.uniform_(-1, 1)
    return net.eval()


def loaded(model: keras.Model, net: nn.Module, *convs: str) -> keras.Model:
    for name in convs:
        conv = getattr(net, name)
        values = [conv.weight.detach().numpy().transpose(2, 3, 1, 0), conv.bias.detach().numpy()]
        model.get_layer(name).set_weights(values)
    return model


def frozen(model: Any) -> None:
    model.bn1.trainable = False


def replaced(model: Any) -> None:
    old = model.fc
    new = L.Dense(old.units, activation="relu", name="fc")
    new.build((None, old.kernel.shape[0]))
    new.set_weights(old.get_weights())
    model._tracker.unlock()  # Keras refuses it otherwise
    model.fc = new


def called_with_softmax(model: Any) -> None:
    own = model.call
    model.call = lambda x, training=None: ops.softmax(own(x, training=training))


def without_attention(model: Any) -> None:
    model.layer1[0].attention = None


CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "epsilon": (lambda m: setattr(m.bn1, "epsilon", 1e-3), "bn1.epsilon"),
    "epsilon below what float32 sees": (lambda m: setattr(m.bn1, "epsilon", 1.0000001e-5), "bn1.epsilon"),
    "momentum": (lambda m: setattr(m.bn1, "momentum", 0.5), "bn1.momentum"),
    "pool": (lambda m: setattr(m, "stem_pool", "ceil"), "config"),
    "activation": (lambda m: setattr(m.fc, "activation", ops.relu), "fc.activation"),
    "a lambda": (lambda m: setattr(m.fc, "activation", lambda x: x * 1.5), "fc.activation"),
    "frozen": (frozen, "bn1.trainable"),
    "a replaced layer": (replaced, "cannot be rebuilt"),
    "call": (called_with_softmax, "call"),
    "a layer taken away": (without_attention, "attention"),
}


ORDINARY = ("epsilon", "momentum", "a lambda", "a replaced layer", "call")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ORDINARY else pytest.mark.exhaustive) for n in CHANGES]
)
def test_changes_lost_in_a_rebuild_are_refused_in_float64_and_compared_in_float32(name):
    change, lost = CHANGES[name]
    reference, model = ours()
    change(model)
    before = [weight.copy() for weight in model.get_weights()]
    with pytest.raises(SpecError, match="the Keras model") as error:
        compare_models(reference, model, synthetic.images((32, 32)))
    assert lost in str(error.value)
    assert "dtype='float32'" in str(error.value)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    if name not in ("epsilon below what float32 sees", "momentum", "frozen"):
        report = compare_models(reference, model, synthetic.images((32, 32)), dtype="float32")
        assert not report.holds


def test_an_unchanged_model_holds_in_both_dtypes_and_modes():
    reference, model = ours()
    model.compile("sgd", "mse")
    for dtype in ("float64", "float32"):
        for train in (False, True):
            report = compare_models(reference, model, synthetic.images((32, 32)), dtype=dtype, train=train)
            assert report.holds, report.why_not()
            counts = report.coverage["keras"]
            for side in ("reference", "candidate"):
                assert counts[side].outputs == (1, 1)
                assert counts[side].parameters[0] == counts[side].parameters[1] > 0
            assert counts["candidate"].statistics == counts["reference"].statistics
            assert bool(counts["candidate"].statistics[1]) == train


def pair(policy: str) -> tuple[nn.Module, keras.Model]:
    net = sequential(c=nn.Conv2d(3, 4, 1), d=nn.Conv2d(4, 2, 1))
    images = L.Input((8, 8, 3))
    x = L.Conv2D(4, 1, name="c", dtype=policy)(images)
    return net, loaded(keras.Model(images, L.Conv2D(2, 1, name="d", dtype=policy)(x)), net, "c", "d")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_half_precision_is_kept(policy, dtype):
    net, model = pair(policy)
    report = compare_models(net, model, X, dtype=dtype)
    assert not report.holds
    assert report.first_divergence().point == "c"
    assert report.first_divergence().error > 1e-5
    assert any("float16 and is compared in it" in note for note in report.notes)


def test_half_precision_of_a_torch_module_is_kept():
    net = sequential(c=nn.Conv2d(3, 4, 1), d=nn.Conv2d(4, 2, 1))
    half = sequential(c=nn.Conv2d(3, 4, 1), d=nn.Conv2d(4, 2, 1)).bfloat16()
    for tensor, other in zip(net.parameters(), half.parameters(), strict=True):
        tensor.data.copy_(other)  # the weights are the same: only the arithmetic differs
    for dtype in ("float64", "float32"):
        assert compare_models(net, half, X, dtype=dtype).first_divergence().point in ("input of c", "c")
        assert compare_models(half, net, X, dtype=dtype).holds


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.c(x)


def test_a_torch_module_that_differs_in_float64_is_refused():
    with pytest.raises(SpecError, match="the torch module differs from its float64 copy"):
        compare_models(Autocast(), Autocast(), X)
    plain = nn.Sequential()
    plain.add_module("c", Autocast().c)
    assert not compare_models(plain, Autocast(), X, dtype="float32").holds


def test_integers_in_a_config_stay_integers():
    images = L.Input((8, 8, 3))
    net = sequential(c=nn.Conv2d(3, 4, 1))

    class Truncates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = net.c

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(x)

    y = L.Conv2D(4, 1, name="c")(images)
    model = keras.Model(images, ops.cast(ops.cast(100 * y, "int32"), "float32") / 100)
    report = compare_models(Truncates(), loaded(model, net, "c"), X)
    assert report.first_divergence().point == "output"


# --------------------------------------------------------------------------------------------------
# Two outputs for one input


class Random(nn.Module):
    def __init__(self, noise: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c, self.d, self.noise = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), noise

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.d(self.noise(self.c(x)))


def seldom(x: torch.Tensor) -> torch.Tensor:
    """Stochastic depth: most runs give the same output."""
    return x * (torch.rand(()) < 0.6)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.calls


NOISES = {
    "dropout": lambda x: F.dropout(x, 0.5),
    "noise": lambda x: x + torch.randn_like(x),
    "NumPy's": lambda x: x + np.random.normal(),  # noqa: NPY002
    "seldom": seldom,
    "state": Counts(),
}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", NOISES)
def test_a_reference_that_gives_two_outputs_is_refused(name, train):
    model, right = Random(NOISES[name]), Random(lambda x: x)
    with pytest.raises(SpecError, match=r"the reference \(torch\) gives two outputs for one input"):
        compare_models(model, right, X, train=train)
    report = compare_models(right, model, X, train=train)
    assert not report.holds
    # at the next layer if the noise is not in a layer; the first run of "seldom" may equal the reference's
    assert report.first_divergence().point in ("input of d", "d", "noise")
    assert any("gives two outputs for one input" in note for note in report.notes)


def test_training_that_is_left_on_in_a_port_differs_there():
    net = sequential(c=nn.Conv2d(3, 4, 1), d=nn.Conv2d(4, 2, 1))
    images = L.Input((8, 8, 3))
    left = {
        "dropout": L.Dropout(0.5, name="dropout"),
        "noise": L.GaussianNoise(0.5, name="noise"),
        "b": L.BatchNormalization(name="b", center=False, scale=False, epsilon=1e-5),
    }
    for name, layer in left.items():
        x = layer(L.Conv2D(4, 1, name="c")(images), training=True)
        model = loaded(keras.Model(images, L.Conv2D(2, 1, name="d")(x)), net, "c", "d")
        ignore = ["b"] if name == "b" else []
        for dtype in ("float64", "float32"):
            before = [weight.copy() for weight in model.get_weights()]
            report = compare_models(net, model, X, dtype=dtype, ignore=ignore)
            assert report.first_divergence().point == name, report.why_not()
            for old, new in zip(before, model.get_weights(), strict=True):
                np.testing.assert_array_equal(old, new)


def test_a_model_that_works_in_place_changes_nobody_elses_input():
    class Spoils(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.c = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(x.mul_(0))

    images = X.copy()
    right = Random(lambda x: x)
    report = compare_models(Spoils(), right, images, ignore=["d"])
    np.testing.assert_array_equal(images, X)
    assert report.first_divergence().point == "input of c"


def test_a_layer_that_works_in_place_changes_no_other_candidates_input():
    net = sequential(c=nn.Conv2d(3, 4, 1), r=nn.ReLU(inplace=True), d=nn.Conv2d(4, 2, 1))
    report = assert_parity(net, net, X)
    assert [point.isolated.get("torch") for point in report.layers] == [0.0, 0.0, 0.0, None]
    images = L.Input((8, 8, 3))
    x = L.ReLU(name="r")(L.Conv2D(4, 1, name="c")(images))
    model = loaded(keras.Model(images, L.Conv2D(2, 1, name="d")(x)), net, "c", "d")
    assert assert_parity(net, model, X).culprits() == []


# --------------------------------------------------------------------------------------------------
# Running statistics


def normalised(momentum: float, name: str, **keywords: Any) -> tuple[nn.Module, keras.Model]:
    net = sequential(c=nn.Conv2d(3, 4, 3), b=nn.BatchNorm2d(4))
    images = L.Input((8, 8, 3))
    norm = L.BatchNormalization(momentum=momentum, epsilon=1e-5, name=name, **keywords)
    model = loaded(keras.Model(images, norm(L.Conv2D(4, 3, name="c")(images))), net, "c")
    b = net.b
    norm.set_weights([v.detach().numpy() for v in (b.weight, b.bias, b.running_mean, b.running_var)])
    return net, model


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["b", "bn"])
def test_running_statistics_are_compared_by_any_name(name, dtype):
    keywords: dict[str, Any] = {"train": True, "dtype": dtype, "names": {"b": name} if name != "b" else {}}
    net, model = normalised(0.1, name)
    assert compare_models(net, model, X, **keywords).first_divergence().point == "b.running_mean"
    net, model = normalised(0.9, name)
    report = compare_models(net, model, X, **keywords)
    assert report.holds, report.why_not()
    assert any("variance is biased" in note and "b.running_var" in note for note in report.notes)
    assert report.coverage["keras"]["candidate"].statistics == (2, 2)
    exact = compare_models(net, model, X, **keywords, biased_variance="fail")
    assert exact.first_divergence().point == "b.running_var"


def test_a_variance_that_is_wrong_otherwise_is_not_excused():
    net, model = normalised(0.9, "b")
    mean, variance = model.get_layer("b").get_weights()[2:]
    model.get_layer("b").set_weights([*model.get_layer("b").get_weights()[:2], mean, variance * 1.001])
    report = compare_models(net, model, X, train=True)
    assert report.first_divergence().point == "b.running_var"


def test_statistics_that_only_one_side_has_were_not_compared():
    net, model = normalised(0.9, "b")
    net.b = nn.BatchNorm2d(4, track_running_stats=False)
    report = compare_models(net, model, X, train=True)
    assert not report.holds
    other, _ = normalised(0.9, "b")
    other.b.running_mean = other.b.running_var = None
    other.b.weight, other.b.bias = net.b.weight, net.b.bias
    report = compare_models(net, net, X, train=True)
    assert report.holds, report.why_not()


class Averages(nn.Module):
    """Its own running average, with another name."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(3))
        self.weight = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.average += self.weight * x.mean((0, 2, 3))
        return x


def test_whatever_training_moves_is_compared():
    one, other = (nn.Sequential(Averages(weight)) for weight in (0.1, 0.2))
    assert compare_models(one, one, X, train=True).holds
    assert compare_models(one, other, X, train=True).first_divergence().point == "0.average"
