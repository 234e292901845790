"""Training in the three frameworks, each with its own optimiser: equal after every step."""

from __future__ import annotations

import dataclasses
import functools
import math

import keras
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import torch

import keras_impl
import tf1_compat
from parity_tests.compare import training
from parity_tests.compare.networks import seeded_labels
from parity_tests.compare.report import Report, Training
from parity_tests.compare.training import train
from parity_tests.judge import synthetic, tolerances
from parity_tests.judge.synthetic import tiny
from weights_convert import Checkpoint, SpecError, model_spec
from weights_convert.spec import ResNetSpec

SPECS = {
    "cbam": tiny(attention="cbam", cbam_bn_momentum=0.05, depths=(1, 1)),
    "eca": tiny(attention="eca", block="basic", bn_momentum=0.3),
    "se_grouped": tiny(attention="se", groups=8, width_per_group=16, stem="deep_tiered", depths=(1,)),
}
SMALL = tiny(attention="eca", block="basic", depths=(1,))  # for faults
exhaustive = functools.partial(pytest.param, marks=pytest.mark.exhaustive)
KINDS = {"loss", "parameters", "statistics", "momentum"}


def of(spec: ResNetSpec, *, weights: Checkpoint | None = None, **keywords) -> Training:
    images, labels = synthetic.images((33, 30), batch=3), seeded_labels(3, spec.num_classes)
    return train(weights or synthetic.weights(spec), images, labels, **keywords)


def worst(found: Training, candidate: str) -> float:
    return max(max(errors) for errors in found.errors[candidate].values())


@pytest.mark.quick
def test_one_block():
    found = of(SMALL, steps=6)
    assert found.failures() == []
    assert found.learning_rates == [2**-5] * 3 + [2**-8] * 3
    assert set(found.losses) == {"torch", "keras", "tf1"}
    assert found.losses["torch"][-1] < found.losses["torch"][0]
    assert found.checked_steps == len(found.ulp) == 6
    for candidate in ("keras", "tf1"):
        assert set(found.errors[candidate]) == set(found.worst[candidate]) == KINDS
        assert {len(errors) for errors in found.errors[candidate].values()} == {6}


@pytest.mark.parametrize(
    ("name", "steps"),
    [("cbam", 8), ("se_grouped", 4), *map(exhaustive, ("cbam", "eca", "se_grouped"), (20, 8, 20))],
)
def test_many_steps_in_float64(name, steps):
    found = of(SPECS[name], steps=steps)
    assert found.failures() == []
    assert 0 < max(found.ulp) < tolerances.FLOAT64_TRAINING
    assert Report("", "torch", ["keras", "tf1"], "float64", training=found).holds


@pytest.mark.parametrize("name", ["cbam", *map(exhaustive, ("eca", "se_grouped"))])
def test_the_first_step_in_float32(name):
    found = of(SPECS[name], steps=2, dtype="float32")
    assert found.failures() == []
    assert found.checked_steps == 1
    assert found.limit == tolerances.FLOAT32_SHALLOW_GRADIENT
    for errors in found.errors.values():
        assert errors["loss"][0] <= 1e-6
        assert max(errors["momentum"]) > 1e-8, "float32 was not computed in float32"


def test_deep_nets_have_no_float32_limit():
    found = of(tiny(depths=(2, 2, 1), block="basic"), steps=1, dtype="float32", frameworks=("torch",))
    assert (found.limit, found.checked_steps, found.errors) == (math.inf, 1, {})


def test_networks_from_their_initial_values():
    """Zero biases, and in bias_bn biases whose gradient is 0 except for rounding."""
    spec = tiny(norm="bias_bn", attention="cbam", cbam_spatial_bias=True, block="basic", depths=(1, 1))
    fresh = {n: np.zeros_like(a) if n.endswith("bias") else a for n, a in synthetic.weights(spec).items()}
    weights = Checkpoint.from_arrays(fresh, dataclasses.asdict(spec))
    assert of(spec, weights=weights, steps=4).failures() == []


@pytest.mark.parametrize(
    ("spec", "keywords", "without"),
    [(SMALL, {"momentum": 0.0}, "momentum"), (dataclasses.replace(SMALL, norm="bias"), {}, "statistics")],
)
def test_what_there_is_none_of_is_not_compared(spec, keywords, without):
    found = of(spec, steps=2, **keywords)
    assert found.failures() == []
    assert set(found.errors["keras"]) == set(found.errors["tf1"]) == KINDS - {without}


def test_dropout_is_off():
    found = of(dataclasses.replace(SMALL, dropout=0.5), steps=2, frameworks=("keras",))
    assert found.failures() == []


@pytest.mark.quick
def test_no_drop():
    found = of(SMALL, steps=2, drop_after=2, frameworks=("torch",))
    assert found.learning_rates == [2**-5] * 2


def test_weight_decay_need_not_be_exact():
    """It is added to the gradient and never cast to float32."""
    assert of(SMALL, steps=2, weight_decay=1e-4).failures() == []


# --------------------------------------------------------------------------------------------------
# Broken on purpose. The error must reach the stated size, so a fault without effect fails its test.


def stock_statistics(monkeypatch) -> None:
    """Keras's own layer, with the biased variance."""
    stock = keras.layers.BatchNormalization.call
    monkeypatch.setattr(keras_impl.attention.BatchNormalization, "call", stock)


def swapped_momentum(monkeypatch) -> None:
    ours = keras_impl.attention.BatchNormalization
    init = ours.__init__

    def swapped(self: keras.layers.Layer, *, momentum: float, **keywords: object) -> None:
        init(self, momentum=1 - momentum, **keywords)

    monkeypatch.setattr(ours, "__init__", swapped)


def no_decay_in_the_gradient(monkeypatch) -> None:
    monkeypatch.setattr(training, "with_decay", lambda gradients, *_: gradients)


def keras_decay(monkeypatch) -> None:
    """Keras's own weight decay: decoupled."""
    no_decay_in_the_gradient(monkeypatch)
    decoupled = functools.partial(keras.optimizers.SGD, weight_decay=2**-13)
    monkeypatch.setattr(keras.optimizers, "SGD", decoupled)


def half_decay(monkeypatch) -> None:
    """The effect of `l2_loss` and `keras.regularizers.L2` with the same number, or half of it."""
    whole = training.with_decay
    monkeypatch.setattr(training, "with_decay", lambda g, v, decay: whole(g, v, decay / 2))


def slots_not_rescaled(monkeypatch) -> None:
    monkeypatch.setattr(training, "rescale", lambda *_: None)


def keras_nesterov(monkeypatch) -> None:
    monkeypatch.setattr(keras.optimizers, "SGD", functools.partial(keras.optimizers.SGD, nesterov=True))


def tf1_nesterov(monkeypatch) -> None:
    nesterov = functools.partial(tf.train.MomentumOptimizer, use_nesterov=True)
    monkeypatch.setattr(tf.train, "MomentumOptimizer", nesterov)


def torch_nesterov(monkeypatch) -> None:
    monkeypatch.setattr(torch.optim, "SGD", functools.partial(torch.optim.SGD, nesterov=True))


def dampened(monkeypatch) -> None:
    monkeypatch.setattr(torch.optim, "SGD", functools.partial(torch.optim.SGD, dampening=0.5))


def no_updates(monkeypatch) -> None:
    """The running statistics of TF1 are not updated, the most common mistake."""
    monkeypatch.setattr(tf, "get_collection", lambda _: [])


def tf1_biased(monkeypatch) -> None:
    monkeypatch.setattr(tf1_compat.attention.tf, "maximum", lambda n, _: n + 1)  # n / (n + 1) for n / (n - 1)


FAULTS = [  # fault, framework, and minimum error after four steps
    (slots_not_rescaled, "keras", {"momentum": 0.1, "parameters": 1e-3}),
    (keras_decay, "keras", {"momentum": 1e-6, "parameters": 1e-7}),
    (no_decay_in_the_gradient, "tf1", {"momentum": 1e-6, "parameters": 1e-7}),
    (half_decay, "tf1", {"momentum": 1e-6, "parameters": 1e-7}),
    (stock_statistics, "keras", {"statistics": 1e-3}),
    (tf1_biased, "tf1", {"statistics": 1e-3}),
    (swapped_momentum, "keras", {"statistics": 0.1}),
    (no_updates, "tf1", {"statistics": 0.1}),
    (keras_nesterov, "keras", {"parameters": 1e-3}),
    (tf1_nesterov, "tf1", {"parameters": 1e-3}),
    (torch_nesterov, "tf1", {"parameters": 1e-3}),
    (dampened, "keras", {"momentum": 0.1}),
]


@pytest.mark.parametrize(("fault", "candidate", "least"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_broken_on_purpose(fault, candidate, least, monkeypatch):
    fault(monkeypatch)
    found = of(SMALL, steps=4, frameworks=(candidate,))
    errors = {kind: max(found.errors[candidate][kind]) for kind in least}
    assert all(errors[kind] > least[kind] for kind in least), errors
    assert not Report("", "torch", [candidate], "float64", training=found).holds


def test_slots_differ_from_the_drop_on_only(monkeypatch):
    slots_not_rescaled(monkeypatch)
    found = of(SMALL, steps=6, frameworks=("keras",))
    assert max(found.errors["keras"]["momentum"][:3]) <= tolerances.FLOAT64_TRAINING
    assert min(found.errors["keras"]["momentum"][3:]) > 0.1
    assert found.failures()[0][2] == 4


def test_one_ulp_of_one_weight_is_seen():
    """The error of one ulp is not 0, and the reference's weight is unchanged."""
    found = of(SMALL, steps=2, frameworks=("torch",))
    assert all(0 < error < 1e-12 for error in found.ulp)
    coarse = of(SMALL, steps=2, frameworks=("torch",), dtype="float32")
    assert all(error > 1e-9 for error in coarse.ulp)


# --------------------------------------------------------------------------------------------------
# Refused


@pytest.mark.quick
@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"learning_rate": 0.1}, r"learning rate 0.1 is not exact in float32.*would train with 0.1000000"),
        ({"momentum": 0.9}, r"momentum 0.9 is not exact in float32"),
        ({"drop": 10}, r"learning rate 0.003125 is not exact"),
        ({"steps": 0}, "at least one"),
        ({"frameworks": ("jax",)}, "expected one of torch, keras, tf1"),
    ],
)
def test_refused(keywords, message):
    with pytest.raises(SpecError, match=message):
        of(SMALL, **keywords)


@pytest.mark.quick
def test_inexact_values_are_fine_in_float32():
    keywords = {"learning_rate": 0.1, "momentum": 0.9, "drop": 10, "dtype": "float32"}
    weights = synthetic.weights(
        SMALL, seed=4
    )  # with seed 0 a value is so near a ReLU's kink that 3e-5 depends on the CPU
    assert of(SMALL, weights=weights, steps=2, frameworks=("tf1",), **keywords).failures() == []


@pytest.mark.quick
@pytest.mark.parametrize("labels", [np.zeros(2, int), np.zeros(3), np.array([0, 1, 5]), np.array([0, -1, 0])])
def test_wrong_labels_are_refused(labels):
    with pytest.raises(SpecError, match="labels"):
        train(synthetic.weights(SMALL), synthetic.images((16, 16), batch=3), labels)


@pytest.mark.exhaustive
def test_se_resnext50():
    spec = model_spec("se_resnext50_32x4d")
    images, labels = synthetic.images((64, 64), batch=4), seeded_labels(4, spec.num_classes)
    found = train(synthetic.weights(spec), images, labels, learning_rate=2**-7)
    assert found.failures() == []
    assert all(worst(found, candidate) < 100 * max(found.ulp) for candidate in found.errors)
