"""False verdicts of the main job, of TF1 graphs and of dumps: never 'parity holds'."""

from __future__ import annotations

import numpy as np
import pytest

from parity_tests.compare import TF1Model, compare_models
from parity_tests.compare.dumps import read_dump, write_dump
from parity_tests.compare.layers import compare_tracers
from parity_tests.harness import Result, Row, prove
from parity_tests.judge import synthetic
from parity_tests.judge.synthetic import tiny
from parity_tests.judge.tolerances import CEILING
from parity_tests.tests.test_never_green import Returns, X, refused
from parity_tests.watch.open import tracer_of
from weights_convert import SpecError

# --------------------------------------------------------------------------------------------------
# The main job, TF1, dumps


def test_the_main_job_does_not_hold_where_nothing_is_finite():
    spec = tiny(depths=(1,), block="basic", stem="3x3")
    arrays = dict(synthetic.weights(spec))
    arrays["conv1.weight"] = np.full_like(arrays["conv1.weight"], np.nan)
    weights = synthetic.checkpoint(arrays, spec)
    with pytest.warns(UserWarning, match="NaN or infinite"):
        result = prove("nan", weights, synthetic.images((8, 8)), frameworks=["torch"], dtypes=["float64"])
    assert not result.holds
    assert "the reference has no finite value there" in str(result.first_divergence())


def test_the_main_job_without_a_comparison_does_not_hold():
    assert not Result("x", 0, ()).holds
    row = Row("logits", (1,), {"float32": float("inf")}, {("float32", "tf1"): 3.0})
    assert not Result("x", 0, (), [row]).holds


def test_a_graph_with_several_outputs(session):
    import tensorflow.compat.v1 as tf

    model = Returns(lambda y: {"y": y, "z": y * 2})
    with session.graph.as_default(), tf.variable_scope("net"):
        images = tf.placeholder("float64", (None, 8, 8, 3))
        with tf.variable_scope("c"):
            kernel = model.c.weight.detach().numpy().transpose(2, 3, 1, 0).astype(np.float64)
            weight = tf.get_variable("kernel", initializer=kernel)
            bias = tf.get_variable("bias", initializer=model.c.bias.detach().numpy().astype(np.float64))
            y = tf.nn.conv2d(images, weight, 1, "VALID") + bias
        outputs, right = {"y": tf.identity(y), "z": y * 3}, {"y": tf.identity(y), "z": y * 2}
    session.run([weight.initializer, bias.initializer])
    report = compare_models(model, TF1Model(session, images, outputs, "net"), X)
    assert report.first_divergence().point == "output z"
    assert refused(compare_models(model, TF1Model(session, images, outputs["y"], "net"), X), "output")
    assert report.coverage["tf1"]["candidate"].tensors == (2, 2)
    with session.graph.as_default(), tf.variable_scope("net"):
        forgotten = tf.get_variable("head/kernel", initializer=np.ones(3))
    session.run(forgotten.initializer)
    graph = TF1Model(session, images, right, "net")
    assert refused(compare_models(model, graph, X), "head of the candidate")
    assert compare_models(model, graph, X, ignore=["head"]).holds


def test_a_dump_keeps_every_output_and_layer(tmp_path):
    model = Returns(lambda y: {"y": y, "z": y * 2})
    tracer = tracer_of(model, "float64")
    path = tmp_path / "run.safetensors"
    write_dump(path, X, tracer.trace(X), {"float64": {}}, tracer.weighted(), "x")
    for make, holds in ((lambda y: {"y": y, "z": y * 2}, True), (lambda y: {"y": y}, False)):
        candidate = tracer_of(Returns(make), "float64")
        report = compare_tracers(read_dump(path), {"torch": candidate}, X)
        assert report.holds == holds, report.why_not()
    noise = {"float64": {"c": float("inf"), "output y": 1e9, "output z": float("nan")}}
    write_dump(path, X, tracer.trace(X), noise, tracer.weighted(), "x")
    dump = read_dump(path)
    candidate = tracer_of(Returns(lambda y: {"y": y, "z": y * 2.5}), "float64")
    report = compare_tracers(dump, {"torch": candidate}, X, noise=dump.noise["float64"])
    assert report.first_divergence().point == "output z"
    assert all(point.limit <= CEILING for point in report.layers)


def test_names_lead_to_nothing_twice():
    with pytest.raises(SpecError, match="biased_variance='no': expected 'note' or 'fail'"):
        compare_models(Returns(), Returns(), X, biased_variance="no")
    with pytest.raises(SpecError, match="ignore=3: expected names"):
        compare_models(Returns(), Returns(), X, ignore=[3])
