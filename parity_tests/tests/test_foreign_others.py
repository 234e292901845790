"""Files that hold something else: one sentence says what it is and what to do; pruning masks are applied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils import prune

import torch_impl
from parity_tests.tests.test_foreign_inside import OUTSIDE, SPEC, STATE, file, put, read, same
from weights_convert import MismatchError, SourceError, convert, load, load_model
from weights_convert.formats import open_reader
from weights_convert.formats.others import other_kind

pytestmark = pytest.mark.quick

BYTES = {
    "ONNX": (b"\x08\x08\x12\x07pytorch\x1a\x062.14.1:\xb5\x01", "an ONNX graph"),
    "older ONNX": (b"\x08\x03\x12\x0cbackend-test:\x97\x01", "an ONNX graph"),
    "TFLite": (b"\x1c\x00\x00\x00TFL3\x14\x00\x20\x00", "a TensorFlow Lite model"),
    "a frozen graph": (b"\n=\n\x05input\x12\x0bPlaceholder*\x10\n\x05dtype", "a frozen TensorFlow graph"),
    "saved_model.pb": (b"\x08\x01\x12\xa4\x08\n\xf0\x03", "the graph of a SavedModel"),
    "an array": (b"\x93NUMPY\x01\x00v\x00{'descr'", "one array of NumPy"),
    "GGUF": (b"GGUF\x03\x00\x00\x00", "a GGUF file"),
    "Core ML": (b"\x08\x04\x12\xb2\x01\n\x1c", "a Core ML model"),
    "ExecuTorch": (b"\x1c\x00\x00\x00ET12", "an ExecuTorch program"),
    "MATLAB": (b"MATLAB 5.0 MAT-file, Platform", "a MATLAB file"),
    "MXNet": (b"\x12\x01" + bytes(9), "MXNet's arrays"),
    "a pickle": (b"\x80\x02}q\x00.", "a pickle; load it where you trust it"),
}
# to fetch or unpack, not to save again
PACKED = {
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
    "HTML": (b"\n<!DOCTYPE html><html>", "a web page"),
    "XML": (b'<?xml version="1.0"?>', "an XML text"),
    "JSON": (b'{\n  "weight_map": {', "a JSON text"),
    "gzip": (b"\x1f\x8b\x08\x00", "a gzip archive"),
    "7z": (b"7z\xbc\xaf\x27\x1c", "a packed file"),
    "tar": (b"././@PaxHeader\x00", "a tar archive"),
}


@pytest.mark.parametrize("case", [*BYTES, *PACKED])
def test_files_by_their_first_bytes(tmp_path, run, case):
    data, what = (BYTES | PACKED)[case]
    (tmp_path / "x").write_bytes(data)
    ran = run("inspect", tmp_path / "x")
    assert ran.code == 2
    assert ran.err.startswith(f"{tmp_path / 'x'}: {what}")
    assert "save" in ran.err or case in PACKED
    assert ran.err.count("\n") == 1


def test_a_real_graph():
    import tensorflow.compat.v1 as tf

    with tf.Graph().as_default() as graph:
        tf.placeholder(tf.float32, (2,), name="input")
        assert other_kind(graph.as_graph_def().SerializeToString()[:64]) is not None


def test_checkpoints_are_no_other_kind(tmp_path):
    for suffix in (".pth", ".npz", ".safetensors", ".weights.h5"):
        convert(file(tmp_path, STATE), tmp_path / f"y{suffix}", assume=True)
        assert other_kind((tmp_path / f"y{suffix}").read_bytes()[:64]) is None


def test_a_saved_model(tmp_path):
    (tmp_path / "x" / "variables").mkdir(parents=True)
    (tmp_path / "x" / "saved_model.pb").write_bytes(b"")
    with pytest.raises(SourceError, match=r"x: a SavedModel, which holds code; load it with"):
        load(tmp_path / "x")


def one(name: str, shape: tuple[int, ...] = (3,)) -> dict[str, np.ndarray]:
    return {name: np.ones(shape, np.float32)}


def of_rank(rank: int) -> dict[str, np.ndarray]:
    return {
        name: np.ones((*array.shape[:2], *[1] * (rank - 2)), np.float32) if array.ndim == 4 else array
        for name, array in STATE.items()
    }


TENSORS = {
    "IBN": (STATE | one("layer1.0.bn1.IN.weight"), "IBN-Net, with instance normalisation"),
    "IR-SE": (one("input_layer.0.weight") | one("body.0.res_layer.0.weight"), "IR-SE of face recognition"),
    "ByobNet": (one("stages.0.0.conv1_1x1.conv.weight"), "timm's ByobNet"),
    "EfficientNet": (one("blocks.0.0.conv_dw.weight"), "timm's EfficientNet"),
    "RegNet": (one("s1.b1.conv1.conv.weight"), "timm's RegNet"),
    "ViT": (one("blocks.0.attn.qkv.weight"), "a vision transformer"),
    "CLIP": (put("visual.", STATE) | one("visual.attnpool.q_proj.weight", (4, 4)), "CLIP's ModifiedResNet"),
    "quantised": (STATE | one("conv1.zero_point"), "quantised weights (int8)"),
    "int8 kernels": (
        {n: a.astype(np.int8) if a.ndim == 4 else a for n, a in STATE.items()},
        "quantised weights (int8)",
    ),
    "spectral norm": (
        STATE | one("layer1.0.conv1.weight_orig") | one("layer1.0.conv1.weight_u"),
        "weights with spectral normalisation",
    ),
    "weight norm": (STATE | one("fc.weight_g"), "weights with weight normalisation"),
    "parametrised": (STATE | one("fc.parametrizations.weight.original0"), "parametrised weights"),
    "LoRA": (put("base_model.", STATE) | one("base_model.fc.lora_A.weight"), "weights with LoRA adapters"),
    "IResNet": (STATE | one("layer1.0.prelu.weight"), "a network with PReLU"),
    "a transformer": (one("encoder.layers.0.self_attention.in_proj_weight"), "a transformer"),
    "DenseNet": (one("features.denseblock1.denselayer1.norm1.weight"), "DenseNet"),
    "ConvNeXt": (one("stages.0.blocks.0.gamma"), "ConvNeXt"),
    "masks": (STATE | one("layer1.0.conv1.weight_mask"), "pruned weights with masks"),
    "TF2": (one("model/conv1/kernel/.ATTRIBUTES/VARIABLE_VALUE"), "a TF2 object checkpoint"),
    "1-D": (of_rank(3), "a network in one dimension (Conv1d)"),
    "3-D": (of_rank(5), "a network in three dimensions (Conv3d)"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_files_by_their_tensors(tmp_path, run, case):
    arrays, what = TENSORS[case]
    with pytest.raises(MismatchError) as caught:
        read(tmp_path, arrays)
    assert caught.value.message.startswith(f"{tmp_path / 'x.npz'}: {what}")
    assert 0 < len(caught.value.details) <= 8
    assert run("inspect", tmp_path / "x.npz").err.startswith(f"{tmp_path / 'x.npz'}: {what}")


# --------------------------------------------------------------------------------------------------
# Pruning masks


def test_masks_are_applied_on_request(tmp_path, run):
    model = torch_impl.ResNet(**SPEC.model_kwargs()).eval()
    state = {name: torch.from_numpy(array.copy()) for name, array in STATE.items()}
    model.load_state_dict(state)
    for module in (model.conv1, model.layer1[0].conv1, model.fc):
        prune.l1_unstructured(module, "weight", amount=0.5)
    torch.save(dict(model.state_dict()), tmp_path / "x.pth")
    with pytest.raises(MismatchError, match=r"pruned weights with masks .* --apply-masks"):
        load(tmp_path / "x.pth")
    images = torch.rand(2, SPEC.in_channels, 32, 32)
    loaded = load_model(tmp_path / "x.pth", apply_masks=True, assume=True)
    with torch.inference_mode():
        assert torch.equal(loaded(images), model(images))
    ran = run("convert", tmp_path / "x.pth", tmp_path / "y.npz", "--apply-masks", "--assume")
    assert (ran.code, "note: 3 masks are applied" in ran.out) == (0, True), ran.err
    assert run("inspect", tmp_path / "x.pth", "--apply-masks", "--assume").code == 0
    with load(tmp_path / "y.npz", assume=True) as checkpoint:
        assert (
            checkpoint["fc.weight"] == (model.fc.weight_orig * model.fc.weight_mask).detach().numpy()
        ).all()


WRONG_MASKS: dict[str, tuple[dict[str, Any], str]] = {
    "none": (STATE, "has no masks to apply"),
    "of another shape": (STATE | one("a_orig") | one("a_mask", (4,)), "the mask of 'a' does not fit"),
    "beside the weight": (STATE | one("a_orig") | one("a_mask") | one("a"), "the mask of 'a' does not fit"),
}


@pytest.mark.parametrize("case", WRONG_MASKS)
def test_masks_that_do_not_fit(tmp_path, case):
    arrays, message = WRONG_MASKS[case]
    with pytest.raises(MismatchError, match=message):
        read(tmp_path, arrays, apply_masks=True)


# --------------------------------------------------------------------------------------------------
# The length of a list


def many() -> dict[str, np.ndarray]:
    names = [f"layer1.0.x{i}.{leaf}" for i in range(30) for leaf in ("num_batches_tracked", "weight")]
    return STATE | {name: np.ones(()) for name in names}


def test_at_most_twenty_lines_and_no_counters(tmp_path, run):
    ran = run("inspect", file(tmp_path, many()), "--json", tmp_path / "x.json")
    lines = ran.err.splitlines()
    assert len(lines) == 22
    assert "num_batches_tracked" not in ran.err
    assert lines[-1] == "  and 40 more (in Python error.details, in commands --json FILE)"
    report = json.loads(Path(tmp_path / "x.json").read_text())
    assert report["error"] == lines[0]
    assert len(report["details"]) == 60
    with pytest.raises(MismatchError) as caught:
        load(tmp_path / "x.npz")
    assert len(caught.value.details) == 60


def test_unknown_names_are_shown_without_counters(tmp_path, run):
    names = [f"a.b{i}.{leaf}" for i in range(20) for leaf in ("num_batches_tracked", "weight")]
    ran = run("inspect", file(tmp_path, {name: np.ones(2) for name in names}))
    assert len(ran.err.splitlines()) == 9
    assert "num_batches_tracked" not in ran.err


def test_nothing_else_is_masked(tmp_path):
    checkpoint, _ = read(tmp_path, STATE | OUTSIDE | one("a_orig") | one("a_mask"), apply_masks=True)
    assert "a" in checkpoint.left_out
    assert same(checkpoint, STATE)
    with open_reader(tmp_path / "x.npz") as reader:
        assert "a_orig" in reader.tensors
