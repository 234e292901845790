"""The sweep: each switch in a process of its own."""

from __future__ import annotations

import pytest

from parity_tests.compare.sweep import SWITCHES, _child, sweep
from parity_tests.judge import synthetic
from parity_tests.judge.synthetic import tiny
from parity_tests.judge.tolerances import FLOAT64

# --------------------------------------------------------------------------------------------------
# The sweep


@pytest.mark.parametrize(
    "names",
    [["channels_last"], pytest.param(["as it is", "channels_last"], marks=pytest.mark.exhaustive)],
    ids=len,
)
def test_the_sweep_runs_a_switch_in_its_own_process(monkeypatch, names):
    spec = tiny(depths=(1,), block="basic", stem="3x3")
    chosen = {name: SWITCHES[name] for name in (f"torch: {name}" for name in names)}
    monkeypatch.setattr("parity_tests.compare.sweep.SWITCHES", chosen)
    costs = sweep(synthetic.weights(spec), synthetic.images((8, 8)), ["torch"])
    assert [cost.switch for cost in costs] == names
    for cost in costs:
        assert cost.float64 is not None
        assert cost.float32 is not None
        assert cost.float64 < FLOAT64 < cost.float32


def test_a_switch_that_fails_says_why(tmp_path):
    name = "torch: as it is"
    logits, reason = _child(name, SWITCHES[name], tmp_path, "float32")
    assert logits is None
    assert "there is no such file" in reason
