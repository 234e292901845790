"""Arrays that are no images, flattened rows, several calls, tuple outputs, and the layouts of inputs."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import torch
from keras import layers as L
from keras import ops
from torch import nn

from parity_tests.compare import compare_models
from parity_tests.tests.pairs import X, arr, differs, holds, image, net, noted, port, randomised, values
from weights_convert import SpecError

pytestmark = pytest.mark.usefixtures("wide")
WORDS = np.random.default_rng(0).integers(0, 7, (2, 6))
SERIES = np.random.default_rng(0).normal(size=(2, 6, 5))


@pytest.fixture
def wide():
    """Keras layers in float64, so that computed weights are exact."""
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")


def scaled(model: keras.Model, name: str) -> keras.Model:
    """A wrong port: one layer's weights are 1 % too large."""
    layer = model.get_layer(name)
    layer.set_weights([weight * 1.01 for weight in layer.get_weights()])
    return model


@pytest.mark.quick
@pytest.mark.parametrize("functional", [False, True])
def test_flattened_rows(functional):
    theirs, i = net(c=nn.Conv2d(3, 4, 3), f=nn.Flatten(), d=nn.Linear(144, 3)), image()
    x = L.Conv2D(4, 3, name="c")(i)
    flat = ops.reshape(x, (-1, 144)) if functional else L.Flatten(name="f")(x)
    ours = port(L.Dense(3, name="d")(flat), i, theirs, "c", "d")
    report = differs(theirs, ours, "d", "d")
    assert noted(report, "the input of d is flattened in another order than its weights")
    rows = np.arange(144).reshape(4, 6, 6).transpose(1, 2, 0).ravel()
    ours.get_layer("d").set_weights([arr(theirs.d.weight)[:, rows].T, arr(theirs.d.bias)])
    report = holds(theirs, ours)
    assert functional or noted(report, "flattened in another order: f")
    differs(theirs, scaled(ours, "d"), "d", "d")


def test_rows_that_are_an_output_are_not_reordered():
    theirs, i = net(c=nn.Conv2d(3, 4, 3), f=nn.Flatten()), image()
    ours = port(L.Flatten(name="f")(L.Conv2D(4, 3, name="c")(i)), i, theirs, "c")
    differs(theirs, ours, "output")


class Tokens(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.p, self.n = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width)
        self.f = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f(self.n(self.p(x).flatten(2).mT)).mean(1)


@pytest.mark.parametrize("width", [4, 6])
def test_tokens_keep_their_axes(width):
    theirs, i = randomised(Tokens(width)), image()
    y = ops.reshape(L.Conv2D(width, 4, 4, name="p")(i), (-1, 4, width))
    y = L.Dense(2, name="f")(L.LayerNormalization(epsilon=1e-5, name="n")(y))
    ours = port(ops.mean(y, 1), i, theirs, "p", "n", "f")
    assert noted(holds(theirs, ours), "the same axes in both models: n, f")
    differs(theirs, scaled(ours, "n"), "n", "n")


class Series(nn.Module):
    """A recurrent layer, whose output is a tuple."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.r, self.d = kind(5, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.d(self.r(x)[0])


@pytest.mark.parametrize("state", [False, True])
def test_a_recurrent_layer_on_a_sequence(state):
    """torch's returns a tuple, Keras's has its weights in a cell that it calls at each step."""
    theirs = randomised(Series(nn.LSTM))
    i, r = L.Input((6, 5), dtype="float64"), theirs.r
    x = L.LSTM(4, return_sequences=True, return_state=state, name="r")(i)
    ours = port(L.Dense(2, name="d")(x[0] if state else x), i, theirs, "d")
    bias = arr(r.bias_ih_l0 + r.bias_hh_l0)
    ours.get_layer("r").set_weights([arr(r.weight_ih_l0).T, arr(r.weight_hh_l0).T, bias])
    report = holds(theirs, ours, SERIES)
    assert noted(report, "the same axes in both models at the input")
    assert report.coverage["keras"]["candidate"].tensors == (5, 5)
    differs(theirs, scaled(ours, "r"), "r 0", "r 0", images=SERIES)


def test_stated_layouts():
    theirs, i = randomised(nn.Sequential()), L.Input((4, 4), dtype="float64")
    theirs.add_module("d", nn.Linear(4, 4))
    randomised(theirs)
    ours = port(L.Dense(4, name="d")(i), i, theirs, "d")
    x = np.random.default_rng(0).normal(size=(2, 4, 4))
    holds(theirs, ours, x)
    holds(theirs, ours, x, layouts={"input": "same", "output": "same"})
    assert not compare_models(theirs, ours, x, layouts={"input": "moved"}).holds
    assert not compare_models(theirs, ours, x, layouts={"input": "same", "output": "moved"}).holds
    with pytest.raises(SpecError, match=r"layouts=.*'NHWC'.: expected 'moved' or 'same'"):
        compare_models(theirs, ours, x, layouts={"input": "NHWC"})


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.d = nn.Embedding(7, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.d(self.e(x))


def test_indices_stay_integers():
    theirs, i = randomised(Words()), L.Input((6,), dtype="int64")
    ours = port(L.Dense(3, name="d")(L.Embedding(7, 5, name="e")(i)), i, theirs, "e", "d")
    holds(theirs, ours, WORDS)
    differs(theirs, scaled(ours, "e"), "e", "e", images=WORDS)
    assert compare_models(net(c=nn.Conv2d(3, 4, 3)), net(c=nn.Conv2d(3, 4, 3)), (X * 9).astype("int64")).holds


@pytest.mark.parametrize("rank", [1, 3])
def test_convolutions_in_one_and_three_dimensions(rank):
    torch_kind, keras_kind = {1: (nn.Conv1d, L.Conv1D), 3: (nn.Conv3d, L.Conv3D)}[rank]
    theirs = net(c=torch_kind(3, 3, 3), f=nn.Flatten(), d=nn.Linear(3 * 4**rank, 2))
    i = L.Input((*[6] * rank, 3), dtype="float64")
    x = L.Flatten(name="f")(keras_kind(3, 3, name="c")(i))
    ours = port(L.Dense(2, name="d")(x), i, theirs, "c")
    rows = np.moveaxis(np.arange(3 * 4**rank).reshape(3, *[4] * rank), 0, -1).ravel()
    ours.get_layer("d").set_weights([arr(theirs.d.weight)[:, rows].T, arr(theirs.d.bias)])
    x = np.random.default_rng(0).normal(size=(2, 3, *[6] * rank))
    holds(theirs, ours, x)
    differs(theirs, scaled(ours, "c"), "c", "c", images=x)


class Branches(nn.Module):
    """Two branches, a shared layer, and the order in which they are called."""

    def __init__(self, first: str) -> None:
        super().__init__()
        self.a, self.b, self.s, self.first = (
            nn.Conv2d(3, 3, 1),
            nn.Conv2d(3, 3, 3, 1, 1),
            nn.Conv2d(3, 3, 1),
            first,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        calls: dict[str, Any] = {}
        for name in (self.first, "b" if self.first == "a" else "a"):
            calls[name] = getattr(self, name)(x)
        return self.s(self.s(calls["a"])) - calls["b"].relu()


@pytest.mark.parametrize("first", ["a", "b"])
def test_shared_layers_and_another_order(first):
    theirs, i = randomised(Branches(first)), image()
    b = L.Conv2D(3, 3, padding="same", activation="relu", name="b")(i)
    shared = L.Conv2D(3, 1, name="s")
    ours = port(shared(shared(L.Conv2D(3, 1, name="a")(i))) - b, i, theirs, "a", "b", "s")
    report = holds(theirs, ours)
    assert noted(report, "compared before the activation inside the layer: b")
    differs(theirs, scaled(ours, "a"), "a", "a")


class Merges(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.d, self.m = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), Subtract()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.m(self.c(x), self.d(x))


class Subtract(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x - y


def test_a_layer_with_several_inputs_is_judged_on_the_right_ones():
    theirs, i = randomised(Merges()), image()
    c, d = L.Conv2D(3, 1, name="c")(i), L.Conv2D(3, 1, name="d")(i)
    holds(theirs, port(L.Subtract(name="m")([c, d]), i, theirs, "c", "d"))
    differs(theirs, port(L.Add(name="m")([c, d]), i, theirs, "c", "d"), "m", "m")
    differs(theirs, scaled(port(L.Subtract(name="m")([c, d]), i, theirs, "c", "d"), "c"), "c", "c")


def test_a_keras_reference_and_a_torch_candidate():
    theirs, i = net(c=nn.Conv2d(3, 4, 3), f=nn.Flatten(), d=nn.Linear(144, 3)), image()
    ours = port(L.Dense(3, name="d")(L.Flatten(name="f")(L.Conv2D(4, 3, name="c")(i))), i, theirs, "c", "d")
    differs(ours, theirs, "d", "d")
    rows = np.arange(144).reshape(4, 6, 6).transpose(1, 2, 0).ravel()
    ours.get_layer("d").set_weights([arr(theirs.d.weight)[:, rows].T, values(theirs.d)[1]])
    holds(ours, theirs)
