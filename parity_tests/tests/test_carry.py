"""A training that goes on in another framework: five legs, with files converted in between, and one whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from parity_tests.judge.synthetic import position_coded, weights
from parity_tests.tests.carried import (
    BETAS,
    DECAY,
    EPSILON,
    MOMENTUM,
    SPEC,
    Leg,
    keras_leg,
    tf1_leg,
    torch_leg,
)
from weights_convert import ResNetSpec, convert, load_into
from weights_convert.layouts import LAYOUTS
from weights_convert.spec import InceptionSpec, MobileNetSpec, ShuffleNetSpec, VGGSpec, parameters

RATES = (0.05, 0.02, 0.1, 0.03, 0.07)  # of the legs
STEPS = 3
ADAM = {"beta_1": BETAS[0], "beta_2": BETAS[1], "epsilon": EPSILON, "weight_decay": DECAY}
FACTS = {  # which the files of Keras and TF1 lack
    "sgd": {"optimizer": "sgd", "momentum": MOMENTUM, "weight_decay": DECAY},
    "adam": {"optimizer": "adam"} | ADAM,
    "adamw": {"optimizer": "adamw"} | ADAM,
}
CLOSE = 1e-13  # relative; 9e-16 of weights and 4e-14 of moments measured


def legs(kind: str) -> list[Leg]:
    rates = RATES if kind == "sgd" else [rate / 50 for rate in RATES]
    return [Leg(kind, rate, STEPS * i, STEPS * (i + 1)) for i, rate in enumerate(rates)]


def first() -> dict[str, dict[str, torch.Tensor]]:
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in weights(SPEC).items()}
    return {"state_dict": {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}}


def results(net, optimizer) -> dict[str, np.ndarray]:
    """Weights and moments, without the step counts of batch norms, which TensorFlow lacks."""
    found = {name: tensor.numpy() for name, tensor in net.state_dict().items() if "num_batches" not in name}
    for number, entry in optimizer.state_dict()["state"].items():
        found |= {f"{key} {number}": np.asarray(value) for key, value in entry.items()}
    return found


def never_moved(kind: str) -> dict[str, np.ndarray]:
    state = first()
    for leg in legs(kind):
        net, optimizer = torch_leg(state, None, leg)
        state = {"state_dict": net.state_dict(), "optimizer": optimizer.state_dict()}
    return results(net, optimizer)


def moved(kind: str, folder: Path, *, stock: bool = False) -> dict[str, np.ndarray]:
    """torch -> Keras -> TF1 -> Keras -> torch."""

    def carried(source: str, target: str, leg: Leg, facts: dict | None = None) -> Path:
        carry = {**(facts or {}), "next_learning_rate": leg.rate}
        convert(folder / source, folder / target, carry=carry, assume=True)
        return folder / target

    one, two, three, four, five = legs(kind)
    whole = "2.keras" if kind == "sgd" else "2.weights.h5"  # Keras's own class: the file has its settings
    torch_leg(first(), folder / "1.pth", one)
    keras_leg(carried("1.pth", "1.weights.h5", two), folder / whole, two, stock=stock)
    tf1_leg(carried(whole, "2.ckpt", three, FACTS[kind]), folder / "3.ckpt", three, stock=stock)
    keras_leg(
        carried("3.ckpt", "3.weights.h5", four, FACTS[kind]), folder / "4.weights.h5", four, stock=stock
    )
    return results(*torch_leg(carried("4.weights.h5", "4.pth", five, FACTS[kind]), None, five))


def furthest(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> float:
    assert found.keys() == wanted.keys()
    distances = (np.abs(found[n] - wanted[n]).max() / np.abs(wanted[n]).max() for n in wanted)
    return float(max(distances))


@pytest.mark.parametrize("kind", FACTS)
def test_five_legs_equal_one_training_that_never_moved(kind, tmp_path):
    assert furthest(moved(kind, tmp_path), never_moved(kind)) < CLOSE


def test_the_epsilon_of_stock_adam_is_another(tmp_path):
    """The reason for the warning: its place in the formula shows after few steps."""
    assert 1e-7 < furthest(moved("adam", tmp_path, stock=True), never_moved("adam")) < 1e-2


ORDERED = {
    "se": SPEC,
    "cbam": ResNetSpec(depths=(1, 1), width=4, stem="deep", stem_width=4, attention="cbam", reduction=4),
    "eca": ResNetSpec(depths=(1, 1), width=4, stem_width=4, attention="eca", eca_kernel_sizes=(3, 3)),
    "sk": ResNetSpec(depths=(1, 1), width=8, stem_width=4, attention="sk"),
    "vgg": VGGSpec(depths=(2, 1), widths=(8, 8), head_width=16, num_classes=5, attention="cbam", reduction=4),
    "inception": InceptionSpec(width_multiplier=1 / 32, attention="se", num_classes=5),
    "mobilenet": MobileNetSpec(depths=(2, 3), widths=(8, 8), stem_width=4, attention="se", num_classes=5),
    "shufflenet": ShuffleNetSpec(depths=(2, 3), widths=(12, 24), stem_width=6, attention="se", num_classes=5),
}


@pytest.mark.parametrize("name", ORDERED)
def test_the_order_of_variables_is_the_canonical_one(name):
    """PyTorch numbers an optimiser's entries by this order, and Keras too."""
    import keras_impl
    import torch_impl

    spec = ORDERED[name]
    trained = [parameter for parameter in parameters(spec) if parameter.trainable]
    net = getattr(torch_impl, spec.network)(**spec.model_kwargs())
    assert [name for name, _ in net.named_parameters()] == [parameter.name for parameter in trained]
    model, values = getattr(keras_impl, spec.network)(**spec.model_kwargs()), position_coded(spec)
    load_into(model, values)
    for parameter, variable in zip(trained, model.trainable_variables, strict=True):
        wanted = LAYOUTS["keras"].stored(parameter).to_file(values[parameter.name])
        np.testing.assert_array_equal(np.asarray(variable.value), wanted, parameter.name)
