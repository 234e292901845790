"""Caffe's files: read with the numbers of Caffe's own computation, and refused where they are damaged."""

from __future__ import annotations

import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from parity_tests.tests.caffe_files import fill_blob, messages, network
from parity_tests.tests.caffe_nets import CaffeNet, se_bn_inception, se_resnet
from weights_convert import convert, load, load_model
from weights_convert.__main__ import main
from weights_convert.errors import SourceError
from weights_convert.formats import open_reader
from weights_convert.limits import LimitError, Limits

NETWORKS = {
    "SE-ResNet": (partial(se_resnet, groups=1), "senet", {"stride_in": "conv1"}),
    "SE-ResNeXt": (partial(se_resnet, groups=32), "senet", {"stride_in": "conv2"}),
    "SENet-154": (partial(se_resnet, groups=64, senet154=True), "senet", {"stem": "deep", "dropout": 0.2}),
    "SE-BN-Inception": (se_bn_inception, "senet_inception", {"last_pool": "max"}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_authors_networks_give_caffes_numbers(tmp_path, name):
    import torch

    compute, family, settings = NETWORKS[name]
    images = np.random.default_rng(1).standard_normal((2, 3, 64, 96))
    net = CaffeNet(images, seed=2)
    wanted = compute(net)
    path = tmp_path / "net.caffemodel"
    path.write_bytes(network(net.layers))
    with load(path) as checkpoint:
        assert checkpoint.family == family
        for keyword, value in settings.items():
            assert getattr(checkpoint.spec, keyword) == value
        assert "ILSVRC2017" in str(checkpoint.feeds)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing has to be assumed
        model = load_model(path, "torch", dtype="float64")
    with torch.inference_mode():
        found = model(torch.from_numpy(images)).numpy()
    assert np.abs(found - wanted).max() < 1e-12 * np.abs(wanted).max()


def test_a_file_is_converted_for_every_framework(tmp_path):
    net = CaffeNet(np.zeros((1, 3, 64, 64)), seed=0)
    se_resnet(net, groups=1)
    path = tmp_path / "net.caffemodel"
    path.write_bytes(network(net.layers))
    with load(path) as checkpoint:
        wanted = {name: checkpoint[name] for name in checkpoint}
    for suffix in (".weights.h5", ".ckpt", ".safetensors"):
        convert(path, tmp_path / f"net{suffix}")
        with load(tmp_path / f"net{suffix}") as checkpoint:
            for name, array in wanted.items():
                assert checkpoint[name].tobytes() == array.tobytes()


CONV, GAMMA = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2), np.array([5, 6], np.float32)
LAYERS = [
    {"name": "c", "type": "Convolution", "bottom": ["data"], "top": ["c"], "blobs": (CONV, GAMMA)},
    {"name": "b", "type": "BatchNorm", "bottom": ["c"], "top": ["c"],
     "blobs": (GAMMA, 2 * GAMMA, np.array([2], np.float32))},
    {"name": "s", "type": "Scale", "bottom": ["c"], "top": ["c"], "blobs": (GAMMA, -GAMMA)},
    {"name": "r", "type": "ReLU", "bottom": ["c"], "top": ["c"]},
    {"name": "other", "type": "Scale", "bottom": ["c"], "top": ["c"], "blobs": (GAMMA,)},
    {"name": "fc", "type": "InnerProduct", "bottom": ["c"], "top": ["fc"],
     "blobs": (CONV[0, :, 0], np.ones(3, np.float32))},
    {"name": "p", "type": "PReLU", "bottom": ["fc"], "top": ["fc"], "blobs": (GAMMA,)},
]  # fmt: skip


def read(path: Path, content: bytes) -> dict[str, np.ndarray]:
    path.write_bytes(content)
    return read_all(path)


def read_all(path: Path) -> dict[str, np.ndarray]:
    with open_reader(path) as reader:
        assert reader.format == "caffe"
        return {name: reader.read(name) for name in reader.tensors}


@pytest.mark.quick
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("legacy", [True, False])
def test_blobs_have_the_names_of_their_layers(tmp_path, packed, legacy):
    found = read(tmp_path / "x.caffemodel", network(LAYERS, packed=packed, legacy=legacy))
    wanted = {
        "c.weight": CONV, "c.bias": GAMMA,
        "b.running_mean": GAMMA / 2, "b.running_var": GAMMA,
        "b.weight": GAMMA, "b.bias": -GAMMA,  # of the Scale that follows
        "other.weight": GAMMA,
        "fc.weight": CONV[0, :, 0], "fc.bias": np.ones(3, np.float32),
        "p.blob0": GAMMA.reshape((1, 1, 1, 2) if legacy else 2),
    }  # fmt: skip
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array), name
        assert found[name].shape == array.shape


@pytest.mark.quick
def test_a_scale_after_an_activation_is_no_part_of_a_batch_norm(tmp_path):
    conv, norm, scale, relu, *_ = LAYERS
    found = read(tmp_path / "x.caffemodel", network([conv, norm, relu, scale]))
    assert {"s.weight", "s.bias"} <= found.keys()
    assert "b.weight" not in found


@pytest.mark.quick
@pytest.mark.parametrize("name", ["netz-größe", "n" * 200, ""])
def test_any_name_of_a_network_is_read(tmp_path, name):
    inputs = [{"name": "data", "type": "Data", "top": ["data"]}] * 2  # for training and for tests
    assert "c.weight" in read(tmp_path / "x.caffemodel", network([*inputs, *LAYERS], name=name))


@pytest.mark.quick
def test_a_factor_of_zero_makes_statistics_zero(tmp_path):
    layer = LAYERS[1] | {"blobs": (GAMMA, GAMMA, np.zeros(1, np.float32))}
    found = read(tmp_path / "x.caffemodel", network([layer]))
    assert not found["b.running_mean"].any()
    assert not found["b.running_var"].any()
    layer = LAYERS[1] | {"blobs": (GAMMA, GAMMA, np.array([1e-45], np.float32))}
    assert np.isinf(read(tmp_path / "x.caffemodel", network([layer]))["b.running_mean"]).all()


@pytest.mark.quick
def test_doubles_and_layers_of_the_version_before_are_read(tmp_path):
    parts = messages()
    net = parts["NetParameter"](name="old", input=["data"])
    for name, kind, array in (("c", 4, CONV), ("fc", 14, CONV[0, :, 0].astype(np.float64)), ("r", 18, None)):
        layer = net.layers.add(name=name, type=kind, bottom=["data"], top=[name])
        if array is not None:
            fill_blob(layer.blobs.add(), array, legacy=True)
    found = read(tmp_path / "x.caffemodel", net.SerializeToString())
    assert list(found) == ["c.weight", "fc.weight"]
    assert found["fc.weight"].dtype == np.float64
    assert np.array_equal(found["fc.weight"], CONV[0, :, 0])
    net.layers[0].layer = b"x"
    with pytest.raises(SourceError, match="Caffe's first version; upgrade the file"):
        read(tmp_path / "x.caffemodel", net.SerializeToString())


def test_another_epsilon_is_warned_about_until_it_is_set(tmp_path):
    net = CaffeNet(np.zeros((1, 3, 64, 64)), seed=0)
    se_resnet(net, groups=1)
    layers = [layer | ({"eps": 1e-3} if layer["type"] == "BatchNorm" else {}) for layer in net.layers]
    path = tmp_path / "x.caffemodel"
    path.write_bytes(network(layers))
    with pytest.warns(UserWarning, match=r"states bn_epsilon=0\.001, and 1e-05 is used; give --set"):
        load_model(path, "torch")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(path, "torch", settings={"bn_epsilon": 1e-3})


@pytest.mark.quick
def test_damaged_files_are_refused_in_one_line(tmp_path):
    whole, path = network(LAYERS), tmp_path / "x.caffemodel"
    for length in range(5, len(whole), 7):
        path.write_bytes(whole[:length])
        with suppress(SourceError):  # a length at which a layer ends
            read_all(path)
    for content, message in (
        (network([LAYERS[0], LAYERS[0]]), "two layers are called 'c'"),
        (whole.replace(b"\x0a\x04\x02\x03\x02\x02", b"\x0a\x04\x02\x03\x02\x03"), "with 24 values"),
        (whole[:-1] + b"\x7f", "not a readable .caffemodel"),
        (b"\x0a\x03net\xa2\x06\x01\x0b", "a protobuf field of type 3"),
        (network([LAYERS[1] | {"blobs": (GAMMA, GAMMA, GAMMA)}]), "its factor has shape"),
    ):
        assert content != whole
        path.write_bytes(content)
        with pytest.raises(SourceError, match=message) as caught:
            read_all(path)
        assert "\n" not in caught.value.message


@pytest.mark.quick
def test_limits_hold_for_fields_and_bytes(tmp_path):
    path = tmp_path / "x.caffemodel"
    path.write_bytes(b"\x0a\x03net" + b"\x1a\x01x" * 200)
    with pytest.raises(LimitError, match="fields"):
        open_reader(path, limits=Limits(max_tensors=1))
    path.write_bytes(network(LAYERS))
    with pytest.raises(LimitError, match="bytes"):
        open_reader(path, limits=Limits(max_bytes=50))


@pytest.mark.quick
def test_a_prototxt_and_writing_are_answered_with_what_to_do(tmp_path, capsys):
    text = tmp_path / "net.prototxt"
    text.write_text('# made by hand\nname: "net"\nlayer {\n')
    assert main(["inspect", str(text)]) == 2
    assert "a Caffe prototxt, which has no weights; name the .caffemodel" in capsys.readouterr().err
    assert main(["convert", str(text), str(tmp_path / "x.caffemodel")]) == 2
    assert "can only be read" in capsys.readouterr().err
