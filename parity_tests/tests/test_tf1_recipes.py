"""Usual work around a network in TensorFlow 1: functions, towers, partial restores, sessions, serving."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tensorflow as tf2
import tensorflow.compat.v1 as tf

import tf1_compat
from parity_tests.judge import numpy_reference, synthetic, tolerances
from parity_tests.judge.synthetic import tiny
from parity_tests.tests.test_tf1_calls import EAGER
from weights_convert import MismatchError, load_into, load_model, save, state_of
from weights_convert.spec import changed

SPEC = tiny(attention="se", block="basic", depths=(1, 1), stem="3x3")
KEYWORDS = SPEC.model_kwargs()
WEIGHTS = synthetic.weights(SPEC)
IMAGES = synthetic.images((17, 16), batch=4)  # (N, C, H, W)
NHWC = IMAGES.transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    return numpy_reference.network(IMAGES, WEIGHTS, SPEC)


@pytest.fixture
def graph():
    with tf.Graph().as_default() as graph:
        yield graph


@pytest.fixture
def path(tmp_path):
    save(WEIGHTS, tmp_path / "model.pth")
    return tmp_path / "model.pth"


def same(found: np.ndarray, wanted: np.ndarray) -> bool:
    return tolerances.relative_error(found, wanted) <= tolerances.float32_limit(0)


def network(images=NHWC, **keywords):
    return tf1_compat.resnet(images, **(KEYWORDS | keywords))


def vgg(images=NHWC, **keywords):
    return tf1_compat.vgg(images, depths=(1, 1), widths=(8, 8), head_width=16, **keywords)


def variables(spec, *but):
    """The number of variables in TensorFlow, without those of some roles."""
    return len([p for p in spec.tensors() if p.role not in ("count", *but)])


# --------------------------------------------------------------------------------------------------
# tf.function and wrap_function


@pytest.mark.quick
@pytest.mark.parametrize("autograph", [True, False])
@pytest.mark.parametrize("build", [network, vgg, tf1_compat.squeeze_excitation])
def test_tf_function_is_refused_with_the_function_to_use(build, autograph):
    function = tf2.function(lambda x: build(x), autograph=autograph)
    with pytest.raises(RuntimeError, match=re.escape(EAGER)):
        function(NHWC)


@pytest.mark.parametrize("name", [None, "net"])
def test_wrap_function_runs_a_loaded_network_in_eager_mode(path, reference, name):
    restored = load_model(path, "tf1")
    signature = [tf.TensorSpec((None, None, None, 3), tf.float32)]
    function = tf.wrap_function(lambda images: restored(images)[0], signature, name=name)
    assert same(function(tf.constant(NHWC)).numpy(), reference["logits"])
    assert len(function.variables) == variables(SPEC)
    assert {"conv1/kernel:0", "fc/bias:0"} < {variable.name for variable in function.variables}


def test_networks_in_the_branches_of_a_condition():
    """The branches are functions inside a graph, or inside a wrapped function."""

    def choose(images):
        keywords = {"scope": "net", "reuse": tf.AUTO_REUSE}
        return tf.cond(
            tf.shape(images)[0] > 2,
            lambda: network(images, **keywords)[0],
            lambda: 2 * network(images, **keywords)[0],
        )

    function = tf.wrap_function(choose, [tf.TensorSpec((None, 17, 16, 3), tf.float32)])
    one, two = function(tf.constant(NHWC[:3])).numpy(), function(tf.constant(NHWC[:2])).numpy()
    np.testing.assert_allclose(2 * one[:2], two, rtol=1e-5)
    with tf.Graph().as_default():
        assert choose(tf.constant(NHWC)).shape == (4, SPEC.num_classes)


# --------------------------------------------------------------------------------------------------
# Scopes and towers


@pytest.mark.quick
@pytest.mark.usefixtures("graph")
@pytest.mark.parametrize(("scope", "named"), [(None, ""), ("net", "net")])
@pytest.mark.parametrize("build", [network, vgg])
def test_a_second_network_in_a_scope_is_told_what_to_do(build, scope, named):
    build(scope=scope)
    message = (
        f"a network already exists in the variable scope {named!r}: give this one another scope=NAME, "
        "or reuse=tf.AUTO_REUSE to share the variables"
    )
    count = len(tf.global_variables())
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build(scope=scope)
    assert len(tf.global_variables()) == count
    build(scope="other")
    build(scope=scope, reuse=True)
    with tf.variable_scope("outer"):
        build(scope=scope)


@pytest.mark.usefixtures("graph")
def test_networks_of_two_kinds_in_one_scope_are_refused_when_read():
    network()
    vgg()
    with tf.Session() as session, pytest.raises(MismatchError, match="two networks share the variables"):
        state_of(session)


@pytest.mark.usefixtures("graph")
def test_two_towers_share_variables_and_average_their_gradients(reference):
    towers = []
    for index, part in enumerate(tf.split(tf.constant(NHWC), 2)):
        with tf.name_scope(f"tower_{index}"):
            logits, _ = network(part, scope="net", reuse=tf.AUTO_REUSE)
            towers.append((logits, tf.gradients(tf.reduce_mean(logits**2), tf.trainable_variables())))
    whole = tf.gradients(
        tf.reduce_mean(network(scope="net", reuse=True)[0] ** 2), tf.trainable_variables("net")
    )
    assert len(tf.trainable_variables()) == variables(SPEC, "mean", "variance")
    averaged = [(one + two) / 2 for one, two in zip(towers[0][1], towers[1][1], strict=True)]
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        load_into(session, WEIGHTS)
        logits, found, wanted = session.run([[logits for logits, _ in towers], averaged, whole])
    assert same(np.concatenate(logits), reference["logits"])
    for one, two in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5 * abs(two).max() + 1e-8)


# --------------------------------------------------------------------------------------------------
# Training: weight decay, restoring in part, sessions


def weight_decay(variable):
    """Of the kernels alone, as slim's `weights_regularizer`."""
    return 1e-2 * tf.nn.l2_loss(variable) if variable.op.name.endswith("/kernel") else None


@pytest.mark.parametrize("scope", [None, "net"])
@pytest.mark.usefixtures("graph")
def test_weight_decay_by_the_regularizer_of_the_scope(scope):
    for reuse in (None, True):  # a second tower adds no loss
        with tf.variable_scope("outer", regularizer=weight_decay, reuse=reuse):
            network(is_training=True, scope=scope)
    kernels = [variable for variable in tf.trainable_variables() if variable.op.name.endswith("/kernel")]
    assert len(tf.get_collection(tf.GraphKeys.REGULARIZATION_LOSSES)) == len(kernels) == 11
    wanted = sum(1e-2 * tf.nn.l2_loss(kernel) for kernel in kernels)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        found, wanted = session.run([tf.losses.get_regularization_loss(), wanted])
    assert found == pytest.approx(wanted)
    assert found > 0


@pytest.mark.usefixtures("graph")
def test_a_saver_restores_all_but_the_classifier(tmp_path):
    save(WEIGHTS, tmp_path / "model.ckpt", scope="net")
    network(scope="net", num_classes=3)
    kept = [v for v in tf.global_variables("net") if not v.op.name.startswith("net/fc/")]
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        tf.train.Saver(kept).restore(session, str(tmp_path / "model.ckpt"))
        state = state_of(session)
    assert state.spec == changed(SPEC, {"num_classes": 3})
    assert [n for n in state if not n.startswith("fc.") and not np.array_equal(state[n], WEIGHTS[n])] == []


@pytest.mark.usefixtures("graph")
def test_init_from_checkpoint(tmp_path):
    save(WEIGHTS, tmp_path / "model.ckpt", scope="net")
    network(scope="mine", num_classes=3)
    mapping = {
        v.op.name.replace("mine/", "net/", 1): v for v in tf.global_variables() if "/fc/" not in v.op.name
    }
    tf.train.init_from_checkpoint(str(tmp_path / "model.ckpt"), mapping)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        state = state_of(session)
    assert [n for n in state if not n.startswith("fc.") and not np.array_equal(state[n], WEIGHTS[n])] == []
    with tf.Graph().as_default(), tf.Session() as session:
        network(scope="mine")
        tf.train.init_from_checkpoint(str(tmp_path / "model.ckpt"), {"net/": "mine/"})
        session.run(tf.global_variables_initializer())
        assert np.array_equal(state_of(session)["fc.bias"], WEIGHTS["fc.bias"])


class Count(tf.train.SessionRunHook):
    """Counts the runs of a session, as hooks that log or save do."""

    runs = 0

    def before_run(self, _run_context):
        self.runs += 1


@pytest.mark.usefixtures("graph")
def test_a_monitored_session_starts_from_any_file(path, tmp_path):
    """Trains two steps from the file's weights, saves, and goes on from its own checkpoint."""
    logits, _ = network(is_training=True, scope="net")
    start = tf.train.get_or_create_global_step()
    with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
        step = tf.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_mean(logits**2), start)
    folder, seen = str(tmp_path / "run"), []
    scaffold = tf.train.Scaffold(init_fn=lambda _, session: load_into(session, path))
    with tf.train.MonitoredTrainingSession(checkpoint_dir=folder, scaffold=scaffold) as session:
        seen.append(state_of(session))
        for _ in range(2):
            session.run(step)
        seen.append(state_of(session))
    assert [name for name in seen[0] if not np.array_equal(seen[0][name], WEIGHTS[name])] == []
    assert not np.array_equal(seen[1]["conv1.weight"], WEIGHTS["conv1.weight"])
    count = Count()
    with tf.train.MonitoredTrainingSession(checkpoint_dir=folder, hooks=[count]) as session:
        again = state_of(session)
        assert session.run(start) == 2
        load_into(session, WEIGHTS)  # the graph is finalized
        assert np.array_equal(state_of(session)["conv1.weight"], WEIGHTS["conv1.weight"])
    assert count.runs == 1
    assert [name for name in again if not np.array_equal(again[name], seen[1][name])] == []
    state = state_of(load_model(folder))  # the newest checkpoint of the folder, in torch
    assert all(np.array_equal(state[name], again[name]) for name in again)


@pytest.mark.usefixtures("graph")
def test_an_input_pipeline_with_an_initializable_iterator(path, reference):
    images = tf.placeholder(tf.float32, NHWC.shape)
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(2, drop_remainder=True)
    iterator = tf.data.make_initializable_iterator(dataset)
    logits, _ = load_model(path, "tf1")(iterator.get_next())
    with tf.Session() as session:
        session.run([tf.global_variables_initializer(), iterator.initializer], {images: NHWC})
        found = [session.run(logits), session.run(logits)]
        with pytest.raises(tf.errors.OutOfRangeError):
            session.run(logits)
    assert same(np.concatenate(found), reference["logits"])


def test_the_estimators_are_gone():
    """As the documentation states; TensorFlow removed them in 2.16."""
    assert not hasattr(tf, "estimator")


# --------------------------------------------------------------------------------------------------
# Features and serving


@pytest.mark.usefixtures("graph")
def test_end_points_are_the_features_and_have_gradients(reference):
    x = tf.constant(NHWC)
    _, end_points = network(x)
    head = tf.reduce_mean(end_points["layer1"], [1, 2])  # a head on an inner stage
    gradient = tf.gradients(head, x)[0]
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        load_into(session, WEIGHTS)
        found, moved = session.run([end_points, gradient])
    assert list(found) == ["stem", "layer1", "layer2", "pooled", "logits"]
    for name, value in found.items():
        value = value.transpose(0, 3, 1, 2) if value.ndim == 4 else value
        assert same(value, reference[name]), name
    assert abs(moved).max() > 0


def test_a_saved_model_serves_the_same_numbers(path, reference, tmp_path):
    """Of a network with `load_into`: the initial values of `load_model` would need Python on the server."""
    with tf.Graph().as_default(), tf.Session() as session:
        images = tf.placeholder(tf.float32, (None, 17, 16, 3))
        logits, _ = network(images, scope="net")
        load_into(session, path)
        tf.saved_model.simple_save(session, str(tmp_path / "served"), {"images": images}, {"logits": logits})
        assert not any("PyFunc" in operation.type for operation in session.graph.get_operations())
    served = tf2.saved_model.load(str(tmp_path / "served")).signatures["serving_default"]
    assert same(served(tf.constant(NHWC))["logits"].numpy(), reference["logits"])


@pytest.mark.usefixtures("graph")
def test_a_folded_and_frozen_graph_gives_the_same_numbers(path, reference, tmp_path):
    load_model(path, "tf1")(tf.placeholder(tf.float32, (None, 17, 16, 3)))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        graph_def = tf1_compat.optimize_for_inference(session)
    (tmp_path / "frozen.pb").write_bytes(graph_def.SerializeToString())
    with tf.Graph().as_default(), tf.Session() as session:
        read = tf.GraphDef.FromString((tmp_path / "frozen.pb").read_bytes())
        assert not any(node.op.startswith("FusedBatchNorm") for node in read.node)
        (logits,) = tf.import_graph_def(read, return_elements=["logits:0"])
        found = session.run(logits, {"import/images:0": NHWC})
    assert same(found, reference["logits"])
