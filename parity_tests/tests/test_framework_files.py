"""Files of the frameworks: our files load in each of them, and their files load here."""

from __future__ import annotations

import argparse
from pathlib import Path

import keras
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import tensorflow.compat.v1 as tf
import torch

import keras_impl
from parity_tests.judge.synthetic import ATTENTION_SPECS, images, position_coded, tiny, weights
from parity_tests.tests.live import (
    NETWORKS,
    assert_same,
    each_network,
    in_tensorflow,
    keras_network,
    keras_values,
    tf1_network,
    torch_network,
    without_counts,
)
from weights_convert import load, load_into, save, state_of
from weights_convert.spec import ResNetSpec

TRAINED = tiny(attention="cbam", block="basic", depths=(1,), stem="3x3")

# --------------------------------------------------------------------------------------------------
# Files written here, read by the frameworks' own loaders


@each_network
@pytest.mark.parametrize("mmap", [False, True])
def test_torch_loads_our_pth(tmp_path, name: str, mmap: bool):
    wanted = position_coded(NETWORKS[name])
    save(wanted, tmp_path / "x.pth")
    model = torch_network(wanted.spec)
    model.load_state_dict(torch.load(tmp_path / "x.pth", weights_only=True, mmap=mmap), strict=True)
    assert_same({name: tensor.numpy() for name, tensor in model.state_dict().items()}, dict(wanted))


@each_network
def test_safetensors_and_numpy_load_ours(tmp_path, name: str):
    wanted = position_coded(NETWORKS[name])
    save(wanted, tmp_path / "x.safetensors")
    assert_same(safetensors.numpy.load_file(tmp_path / "x.safetensors"), dict(wanted))
    torch_network(wanted.spec).load_state_dict(safetensors.torch.load_file(tmp_path / "x.safetensors"))
    save(wanted, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        assert_same({name: arrays[name] for name in arrays if name != "samenet"}, dict(wanted))


@each_network
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


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        pytest.param("cbam", None, marks=pytest.mark.quick),
        ("none", None),
        ("se", "net"),
        ("eca", "a/b"),
        ("bias_bn", "net"),
        ("bias", None),
    ],
)
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


def test_keras_loads_a_lone_block_of_ours(tmp_path):
    wanted = position_coded(ATTENTION_SPECS["cbam"])
    save(wanted, tmp_path / "x.weights.h5")
    layer = keras_impl.CBAM(reduction=4)
    layer.build((None, None, None, 16))
    keras.saving.load_weights(layer, tmp_path / "x.weights.h5")
    assert_same(without_counts(state_of(layer)), without_counts(wanted))


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
    another = torch_network(NETWORKS["cbam"])
    for name, content in files.items():
        for zipped in (True, False):
            path = tmp_path / f"{name} {zipped}.pth.tar"
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            unsaid = name == "parameters"  # a plain dict has no metadata
            with load(path, assume=unsaid) as checkpoint:
                assert checkpoint.family == "torch"
                assert bool(checkpoint.assumed) == unsaid
                assert_same(dict(checkpoint), wanted)
                if "checkpoint" in name:
                    assert set(extras) <= set(checkpoint.left_out)
            load_into(another, path, assume=unsaid)
            assert_same(dict(state_of(another)), wanted)


def test_weights_of_a_trained_keras_model_load_here(tmp_path):
    model = keras_network(TRAINED)
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


@pytest.mark.parametrize("name", ["bias_bn", "bias"])
def test_biases_of_the_frameworks_load_here(tmp_path, session, name: str):
    """Files without this project's metadata: only names and shapes show the biases."""
    wanted, model = position_coded(NETWORKS[name]), keras_network(NETWORKS[name])
    load_into(model, wanted)
    model.save_weights(tmp_path / "x.weights.h5")
    model.save(tmp_path / "x.keras")
    tf1_network(session, wanted.spec, scope="net")
    load_into(session, wanted)
    with session.graph.as_default():
        prefix = tf.train.Saver().save(session, str(tmp_path / "x.ckpt"))
    network = torch_network(wanted.spec)
    load_into(network, wanted)
    torch.save(network.state_dict(), tmp_path / "x.pth")
    for path in (tmp_path / "x.pth", tmp_path / "x.weights.h5", tmp_path / "x.keras", prefix):
        with load(path) as checkpoint:
            assert checkpoint.spec.norm == name
            assert_same(without_counts(checkpoint), without_counts(wanted))
    again = keras.saving.load_model(tmp_path / "x.keras")
    assert_same(keras_values(again), in_tensorflow(wanted))


def test_a_training_run_of_tensorflow_loads_here(tmp_path, session):
    logits = tf1_network(session, TRAINED, scope="net", is_training=True)
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
