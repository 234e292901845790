"""Seeds: small valid files by our writers and by the frameworks' own savers, of several versions of each."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import safetensors.numpy

from fuzz.target import joined
from parity_tests.judge.synthetic import weights
from parity_tests.tests.caffe_files import network
from weights_convert import AttentionSpec, ResNetSpec, convert, save
from weights_convert.families import FAMILIES

NETWORK = ResNetSpec(
    block="basic",
    depths=(1,),
    width=1,
    stem="3x3",
    stem_width=1,
    attention="se",
    num_classes=2,
    in_channels=1,
)
HUB = ResNetSpec(  # in timm's and transformers' terms
    block="basic",
    depths=(1,),
    width=16,
    num_classes=2,
    in_channels=1,
)
BLOCK = AttentionSpec(attention="cbam", channels=4, reduction=2, cbam_kernel_size=3)
ARRAYS = {
    "f4": np.arange(6, dtype=np.float32).reshape(2, 3),
    "f8": np.array(1.5),
    "i8": np.arange(3),
    "u1": np.zeros((0, 2), np.uint8),
    "b": np.array([True, False]),
    "f2": np.ones(4, np.float16),
}


def _saved(suffix: str, spec: ResNetSpec | AttentionSpec = NETWORK) -> bytes:
    """The file of a small network by our own writer."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{suffix}"
        save(weights(spec), path)
        if suffix != ".ckpt":
            return path.read_bytes()
        return _bundle(path)


def _carried(suffix: str, kind: str) -> bytes:
    """The file of a small network with an optimiser, by our own writer; for .pth PyTorch's."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        source, path = Path(folder) / "source.pth", Path(folder) / f"x{suffix}"
        torch.save(_stopped(kind), source)
        convert(source, path, carry=True, settings=NETWORK.model_kwargs(), assume=True)
        return _bundle(path) if suffix == ".ckpt" else path.read_bytes()


def _stopped(kind: str) -> dict[str, Any]:
    """A training of the small network in PyTorch, stopped after a step."""
    import torch

    import torch_impl

    net = torch_impl.ResNet(**NETWORK.model_kwargs())
    optimizer = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[kind](net.parameters(), lr=0.5)
    optimizer.param_groups[0].update({"momentum": 0.5} if kind == "sgd" else {})
    net(torch.ones(2, 1, 8, 8)).square().sum().backward()
    optimizer.step()
    return {"state_dict": net.state_dict(), "optimizer": optimizer.state_dict(), "step": 1}


def _bundle(prefix: Path) -> bytes:
    return joined(Path(f"{prefix}.index").read_bytes(), Path(f"{prefix}.data-00000-of-00001").read_bytes())


def _training() -> dict:
    """A training checkpoint of torch, with its usual other contents."""
    import torch

    layer = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Linear(2, 1))
    optimizer = torch.optim.Adam(layer.parameters())
    return {
        "state_dict": layer.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "best": np.float64(0.5),
        "view": torch.arange(12.0).reshape(3, 4).T[1:],
        "half": [torch.ones(3, dtype=torch.bfloat16), torch.nn.Parameter(torch.ones(1))],
    }


def _torch(zipped: bool) -> Iterator[tuple[str, bytes]]:
    import torch

    plain = {name: torch.from_numpy(np.array(array)) for name, array in weights(NETWORK).items()}
    for protocol in (1, 2, 4):
        for name, value in (("plain", plain), ("training", _training())):
            file = io.BytesIO()
            torch.save(value, file, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
            yield f"{name}-{protocol}", file.getvalue()
    import torch_impl

    file = io.BytesIO()
    state = torch_impl.ResNet(**NETWORK.model_kwargs()).state_dict()  # its metadata hold its keywords
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    yield "network", file.getvalue()
    for kind in ("sgd", "adam"):
        file = io.BytesIO()
        torch.save(_stopped(kind), file, _use_new_zipfile_serialization=zipped)
        yield f"stopped-{kind}", file.getvalue()


def _torch_zip() -> Iterator[tuple[str, bytes]]:
    yield "ours", _saved(".pth")
    yield "block", _saved(".pth", BLOCK)
    for kind in ("sgd", "adam"):
        yield f"carried-{kind}", _carried(".pth", kind)
    yield "deflated", _packed(_saved(".pth"))
    yield from _torch(zipped=True)


def _packed(data: bytes) -> bytes:
    """The same archive, deflated."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return file.getvalue()


def _npz() -> Iterator[tuple[str, bytes]]:
    yield "ours", _saved(".npz")
    arrays: dict = ARRAYS | {"fortran": np.asfortranarray(ARRAYS["f4"]), "big": np.ones(2, ">f4")}
    for saver in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        saver(file, **arrays, text=np.array("ab"))
        yield saver.__name__, file.getvalue()
    file = io.BytesIO()
    np.savez(file, objects=np.array([{}], object), record=np.zeros(2, [("a", "f4"), ("b", "i8")]))
    yield "others", file.getvalue()


def _hdf5(fill: Callable[[h5py.File], object], libver: str = "earliest") -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w", libver=libver) as opened:
        fill(opened)
    return file.getvalue()


def _datasets(file: h5py.File) -> None:
    for name, array in ARRAYS.items():
        file[f"a/{name}"] = array
    zeros = np.zeros((8, 8), np.float32)
    file.create_dataset("gzip", data=zeros, chunks=(4, 4), compression="gzip", shuffle=True, fletcher32=True)
    file.create_dataset("lzf", data=zeros, chunks=(4, 4), compression="lzf")
    file.create_dataset("filled", (4, 4), "f4", fillvalue=2.0)
    file["big"] = np.ones(3, ">f8")
    file["text"] = "text"
    file["reference"] = file["a"].ref
    file["soft"] = h5py.SoftLink("/a/f4")
    file["external"] = h5py.ExternalLink("/etc/passwd", "/x")
    file.create_dataset("elsewhere", (4,), "u1", external=[("/etc/passwd", 0, 4)])
    file["hard"] = file["a/f8"]
    bfloat16 = file.create_dataset("bfloat16", data=np.zeros(3, "V2"))
    bfloat16.attrs["dtype"] = "bfloat16"
    file.attrs["samenet"] = '{"a": 1}'


def _keras_h5() -> Iterator[tuple[str, bytes]]:
    yield "ours", _saved(".weights.h5")
    yield "block", _saved(".weights.h5", BLOCK)
    for kind in ("sgd", "adam"):
        yield f"carried-{kind}", _carried(".weights.h5", kind)
    for libver in ("earliest", "v108", "v110", "latest"):
        yield libver, _hdf5(_datasets, libver)


def _keras_zip() -> Iterator[tuple[str, bytes]]:
    for name, data in _keras_h5():
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            file = io.BytesIO()
            with zipfile.ZipFile(file, "w", method) as archive:
                archive.writestr("metadata.json", "{}")
                archive.writestr("config.json", '{"class_name": "Functional"}')
                archive.writestr("model.weights.h5", data)
            yield f"{name}-{method}", file.getvalue()

    inner, file = io.BytesIO(_carried(".weights.h5", "sgd")), io.BytesIO()
    with h5py.File(inner, "r+") as opened:
        del opened.attrs["samenet"]  # so that the config is used
    optimizer = {
        "module": "keras.optimizers",
        "class_name": "SGD",
        "config": {"momentum": 0.5, "nesterov": False},
    }
    config = {"registered_name": "samenet>ResNet", "config": NETWORK.model_kwargs()}
    config["compile_config"] = {"optimizer": optimizer}
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", inner.getvalue())
    yield "config", file.getvalue()


def _tf1() -> Iterator[tuple[str, bytes]]:
    yield "ours", _saved(".ckpt")
    yield "block", _saved(".ckpt", BLOCK)
    for kind in ("sgd", "adam"):
        yield f"carried-{kind}", _carried(".ckpt", kind)
    import tensorflow.compat.v1 as tf

    with tempfile.TemporaryDirectory() as folder, tf.Graph().as_default(), tf.Session() as session:
        for name, array in ARRAYS.items():
            tf.get_variable(name, initializer=array, use_resource=False)
        tf.get_variable("text", initializer="abc", use_resource=False)
        tf.get_variable(
            "part", shape=(4, 2), partitioner=tf.fixed_size_partitioner(2), initializer=tf.zeros_initializer()
        )
        session.run(tf.global_variables_initializer())
        prefix = tf.train.Saver().save(session, f"{folder}/x.ckpt")
        yield "tensorflow", _bundle(Path(prefix))
    import tensorflow as tf2

    with tempfile.TemporaryDirectory() as folder:
        variables = {name: tf2.Variable(array, name=f"net/{name}") for name, array in ARRAYS.items()}
        checkpoint = tf2.train.Checkpoint(**variables, optimizer=tf2.train.Checkpoint(m=tf2.Variable(1.0)))
        yield "objects", _bundle(Path(checkpoint.write(f"{folder}/x")))


def _safetensors() -> Iterator[tuple[str, bytes]]:
    yield "ours", _saved(".safetensors")
    yield "block", _saved(".safetensors", BLOCK)
    yield "library", safetensors.numpy.save(ARRAYS, {"format": "pt", "epoch": "seven"})
    yield "empty", safetensors.numpy.save({})


def _folder() -> Iterator[tuple[str, bytes]]:
    """As timm and transformers save: config.json, and weights in one file or in shards."""
    plain = {name: np.array(array) for name, array in weights(HUB).items()}
    pretrained = {"mean": [0.5], "std": [0.5], "crop_pct": 0.9, "interpolation": "bicubic"}
    arguments = {"layers": [1], "channels": [16], "in_chans": 1, "act_layer": "relu", "output_stride": 32}
    config = {"architecture": "resnet18", "num_classes": 2, "model_args": arguments}
    texts = {"config.json": json.dumps(config | {"pretrained_cfg": pretrained}).encode()}
    half = len(plain) // 2
    shards = {
        f"model-{number:05d}-of-00002.safetensors": dict(part)
        for number, part in enumerate((list(plain.items())[:half], list(plain.items())[half:]), 1)
    }
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    save_arrays = safetensors.numpy.save
    yield "timm", _archive(texts | {"model.safetensors": save_arrays(plain)})
    files = {name: save_arrays(part) for name, part in shards.items()}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    yield "shards", _archive(files)
    yield "config", _archive(texts | files)
    config = {"model_type": "resnet", "hidden_act": "relu", "id2label": {"0": "a", "1": "b"}, "depths": [1]}
    preprocessor = {"image_mean": [0.5], "image_std": [0.5], "resample": 3, "size": {"shortest_edge": 8}}
    theirs = FAMILIES["transformers"].layout_of(HUB)
    named = {theirs.names(HUB)[name] or name: array for name, array in plain.items()}
    described = {"config.json": config, "preprocessor_config.json": preprocessor}
    encoded = {name: json.dumps(text).encode() for name, text in described.items()}
    yield "transformers", _archive(encoded | {"model.safetensors": save_arrays(named)})


def _archive(files: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def _caffe() -> Iterator[tuple[str, bytes]]:
    kernel, numbers = np.ones((2, 3, 5, 5), np.float32), np.array([5, 6], np.float32)
    layers = [
        {"name": "c", "type": "Convolution", "top": ["c"], "blobs": (kernel, numbers)},
        {"name": "b", "type": "BatchNorm", "bottom": ["c"], "top": ["c"],
         "blobs": (numbers, numbers, numbers[:1])},
        {"name": "s", "type": "Scale", "bottom": ["c"], "top": ["c"], "blobs": (numbers, numbers)},
    ]  # fmt: skip
    yield "packed", network(layers)
    yield "single", network(layers, packed=False, legacy=True)
    yield "double", network([layers[0] | {"blobs": (kernel.astype(np.float64),)}])


_MAKERS: dict[str, Callable[[], Iterator[tuple[str, bytes]]]] = {
    "torch_zip": _torch_zip,
    "torch_stream": lambda: _torch(zipped=False),
    "npz": _npz,
    "keras_h5": _keras_h5,
    "keras_zip": _keras_zip,
    "tf1": _tf1,
    "safetensors": _safetensors,
    "caffe": _caffe,
    "folder": _folder,
}


def seeds(reader: str) -> dict[str, bytes]:
    """Name -> a small valid input for a reader."""
    return dict(_MAKERS[reader]())
