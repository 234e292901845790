"""Verdicts of the harness on pairs that are not this project's: float32 rounding, scales, several inputs.

Each right twin holds and no layer is accused; each wrong one is accused, and no other layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import torch
from keras import layers as L
from torch import nn

from parity_tests.compare import compare_models
from weights_convert.errors import SpecError

X = np.random.default_rng(0).normal(size=(2, 3, 8, 8))
I = L.Input((8, 8, 3))  # noqa: E741


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def kernel(conv: nn.Module) -> list[np.ndarray]:
    return [array(conv.weight).transpose(2, 3, 1, 0), array(conv.bias)]


def reference(**layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential()
    for name, layer in layers.items():
        net.add_module(name, layer)
    for parameter in net.parameters():
        parameter.data.uniform_(-1, 1)
    return net.eval()


def between(activation: nn.Module, layer: Any) -> tuple[nn.Module, Any, str]:
    """A layer named a between two convolutions."""
    net = reference(c=nn.Conv2d(3, 4, 3), a=activation, d=nn.Conv2d(4, 2, 1))
    port = keras.Model(I, L.Conv2D(2, 1, name="d")(layer(L.Conv2D(4, 3, name="c")(I))))
    for name in "cd":
        port.get_layer(name).set_weights(kernel(getattr(net, name)))
    return net, port, "a"


def folded(factor: float = 1.0) -> tuple[nn.Module, Any, str]:
    """A batch norm that was folded into the convolution by hand, in float32."""
    net = reference(c=nn.Conv2d(3, 4, 3), b=nn.BatchNorm2d(4), r=nn.ReLU())
    scale = array(net.b.weight) / np.sqrt(array(net.b.running_var) + net.b.eps)
    bias = (array(net.c.bias) - array(net.b.running_mean)) * scale * factor + array(net.b.bias)
    port = keras.Model(I, L.ReLU(name="r")(L.Conv2D(4, 3, name="c")(I)))
    port.get_layer("c").set_weights([kernel(net.c)[0] * scale, bias])
    return net, port, "c"


def normalised() -> tuple[nn.Module, Any, str]:
    net = reference(c=nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)))
    port = keras.Model(I, L.Conv2D(4, 3, name="c")(I))
    port.get_layer("c").set_weights(kernel(net.c))
    return net, port, "c"


ROUNDED: dict[str, Callable[[], tuple[nn.Module, Any, str]]] = {
    "bilinear upsampling": lambda: between(
        nn.Upsample(scale_factor=2, mode="bilinear"), L.UpSampling2D(2, interpolation="bilinear", name="a")
    ),
    "slope": lambda: between(nn.LeakyReLU(0.01), L.LeakyReLU(negative_slope=0.01, name="a")),
    "gelu": lambda: between(nn.GELU(), L.Activation("gelu", name="a")),
    "folded batch norm": folded,
    "weight norm": normalised,
}


@pytest.mark.parametrize("name", ROUNDED)
def test_float32_arithmetic_is_a_verdict_of_its_own(name):
    net, port, layer = ROUNDED[name]()
    report = compare_models(net, port, X)
    assert report.holds
    assert report.culprits() == []
    assert [*report.rounding["keras"]] == [layer]
    assert any(f"keras: float32 rounding in layer {layer}: " in note for note in report.notes)
    assert report.to_json()["rounding"]["keras"].keys() == {layer}
    asked = compare_models(net, port, X, float32_rounding="fail")
    assert asked.culprits() == [("keras", layer)]


def eps(wrong: float) -> tuple[nn.Module, Any, str]:
    """A small error that is no rounding: an epsilon that moves the outputs by less than float32 resolves."""
    net = reference(c=nn.Conv2d(3, 4, 3), a=nn.BatchNorm2d(4))
    net.a.running_var.fill_(20.0)
    port = keras.Model(I, L.BatchNormalization(epsilon=wrong, name="a")(L.Conv2D(4, 3, name="c")(I)))
    port.get_layer("c").set_weights(kernel(net.c))
    weights = (net.a.weight, net.a.bias, net.a.running_mean, net.a.running_var)
    port.get_layer("a").set_weights([array(tensor) for tensor in weights])
    return net, port, "a"


def wrong_after_rounding() -> tuple[nn.Module, Any, str]:
    net, port, _ = ROUNDED["gelu"]()
    weights = port.get_layer("d").get_weights()
    port.get_layer("d").set_weights([weights[0] * 1.1, weights[1]])
    return net, port, "d"


WRONG: dict[str, Callable[[], tuple[nn.Module, Any, str]]] = {
    "nearest for bilinear": lambda: between(
        nn.Upsample(scale_factor=2, mode="bilinear"), L.UpSampling2D(2, name="a")
    ),
    "Keras's default slope": lambda: between(nn.LeakyReLU(0.01), L.LeakyReLU(name="a")),
    "tanh's approximation of gelu": lambda: between(nn.GELU("tanh"), L.Activation("gelu", name="a")),
    "folded with another bias": lambda: folded(1.1),
    "epsilon": lambda: eps(2e-5),
    "a layer after a rounded one": wrong_after_rounding,
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_layer_is_no_rounding(name):
    net, port, layer = WRONG[name]()
    report = compare_models(net, port, X)
    assert not report.holds
    assert report.culprits() == [("keras", layer)]


@pytest.mark.parametrize("layer", [L.ReLU(max_value=6, name="a"), L.ReLU(name="a")], ids=["relu6", "relu"])
def test_a_bend_that_only_larger_inputs_reach(layer):
    net, port, _ = between(nn.ReLU6(), layer)
    for tensor in net.c.parameters():
        tensor.data *= 0.1
    port.get_layer("c").set_weights(kernel(net.c))
    report = compare_models(net, port, X)
    assert report.holds == (layer.max_value is not None)
    assert report.culprits() == ([] if report.holds else [("keras", "a")])
    assert report.holds or report.notes[0] == "keras agrees on the inputs as given; these are 10 times them"


@pytest.mark.parametrize("first", [True, False])
def test_a_bend_beside_a_rounded_layer(first):
    """The rounding is a note at every scale, and only the activation is accused."""
    layers = {"u": nn.Upsample(scale_factor=2, mode="bilinear"), "a": nn.ReLU6()}
    ports = {"u": L.UpSampling2D(2, interpolation="bilinear", name="u"), "a": L.ReLU(name="a")}
    order = "ua" if first else "au"
    net = reference(c=nn.Conv2d(3, 4, 3), **{name: layers[name] for name in order})
    for tensor in net.c.parameters():
        tensor.data *= 0.1
    x = L.Conv2D(4, 3, name="c")(I)
    for name in order:
        x = ports[name](x)
    port = keras.Model(I, x)
    port.get_layer("c").set_weights(kernel(net.c))
    report = compare_models(net, port, X)
    assert report.culprits() == [("keras", "a")]
    assert [*report.rounding["keras"]] == ["u"]


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Conv2d(5, 3, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.a(x)[:, :, None, None] * self.b(y)


@keras.saving.register_keras_serializable("samenet_tests")
class TwoPort(keras.Model):
    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.a, self.b = (
            L.Dense(3, dtype=self.dtype_policy, name="a"),
            L.Conv2D(3, 1, dtype=self.dtype_policy, name="b"),
        )

    def call(self, x: Any, y: Any) -> Any:
        return self.a(x)[:, None, None] * self.b(y)


def port_of(net: Two, kind: str) -> keras.Model:
    x, y = L.Input((4,), name="x"), L.Input((6, 7, 5), name="y")
    if kind == "subclassed":
        port: keras.Model = TwoPort(dtype="float64")
        port(np.zeros((1, 4)), np.zeros((1, 6, 7, 5)))
    else:
        a, b = L.Dense(3, name="a")(x), L.Conv2D(3, 1, name="b")(y)
        port = keras.Model([x, y], L.Reshape((1, 1, 3))(a) * b)
    layers = {"a": [array(net.a.weight).T, array(net.a.bias)], "b": kernel(net.b)}
    for name, weights in layers.items():
        next(layer for layer in port.layers if layer.name == name).set_weights(weights)
    return port


@pytest.mark.parametrize("kind", ["functional", "subclassed"])
@pytest.mark.parametrize("by", ["order", "keyword"])
def test_several_inputs(kind, by):
    net = Two().eval()
    port = port_of(net, kind)
    x, y = np.random.default_rng(1).normal(size=(2, 4)), np.random.default_rng(2).normal(size=(2, 5, 6, 7))
    inputs: Any = {"x": x, "y": y} if by == "keyword" else (x, y)
    report = compare_models(net, port, inputs)
    assert report.holds
    assert report.power is not None
    assert report.power.reason == "the models have several inputs"
    net.b.weight.data *= 1.1
    assert compare_models(net, port, inputs).culprits() == [("keras", "b")]


@pytest.mark.parametrize("inputs", [{}, [X.tolist(), "a"], {"x": "a"}, np.float64(3)], ids=str)
def test_inputs_that_are_none(inputs):
    with pytest.raises(SpecError, match=r"^(no )?inputs"):
        compare_models(Two(), Two(), inputs)
