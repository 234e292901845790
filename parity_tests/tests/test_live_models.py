"""Live models: all weights are loaded and returned, a file gives the right model, errors change nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import keras
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import torch

import keras_impl
import tf1_compat
import torch_impl
from parity_tests.judge.synthetic import ATTENTION_SPECS, images, position_coded, tiny, weights
from parity_tests.tests.live import (
    NETWORKS,
    assert_same,
    each_network,
    keras_network,
    tf1_network,
    torch_network,
    without_counts,
)
from weights_convert import (
    Checkpoint,
    MismatchError,
    SourceError,
    SpecError,
    load,
    load_into,
    load_model,
    save,
    state_of,
)
from weights_convert.frameworks import FRAMEWORKS
from weights_convert.spec import Spec

CONTAINERS = (".pth", ".safetensors", ".npz", ".weights.h5", ".ckpt")


@each_network
def test_live_models_take_and_give_every_bit(tmp_path, session, name: str):
    spec, wanted = NETWORKS[name], position_coded(NETWORKS[name])
    path = save(wanted, tmp_path / "x.safetensors").destination
    tf1_network(session, spec)
    for model in (torch_network(spec), keras_network(spec), session):
        for source in (wanted, path):
            load_into(model, source)
            state = state_of(model)
            assert_same(without_counts(state), without_counts(wanted))
            assert state.spec == spec
            assert state.assumed == ()
    model = torch.nn.DataParallel(torch_network(spec))
    load_into(model, path)
    assert_same(dict(state_of(model)), dict(wanted))  # step counts too


@pytest.mark.parametrize(
    ("name", "suffix"),
    [*((name, suffix) for name in ("cbam",) for suffix in CONTAINERS), ("se", ".pth"),
     ("bias", ".weights.h5"), ("bias", ".ckpt"),
     *(pytest.param("bias", s, marks=pytest.mark.exhaustive) for s in CONTAINERS[:3]),
     *(pytest.param("bias_bn", s, marks=pytest.mark.exhaustive) for s in (".weights.h5", ".ckpt")),
     ("block se_multiple_of_8", ".npz"),
     ("block se_absolute", ".ckpt"),
     ("block cbam_input", ".weights.h5"), ("block eca_5", ".ckpt")],
)  # fmt: skip
def test_load_model_needs_the_file_alone(tmp_path, name: str, suffix: str):
    spec: Spec = NETWORKS[name] if name in NETWORKS else ATTENTION_SPECS[name.removeprefix("block ")]
    wanted = weights(spec)
    path = save(wanted, tmp_path / f"x{suffix}").destination
    x = images((9, 9), channels=getattr(spec, "channels", 3))
    model = load_model(path, framework="torch")
    assert not model.training
    assert_same(dict(state_of(model)), dict(wanted))
    with torch.inference_mode():
        outputs = [model(torch.from_numpy(x)).numpy()]
    layer = load_model(path, framework="keras")
    assert_same(without_counts(state_of(layer)), without_counts(wanted))
    y = keras.ops.convert_to_numpy(layer(x.transpose(0, 2, 3, 1)))
    outputs.append(y.transpose(0, 3, 1, 2) if y.ndim == 4 else y)
    with tf.Graph().as_default(), tf.Session() as session:
        y, _ = load_model(path, framework="tf1")(tf.constant(x.transpose(0, 2, 3, 1)), scope="net")
        session.run(tf.global_variables_initializer())
        assert_same(without_counts(state_of(session, scope="net")), without_counts(wanted))
        y = session.run(y)
    outputs.append(y.transpose(0, 3, 1, 2) if y.ndim == 4 else y)
    for other in outputs[1:]:
        np.testing.assert_allclose(other, outputs[0], rtol=1e-4, atol=1e-5)


def attention_blocks(kind: str, session: tf.Session) -> Iterator[tuple[str, object]]:
    """A single attention block of 32 channels in each framework, in TF1 under the scope `mine`."""
    names = {"se": "SqueezeExcitation", "cbam": "CBAM", "eca": "ECA"}
    keywords = {"eca": {"kernel_size": 5}, "se": {"reduction": 4}, "cbam": {"reduction": 4}}[kind]
    yield "torch", getattr(torch_impl, names[kind])(32, **keywords)
    layer = getattr(keras_impl, names[kind])(**keywords)
    layer.build((None, None, None, 32))
    yield "keras", layer
    function = {"se": tf1_compat.squeeze_excitation, "cbam": tf1_compat.cbam, "eca": tf1_compat.eca}[kind]
    with session.graph.as_default():
        function(tf.zeros((1, 8, 8, 32)), scope="mine", **keywords)
    yield "tf1", session


@pytest.mark.parametrize("kind", ["se", "cbam", "eca"])
def test_lone_blocks_take_their_part(tmp_path, session, kind: str):
    spec = tiny(attention=kind, eca_kernel_sizes=(5, 3) if kind == "eca" else None)
    whole = position_coded(spec)
    start = f"layer1.0.{kind}."
    part = {n.removeprefix(start): a for n, a in without_counts(whole).items() if n.startswith(start)}
    for framework, block in attention_blocks(kind, session):
        scope = {"scope": "mine"} if framework == "tf1" else {}
        for prefix in (start, start.rstrip(".")):
            load_into(block, whole, prefix=prefix, **scope)
        state = state_of(block, **scope)
        assert_same(without_counts(state), part)
        assert state.spec.attention == kind
        path = save(state, tmp_path / f"{framework}.safetensors").destination
        load_into(block, path, **scope)  # a file of the single block
        for prefix, complaint in [("layer2.0." + kind, "do not match"), ("layer9", "nothing below 'layer9'"),
                                  ("", "do not match"), ("layer1.0", "do not match")]:  # fmt: skip
            with pytest.raises(MismatchError, match=complaint):
                load_into(block, whole, prefix=prefix, **scope)
        assert_same(without_counts(state_of(block, **scope)), part)


# --------------------------------------------------------------------------------------------------
# Errors, after which the model is unchanged

BASE = {"attention": "cbam", "depths": (1,)}
WRONG = {  # keywords of the model that differ from the checkpoint's -> part of the message
    "stride": ({"stride_in": "conv1"}, "stride_in: 'conv2' in the checkpoint, 'conv1' in the model"),
    "pool": ({"stem_pool": "same"}, "stem_pool: 'pad1' in the checkpoint, 'same' in the model"),
    "epsilon": ({"bn_epsilon": 1.001e-5}, "bn_epsilon: 1e-05 in the checkpoint, 1.001e-05 in the model"),
    "order": (
        {"cbam_order": "mean_max"},
        "cbam_order: 'max_mean' in the checkpoint, 'mean_max' in the model",
    ),
    "input": ({"cbam_spatial_input": "input"}, "cbam_spatial_input: 'refined'"),
    "relu": ({"relu_before_attention": True}, "relu_before_attention: False in the checkpoint, True"),
    "downsample": ({"downsample_pool": "avg"}, "downsample_pool: 'none' in the checkpoint, 'avg'"),
    "classes": ({"num_classes": 6}, "num_classes: 5 in the checkpoint, 6 in the model"),
    "norm": ({"norm": "bias"}, "norm: 'bn' in the checkpoint, 'bias' in the model"),
    "stem": ({"stem": "deep_tiered"}, "stem: '7x7' in the checkpoint, 'deep_tiered' in the model"),
    "depths": ({"depths": (2,)}, "depths: (1,) in the checkpoint, (2,) in the model"),
    "kind": ({"attention": "se"}, "attention: 'cbam' in the checkpoint, 'se' in the model"),
}


@pytest.mark.parametrize("name", WRONG)
def test_another_spec_is_refused_by_keyword(session, name: str):
    keywords, message = WRONG[name]
    source, spec = position_coded(tiny(**BASE)), tiny(**BASE | keywords)
    tf1_network(session, spec)
    for model in (torch_network(spec), keras_network(spec), session):
        before = dict(state_of(model))
        with pytest.raises(MismatchError, match="keywords differ") as caught:
            load_into(model, source)
        assert any(message in line for line in caught.value.details)
        assert_same(dict(state_of(model)), before)


def test_what_a_file_only_assumes_is_not_held_against_the_model(tmp_path):
    model = torch_network(tiny(**BASE, stride_in="conv1", bn_epsilon=1e-3, cbam_order="mean_max"))
    torch.save(model.state_dict(), tmp_path / "x.pth")  # no metadata: the stride is unknown
    load_into(model, tmp_path / "x.pth")
    with load(tmp_path / "x.pth", settings={"stride_in": "conv2"}) as said, pytest.raises(MismatchError):
        load_into(model, said)


def test_the_same_network_in_other_words_is_accepted(session):
    source = position_coded(tiny(attention="se", reduction=4))  # hidden 8, 16 of 32, 64 channels
    spec = tiny(attention="se", reduction=4, hidden_rule="multiple_of_8", cbam_kernel_size=3)
    tf1_network(session, spec)
    for model in (torch_network(spec), keras_network(spec), session):
        load_into(model, source)
        assert_same(without_counts(state_of(model)), without_counts(source))


def test_one_wrong_tensor_leaves_the_model_alone(session):
    spec = tiny(**BASE)
    arrays = dict(position_coded(spec))
    arrays["fc.bias"] = arrays["fc.bias"].astype(np.float64) + 1e-12  # the last one; not a float32
    wide = Checkpoint.from_arrays(arrays)
    tf1_network(session, spec)
    for model in (torch_network(spec), keras_network(spec), session):
        before = dict(state_of(model))
        with pytest.raises(MismatchError, match=r"fc\.bias is float64 in the checkpoint and float32 in the"):
            load_into(model, wide)
        assert_same(dict(state_of(model)), before)


def test_values_that_fit_may_change_their_dtype(tmp_path, session):
    exact, path = position_coded(tiny(**BASE), np.float64), tmp_path / "x.ckpt"
    save(exact, path)
    tf1_network(session, tiny(**BASE))
    for model in (torch_network(tiny(**BASE)), keras_network(tiny(**BASE)), session):
        load_into(model, path)  # float64 file, float32 model, integers
        assert state_of(model)["fc.weight"].tolist() == exact["fc.weight"].tolist()
    with tf.Graph().as_default(), tf.Session() as other:
        load_model(path, framework="tf1")(tf.zeros((1, 8, 8, 3)))
        other.run(tf.global_variables_initializer())
        assert state_of(other)["fc.weight"].dtype == np.float32
    save(weights(tiny(**BASE)), path, dtype="float64", overwrite=True)
    with tf.Graph().as_default():  # float32 values in a float64 file
        load_model(path, framework="tf1")(tf.zeros((1, 8, 8, 3)))
    third = {name: array / 3 if array.dtype.kind == "f" else array for name, array in exact.items()}
    save(Checkpoint.from_arrays(third, vars(exact.spec)), path, overwrite=True)
    with tf.Graph().as_default(), pytest.raises(MismatchError, match="would lose values"):
        load_model(path, framework="tf1")(tf.zeros((1, 8, 8, 3)))


def test_other_models_and_frameworks_are_refused(tmp_path, session):
    source = position_coded(tiny(**BASE))
    path = save(source, tmp_path / "x.pth").destination
    for nothing in (None, np.zeros(3), "model", tf.Graph()):
        with pytest.raises(SpecError, match="is neither a torch module, a Keras layer nor a tensorflow"):
            load_into(nothing, source)
    with pytest.raises(MismatchError, match="do not match"):
        load_into(torch.nn.Linear(2, 2), source)
    with pytest.raises(MismatchError, match="is not built yet"):
        load_into(keras_impl.ECA(), source, prefix="layer1.0.cbam")
    with pytest.raises(MismatchError, match="under '' do not form one network"):
        load_into(session, source)
    with pytest.raises(SpecError, match="there is no framework 'kears'; did you mean 'keras'"):
        load_model(path, framework="kears")
    for scope in ("one", "two"):
        tf1_network(session, tiny(**BASE), scope=scope)
    with pytest.raises(MismatchError, match="several networks, choose one with scope="):
        load_into(session, source)
    load_into(session, source, scope="two")
    assert_same(without_counts(state_of(session, scope="two")), without_counts(source))


# --------------------------------------------------------------------------------------------------
# Unavailable results


def test_a_closed_checkpoint_says_so(tmp_path):
    """Instead of reporting a damaged file."""
    for suffix in CONTAINERS:
        path = save(weights(tiny()), tmp_path / f"x{suffix}").destination
        with load(path) as checkpoint:
            assert checkpoint["conv1.weight"].any()
        with pytest.raises(SourceError, match=r"is closed; read conv1\.weight inside"):
            checkpoint["conv1.weight"]


def test_a_live_model_is_saved_as_its_checkpoint(tmp_path):
    model = torch_impl.se_resnet20()
    model.fc = torch.nn.Linear(64, 4)
    save(model, tmp_path / "a.npz")
    save(state_of(model), tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with load(tmp_path / "a.npz") as checkpoint:
        assert checkpoint.spec.num_classes == 4
    with pytest.raises(
        SpecError, match="OrderedDict is neither a torch module, a Keras layer nor a tensorflow"
    ):
        save(model.state_dict(), tmp_path / "c.npz")


@pytest.mark.parametrize(("framework", "package"), [("keras", "keras"), ("tf1", "tensorflow")])
def test_a_framework_that_is_not_installed(tmp_path, monkeypatch, framework: str, package: str):
    path = save(weights(tiny()), tmp_path / "x.pth").destination
    monkeypatch.delitem(sys.modules, f"weights_convert.frameworks.{FRAMEWORKS[framework]}", raising=False)
    for module in (package, f"{package}.compat", f"{package}.compat.v1"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SpecError, match=rf"^{framework}: .* is not installed; pip install [a-z]"):
        load_model(path, framework)
    with pytest.raises(SpecError, match="there is no framework 'None'"):
        load_model(path, None)
