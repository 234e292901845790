"""Former false successes: outputs, calls, weights and statistics that were not compared."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import keras
import numpy as np
import pytest
import torch
from keras import ops
from torch import nn

from parity_tests.compare import Report, assert_parity, compare_models
from parity_tests.compare.layers import limit_at
from parity_tests.compare.report import Point
from parity_tests.judge.tolerances import CEILING, FLOAT32_UNMEASURED, float32_limit, relative_error
from weights_convert import MismatchError

X = np.random.default_rng(0).normal(size=(2, 3, 8, 8))


class Returns(nn.Module):
    """One convolution, and a function of its output."""

    def __init__(self, make: Any = lambda y: y) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c, self.make = nn.Conv2d(3, 4, 3), make

    def forward(self, x: torch.Tensor) -> Any:
        return self.make(self.c(x))


def port(make: Any = lambda y: y, model: nn.Module | None = None) -> keras.Model:
    """The same in Keras."""
    images = keras.Input((8, 8, 3))
    other = keras.Model(images, make(keras.layers.Conv2D(4, 3, name="c")(images)))
    conv = (model or Returns()).c
    other.get_layer("c").set_weights(
        [conv.weight.detach().numpy().transpose(2, 3, 1, 0), conv.bias.detach().numpy()]
    )
    return other


def refused(report: Report, *words: str) -> bool:
    """Whether parity does not hold, for this reason."""
    assert not report.holds
    assert all(word in str(report.why_not()) for word in words), report.why_not()
    return True


Pair = collections.namedtuple("Pair", ["first", "second"])


@dataclasses.dataclass
class Both:
    first: torch.Tensor
    second: torch.Tensor


STRUCTURES = {
    "dict": (lambda y: {"y": y}, lambda y: {"y": ops.softmax(y)}, "output y"),
    "list": (lambda y: [y, y * 2], lambda y: [y, y * 3], "output 1"),
    "tuple": (lambda y: (y, (y, y * 2)), lambda y: [y, [y, y * 3]], "output 1.1"),
    "nested dict": (lambda y: {"a": {"b": y}}, lambda y: {"a": {"b": -y}}, "output a.b"),
    "named tuple against a list": (lambda y: Pair(y, y * 2), lambda y: [y, y * 3], "output second"),
    "dataclass against a list": (lambda y: Both(y, y * 2), lambda y: [y, y * 3], "output second"),
    "one in a list": (lambda y: y, lambda y: [ops.softmax(y)], "output"),
    "squeezed": (lambda y: y.mean((1, 2, 3)), lambda y: ops.mean(y, (1, 2, 3), keepdims=True), "output"),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_outputs_of_any_structure_are_compared(name):
    theirs, ours, first = STRUCTURES[name]
    report = compare_models(Returns(theirs), port(ours), X)
    divergence = report.first_divergence()
    assert divergence is not None
    assert divergence.point == first


RIGHT = {
    "dict": (lambda y: {"y": y, "z": None}, lambda y: {"y": y}),
    "list": (lambda y: (y, y * 2), lambda y: [y, y * 2]),
    "named tuple": (lambda y: Pair(y, y * 2), lambda y: [y, y * 2]),
    "named tuple by name": (lambda y: Pair(y, y * 2), lambda y: {"second": y * 2, "first": y}),
    "wrapped": (lambda y: {"y": y}, lambda y: y),
}


@pytest.mark.parametrize("name", RIGHT)
def test_outputs_that_are_the_same_hold(name):
    theirs, ours = RIGHT[name]
    report = assert_parity(Returns(theirs), port(ours), X)
    counts = report.coverage["keras"]["candidate"]
    assert counts.outputs[0] == counts.outputs[1] > 0
    assert (counts.tensors, counts.parameters) == ((2, 2), (112, 112))
    assert (counts.left_out, counts.ignored) == ([], [])


MISSING = {
    "two for one": (lambda y: y, lambda y: [ops.softmax(y), y]),
    "one for two": (lambda y: [y, y * 2], lambda y: y),
    "other keys": (lambda y: {"y": y}, lambda y: {"y": y, "z": y}),
    "text": (lambda y: {"y": y, "label": "cat"}, lambda y: {"y": y}),
    "no finite value": (lambda y: y * float("nan"), lambda y: y * float("nan")),
    "no output": (lambda _: None, lambda y: y),
}


@pytest.mark.parametrize("name", MISSING)
def test_an_output_that_is_not_compared_makes_the_verdict_no(name):
    theirs, ours = MISSING[name]
    model, other = Returns(theirs), port(ours)
    assert refused(compare_models(model, other, X), "not everything was compared", "output")
    with pytest.raises(AssertionError, match="not everything was compared"):
        assert_parity(model, other, X)


def test_an_output_without_elements_was_not_compared():
    assert refused(compare_models(Returns(lambda y: y[:0]), Returns(lambda y: y[:0]), X), "output of the")


def test_the_caller_may_leave_out_what_is_named():
    model, other = Returns(), port(lambda y: {"y": y, "aux": y * 3})
    assert refused(compare_models(model, other, X, ignore=["output aux"]), "output")  # y has another name
    names = {"output": "output y"}
    report = assert_parity(model, other, X, names=names, ignore=["output aux"])
    assert report.coverage["keras"]["candidate"].ignored == ["output aux"]
    assert "ignored output aux" in str(report.coverage["keras"]["candidate"])
    with pytest.raises(MismatchError, match="ignore=: nothing is called 'aux'"):
        compare_models(model, other, X, names=names, ignore=["aux"])


def test_nothing_compared_is_no_parity():
    class Nothing(nn.Module):
        def forward(self, _: torch.Tensor) -> str:
            return "x"

    assert refused(compare_models(Nothing(), Nothing(), X), "nothing was compared", "output")
    with pytest.raises(AssertionError, match="nothing was compared"):
        assert_parity(Nothing(), Nothing(), X)
    assert refused(Report("x", "torch", ["keras"], "float64", layers=[Point("a", (), {}, 1.0)]), "nothing")


def test_a_layer_that_is_called_output_is_not_taken_for_the_output():
    class Net(nn.Module):
        def __init__(self, wrong: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.output, self.wrong = nn.Linear(3, 4), wrong

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.output(x) + self.wrong
            return y.softmax(-1)  # invariant to a constant

    other = Net(False)
    with torch.no_grad():
        other.output.bias += 1
    report = compare_models(Net(False), other, X[:, :, 0, 0])
    assert report.first_divergence().point == "output"
    assert [point.name for point in report.layers] == ["output", "model output"]


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c, self.aux = nn.Linear(3, 4), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(x)


def test_weights_that_are_never_used_were_not_compared():
    x = X[:, :, 0, 0]
    assert refused(compare_models(Unused(), Unused(), x), "aux of the reference", "aux of the candidate")
    report = assert_parity(Unused(), Unused(), x, ignore="aux")
    assert report.coverage["torch"]["reference"].tensors == (2, 4)


def test_weights_that_the_layer_around_uses_were_compared():
    model = nn.Sequential(collections.OrderedDict(a=Attends()))
    report = assert_parity(model, model, X[:, :, 0])
    assert report.coverage["torch"]["reference"].tensors == (4, 4)


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x)[0]


def test_tensors_of_a_layer_that_returns_several_are_compared():
    torch.manual_seed(0)
    model = Recurrent()
    other = Recurrent()
    other.load_state_dict(model.state_dict())
    report = compare_models(model, other, X[:, :, 0])
    assert report.holds
    assert [p.name for p in report.layers] == ["r 0", "r 1.0", "r 1.1", "output"]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.r = nn.LSTM(8, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.r(x)[0]


class Often(nn.Module):
    def __init__(self, times: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c, self.times = nn.Linear(3, 3), times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.c(x)
        for _ in range(self.times - 1):
            self.c(x)
        return y


def test_every_call_of_a_layer_counts():
    x = X[:, :, 0, 0]
    assert refused(compare_models(Often(2), Often(1), x), "c#2 of the reference")
    assert refused(compare_models(Often(1), Often(2), x), "c#2 of the candidate")
    assert compare_models(Often(2), Often(2), x).holds


def test_a_call_with_keywords_or_without_tensors_is_seen():
    class Net(nn.Module):
        def __init__(self, offset: float) -> None:
            super().__init__()
            self.p = Constant(offset)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x + self.p()) * 0 + x

    class Constant(nn.Module):
        def __init__(self, offset: float) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.full((3,), offset))

        def forward(self) -> torch.Tensor:
            return self.w

    report = compare_models(Net(1.0), Net(2.0), X[:, :, 0, 0])
    assert report.first_divergence().point == "p"


def test_names_do_not_hide_a_layer_that_is_in_the_way():
    """The candidate has "a" and "b"; names={"a": "b"} must not lose its own "a"."""

    class One(nn.Module):
        def __init__(self, *layers: str) -> None:
            super().__init__()
            for name in layers:
                torch.manual_seed(0)
                self.add_module(name, nn.Linear(3, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return [layer(x) for layer in self.children()][-1]

    x = X[:, :, 0, 0]
    report = compare_models(One("a"), One("a", "b"), x, names={"a": "b"})
    assert not report.holds
    assert report.first_divergence().point == "a (the candidate's own) (not in the reference)"
    assert compare_models(One("a"), One("b"), x, names={"a": "b"}).holds


# --------------------------------------------------------------------------------------------------
# Values, limits


@pytest.mark.parametrize(
    ("actual", "reference"),
    [
        ([1 + 2j], [1 + 1j]),  # the imaginary part counts
        ([2**60 + 1], [2**60]),  # equal in float64
        ([True, False], [True, True]),
        ([np.nan], [np.nan]),
        ([], []),
        ([1e308], [-1e308]),
    ],
)
def test_relative_error_is_not_blind(actual, reference):
    assert not relative_error(np.array(actual), np.array(reference)) <= CEILING


def test_complex_and_integer_outputs():
    assert compare_models(Returns(lambda y: y.argmax(1)), Returns(lambda y: y.argmax(1)), X).holds
    report = compare_models(Returns(lambda y: y + 1j), Returns(lambda y: y + 2j), X)
    assert report.first_divergence().point == "output"
    assert compare_models(Returns(lambda y: y + 1j), Returns(lambda y: y + 1j), X).holds


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("noise", [1.5, 1e300, float("inf"), float("nan")])
def test_no_limit_is_above_the_ceiling(noise, dtype):
    assert limit_at(noise, dtype) <= CEILING
    assert float32_limit(noise) <= CEILING
    assert not np.isfinite(noise) or limit_at(noise, dtype) == CEILING


def test_an_infinite_limit_proves_nothing():
    report = Report("x", "torch", ["keras"], "float64")
    report.layers = [Point("a", (1,), {"keras": 0.0}, 1.0), Point("b", (1,), {"keras": 5.0}, float("inf"))]
    assert refused(report, "the limit at b is inf")
    assert report.to_json()["ceiling"] == CEILING
    assert float32_limit(float("inf")) == FLOAT32_UNMEASURED


def test_the_noise_of_a_chaotic_model_is_capped():
    """A rounding error grows by a factor of 10^8: the noise would give a limit above 1."""

    def chaotic(y: torch.Tensor) -> torch.Tensor:
        return torch.sin(y * 1e15)

    report = compare_models(Returns(chaotic), Returns(lambda y: chaotic(y) * 1.02), X)
    assert refused(report, "output")
    assert any("the ceiling of every limit" in note for note in report.notes)
