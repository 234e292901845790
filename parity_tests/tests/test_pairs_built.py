"""Models that are wrapped, subclassed, or built from a user's own classes and functions."""

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
from parity_tests.tests.pairs import X, differs, holds, net, noted, port, values
from weights_convert import SpecError


def narrow() -> Any:
    return L.Input((8, 8, 3))


def pair(last: str = "d") -> tuple[nn.Sequential, keras.Model]:
    theirs, i = net(c=nn.Conv2d(3, 4, 3), d=nn.Conv2d(4, 2, 1)), narrow()
    return theirs, port(L.Conv2D(2, 1, name=last)(L.Conv2D(4, 3, name="c")(i)), i, theirs, "c", "d")


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "both": lambda module: nn.DataParallel(torch.optim.swa_utils.AveragedModel(module)),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_are_looked_through(name):
    theirs, ours = pair()
    wrapped = WRAPPERS[name](theirs)
    assert noted(holds(wrapped, ours), "judged is the")
    kernel, bias = ours.get_layer("d").get_weights()
    ours.get_layer("d").set_weights([kernel * 1.01, bias])
    differs(wrapped, ours, "d", "d")


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_weight_that_a_hook_computes():
    """`torch.nn.utils.weight_norm` keeps a computed tensor, which `copy.deepcopy` refuses."""
    theirs, ours = pair()
    theirs.c = nn.utils.weight_norm(theirs.c)
    theirs(torch.tensor(X, dtype=torch.float32))
    before = theirs.c.weight
    holds(theirs, ours)
    assert theirs.c.weight is before


def test_a_module_that_cannot_be_copied():
    theirs, ours = pair()
    theirs.lines = (line for line in ())
    with pytest.raises(SpecError, match=r"the torch module cannot be copied \(TypeError: cannot pickle"):
        compare_models(theirs, ours, X)


class Twice(L.Layer):
    """A user's class that is not registered with Keras."""

    def call(self, x: Any) -> Any:
        return x * 2


SCALE = 2


@pytest.mark.parametrize("layer", [Twice(name="t"), L.Lambda(lambda x: ops.multiply(x, SCALE), name="t")])
def test_own_classes_and_lambdas_are_rebuilt(layer):
    class Torch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.d = pair()[0].children()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.d(self.c(x) * 2)

    theirs, i = Torch().eval(), narrow()
    ours = port(L.Conv2D(2, 1, name="d")(layer(L.Conv2D(4, 3, name="c")(i))), i, theirs, "c", "d")
    holds(theirs, ours)
    kernel, bias = ours.get_layer("d").get_weights()
    ours.get_layer("d").set_weights([kernel * 1.01, bias])
    differs(theirs, ours, "d", "d")


class Subclassed(keras.Model):
    """A model whose copy has no weights before its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.blocks = L.Conv2D(4, 3), [L.Conv2D(2, 1)]

    def call(self, x: Any) -> Any:
        for layer in (self.c, *self.blocks):
            x = layer(x)
        return x


def test_a_subclassed_model():
    theirs, _ = pair()
    ours = Subclassed()
    ours(np.zeros((1, 8, 8, 3), np.float32))
    ours.c.set_weights(values(theirs.c))
    ours.blocks[0].set_weights(values(theirs.d))
    report = holds(theirs, ours)
    assert report.pairing["keras"]["d"][0] == "blocks.0"
    kernel, bias = values(theirs.d)
    ours.blocks[0].set_weights([kernel * 1.01, bias])
    differs(theirs, ours, "d", "d")
