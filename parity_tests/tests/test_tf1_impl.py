"""Usual work with the TF1 graph functions: scopes, sharing, Saver, training, freezing, reloading."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import tf1_compat
from parity_tests.judge import numpy_reference, synthetic, tolerances
from parity_tests.judge.synthetic import tiny
from weights_convert import load_into, state_of

SPECS = {
    kind: tiny(attention=kind, groups=4, width_per_group=32, depths=(1, 1))
    for kind in ("none", "se", "cbam", "eca")
}


@pytest.fixture(
    params=["se", "cbam", *(pytest.param(kind, marks=pytest.mark.exhaustive) for kind in ("none", "eca"))]
)
def spec(request) -> synthetic.ResNetSpec:
    return SPECS[request.param]


@pytest.fixture
def images() -> np.ndarray:
    return synthetic.images((33, 40), batch=4).transpose(0, 2, 3, 1)


@pytest.fixture(autouse=True)
def graph():
    with tf.Graph().as_default() as graph:
        yield graph


def placeholder() -> tf.Tensor:
    return tf.placeholder(tf.float32, (None, None, None, 3), "images")


def names() -> list[str]:
    return [variable.op.name for variable in tf.global_variables()]


def test_scopes(spec):
    tf1_compat.resnet(placeholder(), **spec.model_kwargs())
    assert "layer1_0/conv1/kernel" in names()
    tf1_compat.resnet(placeholder(), scope="net", **spec.model_kwargs())
    with tf.variable_scope("outer"):
        tf1_compat.resnet(placeholder(), scope="net", **spec.model_kwargs())
    assert {"net/layer1_0/conv1/kernel", "outer/net/layer1_0/conv1/kernel"} < set(names())


def test_a_second_network_in_the_same_scope_is_an_error(spec):
    tf1_compat.resnet(placeholder(), scope="net", **spec.model_kwargs())
    with pytest.raises(ValueError, match="already exists"):
        tf1_compat.resnet(placeholder(), scope="net", **spec.model_kwargs())


@pytest.mark.parametrize("scope", [None, "net"])
def test_auto_reuse_shares_variables(spec, images, scope):
    first, _ = tf1_compat.resnet(placeholder(), scope=scope, reuse=tf.AUTO_REUSE, **spec.model_kwargs())
    count = len(names())
    second, _ = tf1_compat.resnet(placeholder(), scope=scope, reuse=tf.AUTO_REUSE, **spec.model_kwargs())
    with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
        third, _ = tf1_compat.resnet(placeholder(), scope=scope, **spec.model_kwargs())
    assert len(names()) == count
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        feed = {
            op.outputs[0]: images
            for op in tf.get_default_graph().get_operations()
            if op.type == "Placeholder"
        }
        outputs = session.run([first, second, third], feed)
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[0], outputs[2])


def test_saver_round_trip(spec, images, tmp_path):
    x = placeholder()
    logits, _ = tf1_compat.resnet(x, scope="net", **spec.model_kwargs())
    saver = tf.train.Saver()
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        expected = session.run(logits, {x: images})
        saver.save(session, str(tmp_path / "model.ckpt"))
    with tf.Session() as session:
        saver.restore(session, str(tmp_path / "model.ckpt"))
        np.testing.assert_array_equal(session.run(logits, {x: images}), expected)


def test_training_moves_every_variable(spec, images):
    logits, _ = tf1_compat.resnet(tf.constant(images), is_training=True, **spec.model_kwargs())
    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=[0, 1, 2, 3], logits=logits))
    updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
    assert len(updates) == len([name for name in names() if "moving" in name])
    with tf.control_dependencies(updates):
        step = tf.train.MomentumOptimizer(0.125, 0.875).minimize(loss)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        load_into(session, synthetic.weights(spec))
        before = state_of(session)
        session.run(step)
        after = state_of(session)  # without the optimiser's slots
    unchanged = [name for name in before if before[name].tobytes() == after[name].tobytes()]
    assert [name for name in unchanged if ".fc1." not in name] == []


def test_wrong_images_are_refused(spec):
    with pytest.raises(ValueError, match=r"images of shape .*, expected \(N, H, W, 3\)"):
        tf1_compat.resnet(tf.placeholder(tf.float32, (None, 3, 32, 32)), **spec.model_kwargs())
    with pytest.raises(ValueError, match="images of dtype uint8, expected float32 or float64"):
        tf1_compat.resnet(tf.placeholder(tf.uint8, (None, 32, 32, 3)), **spec.model_kwargs())


def frozen(spec: synthetic.ResNetSpec, path: Path) -> None:
    x = placeholder()
    logits, _ = tf1_compat.resnet(x, **spec.model_kwargs())
    output = tf.identity(logits, "logits")
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        load_into(session, synthetic.weights(spec))
        definition = tf.graph_util.convert_variables_to_constants(
            session, session.graph_def, [output.op.name]
        )
    path.write_bytes(definition.SerializeToString())


RUN_FROZEN = """
import sys
import numpy as np, tensorflow.compat.v1 as tf
definition = tf.GraphDef.FromString(open(sys.argv[1], "rb").read())
with tf.Graph().as_default(), tf.Session() as session:
    (logits,) = tf.import_graph_def(definition, return_elements=["logits:0"])
    images = np.load(sys.argv[2])
    np.save(sys.argv[3], session.run(logits, {"import/images:0": images}))
"""


@pytest.mark.parametrize(
    ("kind", "onednn"),
    [
        ("cbam", "0"),
        *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in (("none", "0"), ("se", "1"))),
    ],
)
def test_frozen_graph_runs_elsewhere(kind, images, tmp_path, onednn):
    """A frozen graph also runs in a new process with oneDNN off: it holds no fused op that refuses groups."""
    spec = SPECS[kind]
    frozen(spec, tmp_path / "frozen.pb")
    np.save(tmp_path / "images.npy", images)
    paths = [str(tmp_path / name) for name in ("frozen.pb", "images.npy", "logits.npy")]
    environment = os.environ | {"TF_ENABLE_ONEDNN_OPTS": onednn}
    done = subprocess.run(
        [sys.executable, "-c", RUN_FROZEN, *paths],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    reference = numpy_reference.network(images.transpose(0, 3, 1, 2), synthetic.weights(spec), spec)["logits"]
    assert tolerances.relative_error(np.load(paths[2]), reference) <= tolerances.float32_limit(0)


def test_frozen_graph_gives_equal_outputs(spec, images, tmp_path):
    frozen(spec, tmp_path / "frozen.pb")
    definition = tf.GraphDef.FromString((tmp_path / "frozen.pb").read_bytes())
    x = tf.get_default_graph().get_tensor_by_name("images:0")
    (again,) = tf.import_graph_def(definition, {"images:0": x}, ["logits:0"])
    logits = tf.get_default_graph().get_tensor_by_name("logits:0")
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        load_into(session, synthetic.weights(spec))
        original, reloaded = session.run([logits, again], {x: images})
    assert tolerances.relative_error(reloaded, original) <= tolerances.FLOAT32_RESOLUTION * 4
