"""Moving averages of a TF1 checkpoint: `ema=True` and `--ema` take them, and other files refuse."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import tf1_compat
from parity_tests.judge import synthetic
from parity_tests.judge.synthetic import tiny
from weights_convert import SourceError, load, load_into, load_model, save, state_of
from weights_convert.formats import open_reader
from weights_convert.formats.base import TensorInfo
from weights_convert.formats.tf1.checkpoint import write_tf1

SPEC = tiny(attention="se")
TRAINED = [p.name for p in SPEC.tensors() if p.role not in ("mean", "variance", "count")]
NOTE = f"took the moving averages of {len(TRAINED)} tensors in the place of their last values"
HINT = f"holds moving averages of {len(TRAINED)} tensors too; --ema (in Python ema=True) takes them"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of TensorFlow after training steps with an average, its raw and its averaged values."""
    path = tmp_path_factory.mktemp("ema") / "model.ckpt"
    with tf.Graph().as_default(), tf.Session() as session:
        logits, _ = tf1_compat.resnet(tf.zeros((2, 32, 32, 3)), scope="net", **SPEC.model_kwargs())
        average = tf.train.ExponentialMovingAverage(0.5)
        step = tf.train.MomentumOptimizer(0.1, 0.9).minimize(tf.reduce_sum(logits**2))
        with tf.control_dependencies([step]):
            update = average.apply(tf.trainable_variables())
        session.run(tf.global_variables_initializer())
        load_into(session, synthetic.weights(SPEC))
        for _ in range(2):
            session.run(update)
        raw = state_of(session)
        tf.train.Saver().save(session, str(path))
        session.run([tf.assign(variable, average.average(variable)) for variable in tf.trainable_variables()])
        averaged = state_of(session)
    return path, raw, averaged


@pytest.mark.quick
def test_the_averages_are_taken(trained):
    path, raw, averaged = trained
    with load(path) as last, load(path, ema=True) as average:
        assert HINT in last.notes
        assert NOTE in average.notes
        assert last.spec == average.spec
        for checkpoint, wanted in ((last, raw), (average, averaged)):
            assert [name for name in wanted if not np.array_equal(checkpoint[name], wanted[name])] == []
        assert any((raw[name] != averaged[name]).any() for name in TRAINED)
        assert not any("ExponentialMovingAverage" in name for name in average.left_out)


def test_every_way_takes_them(trained, tmp_path, monkeypatch, run):
    path, _, averaged = trained
    monkeypatch.chdir(tmp_path)
    ran = run("convert", path, "average.pth", "--ema", "--json", "plan.json")
    assert ran.code == 0
    assert f"note: {NOTE}" in ran.out
    plan = json.loads((tmp_path / "plan.json").read_text())
    moves = {line["canonical"]: line["source"] for line in plan["tensors"]}
    assert moves["fc.bias"] == "net/fc/bias/ExponentialMovingAverage"
    assert moves["bn1.running_mean"] == "net/bn1/moving_mean"
    assert NOTE in plan["notes"]
    assert run("diff", path, "average.pth", "--ema").code == 0
    assert run("diff", path, "average.pth").code == 1
    ran = run("inspect", path, "--ema")
    assert NOTE in ran.out
    assert re.search(r"^convert .*model\.pth --ema$", ran.out, re.MULTILINE)
    ran = run("inspect", path)
    assert f"note          {HINT}" in ran.out
    state = state_of(load_model(path, ema=True))
    assert all(np.array_equal(state[name], averaged[name]) for name in averaged)


@pytest.mark.quick
def test_a_file_without_averages_refuses(trained, tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    save(synthetic.weights(SPEC), "a.ckpt")
    save(synthetic.weights(SPEC), "a.pth")
    for name in ("a.ckpt", "a.pth"):
        message = "holds no moving averages, expected names that end in /ExponentialMovingAverage; omit --ema"
        ran = run("convert", name, "b.npz", "--ema")
        assert (ran.code, ran.err) == (2, f"{name}: {message}\n")
    with load("a.ckpt") as checkpoint:
        assert not any("average" in note for note in checkpoint.notes)
    with open_reader(trained[0]) as reader:  # averages of another network only
        kept = {n: i for n, i in reader.tensors.items() if not n.endswith("ExponentialMovingAverage")}
        other = {"other/kernel/ExponentialMovingAverage": TensorInfo((1,), np.dtype(np.float32))}
        write_tf1(
            tmp_path / "c.ckpt", kept | other, lambda n: reader.read(n) if n in kept else np.ones(1, "f"), {}
        )
    with pytest.raises(SourceError, match="holds no moving averages"):
        load("c.ckpt", ema=True, assume=True)
    with load("c.ckpt", assume=True) as checkpoint:
        assert not any("average" in note for note in checkpoint.notes)


@pytest.mark.quick
def test_a_file_of_averages_alone(trained, tmp_path):
    """As a Saver of `variables_to_restore()` writes it."""
    path, _, _ = trained
    with open_reader(path) as reader:
        averaged = {
            n.removesuffix("/ExponentialMovingAverage") for n in reader.tensors if n.endswith("Average")
        }
        kept = {n: i for n, i in reader.tensors.items() if n not in averaged and "Momentum" not in n}
        write_tf1(tmp_path / "a.ckpt", kept, reader.read, {})
    with load(tmp_path / "a.ckpt", ema=True, assume=True) as alone, load(path, ema=True) as wanted:
        assert all(np.array_equal(alone[name], wanted[name]) for name in wanted)


@pytest.mark.quick
def test_a_model_has_no_averages(capsys):
    from parity_tests.__main__ import main

    assert main(["se_resnet20", "--ema"]) == 2
    assert capsys.readouterr().err == "--ema applies to a file, but se_resnet20 is a model; omit --ema\n"
