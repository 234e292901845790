"""Every verdict states its power: in the main job, `compare_models`, the table, on the page, in the JSON."""

from __future__ import annotations

import io
import json
import warnings

import keras
import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from parity_tests import __main__ as command
from parity_tests import harness
from parity_tests.compare import assert_parity, compare_models
from parity_tests.compare.power import measure as power_torch
from parity_tests.compare.table import show
from parity_tests.judge import synthetic
from parity_tests.judge.synthetic import tiny
from parity_tests.page.page import page

pytestmark = pytest.mark.quick
POINTS = np.random.default_rng(0).normal(size=(4, 3))


def unreached() -> nn.Module:
    """A slope that no value reaches: any slope gives the same output."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.LeakyReLU(0.1), nn.Linear(4, 2)).double()


def keras_linear(module: nn.Linear) -> keras.Model:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense")])
    model.layers[0].set_weights([module.weight.detach().numpy().T, module.bias.detach().numpy()])
    return model


def test_the_main_job_states_its_power():
    spec = tiny(attention="se")
    result = harness.prove("tiny", synthetic.weights(spec), synthetic.images((32, 40)))
    tensors = [item for item in result.power.items if not item.is_setting]
    assert {(item.smallest, item.point, item.unseen) for item in tensors} == {(0.0, "bit for bit", 0)}
    epsilons = [item for item in result.power.items if item.kind == "epsilon"]
    assert len(epsilons) == sum(item.name.endswith("running_var") for item in tensors)
    assert all(0 < item.smallest < 1e-3 for item in epsilons)
    assert result.caveat == ""
    assert result.to_json()["power"]["without_power"] == []


def test_float32_alone_does_not_see_an_epsilon(capsys):
    arguments = ["se_resnet20", "--dtype", "float32", "--frameworks", "torch"]
    assert command.main(arguments) == 1
    assert "parity holds, but without power for: epsilon bn1.eps (" in capsys.readouterr().out
    assert command.main([*arguments, "--allow-no-power"]) == 0


def test_a_comparison_names_unnoticed_items():
    report = compare_models(unreached(), unreached(), POINTS)
    assert report.holds
    assert report.caveat == "without power for: slope 2.negative_slope (any change)"
    with pytest.warns(UserWarning, match="but without power for: slope 2.negative_slope"):
        assert_parity(unreached(), unreached(), POINTS)


def test_a_comparison_with_power_says_nothing():
    module = nn.Sequential(nn.Linear(3, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert assert_parity(module, module, POINTS).caveat == ""


def test_the_torch_module_may_be_the_candidate():
    module = nn.Sequential(nn.Linear(3, 2))
    report = assert_parity(keras_linear(module[0]), module, POINTS, names={"dense": "0"})
    found = {item.name: item for item in report.power.items}
    assert set(found) == {"0.weight", "0.bias"}
    assert all(0 < item.smallest < 1e-9 and item.point == "0" for item in found.values())


def test_without_a_torch_module_nothing_is_measured():
    model = keras_linear(nn.Linear(3, 2))
    report = assert_parity(model, model, POINTS)
    assert report.power.summary().startswith("power was not measured: this needs a torch module")
    assert report.caveat == ""


def test_a_model_that_cannot_be_moved_is_no_traceback(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("cannot be run\ntwice")

    monkeypatch.setattr(power_torch, "measure_power", fails)
    report = compare_models(nn.Linear(3, 2), nn.Linear(3, 2), POINTS)
    assert not report.holds  # other weights
    assert report.power is None
    same = unreached()
    assert compare_models(same, same, POINTS).power.reason == "RuntimeError: cannot be run"


def test_it_is_in_the_table_on_the_page_and_in_the_json():
    report = compare_models(unreached(), unreached(), POINTS)
    text = io.StringIO()
    show(Console(file=text, width=200), report)
    assert "but without power for: slope 2.negative_slope (any change)" in text.getvalue()
    assert report.power.summary() in text.getvalue()
    html = page([report])
    assert 'class="weak"' in html
    assert "<h3>Power</h3>" in html
    assert "noticed</th>" in html
    facts = json.loads(json.dumps(report.to_json()))["power"]
    assert facts["without_power"] == ["2.negative_slope"]
    assert {item["name"]: item["smallest"] for item in facts["items"]}["2.negative_slope"] == "inf"
