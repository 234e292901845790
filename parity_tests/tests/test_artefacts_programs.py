"""`torch.export` programs layer by layer: unbroken ones hold, and injected faults are named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from parity_tests.compare import compare_models
from parity_tests.tests import exports
from parity_tests.tests.exports import IMAGES
from parity_tests.tests.test_artefacts_onnx import NETWORKS, network
from parity_tests.watch.trace import covers


def program(module: nn.Module, decomposed: bool = False) -> Any:
    images = torch.tensor(IMAGES, dtype=torch.float32)
    found = torch.export.export(module, (images,))
    return found.run_decompositions() if decomposed else found


@pytest.mark.parametrize("decomposed", [False, True], ids=["plain", "decomposed"])
@pytest.mark.parametrize("name", NETWORKS)
def test_an_unbroken_program_holds(name, decomposed):
    report = compare_models(network(name), program(network(name), decomposed), IMAGES)
    assert report.holds, report.why_not()
    assert report.culprits() == []
    assert not report.outputs_only
    reference = report.coverage["torch.export"]["reference"]
    assert reference.parameters[0] == reference.parameters[1]
    assert len(report.layers) > 5


class Twice(nn.Module):
    """A layer called twice in a row, and an activation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.end = nn.Conv2d(3, 3, 3), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.act(self.conv(self.conv(x))))


def test_repeated_calls_and_operations_in_place_hold():
    module = exports.randomised(Twice())
    report = compare_models(module, program(module), IMAGES)
    assert report.holds, report.why_not()
    assert {"conv", "conv#2", "act", "end"} <= {point.name for point in report.layers}


def test_a_file_holds_too(tmp_path):
    torch.export.save(program(network("residual")), tmp_path / "x.pt2")
    report = compare_models(network("residual"), tmp_path / "x.pt2", IMAGES)
    assert report.holds, report.why_not()
    assert not report.outputs_only


def layer(name: str, change: Callable[[Any], Any]) -> Callable[[nn.Module], None]:
    def inject(module: nn.Module) -> None:
        change(module.get_submodule(name))

    return inject


def scaled(name: str, factor: float) -> Callable[[Any], Any]:
    def change(module: Any) -> None:
        with torch.no_grad():
            getattr(module, name).mul_(factor)

    return change


def swapped(module: nn.Module, name: str, other: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(module.get_submodule(parent), own, other)


FAULTS: dict[str, tuple[str, str, Callable[[nn.Module], Any]]] = {  # network, the name to find, the fault
    "epsilon": ("residual", "block.bn1", layer("block.bn1", lambda m: setattr(m, "eps", 1e-3))),
    "weights": ("residual", "stem", layer("stem", scaled("weight", 1.001))),
    "bias": ("residual", "head", layer("head", scaled("bias", 0.0))),
    "statistics": ("residual", "block.bn2", layer("block.bn2", scaled("running_var", 1.01))),
    "sign": ("residual", "block.conv1", layer("block.conv1", scaled("weight", -1.0))),
    "pool": ("residual", "pool", lambda m: swapped(m, "pool", nn.AvgPool2d(2))),
    "activation": ("residual", "block.relu", lambda m: swapped(m, "block.relu", nn.ELU())),
    "resize": ("branches", "up", layer("up", lambda m: setattr(m, "mode", "bicubic"))),
    "slope": ("branches", "act", layer("act", lambda m: setattr(m, "negative_slope", 0.2))),
    "axis": ("branches", "soft", layer("soft", lambda m: setattr(m, "dim", 2))),
    "relu6": ("mobile", "2", lambda m: swapped(m, "2", nn.ReLU())),
    "group norm": ("grown", "1", layer("1", lambda m: setattr(m, "num_groups", 4))),
    "gelu": ("grown", "2", layer("2", lambda m: setattr(m, "approximate", "tanh"))),
}


@pytest.mark.parametrize("decomposed", [False, True], ids=["plain", "decomposed"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_nothing_else(fault, decomposed):
    name, wanted, inject = FAULTS[fault]
    broken = copy.deepcopy(network(name))
    inject(broken)
    report = compare_models(network(name), program(broken, decomposed), 10 * IMAGES)
    assert not report.holds
    found = report.first_divergence()
    assert wanted in {found.point.removeprefix("input of "), *found.culprits}, report.why_not()
    innocent = [name for name in found.culprits if not covers(name.partition("#")[0], wanted)]
    assert innocent == [], report.why_not()


def test_a_program_in_bfloat16_is_judged_by_its_outputs():
    module = copy.deepcopy(network("residual")).bfloat16()
    found = torch.export.export(module, (torch.tensor(IMAGES, dtype=torch.bfloat16),))
    report = compare_models(network("residual"), found, IMAGES)
    assert report.outputs_only == ["torch.export"]
    assert report.accuracy["torch.export"].precision == "bfloat16"


def test_several_inputs_by_their_names():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.left(left)) - self.right(right)

    module = exports.randomised(Two())
    images = {"left": IMAGES, "right": IMAGES[:, ::-1].copy()}
    tensors = {name: torch.tensor(array, dtype=torch.float32) for name, array in images.items()}
    found = torch.export.export(module, (), tensors)
    report = compare_models(module, found, images)
    assert report.holds, report.why_not()
    assert {point.name for point in report.layers} >= {"left", "right"}
    assert np.isfinite(max(e for point in report.layers for e in point.errors.values()))
