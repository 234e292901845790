"""Files saved by the frameworks hold the keywords of our networks, and are read with them."""

from __future__ import annotations

import copy
import functools
import io
import json
import pickle
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import torch

import keras_impl
import torch_impl
from parity_tests.judge.synthetic import images, tiny, weights
from parity_tests.tests.live import keras_network, tf1_network, torch_network, without_counts
from weights_convert import LimitError, Limits, MismatchError, SourceError, load, load_into, load_model, save
from weights_convert.formats.torch.objects import StateDict

SPEC = tiny(
    attention="cbam", cbam_order="mean_max", stride_in="conv1", bn_epsilon=1e-3, stem_pool="same", dropout=0.5
)


def filled(model: Any) -> Any:
    load_into(model, weights(SPEC))
    return model


def save_torch(path: Path) -> Path:
    torch.save(filled(torch_network(SPEC)).state_dict(), path / "x.pth")
    return path / "x.pth"


def save_torch_stream(path: Path) -> Path:
    state = filled(torch_network(SPEC)).state_dict()
    torch.save(state, path / "x.pth", _use_new_zipfile_serialization=False)
    return path / "x.pth"


def save_training(path: Path) -> Path:
    """A training checkpoint of a wrapped network."""
    whole = torch.nn.Module()
    whole.module = filled(torch_network(SPEC))  # as in DataParallel
    torch.save({"epoch": 3, "state_dict": whole.state_dict()}, path / "x.pth.tar")
    return path / "x.pth.tar"


def save_inside(path: Path) -> Path:
    """As a part of a user's module."""
    whole = torch.nn.Module()
    whole.net = filled(torch_network(SPEC))
    torch.save(whole.state_dict(), path / "x.pth")
    return path / "x.pth"


@functools.cache
def keras_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        filled(keras_network(SPEC)).save(f"{folder}/x.keras")
        return Path(folder, "x.keras").read_bytes()


def save_keras(path: Path) -> Path:
    (path / "x.keras").write_bytes(keras_file())
    return path / "x.keras"


def save_keras_weights(path: Path) -> Path:
    filled(keras_network(SPEC)).save_weights(path / "x.weights.h5")
    return path / "x.weights.h5"


def save_compiled_keras(path: Path) -> Path:
    """With an optimiser, under a policy, in float64."""
    model = filled(keras_network(SPEC, dtype="float64"))
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)  # like `fit`: its slots are in the file
    model.save(path / "x.keras")
    return path / "x.keras"


@functools.cache
def tf1_files(scope: str | None) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write_tf1(Path(folder), scope)
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def save_tf1(path: Path, scope: str | None = "net") -> Path:
    for name, content in tf1_files(scope).items():
        (path / name).write_bytes(content)
    return path / "x.ckpt-7"


def write_tf1(path: Path, scope: str | None) -> None:
    with tf.Session(graph=tf.Graph()) as session:
        tf1_network(session, SPEC, scope=scope)
        load_into(session, weights(SPEC))
        with session.graph.as_default():
            tf.train.Saver().save(session, str(path / "x.ckpt"), global_step=7)


def save_tf1_without_scope(path: Path) -> Path:
    return save_tf1(path, scope=None)


SAVERS: list[Callable[[Path], Path]] = [
    *(save_torch, save_torch_stream, save_training, save_inside, save_keras, save_keras_weights),
    *(save_compiled_keras, save_tf1, save_tf1_without_scope),
]


@pytest.mark.parametrize("saver", SAVERS, ids=lambda saver: saver.__name__)
def test_the_frameworks_own_files_say_their_keywords(tmp_path, saver):
    """Without a warning: warnings are errors here."""
    path = saver(tmp_path)
    with load(path) as checkpoint:
        assert checkpoint.spec == SPEC
        assert checkpoint.assumed == ()
        assert {name: a.shape for name, a in without_counts(checkpoint).items()} == {
            name: a.shape for name, a in without_counts(weights(SPEC)).items()
        }
    x = images((9, 9))
    model = load_model(path, "torch")
    dtype = next(model.parameters()).dtype
    with torch.inference_mode():
        given = model(torch.from_numpy(x).to(dtype)).numpy()
        wanted = filled(torch_network(SPEC)).eval().to(dtype)(torch.from_numpy(x).to(dtype)).numpy()
    np.testing.assert_array_equal(given, wanted)


def test_the_file_of_the_issue(tmp_path):
    """A network with another stride and epsilon used to be 14 % off, without a warning."""
    model = keras_impl.se_resnet20(bn_epsilon=1e-3, block="bottleneck", stride_in="conv1", width=8)
    model.save(tmp_path / "v.keras")
    twin, x = load_model(tmp_path / "v.keras", "torch"), images((32, 32))
    with torch.inference_mode():
        ours = twin(torch.from_numpy(x)).numpy()
    theirs = keras.ops.convert_to_numpy(model(x.transpose(0, 2, 3, 1), training=False))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------------------------------------
# PyTorch: the metadata of a state dict


def modules_with_keywords(state: Any) -> list[str]:
    """The modules with keywords in their metadata."""
    return [path for path, of in getattr(state, "_metadata", {}).items() if "samenet" in of]


def test_the_metadata_stand_where_torch_keeps_them():
    model = torch_network(SPEC)
    state = model.state_dict()
    assert modules_with_keywords(state) == [""]
    assert set(state) == set(dict(model.named_parameters())) | set(dict(model.named_buffers()))
    for copied in (copy.copy(state), copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        assert modules_with_keywords(copied) == [""]
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    again = torch.load(file, weights_only=True)
    assert modules_with_keywords(again) == [""]
    assert model.load_state_dict(again).missing_keys == []
    torch_impl.ResNet(**{**SPEC.model_kwargs(), "stride_in": "conv2"}).load_state_dict(again)  # ignored
    assert modules_with_keywords(torch.compile(model, backend="eager").state_dict()) == ["_orig_mod"]


def test_what_torch_loads_of_the_converter_needs_no_metadata(tmp_path):
    path = save(weights(SPEC), tmp_path / "x.pth").destination
    model = torch_network(SPEC)
    model.load_state_dict(torch.load(path, weights_only=True))
    assert modules_with_keywords(model.state_dict()) == [""]


def state_saying(*texts: Any) -> bytes:
    """A file of torch.save with these texts as metadata, one per module."""
    state = torch_network(SPEC).state_dict()
    for number, text in enumerate(texts):
        state._metadata[f"m{number}" if number else ""] = {"samenet": text}
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def text_of(kind: str = "resnet", **keywords: Any) -> str:
    return json.dumps({"kind": kind, "spec": SPEC.model_kwargs() | keywords})


HOSTILE = {
    "no text": ((3,), "metadata has int 3, expected one text of keywords"),
    "a list that holds itself": (([],), "metadata has list of 0, expected one text"),
    "two networks": (
        (text_of(), text_of(stride_in="conv2")),
        "metadata has keywords of several networks, expected one text",
    ),
    "no JSON": (("{",), "its 'samenet' metadata is not JSON"),
    "no object": (("[]",), "its 'samenet' metadata is list, expected an object"),
    "too deep": (("[" * 5000 + "]" * 5000,), "metadata"),
    "another kind": ((text_of("unet"),), "its metadata has kind 'unet'"),
    "an unknown keyword": ((text_of(colour=1),), "there is no keyword 'colour'"),
    "an invalid value": ((text_of(stride_in="conv9"),), "its metadata: stride_in='conv9': expected one of"),
    "an infinite value": ((text_of(bn_epsilon=float("inf")),), "bn_epsilon=inf: expected a finite float"),
    "another network": ((text_of(num_classes=7),), "do not match"),
    "a newer version": (
        (json.dumps({"mapping_version": 99, "kind": "resnet", "spec": {}}),),
        "written by a newer samenet",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_metadata_are_refused_in_one_line(tmp_path, case):
    texts, message = HOSTILE[case]
    (tmp_path / "x.pth").write_bytes(state_saying(*texts))
    with pytest.raises((SourceError, MismatchError)) as caught:
        load(tmp_path / "x.pth")
    assert message in caught.value.message
    assert str(tmp_path) in caught.value.message


def test_a_long_text_of_metadata_takes_no_more_than_its_limit(tmp_path):
    (tmp_path / "x.pth").write_bytes(state_saying(text_of(block="b" * 200_000)))
    with pytest.raises(LimitError, match="bytes of 'samenet' metadata"):
        load(tmp_path / "x.pth", limits=Limits(max_tensors=300))


def test_a_state_dict_of_the_pickle_takes_no_other_attribute():
    state = StateDict()
    state.set_state({"_metadata": {"": {"samenet": "a"}, "b": 3, "c": {"samenet": "d"}}, "__class__": int})
    assert (state.metadata, type(state)) == (["a", "d"], StateDict)


# --------------------------------------------------------------------------------------------------
# Keras: the config, and the text beside the weights


def changed_zip(path: Path, name: str, change: Callable[[bytes], bytes | None]) -> None:
    """Change or remove an entry of a zip."""
    with zipfile.ZipFile(path) as old:
        entries = {entry: old.read(entry) for entry in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for entry, data in entries.items():
            data = change(data) if entry == name else data
            if data is not None:
                new.writestr(entry, data)


def without_text(data: bytes) -> bytes:
    """HDF5 as written by a class without `save_own_variables`."""
    file = io.BytesIO(data)
    with h5py.File(file, "r+") as opened:
        del opened["vars/samenet"]
    return file.getvalue()


def test_the_config_alone_is_enough(tmp_path):
    """As in files saved before the weights held the keywords too."""
    path = save_keras(tmp_path)
    changed_zip(path, "model.weights.h5", without_text)
    with load(path) as checkpoint:
        assert (checkpoint.spec, checkpoint.assumed) == (SPEC, ())
    changed_zip(
        path, "config.json", lambda data: data.replace(b'"registered_name": "samenet>ResNet"', b'"a": 1')
    )
    with pytest.warns(UserWarning, match="does not specify these keywords"):
        load(path).close()


def test_a_config_of_fewer_keywords_leaves_the_others_assumed(tmp_path):
    """From a version with fewer keywords."""
    path = save_keras(tmp_path)
    changed_zip(path, "model.weights.h5", without_text)

    def older(data: bytes) -> bytes:
        config = json.loads(data)
        del config["config"]["cbam_order"]
        return json.dumps(config).encode()

    changed_zip(path, "config.json", older)
    with pytest.warns(UserWarning, match=r"defaults used: cbam_order='max_mean';"):
        checkpoint = load(path)
    checkpoint.close()
    with load(path, settings={"cbam_order": "mean_max"}) as checkpoint:
        assert checkpoint.spec == SPEC


CONFIGS = {
    "no JSON": (lambda _: b"{", "its config is not JSON"),
    "no object": (lambda _: b"3", "its config is int, expected an object"),
    "too deep": (lambda _: b'{"a":' * 400 + b"1" + b"}" * 400, "levels or more of metadata"),
    "no keywords": (lambda _: b'{"registered_name": "samenet>ResNet"}', "has no keywords"),
    "another stride": (lambda d: d.replace(b'"conv1"', b'"conv2"'), "contradictory values of 'stride_in'"),
    "an unknown keyword": (lambda d: d.replace(b'"stride_in"', b'"stride"'), "contradictory values of"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_hostile_config_is_refused_in_one_line(tmp_path, case):
    change, message = CONFIGS[case]
    path = save_keras(tmp_path)
    changed_zip(path, "config.json", change)
    with pytest.raises(SourceError) as caught:
        load(path)
    assert message in caught.value.message
    assert str(path) in caught.value.message


def test_keywords_that_contradict_the_tensors_are_refused(tmp_path):
    path = save_keras(tmp_path)
    changed_zip(path, "model.weights.h5", without_text)
    changed_zip(path, "config.json", lambda data: data.replace(b'"num_classes": 5', b'"num_classes": 7'))
    with pytest.raises(MismatchError, match="do not match"):
        load(path)


def test_a_long_config_is_refused(tmp_path):
    path = save_keras(tmp_path)
    changed_zip(path, "config.json", lambda data: data + b" " * 300_000)
    with pytest.raises(LimitError, match=r"bytes of config\.json"):
        load(path, limits=Limits(max_tensors=400))


def test_code_in_a_config_is_never_run(tmp_path):
    path = save_keras(tmp_path)
    code = (
        b'{"class_name": "Lambda", "module": "os", "config": {"function": "system"}, "registered_name": null}'
    )
    changed_zip(path, "config.json", lambda _: code)
    with load(path) as checkpoint:  # the weights hold their keywords
        assert checkpoint.spec == SPEC


def test_keras_loads_what_it_saved(tmp_path):
    """The text beside the weights does not disturb Keras, and files without it load too."""
    model = filled(keras_network(SPEC))
    for name in ("x.keras", "x.weights.h5"):
        (model.save if name == "x.keras" else model.save_weights)(tmp_path / name)
    again = keras_network(SPEC)
    again.load_weights(tmp_path / "x.weights.h5")
    x = images((9, 9)).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(again(x), model(x))
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "x.keras")(x), model(x))
    save(weights(SPEC), tmp_path / "y.weights.h5")
    again.load_weights(tmp_path / "y.weights.h5")
    np.testing.assert_array_equal(again(x), model(x))
