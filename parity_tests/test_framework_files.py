"""Files and live models: what is written here loads in each framework, and what they write loads here."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import tensorflow.compat.v1 as tf
import torch

import keras_impl
import tf1_compat
import torch_impl
from parity_tests.synthetic import ATTENTION_SPECS, images, position_coded, tiny, weights
from weights_convert import Checkpoint, MismatchError, SpecError, load, load_into, load_model, save, state_of
from weights_convert.layouts import LAYOUTS
from weights_convert.spec import ResNetSpec, Spec

NETWORKS = {
    "none": tiny(groups=2, width_per_group=32, stem="deep", downsample_kernel=3, reduce_first=2),
    "se": tiny(attention="se", block="basic", stem="3x3", depths=(1, 2)),
    "cbam": tiny(attention="cbam", cbam_order="mean_max", cbam_spatial_bias=True, stride_in="conv1"),
    "eca": tiny(attention="eca", eca_kernel_sizes=(5, 3), bn_epsilon=1e-3),
}
SMALL = tiny(attention="cbam", block="basic", depths=(1,), stem="3x3")
CONTAINERS = (".pth", ".safetensors", ".npz", ".weights.h5", ".ckpt")
TO_TENSORFLOW = {1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (2, 3, 1, 0)}  # by rank: right for these tensors


def without_counts(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {name: checkpoint[name] for name in checkpoint if not name.endswith("num_batches_tracked")}


def in_tensorflow(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """What TensorFlow must hold: name under the network's scope -> array."""
    rename, arrays = LAYOUTS["tf1"].rename, without_counts(checkpoint)
    return {str(rename(n, checkpoint.spec)): a.transpose(TO_TENSORFLOW[a.ndim]) for n, a in arrays.items()}


def assert_same(actual: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert set(actual) == set(wanted)
    for name, array in wanted.items():
        assert (actual[name].dtype, actual[name].shape) == (array.dtype, array.shape), name
        assert actual[name].tobytes() == array.tobytes(), name


def torch_network(spec: ResNetSpec) -> torch.nn.Module:
    return torch_impl.ResNet(**spec.model_kwargs())


def keras_network(spec: ResNetSpec, **keywords: object) -> keras.Model:
    return keras_impl.ResNet(**spec.model_kwargs(), **keywords)


def keras_values(layer: keras.Layer) -> dict[str, np.ndarray]:
    """A layer's variables by their path below it, as Keras itself has them."""
    return {v.path.partition("/")[2]: keras.ops.convert_to_numpy(v) for v in layer.weights}


@pytest.fixture
def session() -> Iterator[tf.Session]:
    """A session of a graph of its own, which is not the default one: Keras would build its models there."""
    opened = tf.Session(graph=tf.Graph())
    yield opened
    opened.close()


def tf1_network(session: tf.Session, spec: ResNetSpec, **keywords: object) -> tf.Tensor:
    """Put a network with random weights into a session; its logits."""
    with session.graph.as_default():
        placeholder = tf.placeholder(tf.float32, (None, None, None, spec.in_channels), name="images")
        logits, _ = tf1_compat.resnet(placeholder, **spec.model_kwargs(), **keywords)
        session.run(tf.global_variables_initializer())
    return logits


# --------------------------------------------------------------------------------------------------
# Files written here, read by the frameworks' own loaders


@pytest.mark.quick
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mmap", [False, True])
def test_torch_loads_our_pth(tmp_path, name: str, mmap: bool):
    wanted = position_coded(NETWORKS[name])
    save(wanted, tmp_path / "x.pth")
    model = torch_network(wanted.spec)
    model.load_state_dict(torch.load(tmp_path / "x.pth", weights_only=True, mmap=mmap), strict=True)
    assert_same({name: tensor.numpy() for name, tensor in model.state_dict().items()}, dict(wanted))


@pytest.mark.quick
@pytest.mark.parametrize("name", NETWORKS)
def test_safetensors_and_numpy_load_ours(tmp_path, name: str):
    wanted = position_coded(NETWORKS[name])
    save(wanted, tmp_path / "x.safetensors")
    assert_same(safetensors.numpy.load_file(tmp_path / "x.safetensors"), dict(wanted))
    torch_network(wanted.spec).load_state_dict(safetensors.torch.load_file(tmp_path / "x.safetensors"))
    save(wanted, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        assert_same({name: arrays[name] for name in arrays if name != "samenet"}, dict(wanted))


@pytest.mark.quick
@pytest.mark.parametrize("name", NETWORKS)
def test_keras_loads_our_h5(tmp_path, name: str):
    wanted = position_coded(NETWORKS[name])
    save(wanted, tmp_path / "x.weights.h5")
    model = keras_network(wanted.spec)
    model.load_weights(tmp_path / "x.weights.h5")
    assert_same(keras_values(model), in_tensorflow(wanted))


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_keras_loads_other_dtypes(tmp_path, dtype: str):
    wanted = weights(NETWORKS["se"])
    save(wanted, tmp_path / "x.weights.h5", dtype=dtype)
    model = keras_network(wanted.spec, dtype=dtype)
    model.load_weights(tmp_path / "x.weights.h5")
    assert_same(keras_values(model), {n: a.astype(dtype) for n, a in in_tensorflow(wanted).items()})


@pytest.mark.quick
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("scope", [None, "net", "a/b"])
def test_tensorflow_restores_our_checkpoint(tmp_path, session, name: str, scope: str | None):
    wanted, path = position_coded(NETWORKS[name]), str(tmp_path / "x.ckpt")
    save(wanted, path, scope=scope)
    prefix = f"{scope}/" if scope else ""
    arrays = {prefix + n: a for n, a in in_tensorflow(wanted).items()}
    reader = tf.train.load_checkpoint(path)
    held = [name for name in reader.get_variable_to_shape_map() if name != "samenet"]
    assert_same({name: reader.get_tensor(name) for name in held}, arrays)
    tf1_network(session, wanted.spec, scope=scope)
    with session.graph.as_default():
        tf.train.Saver().restore(session, path)
        assert_same(session.run({v.op.name: v for v in tf.global_variables()}), arrays)


# --------------------------------------------------------------------------------------------------
# Files that the frameworks write, read here


def trained_torch(spec: ResNetSpec) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch_network(spec)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    model(torch.from_numpy(images((16, 16), channels=spec.in_channels))).sum().backward()
    optimizer.step()
    return model, optimizer


def test_state_dicts_of_torch_load_here(tmp_path):
    model, optimizer = trained_torch(NETWORKS["cbam"])
    wrapped = torch.nn.DataParallel(model)
    extras = {
        "epoch": 7,
        "best": np.float64(0.5),
        "when": np.int64(3),
        "args": argparse.Namespace(lr=0.1, path=Path("x")),
        "optimizer": optimizer.state_dict(),
    }
    files = {
        "plain": model.state_dict(),
        "parallel": wrapped.state_dict(),
        "checkpoint": {"state_dict": model.state_dict(), **extras},
        "parallel checkpoint": {**extras, "model": wrapped.state_dict()},
        "parameters": {n: torch.nn.Parameter(t) if t.is_floating_point() else t
                       for n, t in model.state_dict().items()},
        "channels last": model.to(memory_format=torch.channels_last).state_dict(),
    }  # fmt: skip
    wanted = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    for name, content in files.items():
        for zipped in (True, False):
            path = tmp_path / f"{name} {zipped}.pth.tar"
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            with load(path) as checkpoint:
                assert checkpoint.family == "torch"
                assert_same(dict(checkpoint), wanted)
                if "checkpoint" in name:
                    assert set(extras) <= set(checkpoint.left_out)
            load_into(torch_network(NETWORKS["cbam"]), path)


def test_weights_of_a_trained_keras_model_load_here(tmp_path):
    model = keras_network(SMALL)
    model.save_weights(tmp_path / "plain.weights.h5")
    before = keras_values(model)
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    model.fit(images((16, 16), 4).transpose(0, 2, 3, 1), np.arange(4), batch_size=2, verbose=0)
    model.save_weights(tmp_path / "fitted.weights.h5")
    model.save(tmp_path / "whole.keras")
    after = keras_values(model)
    assert not np.array_equal(before["fc/kernel"], after["fc/kernel"])
    for name, wanted in [("plain.weights.h5", before), ("fitted.weights.h5", after), ("whole.keras", after)]:
        with load(tmp_path / name) as checkpoint:
            assert (checkpoint.format, checkpoint.family) == ("keras", "keras")
            assert_same(in_tensorflow(checkpoint), wanted)
            assert all("optimizer" in path for path in checkpoint.left_out)
            assert bool(checkpoint.left_out) == (wanted is after)


def test_a_training_run_of_tensorflow_loads_here(tmp_path, session):
    logits = tf1_network(session, SMALL, scope="net", is_training=True)
    with session.graph.as_default():
        step = tf.train.get_or_create_global_step()
        with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
            train = tf.train.MomentumOptimizer(0.01, 0.9).minimize(tf.reduce_mean(logits**2), step)
        session.run(tf.global_variables_initializer())
        for _ in range(2):
            session.run(train, {"images:0": images((16, 16)).transpose(0, 2, 3, 1)})
        prefix = tf.train.Saver().save(session, str(tmp_path / "run" / "model.ckpt"), step)
        values = session.run({v.op.name: v for v in tf.global_variables()})
    wanted = {
        n.removeprefix("net/"): a for n, a in values.items() if n.startswith("net/") and "Momentum" not in n
    }
    for path in (prefix, f"{prefix}.index", tmp_path / "run"):  # the prefix, one of its files, the directory
        with load(path) as checkpoint:
            assert (checkpoint.format, checkpoint.family) == ("tf1", "tf1")
            assert_same(in_tensorflow(checkpoint), wanted)
            left = checkpoint.left_out
            assert set(left) == set(values) - {f"net/{name}" for name in wanted}
            assert left["global_step"].startswith("step count")
            assert left["net/fc/kernel/Momentum"].startswith("optimizer slot")
    assert_same(in_tensorflow(state_of(session)), wanted)
    assert_same(in_tensorflow(state_of(session, scope="net")), wanted)


# --------------------------------------------------------------------------------------------------
# Live models


@pytest.mark.quick
@pytest.mark.parametrize("name", NETWORKS)
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
    [*(("cbam", suffix) for suffix in CONTAINERS), ("se", ".pth"), ("block se_multiple_of_8", ".npz"),
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
    """A lone attention block of 32 channels in each framework; the TF1 one under the scope `mine`."""
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
        load_into(block, path, **scope)  # a file of the block alone
        for prefix, complaint in [("layer2.0." + kind, "do not fit"), ("layer9", "nothing below 'layer9'"),
                                  ("", "do not fit"), ("layer1.0", "do not fit")]:  # fmt: skip
            with pytest.raises(MismatchError, match=complaint):
                load_into(block, whole, prefix=prefix, **scope)
        assert_same(without_counts(state_of(block, **scope)), part)


def test_keras_loads_a_lone_block_of_ours(tmp_path):
    wanted = position_coded(ATTENTION_SPECS["cbam"])
    save(wanted, tmp_path / "x.weights.h5")
    layer = keras_impl.CBAM(reduction=4)
    layer.build((None, None, None, 16))
    keras.saving.load_weights(layer, tmp_path / "x.weights.h5")
    assert_same(without_counts(state_of(layer)), without_counts(wanted))


# --------------------------------------------------------------------------------------------------
# Refusals, after which the model is as it was

BASE = {"attention": "cbam", "depths": (1,)}
WRONG = {  # keywords of the model that differ from the checkpoint's -> what the message names
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
    torch.save(model.state_dict(), tmp_path / "x.pth")  # no metadata: nothing says where the stride is
    load_into(model, tmp_path / "x.pth")
    with load(tmp_path / "x.pth", settings={"stride_in": "conv2"}) as said, pytest.raises(MismatchError):
        load_into(model, said)


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
    save(Checkpoint.from_arrays(third), path, overwrite=True)
    with tf.Graph().as_default(), pytest.raises(MismatchError, match="would lose values"):
        load_model(path, framework="tf1")(tf.zeros((1, 8, 8, 3)))


def test_other_models_and_frameworks_are_refused(tmp_path, session):
    source = position_coded(tiny(**BASE))
    path = save(source, tmp_path / "x.pth").destination
    for nothing in (None, np.zeros(3), "model", tf.Graph()):
        with pytest.raises(SpecError, match="is neither a torch module, a Keras layer nor a tensorflow"):
            load_into(nothing, source)
    with pytest.raises(MismatchError, match="do not fit"):
        load_into(torch.nn.Linear(2, 2), source)
    with pytest.raises(MismatchError, match="is not built yet"):
        load_into(keras_impl.ECA(), source, prefix="layer1.0.cbam")
    with pytest.raises(MismatchError, match="under '' are not those of one network"):
        load_into(session, source)
    with pytest.raises(SpecError, match="there is no framework 'kears'; did you mean 'keras'"):
        load_model(path, framework="kears")
    for scope in ("one", "two"):
        tf1_network(session, tiny(**BASE), scope=scope)
    with pytest.raises(MismatchError, match="several networks, choose one with scope="):
        load_into(session, source)
    load_into(session, source, scope="two")
    assert_same(without_counts(state_of(session, scope="two")), without_counts(source))
