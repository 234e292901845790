"""Weights between two live models that have nothing to do with this project."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch
from keras import layers as L
from torch import nn

from parity_tests.tests.pairs import X, net, randomised
from weights_convert import MismatchError, SourceError, SpecError, match, transfer
from weights_convert.frameworks import transfer as module


def source() -> nn.Sequential:
    return net(
        c=nn.Conv2d(3, 4, 3, padding=1, bias=False),
        b=nn.BatchNorm2d(4),
        r=nn.PReLU(),
        d=nn.Conv2d(4, 4, 3, groups=4),
        t=nn.ConvTranspose2d(4, 3, 2, 2),
        n=nn.GroupNorm(3, 3),
        f=nn.Flatten(),
        g=nn.Linear(432, 5),
        h=nn.Linear(5, 2),
    )


def target(epsilon: float = 1e-5) -> keras.Model:
    i = L.Input((8, 8, 3))
    x = L.Conv2D(4, 3, padding="same", name="k1")(i)
    x = L.PReLU(shared_axes=[1, 2], name="k3")(L.BatchNormalization(epsilon=epsilon, name="k2")(x))
    x = L.Conv2DTranspose(3, 2, 2, name="k5")(L.DepthwiseConv2D(3, name="k4")(x))
    x = L.Flatten()(L.GroupNormalization(3, epsilon=1e-5, name="k6")(x))
    return keras.Model(i, L.Dense(2, name="k8")(L.Dense(5, name="k7")(x)))


PAIRS = dict(zip("cbrdtngh", [f"k{n}" for n in range(1, 9)], strict=True))


def outputs(model: Any) -> np.ndarray:
    if isinstance(model, nn.Module):
        with torch.no_grad():
            return model(torch.tensor(X, dtype=torch.float32)).numpy()
    return np.array(model(X.transpose(0, 2, 3, 1).astype(np.float32)))


def test_weights_move_between_frameworks_and_back(tmp_path):
    theirs, ours = source(), target()
    theirs.r = nn.PReLU(4)
    certificate = transfer(theirs, ours, X)
    assert certificate.holds, certificate.verdict
    assert {pair.source: pair.target for pair in certificate.pairs} == PAIRS
    np.testing.assert_allclose(outputs(ours), outputs(theirs), rtol=1e-4, atol=1e-4)
    torch.manual_seed(1)
    again = source()
    again.r = nn.PReLU(4)
    for parameter in again.parameters():
        nn.init.normal_(parameter)
    assert transfer(ours, again, X).holds
    for name, value in theirs.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(again.state_dict()[name], value), name

    certificate.save(tmp_path / "c.json")
    other = target()
    replayed = transfer(theirs, other, X, replay=tmp_path / "c.json")
    hashes = [[p.tensors[role]["after"] for role in p.tensors] for p in replayed.pairs]
    assert hashes == [[p.tensors[role]["after"] for role in p.tensors] for p in certificate.pairs]
    assert {pair.how for pair in replayed.pairs} == {"stated"}
    nn.init.normal_(theirs.h.weight)
    before = [w.numpy() for w in other.weights]
    with pytest.raises(MismatchError, match="kernel of k8 is not the one of the certificate; nothing was"):
        transfer(theirs, other, X, replay=tmp_path / "c.json")
    assert all(np.array_equal(a, w.numpy()) for a, w in zip(before, other.weights, strict=True))


def test_a_setting_that_differs_is_a_warning_and_in_the_certificate():
    theirs, ours = net(c=nn.Conv2d(3, 4, 1), b=nn.BatchNorm2d(4)), L.Input((8, 8, 3))
    ours = keras.Model(ours, L.BatchNormalization(epsilon=1e-3)(L.Conv2D(4, 1)(ours)))
    with pytest.warns(UserWarning, match="the weights are moved, but keras differs first at layer b"):
        certificate = transfer(theirs, ours, X)
    assert not certificate.holds
    assert json.loads(json.dumps(certificate.to_json()))["verdict"] == certificate.verdict


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x).relu() - self.b(x)


def test_ambiguous_layers_are_refused_until_they_are_stated():
    theirs, i = randomised(Branches()), L.Input((8, 8, 3))
    ours = keras.Model(i, L.Conv2D(3, 1, activation="relu", name="x")(i) - L.Conv2D(3, 1, name="y")(i))
    with pytest.raises(MismatchError, match="no certain counterpart for a, b of the source and x, y"):
        match(theirs, ours, X)
    assert transfer(theirs, ours, X, names={"a": "x", "b": "y"}).holds
    with pytest.raises(MismatchError, match="names=: no layers with weights for 'a': 'z'"):
        match(theirs, ours, X, names={"a": "z", "b": "y"})


def test_nothing_is_written_if_one_layer_does_not_fit(monkeypatch, tmp_path):
    theirs, i = net(c=nn.Conv2d(3, 4, 1), d=nn.Conv2d(4, 2, 1)), L.Input((8, 8, 3))
    ours = keras.Model(i, L.Conv2D(2, 1, use_bias=False, name="d")(L.Conv2D(4, 1, name="c")(i)))
    before = [w.numpy() for w in ours.weights]
    with pytest.raises(MismatchError, match=r"d and d: the source has a bias \(2,\), the target has none"):
        transfer(theirs, ours, X)
    assert all(np.array_equal(a, w.numpy()) for a, w in zip(before, ours.weights, strict=True))
    (tmp_path / "c.json").write_text("[]")
    with pytest.raises(SourceError, match="expected a certificate of transfer"):
        transfer(theirs, ours, X, replay=tmp_path / "c.json")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SpecError, match="needs the package parity_tests"):
        match(theirs, ours, X)


def test_the_example_of_the_page(capsys, monkeypatch):
    docs = Path(__file__).parents[2] / "docs"
    monkeypatch.syspath_prepend(docs / "examples")
    runpy.run_path(str(docs / "examples" / "transfer_weights.py"), run_name="__main__")
    (shown,) = re.findall(
        r"\$ python docs/examples/transfer_weights.py\n(.*?)```",
        (docs / "harness.md").read_text("utf-8"),
        re.DOTALL,
    )
    assert capsys.readouterr().out == shown


def test_branches_without_effect_are_paired_all_the_same():
    """The last scale of a residual branch is 0 at first, so that nothing in the branch changes the output."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.n = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.c = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(x + self.n(self.b(self.a(x))))

    theirs, i = randomised(Residual()), L.Input((8, 8, 3))
    y = L.Conv2D(3, 1, name="y")(L.Conv2D(3, 1, name="x")(i))
    y = L.BatchNormalization(epsilon=1e-5, gamma_initializer="zeros", name="z")(y)
    certificate = transfer(theirs, keras.Model(i, L.Conv2D(3, 1, name="w")(i + y)), X)
    assert {pair.source: pair.target for pair in certificate.pairs} == {
        "a": "x",
        "b": "y",
        "n": "z",
        "c": "w",
    }
