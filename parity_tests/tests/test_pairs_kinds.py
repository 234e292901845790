"""Kinds of ports in float32, right and with one mistake: the harness accuses the wrong layer alone."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import torch
from keras import layers as L
from torch import nn

from parity_tests.compare import compare_models
from parity_tests.tests.pairs import X, arr, differs, holds, net, noted, port, randomised, values

SERIES = np.random.default_rng(0).normal(size=(2, 6, 5))
VOLUME = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 4))
Pair = tuple[nn.Module, keras.Model, Any, dict[str, Any]]
RIGHT = ""


def image() -> Any:
    return L.Input((8, 8, 3))


def scaled(model: keras.Model, name: str) -> keras.Model:
    layer = model.get_layer(name)
    layer.set_weights([weight * 1.01 for weight in layer.get_weights()])
    return model


def judged(pair: Pair, wrong: str, first: str = "") -> None:
    theirs, ours, images, keywords = pair
    if wrong:
        differs(theirs, ours, first or wrong, first or wrong, images=images, **keywords)
    else:
        holds(theirs, ours, images, **keywords)


def permuted() -> Pair:
    theirs, i = net(c=nn.Conv2d(3, 4, 3), b=nn.BatchNorm2d(4), r=nn.ReLU(), d=nn.Conv2d(4, 2, 1)), image()
    x = L.ReLU(name="r")(L.BatchNormalization(epsilon=1e-5, name="b")(L.Conv2D(4, 3, name="c")(i)))
    ours, order = port(L.Conv2D(2, 1, name="d")(x), i, theirs, "d"), [2, 0, 3, 1]
    for name in "cb":
        ours.get_layer(name).set_weights([weight[..., order] for weight in values(getattr(theirs, name))])
    kernel, bias = values(theirs.d)
    ours.get_layer("d").set_weights([kernel[:, :, order], bias])
    return theirs, ours, X, {}


@pytest.mark.parametrize("wrong", [RIGHT, "c", "b", "d"])
def test_one_mistake_among_permuted_channels(wrong):
    theirs, ours, *rest = permuted()
    judged((theirs, scaled(ours, wrong) if wrong else ours, *rest), wrong)


class Gate(nn.Module):
    """Squeeze and excitation by 1x1 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.f, self.g = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.c(x)
        return x * self.g(self.f(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


@pytest.mark.parametrize("wrong", [RIGHT, "f", "g"])
def test_dense_layers_for_1x1_convolutions(wrong):
    theirs, i = randomised(Gate()), image()
    x = L.Conv2D(8, 3, name="c")(i)
    y = L.Dense(2, activation="relu", name="f")(L.GlobalAveragePooling2D()(x))
    y = L.Reshape((1, 1, 8))(L.Dense(8, activation="sigmoid", name="g")(y))
    ours = port(x * y, i, theirs, "c")
    for name in "fg":
        kernel, bias = values(getattr(theirs, name))
        ours.get_layer(name).set_weights([kernel[0, 0], bias])
    judged((theirs, scaled(ours, wrong) if wrong else ours, X, {}), wrong)


@pytest.mark.parametrize("names", [{}, {"p": "s"}])
@pytest.mark.parametrize("wrong", [RIGHT, "s"])
def test_a_separable_convolution_without_names(wrong, names):
    """The wrong port has weights that equal none of the reference; its kernels are those of two layers."""
    theirs = net(
        a=nn.Conv2d(3, 4, 1), d=nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), p=nn.Conv2d(4, 6, 1)
    )
    i = image()
    x = L.SeparableConv2D(6, 3, padding="same", name="s")(L.Conv2D(4, 1, name="a")(i))
    ours = port(x, i, theirs, "a")
    ours.get_layer("s").set_weights([arr(theirs.d.weight).transpose(2, 3, 0, 1), *values(theirs.p)])
    judged((theirs, scaled(ours, "s") if wrong else ours, X, {"names": names}), wrong, "p")


class Series(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.r, self.d = nn.LSTM(5, 4, num_layers=2, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.d(self.r(x)[0])


@pytest.mark.parametrize("wrong", [RIGHT, "second", "d"])
def test_two_recurrent_layers_for_one(wrong):
    theirs, i = randomised(Series()), L.Input((6, 5))
    x = L.LSTM(4, return_sequences=True, name="first")(i)
    x = L.LSTM(4, return_sequences=True, name="second")(x)
    ours, r = port(L.Dense(2, name="d")(x), i, theirs, "d"), theirs.r
    for n, name in enumerate(("first", "second")):
        kernels = [arr(getattr(r, f"weight_{kind}_l{n}")).T for kind in ("ih", "hh")]
        bias = sum(arr(getattr(r, f"bias_{kind}_l{n}")) for kind in ("ih", "hh"))
        ours.get_layer(name).set_weights([*kernels, bias])
    judged(
        (theirs, scaled(ours, wrong) if wrong else ours, SERIES, {}),
        wrong,
        "r 0" if wrong == "second" else "",
    )


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.MultiheadAttention(4, 2, batch_first=True), nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.n(x + self.a(query=x, key=x, value=x, need_weights=False)[0])


@pytest.mark.parametrize("name", ["a", "attention"])
@pytest.mark.parametrize("wrong", [RIGHT, "a", "n"])
def test_attention(wrong, name):
    theirs, i = randomised(Attention()), L.Input((5, 4))
    layer = L.MultiHeadAttention(2, 2, name=name)
    ours = port(L.LayerNormalization(epsilon=1e-5, name="n")(i + layer(i, i)), i, theirs, "n")
    weights = zip(
        np.split(arr(theirs.a.in_proj_weight), 3), np.split(arr(theirs.a.in_proj_bias), 3), strict=True
    )
    split = [array for w, b in weights for array in (w.T.reshape(4, 2, 2), b.reshape(2, 2))]
    out = theirs.a.out_proj
    layer.set_weights([*split, arr(out.weight).T.reshape(2, 2, 4), arr(out.bias)])
    if wrong:
        scaled(ours, name if wrong == "a" else wrong)
    judged(
        (theirs, ours, np.random.default_rng(0).normal(size=(2, 5, 4)), {}),
        wrong,
        "a 0" if wrong == "a" else "",
    )


def test_an_operation_without_a_float64_kernel():
    """TensorFlow on a CPU has no 3-D average pool in float64."""
    theirs, i = net(c=nn.Conv3d(3, 4, 1), p=nn.AvgPool3d(2), d=nn.Conv3d(4, 2, 1)), L.Input((4, 4, 4, 3))
    x = L.AveragePooling3D(2, name="p")(L.Conv3D(4, 1, name="c")(i))
    ours = port(L.Conv3D(2, 1, name="d")(x), i, theirs, "c", "d")
    report = holds(theirs, ours, VOLUME)
    assert report.dtype == "float32"
    assert noted(report, "compared in float32: the keras model does not run")
    differs(theirs, scaled(ours, "d"), "d", "d", images=VOLUME)


def activated(slope: float, factor: float) -> tuple[nn.Module, keras.Model]:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.d = net(c=nn.Conv2d(3, 4, 3), d=nn.Conv2d(4, 2, 1)).children()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.d(torch.nn.functional.leaky_relu(self.c(x), slope))

    theirs, i = Functional().eval(), image()
    x = L.LeakyReLU(negative_slope=slope * factor)(L.Conv2D(4, 3, name="c")(i))
    return theirs, port(L.Conv2D(2, 1, name="d")(x), i, theirs, "c", "d")


def test_rounding_between_two_layers():
    report = holds(*activated(0.01, 1))
    assert [*report.rounding["keras"]] == ["in front of d"]
    report = compare_models(*activated(0.01, 1.0001), X)
    assert report.first_divergence().point == "input of d"


@pytest.mark.parametrize("epsilon", [1e-5, 1.001e-5])
@pytest.mark.parametrize("upsampling", [False, True])
def test_a_small_epsilon_is_no_rounding(epsilon, upsampling):
    """keras.applications has 1.001e-5 where torch has 1e-5: an error of 2e-10, and no float32 arithmetic."""
    more = {"u": nn.Upsample(scale_factor=2, mode="bilinear")} if upsampling else {}
    theirs, i = net(c=nn.Conv2d(3, 4, 3), b=nn.BatchNorm2d(4), **more, d=nn.Conv2d(4, 2, 1)), image()
    x = L.BatchNormalization(epsilon=epsilon, name="b")(L.Conv2D(4, 3, name="c")(i))
    x = L.UpSampling2D(2, interpolation="bilinear", name="u")(x) if upsampling else x
    ours = port(L.Conv2D(2, 1, name="d")(x), i, theirs, "c", "b", "d")
    judged((theirs, ours, X, {}), "b" if epsilon > 1e-5 else RIGHT)


def test_a_wrong_layer_before_float32_arithmetic():
    theirs = net(c=nn.Conv2d(3, 4, 3), u=nn.Upsample(scale_factor=2, mode="bilinear"), d=nn.Conv2d(4, 2, 1))
    i = image()
    x = L.UpSampling2D(2, interpolation="bilinear", name="u")(L.Conv2D(4, 3, name="c")(i))
    ours = port(L.Conv2D(2, 1, name="d")(x), i, theirs, "c", "d")
    judged((theirs, scaled(ours, "c"), X, {}), "c")
