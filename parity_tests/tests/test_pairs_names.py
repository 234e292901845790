"""Layers with other names are paired by weights, outputs or shapes; what is ambiguous is refused."""

from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np
import pytest
import torch
from keras import layers as L
from torch import nn

from parity_tests.compare import compare_models
from parity_tests.tests.pairs import X, arr, differs, holds, image, net, noted, randomised, values
from weights_convert import MismatchError, SpecError

pytestmark = pytest.mark.usefixtures("wide")


@pytest.fixture
def wide():
    """Keras layers in float64, so that computed weights are exact."""
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")


def pair() -> tuple[nn.Module, Any]:
    """Convolutions of one shape, a batch norm, a dense layer on flattened rows; nothing has the same name."""
    theirs, i = (
        net(
            a=nn.Conv2d(3, 3, 3, padding=1),
            b=nn.Conv2d(3, 3, 3, padding=1),
            n=nn.BatchNorm2d(3),
            f=nn.Flatten(),
            d=nn.Linear(192, 2),
        ),
        image(),
    )
    x = L.Conv2D(3, 3, padding="same", name="first")(i)
    x = L.Conv2D(3, 3, padding="same", name="second")(x)
    x = L.Flatten(name="flat")(L.BatchNormalization(epsilon=1e-5, name="norm")(x))
    ours = keras.Model(i, L.Dense(2, name="head")(x))
    for name, layer in (("first", theirs.a), ("second", theirs.b), ("norm", theirs.n)):
        ours.get_layer(name).set_weights(values(layer))
    rows = np.arange(192).reshape(3, 8, 8).transpose(1, 2, 0).ravel()
    ours.get_layer("head").set_weights([arr(theirs.d.weight)[:, rows].T, arr(theirs.d.bias)])
    return theirs, ours


PAIRS = {"a": "first", "b": "second", "n": "norm", "d": "head"}


@pytest.mark.quick
def test_layers_are_paired_by_equal_weights():
    theirs, ours = pair()
    report = holds(theirs, ours)
    assert report.pairing["keras"] == {a: (b, "equal weights") for a, b in PAIRS.items()}
    assert noted(report, "paired by equal weights", "a with first")
    assert report.to_json()["pairing"]["keras"]["d"] == ["head", "equal weights"]


def test_a_wrong_layer_is_paired_by_its_shape_and_accused():
    theirs, ours = pair()
    ours.get_layer("norm").set_weights([w * 1.01 for w in ours.get_layer("norm").get_weights()])
    report = differs(theirs, ours, "n", "n")
    assert report.pairing["keras"]["n"] == ("norm", "equal shapes")


def test_layers_whose_weights_say_nothing_are_paired_by_their_outputs():
    theirs, ours = pair()
    for name in "ab":
        nn.init.zeros_(getattr(theirs, name).bias)
    nn.init.constant_(theirs.a.weight, 0.5)
    nn.init.constant_(theirs.b.weight, 0.25)
    ours.get_layer("first").set_weights(values(theirs.a))
    ours.get_layer("second").set_weights(values(theirs.b))
    report = compare_models(theirs, ours, X)
    assert report.pairing["keras"]["b"] == ("second", "equal outputs")


def test_wrong_layers_of_equal_shapes_are_paired_by_the_layers_that_feed_them():
    theirs, ours = pair()
    for name in ("first", "second"):
        ours.get_layer(name).set_weights([w * 1.01 for w in ours.get_layer(name).get_weights()])
    report = differs(theirs, ours, "a", "a", "b")
    assert report.pairing["keras"]["b"] == ("second", "equal shapes and the layers that feed it")


class Branches(nn.Module):
    """Two branches of the same shapes, of which one has a second layer if `longer`."""

    def __init__(self, longer: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.c = nn.Conv2d(3, 3, 1) if longer else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x).relu() + self.c(self.b(x).relu())


@pytest.mark.parametrize("longer", [True, False])
def test_what_stays_ambiguous_is_listed_and_not_guessed(longer):
    theirs, i = randomised(Branches(longer)), image()
    x, y, z = (L.Conv2D(3, 1, name=name) for name in "xyz")
    long = y(keras.ops.relu(x(i)))  # called before the other branch
    ours = keras.Model(i, (long if longer else x(i)) + keras.ops.relu(z(i)))
    if longer:
        report = compare_models(theirs, ours, X)
        assert {a: b for a, (b, _) in report.pairing["keras"].items()} == {"a": "z", "b": "x", "c": "y"}
        return
    with pytest.raises(MismatchError, match="no counterpart for a, b, z, x"):
        compare_models(theirs, ours, X)
    assert not compare_models(theirs, ours, X, names={"a": "x", "b": "z"}).holds


def test_a_pairing_can_be_saved_and_given_back(tmp_path):
    theirs, ours = pair()
    path = tmp_path / "names.json"
    path.write_text(json.dumps(compare_models(theirs, ours, X).pairing["keras"]))
    report = holds(theirs, ours, names=path)
    assert report.pairing["keras"] == {}
    path.write_text(json.dumps(PAIRS | {"a": "second", "b": "first"}))
    assert not compare_models(theirs, ours, X, names=str(path)).holds
    path.write_text("[]")
    with pytest.raises(SpecError, match=r"names=.*expected a JSON file"):
        compare_models(theirs, ours, X, names=path)
