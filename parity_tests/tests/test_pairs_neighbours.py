"""Layers are judged by what reaches their neighbours. Beside each right port stands a wrong one."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from keras import layers as L
from keras import ops
from torch import nn

from parity_tests.compare import Report, compare_models
from parity_tests.tests.pairs import X, arr, differs, holds, image, net, noted, port, randomised, values

pytestmark = pytest.mark.usefixtures("wide")
conv = functools.partial(L.Conv2D, name="c")


@pytest.fixture
def wide():
    """Keras layers in float64, so that computed weights are exact."""
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.quick
@pytest.mark.parametrize("pad", [1, ((2, 0), (2, 0))])
def test_padding_before_a_valid_convolution(pad):
    theirs, i = net(c=nn.Conv2d(3, 4, 3, padding=1)), image()
    ours = port(conv(4, 3)(L.ZeroPadding2D(pad)(i)), i, theirs, "c")
    if pad == 1:
        holds(theirs, ours)
        ours.get_layer("c").set_weights([values(theirs.c)[0], values(theirs.c)[1] + 1])
    differs(theirs, ours, "c", "c")


def test_padding_that_a_valid_convolution_needs_to_run_at_all():
    theirs, i = net(p=nn.MaxPool2d(4), c=nn.Conv2d(3, 4, 3, padding=1)), image()
    x = L.ZeroPadding2D(1)(L.MaxPooling2D(4, name="p")(i))
    holds(theirs, port(conv(4, 3)(x), i, theirs, "c"))
    wrong = port(conv(4, 3)(x), i, theirs, "c")
    wrong.get_layer("c").set_weights([-values(theirs.c)[0], values(theirs.c)[1]])
    differs(theirs, wrong, "c", "c")


def test_padding_before_a_valid_pool():
    theirs, i = net(c=nn.Conv2d(3, 4, 1), r=nn.ReLU(), p=nn.MaxPool2d(3, 2, 1)), image()
    for padded, right in ((L.ZeroPadding2D(1), True), (L.ZeroPadding2D(((2, 0), (2, 0))), False)):
        x = padded(L.ReLU(name="r")(conv(4, 1)(i)))
        ours = port(L.MaxPooling2D(3, 2, name="p")(x), i, theirs, "c")
        if right:
            holds(theirs, ours)
        else:
            differs(theirs, ours, "p", "p")


@pytest.mark.parametrize("crop", [1, ((2, 0), (2, 0))])
def test_cropping_after_a_transposed_convolution(crop):
    theirs, i = net(c=nn.ConvTranspose2d(3, 4, 3, padding=1), d=nn.Conv2d(4, 2, 1)), image()
    x = L.Cropping2D(crop)(L.Conv2DTranspose(4, 3, name="c")(i))
    ours = port(L.Conv2D(2, 1, name="d")(x), i, theirs, "d")
    ours.get_layer("c").set_weights([arr(theirs.c.weight).transpose(2, 3, 1, 0), arr(theirs.c.bias)])
    if crop == 1:
        assert noted(holds(theirs, ours), "judged by what reaches the next layer: c")
    else:
        differs(theirs, ours, "c", "c")


class Functional(nn.Module):
    """A ReLU that is no module, behind the first or behind both layers."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.c, self.d, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.d(F.relu(self.c(x)))
        return F.relu(y) if self.last else y


@pytest.mark.parametrize("kind", ["module", "function", "at the end"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_an_activation_inside_a_layer(kind, activation):
    theirs = net(c=nn.Conv2d(3, 4, 3), r=nn.ReLU(), d=nn.Conv2d(4, 2, 1))
    if kind != "module":
        layers, theirs = theirs, Functional(kind == "at the end").eval()
        theirs.c, theirs.d = layers.c, layers.d
    i, last = image(), activation if kind == "at the end" else None
    x = L.Conv2D(4, 3, activation="relu" if last else activation, name="c")(i)
    ours = port(L.Conv2D(2, 1, activation=last, name="d")(x), i, theirs, "c", "d")
    if activation == "relu":
        assert noted(holds(theirs, ours), "judged by what reaches the next layer: c")
    else:
        wrong = "d" if last else "c"
        differs(theirs, ours, wrong, wrong)


def test_an_activation_inside_a_layer_after_a_wrong_one():
    theirs = net(a=nn.Conv2d(3, 3, 1), c=nn.Conv2d(3, 4, 3), r=nn.ReLU(), d=nn.Conv2d(4, 2, 1))
    i = image()
    x = conv(4, 3, activation="relu")(L.Conv2D(3, 1, name="a")(i))
    ours = port(L.Conv2D(2, 1, name="d")(x), i, theirs, "a", "c", "d")
    kernel, bias = values(theirs.a)
    ours.get_layer("a").set_weights([kernel * 1.01, bias])
    differs(theirs, ours, "a", "a")


def folded(module: nn.Module, epsilon: float) -> list[np.ndarray]:
    kernel, bias = values(module.c)
    gamma, beta, mean, variance = values(module.b)
    factor = gamma / np.sqrt(variance + epsilon)
    return [kernel * factor, (bias - mean) * factor + beta]


@pytest.mark.parametrize("names", [{}, {"b": "c"}])
@pytest.mark.parametrize("relu", [False, True])
def test_a_batch_norm_folded_into_a_convolution(names, relu):
    layers = {"r": nn.ReLU()} if relu else {}
    theirs = net(c=nn.Conv2d(3, 4, 3), b=nn.BatchNorm2d(4), **layers, d=nn.Conv2d(4, 2, 1))
    i = image()
    x = conv(4, 3, activation="relu" if relu else None)(i)
    ours = port(L.Conv2D(2, 1, name="d")(x), i, theirs, "d")
    ours.get_layer("c").set_weights(folded(theirs, theirs.b.eps))
    report = holds(theirs, ours, names=names)
    assert report.coverage["keras"]["reference"].left_out == []
    assert report.coverage["keras"]["reference"].tensors == (6, 6)
    ours.get_layer("c").set_weights(folded(theirs, 1e-3))
    report = differs_somewhere(theirs, ours, names)
    assert {name for _, name in report.culprits()} <= {"c", "b"}


def differs_somewhere(theirs: nn.Module, ours: keras.Model, names: dict[str, str]) -> Report:
    report = compare_models(theirs, ours, X, names=names)
    assert not report.holds
    assert report.culprits()
    return report


def test_a_batch_norm_that_is_missing_is_not_folded():
    theirs, i = net(c=nn.Conv2d(3, 4, 3), b=nn.BatchNorm2d(4), d=nn.Conv2d(4, 2, 1)), image()
    ours = port(L.Conv2D(2, 1, name="d")(conv(4, 3)(i)), i, theirs, "c", "d")
    report = differs(theirs, ours, "b")
    assert "b" in report.why_not()


@pytest.mark.parametrize("named", ["d", "p"])
def test_a_separable_convolution_for_two(named):
    theirs = net(c=nn.Conv2d(3, 4, 1), d=nn.Conv2d(4, 4, 3, groups=4, bias=False), p=nn.Conv2d(4, 2, 1))
    i = image()
    ours = port(L.SeparableConv2D(2, 3, name="s")(conv(4, 1)(i)), i, theirs, "c")
    depth = arr(theirs.d.weight).transpose(2, 3, 0, 1)
    ours.get_layer("s").set_weights([depth, *values(theirs.p)])
    holds(theirs, ours, names={named: "s"})
    ours.get_layer("s").set_weights([depth[::-1], *values(theirs.p)])
    report = differs_somewhere(theirs, ours, {named: "s"})
    assert [name for _, name in report.culprits()] == [named]


def test_no_bias_beside_a_bias_of_zero():
    theirs, i = net(c=nn.Conv2d(3, 4, 3)), image()
    nn.init.zeros_(theirs.c.bias)
    ours = keras.Model(i, conv(4, 3, use_bias=False)(i))
    ours.get_layer("c").set_weights(values(theirs.c)[:1])
    holds(theirs, ours)
    nn.init.constant_(theirs.c.bias, 1e-6)
    differs(theirs, ours, "c", "c")


def test_a_layer_that_does_nothing_is_no_group():
    """A missing ReLU gives the layer's input, which may be another layer's input too."""
    theirs, i = net(c=nn.Conv2d(3, 4, 1), r=nn.ReLU(), d=nn.Conv2d(4, 4, 1)), image()
    r = L.Activation("linear", name="r")(conv(4, 1)(i))
    differs(theirs, port(L.Conv2D(4, 1, name="d")(r), i, theirs, "c", "d"), "r", "r")


def test_an_error_that_later_layers_do_not_see_is_no_group():
    class Softmax(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = net(c=nn.Conv2d(3, 4, 8)).c

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(x).softmax(1)

    theirs, i = Softmax().eval(), image()
    ours = port(ops.softmax(conv(4, 8)(i)), i, theirs, "c")
    ours.get_layer("c").set_weights([values(theirs.c)[0], values(theirs.c)[1] + 1])
    differs(theirs, ours, "c", "c")


def test_a_layer_that_cannot_run_alone_says_why():
    class Picky(L.Layer):
        def call(self, x):
            if hasattr(x, "numpy") and x.numpy().max() > 1e3:
                raise RuntimeError("too\nlarge")
            return x * 2

    theirs = net(c=nn.Conv2d(3, 4, 1), p=nn.ReLU())
    theirs.c.weight.data *= 1e5
    i = image()
    ours = keras.Sequential([i, conv(4, 1), Picky(name="p")])
    report = differs(theirs, ours, "c", "c")
    assert noted(report, "p was not isolated: RuntimeError: too large")


class Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.b, self.d = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(2, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.d(F.pixel_shuffle(self.b(self.c(x)), 2))


def test_channels_that_are_permuted_consistently():
    """TensorFlow's pixel shuffle has its channels in another order than torch's."""
    theirs, i = randomised(Shuffled()), image()
    x = L.BatchNormalization(epsilon=1e-5, name="b")(conv(8, 3)(i))
    x = ops.reshape(x, (-1, 6, 6, 2, 2, 2))  # as depth_to_space: block row, block column, channel
    x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 12, 12, 2))
    ours = port(L.Conv2D(2, 1, name="d")(x), i, theirs, "c", "b", "d")
    differs(theirs, ours, "input of d")
    order = np.arange(8).reshape(2, 4).T.ravel()
    for name in ("c", "b"):
        weights = values(getattr(theirs, name))
        ours.get_layer(name).set_weights([weight[..., order] for weight in weights])
    assert noted(holds(theirs, ours), "the channels in another order: c, b")
    ours.get_layer("b").set_weights(values(theirs.b))
    report = differs_somewhere(theirs, ours, {})
    assert report.first_divergence().point == "c"
