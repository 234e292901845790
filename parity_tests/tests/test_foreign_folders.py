"""Folders as on the Hugging Face Hub: shards, config.json of timm and transformers, and hostile ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from parity_tests.judge import synthetic
from weights_convert import (
    MismatchError,
    ResNetSpec,
    SourceError,
    WeightsConvertError,
    convert,
    load,
)
from weights_convert.families import FAMILIES
from weights_convert.formats.hub.find import inside
from weights_convert.spec import changed

pytestmark = pytest.mark.quick

SPEC = ResNetSpec(
    block="basic", depths=(1, 1, 1, 1), width=16, num_classes=5, attention="se", hidden_rule="multiple_of_8"
)
STATE = {name: np.array(array) for name, array in synthetic.weights(SPEC).items()}
THEIRS = {  # timm's SE has 1x1 convolutions
    n: a[..., None, None] if ".se." in n and n.endswith("weight") else a for n, a in STATE.items()
}
CONFIG: dict[str, Any] = {
    "architecture": "seresnet18",
    "num_classes": 5,
    "model_args": {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]},
    "pretrained_cfg": {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.2, 0.2],
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "input_size": [3, 96, 96],
    },
}


def folder(path: Path, config: Any = None, arrays: dict[str, np.ndarray] = THEIRS, **texts: str) -> Path:
    path.mkdir(exist_ok=True)
    save_file(arrays, path / "model.safetensors")
    if config is not None:
        (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    for name, text in texts.items():
        (path / f"{name}.json").write_text(text)
    return path


def changed_config(**arguments: Any) -> dict[str, Any]:
    return CONFIG | {"model_args": CONFIG["model_args"] | arguments}


def sharded(path: Path, suffix: str = "safetensors") -> Path:
    path.mkdir()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names, weight_map = list(THEIRS), {}
    for number, part in enumerate((names[:20], names[20:]), 1):
        file = f"{stem}-{number:05d}-of-00002.{suffix}"
        weight_map |= dict.fromkeys(part, file)
        if suffix == "safetensors":
            save_file({name: THEIRS[name] for name in part}, path / file)
        else:
            torch.save({name: torch.from_numpy(THEIRS[name].copy()) for name in part}, path / file)
    (path / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def same(checkpoint: Any, wanted: dict[str, np.ndarray] = STATE) -> bool:
    with checkpoint:
        return list(checkpoint) == list(wanted) and all((checkpoint[n] == wanted[n]).all() for n in wanted)


# --------------------------------------------------------------------------------------------------
# Weights


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("by", ["folder", "index"])
def test_shards(tmp_path, suffix, by):
    path = sharded(tmp_path / "x", suffix)
    if by == "index":
        (path,) = path.glob("*.index.json")
    assert same(load(path, assume=True))


def test_a_folder_with_nothing_but_weights(tmp_path):
    assert same(load(folder(tmp_path / "x"), assume=True))


def test_of_two_files_the_usual_one_is_taken(tmp_path):
    folder(tmp_path / "x")
    (tmp_path / "x" / "pytorch_model.bin").write_bytes(b"")
    with load(tmp_path / "x", assume=True) as checkpoint:
        assert checkpoint.notes[0] == (
            "took model.safetensors; the folder has other files of weights: pytorch_model.bin"
        )


def test_an_entry_of_the_file_in_a_folder(tmp_path):
    (tmp_path / "x").mkdir()
    tensors = {name: torch.from_numpy(array.copy()) for name, array in THEIRS.items()}
    torch.save([{"a": torch.zeros(1)}, tensors], tmp_path / "x" / "pytorch_model.bin")
    assert same(load(tmp_path / "x", key="1", assume=True))


def test_one_shard_is_refused(tmp_path):
    path = sharded(tmp_path / "x")
    with pytest.raises(SourceError, match=r"one shard of 2; give the folder, or the file ending in \.index"):
        load(path / "model-00001-of-00002.safetensors")


def test_the_manifest_has_all_files(tmp_path):
    path = folder(tmp_path / "x", CONFIG)
    plan = convert(path, tmp_path / "y.npz", hash_source=True)
    assert set(plan.source_sha256) == {"model.safetensors", "config.json"}


# --------------------------------------------------------------------------------------------------
# config.json


def test_timm_says_the_network_and_its_preprocessing(tmp_path, recwarn):
    config = changed_config(act_layer="silu", output_stride=16, global_pool="max", drop_rate=0.1)
    with load(folder(tmp_path / "x", config)) as checkpoint:
        wanted = {
            "activation": "silu",
            "strides": (1, 2, 2, 1),
            "dilations": (1, 1, 1, 2),
            "global_pool": "max",
        }
        assert checkpoint.spec == changed(SPEC, wanted | {"dropout": 0.1})
        assert (checkpoint.family, checkpoint.assumed) == ("timm", ())
        assert checkpoint.feeds.mean == (0.5, 0.4, 0.3)
        assert str(checkpoint.feeds).endswith(
            "images: 96 x 96, 0.9 of the shorter side, bicubic; classes: not said"
        )
    assert not recwarn.list


def test_the_users_word_comes_first(tmp_path):
    path = folder(tmp_path / "x", changed_config(act_layer="silu"))
    with pytest.raises(MismatchError, match=r"its config\.json says activation='silu', but its weights"):
        load(path, settings={"activation": "relu"})


def test_the_older_form_of_timms_config(tmp_path):
    config = CONFIG["pretrained_cfg"] | {"architecture": "seresnet18", "num_classes": 5, "label_names": ["a"]}
    state = synthetic.weights(changed(SPEC, {"depths": (2, 2, 2, 2), "width": 64}))
    arrays = {n: a[..., None, None] if ".se." in n and n.endswith("weight") else a for n, a in state.items()}
    with load(folder(tmp_path / "x", config, {n: np.array(a) for n, a in arrays.items()})) as checkpoint:
        assert checkpoint.feeds.classes == "label_names of config.json"


def test_timm_in_transformers(tmp_path):
    config = CONFIG | {"model_type": "timm_wrapper", "architectures": ["TimmWrapperForImageClassification"]}
    arrays = {f"timm_model.{name}": array for name, array in THEIRS.items()}
    with load(folder(tmp_path / "x", config, arrays)) as checkpoint:
        assert checkpoint.spec == SPEC
        assert "removed the prefix 'timm_model.'" in checkpoint.notes
        assert checkpoint.liberties == []


PLAIN = changed(SPEC, {"attention": "none", "hidden_rule": "floor"})
TRANSFORMERS = {"model_type": "resnet", "hidden_act": "relu", "id2label": {str(i): "" for i in range(5)}}


def of_transformers(spec: ResNetSpec) -> dict[str, np.ndarray]:
    names = FAMILIES["transformers"].layout_of(spec).names(spec)
    return {str(names[name]): np.array(array) for name, array in synthetic.weights(spec).items()}


def test_transformers(tmp_path):
    preprocessor = {
        "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3,
        "resample": 2,
        "size": {"shortest_edge": 96},
    }
    path = folder(
        tmp_path / "x",
        TRANSFORMERS,
        of_transformers(PLAIN),
        preprocessor_config=json.dumps(preprocessor),
    )
    with load(path) as checkpoint:
        assert (checkpoint.family, checkpoint.spec, checkpoint.assumed) == ("transformers", PLAIN, ())
        assert str(checkpoint.feeds).endswith("images: 96 x 96, bilinear; classes: id2label of config.json")
    assert "resnet.encoder.stages.1.layers.0.shortcut.convolution.weight" in of_transformers(PLAIN)


def test_transformers_with_the_stride_in_the_first_1x1(tmp_path):
    spec = changed(PLAIN, {"block": "bottleneck", "stride_in": "conv1", "strides": (2, 2, 2, 2)})
    flags = {"downsample_in_bottleneck": True, "downsample_in_first_stage": True, "depths": [1] * 4}
    with load(folder(tmp_path / "x", TRANSFORMERS | flags, of_transformers(spec))) as checkpoint:
        assert checkpoint.spec == spec


REFUSED = {
    "an argument": (changed_config(attn_scale=3), r"the argument attn_scale=3 of timm's network"),
    "a mistyped one": (changed_config(act_layr="silu"), r"did you mean 'act_layer'"),
    "an activation": (
        changed_config(act_layer="mish"),
        r"act_layer is 'mish', expected one of 'relu'",
    ),
    "a pool": (changed_config(aa_layer="blurpc"), r"aa_layer is 'blurpc', expected one of"),
    "a stride": (changed_config(output_stride=True), r"output_stride is True, expected one of 32, 16, 8"),
    "widths": (
        changed_config(channels=[16, 16, 64, 128]),
        r"channels is \[16, 16, 64, 128\], expected",
    ),
    "blocks": (
        changed_config(block_args={"attn_layer": "ge"}),
        r"block_args is .*, expected attn_layer",
    ),
    "a network": (
        CONFIG | {"architecture": "resnest50d"},
        r"is timm's 'resnest50d', which this",
    ),
    "no timm network": (CONFIG | {"architecture": 3}, r"'architecture' is 3, expected a name"),
    "arguments of another type": (CONFIG | {"model_args": []}, r"'model_args' is a list, expected an object"),
    "classes": (CONFIG | {"num_classes": 7}, r"says num_classes=7, but its weights"),
    "classes of another type": (CONFIG | {"num_classes": "7"}, r"'num_classes' is '7', expected a number"),
    "depths": (changed_config(layers=[2, 1, 1, 1]), r"do not match timm's"),
    "depths of another type": (changed_config(layers="x" * 999), r"layers is 'x.*, expected a number or one"),
    "a mean": (
        CONFIG | {"pretrained_cfg": {"mean": [0, "a"], "std": [1]}},
        r"'mean' is \[0, 'a'\], expected one",
    ),
    "numbers without end": (CONFIG | {"pretrained_cfg": {"mean": [1e999], "std": [1]}}, r"'mean' is \[inf\]"),
    "a crop": (
        CONFIG | {"pretrained_cfg": {"mean": [0], "std": [1], "crop_pct": "x"}},
        r"crop_pct is 'x', expected a number",
    ),
    "transformers' others": ({"model_type": "vit"}, r"describes transformers' 'vit', expected 'resnet'"),
    "an activation of transformers": (TRANSFORMERS | {"hidden_act": "gelu"}, r"hidden_act is 'gelu', which"),
    "a flag": (TRANSFORMERS | {"downsample_in_bottleneck": "no"}, r"is 'no', expected true or false"),
    "nothing known": ({"hello": 1}, r"does not describe a network of timm or transformers.*name their file"),
    "no object": ("[1]", r"its content is list, expected an object"),
    "no JSON": ("{", r"its content is not JSON"),
    "deep": ('{"a": ' * 200 + "1" + "}" * 200, r"levels or more of metadata"),
    "long": ('{"a": "' + "x" * 11_000_000 + '"}', r"bytes or more of config.json, limit 10,240,000"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_config_json_says_is_never_ignored(tmp_path, case):
    config, message = REFUSED[case]
    with pytest.raises(WeightsConvertError, match=message) as caught:
        load(folder(tmp_path / "x", config))
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 600


# --------------------------------------------------------------------------------------------------
# Hostile folders


INDICES = {
    "a path": (
        {"x": "../y.safetensors"},
        r"'\.\./y\.safetensors', expected the name of a file in",
    ),
    "an absolute path": ({"x": "/etc/passwd"}, r"'/etc/passwd', expected the name of a file"),
    "a parent": ({"x": ".."}, r"'\.\.', expected the name of a file"),
    "another type": ({"x": 3}, r"the file of 'x' is int, expected the name of a file"),
    "no text": ({"x": ""}, r"'', expected the name of a file"),
    "missing": (
        {"x": "a.safetensors", "y": "b.safetensors"},
        r"2 of its 2 shards are missing, such as",
    ),
    "many": ({str(i): str(i) for i in range(101)}, r"lists 101 shards, expected 100 at most"),
    "none": ({}, r"its 'weight_map' is dict, expected names of tensors"),
    "a list": ([], r"its 'weight_map' is list, expected names of tensors"),
}


@pytest.mark.parametrize("case", INDICES)
def test_indices_that_lead_elsewhere(tmp_path, case):
    weight_map, message = INDICES[case]
    (tmp_path / "x").mkdir()
    save_file(THEIRS, tmp_path / "y.safetensors")
    (tmp_path / "x" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(SourceError, match=message):
        load(tmp_path / "x")


def test_an_index_that_contradicts_its_shards(tmp_path):
    path = sharded(tmp_path / "x")
    index = path / "model.safetensors.index.json"
    text = index.read_text()
    index.write_text(text.replace('"conv1.weight"', '"conv2.weight"'))
    with pytest.raises(SourceError, match="2 tensors are not where its index says") as caught:
        load(path)
    assert caught.value.details == (
        "conv1.weight: not listed for model-00001-of-00002.safetensors",
        "conv2.weight: missing in model-00001-of-00002.safetensors",
    )
    index.write_text(text)
    save_file({"conv1.weight": STATE["conv1.weight"]}, path / "model-00002-of-00002.safetensors")
    with pytest.raises(SourceError, match=r"'conv1\.weight' is in two shards"):
        load(path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_links_lead_to_the_folder_or_to_the_hubs_cache(tmp_path, name):
    outer = folder(tmp_path / "outer", CONFIG)
    folder(tmp_path / "x", CONFIG)
    (tmp_path / "x" / name).unlink()
    (tmp_path / "x" / name).symlink_to(outer / name)
    with pytest.raises(SourceError, match="is a link to a file outside the folder, which is not followed"):
        load(tmp_path / "x")
    snapshot = tmp_path / "models--a" / "snapshots" / "1234"
    blobs = tmp_path / "models--a" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in ("model.safetensors", "config.json"):
        (outer / file).rename(blobs / file)
        (snapshot / file).symlink_to(Path("../../blobs") / file)
    assert same(load(snapshot))


def test_a_circle_of_links(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "a")
    with pytest.raises(WeightsConvertError):
        load(tmp_path / "a")
    with pytest.raises(SourceError):
        inside(tmp_path, "a\0b")
