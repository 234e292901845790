"""The stated power of a comparison agrees with injected changes, and unnoticed items are named."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import torch_impl
from parity_tests.compare.power.measure import measure_power
from parity_tests.judge import synthetic
from parity_tests.tests.injected import KINDS, randomised
from parity_tests.tests.injections import Injection, Injector
from parity_tests.watch.torch import TorchTracer
from weights_convert import load_into, model_spec
from weights_convert.spec import MODELS

IMAGES = np.random.default_rng(0).normal(size=(2, 3, 8, 8))


def limits_of(module: nn.Module, images: np.ndarray, only: tuple[str, ...] = ()) -> dict[str, float]:
    """A limit for every layer and the output, or for some of them."""
    names = list(TorchTracer(module, "float64").trace(images))
    return {name: 1e-10 for name in names if not only or name in only}


def ratios(name: str, module: nn.Module, images: np.ndarray, limits: dict[str, float]) -> list[Injection]:
    """Stated and true smallest change of every tensor and setting."""
    injector = Injector(module, images, limits)
    power = measure_power(module, images, limits)
    assert power.items
    return [injector.inject(name, item, seed) for seed, item in enumerate(power.items)]


def check(found: list[Injection]) -> None:
    right = [one for one in found if 1 / 3 <= one.ratio <= 3]
    wrong = [(one.item.name, one.item.smallest, one.true) for one in found if one not in right]
    assert len(right) >= 0.95 * len(found), wrong


@pytest.mark.exhaustive
def test_stated_is_true_in_other_peoples_layers():
    """Includes `MultiheadAttention`, which uses its inner layer's weight without calling that layer."""
    found = []
    for kind, make in KINDS.items():
        torch.manual_seed(0)
        module = randomised(make())
        found += ratios(kind, module, IMAGES, limits_of(module, IMAGES))
    check(found)


@pytest.mark.parametrize(
    "name",
    [
        "eca_resnet20",
        *(pytest.param(n, marks=pytest.mark.exhaustive) for n in ("se_resnet20", "cbam_resnet20")),
    ],
)
def test_stated_is_true_in_our_networks(name):
    spec = model_spec(name, depths=(1, 1))
    module, images = torch_impl.ResNet(**spec.model_kwargs()).eval(), synthetic.images((16, 16), batch=2)
    load_into(module, synthetic.weights(spec))
    check(ratios(name, module, images, limits_of(module, images)))


@pytest.mark.exhaustive
def test_stated_is_true_in_every_named_network():
    """Some items of each network, over 1,000 injections in all; docs/parity.md has the figures."""
    found = []
    for name in MODELS:
        spec = model_spec(name)
        module, images = torch_impl.ResNet(**spec.model_kwargs()).eval(), synthetic.images((32, 32), batch=1)
        load_into(module, synthetic.weights(spec))
        limits = limits_of(module, images)
        items, injector = measure_power(module, images, limits).items, Injector(module, images, limits)
        drawn = sorted(np.random.default_rng(len(name)).choice(len(items), size=29, replace=False))
        found += [injector.inject(name, items[number], seed) for seed, number in enumerate(drawn)]
    assert len(found) > 1000
    check(found)


def test_unnoticed_items_are_named():
    """A slope that no value reaches, a layer behind a gamma of 0, and dead units."""
    module = nn.Sequential(
        nn.Linear(3, 4), nn.Softplus(), nn.LeakyReLU(0.1), nn.LayerNorm(4), nn.Linear(4, 2)
    )
    module = module.double()
    with torch.no_grad():
        module[3].weight.zero_()
    images = np.abs(IMAGES[:, :, 0, 0])
    power = measure_power(module, images, {"output": 1e-12})
    unseen = {item.name for item in power.without_power()}
    assert {"2.negative_slope", "0.weight", "0.bias"} <= unseen
    assert "4.bias" not in unseen
    assert "without power for" in power.caveat()
    assert all(
        math.isinf(item.smallest) for item in power.items if item.name in ("0.weight", "2.negative_slope")
    )


def test_dead_units_are_counted():
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        module[0].weight.fill_(1.0)
        module[0].bias[:] = torch.tensor([1.0, 1.0, -100.0, -100.0])
        module[2].weight.fill_(1.0)
    images = np.abs(IMAGES[:, :, 0, 0])
    items = {item.name: item for item in measure_power(module, images, {"output": 1e-12}).items}
    assert items["0.weight"].unseen == 6  # two units of three weights
    assert items["2.weight"].unseen == 4  # their outgoing weights
    exact = measure_power(module, images, {"output": 1e-12}, bit_for_bit=("0.weight",)).items
    assert {item.name: item.unseen for item in exact}["0.weight"] == 0


def test_the_model_stays_as_it_is():
    module = randomised(KINDS["norms"]())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    measure_power(module, IMAGES, limits_of(module, IMAGES))
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
