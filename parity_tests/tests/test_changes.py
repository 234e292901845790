"""Optional changes keep the numbers: batch norms folded, classes reordered, maps swapped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from parity_tests.harness import prove
from parity_tests.judge import numpy_reference
from parity_tests.judge.numpy_reference.attention import attention_block
from parity_tests.judge.synthetic import images, position_coded, tiny, weights
from parity_tests.judge.tolerances import FLOAT64, relative_error
from weights_convert import Checkpoint, MismatchError, SourceError, convert, load, save
from weights_convert.changes import fold_bias, fold_bn, read_permutation, reorder_classes
from weights_convert.spec import AttentionSpec, ResNetSpec, parameters

FOLDED = {
    "SE in groups": tiny(attention="se", groups=4, width_per_group=16),
    "CBAM, basic blocks": tiny(attention="cbam", block="basic"),
    "CBAM without its batch norm": tiny(attention="cbam", cbam_bn=False, cbam_spatial_bias=True),
    "ECA, deep stem, average pool": tiny(
        attention="eca", stem="deep", downsample_pool="avg", bn_epsilon=1e-3
    ),
    "biases before the batch norms": tiny(norm="bias_bn", stride_in="conv1"),
}


def float64(checkpoint: Checkpoint) -> Checkpoint:
    arrays = {n: a if a.dtype.kind == "i" else a.astype(np.float64) for n, a in checkpoint.items()}
    return Checkpoint.from_arrays(arrays, vars(checkpoint.spec))


def logits(checkpoint: Checkpoint) -> np.ndarray:
    assert isinstance(checkpoint.spec, ResNetSpec)
    return numpy_reference.network(images((33, 40)), checkpoint, checkpoint.spec)["logits"]


@pytest.mark.quick
@pytest.mark.parametrize("name", FOLDED)
def test_folded_batch_norms_compute_the_same(name):
    original = float64(weights(FOLDED[name]))
    folded = fold_bn(original)
    assert relative_error(logits(folded), logits(original)) < FLOAT64
    spec = folded.spec
    assert isinstance(spec, ResNetSpec)
    assert spec.norm == "bias"
    assert not [p.name for p in parameters(spec) if ".bn" in p.name or p.name.startswith("bn")]
    assert list(folded) == [parameter.name for parameter in parameters(spec)]
    assert original["conv1.weight"].tobytes() != folded["conv1.weight"].tobytes()


@pytest.mark.parametrize("name", ["SE in groups", "CBAM, basic blocks"])
def test_folded_networks_are_the_same_in_every_framework(name):
    result = prove(name, fold_bn(weights(FOLDED[name])), images((33, 40)))
    assert result.holds, result.first_divergence() or result.not_equal


def test_folding_rounds_once(tmp_path):
    save(weights(FOLDED["SE in groups"]), tmp_path / "a.npz")
    convert(tmp_path / "a.npz", tmp_path / "wide.npz", fold_bn=True, dtype="float64")
    convert(tmp_path / "a.npz", tmp_path / "narrow.npz", fold_bn=True)
    with load(tmp_path / "wide.npz") as wide, load(tmp_path / "narrow.npz") as narrow:
        assert wide["conv1.bias"].dtype == np.float64
        assert narrow["conv1.bias"].dtype == np.float32
        assert (
            "16 batch norms folded into their convolutions" not in wide.notes
        )  # a note of the plan, not of the file
        for name in narrow:
            assert narrow[name].tobytes() == wide[name].astype(np.float32).tobytes(), name
        assert relative_error(logits(wide), logits(weights(FOLDED["SE in groups"]))) < FLOAT64


def test_a_lone_block_folds_its_own():
    spec = AttentionSpec(attention="cbam", channels=16)
    original = float64(weights(spec))
    folded = fold_bn(original)
    x = images((9, 7), channels=16)
    assert isinstance(folded.spec, AttentionSpec)
    first = attention_block(x, original, spec)
    assert relative_error(attention_block(x, folded, folded.spec), first) < FLOAT64


@pytest.mark.quick
def test_biases_go_into_the_running_means():
    original = float64(weights(FOLDED["biases before the batch norms"]))
    folded = fold_bias(original)
    assert folded.spec.norm == "bn"
    assert relative_error(logits(folded), logits(original)) < FLOAT64
    mean = original["layer1.0.bn2.running_mean"] - original["layer1.0.conv2.bias"]
    np.testing.assert_array_equal(folded["layer1.0.bn2.running_mean"], mean)


def test_networks_without_batch_norms_cannot_be_folded():
    with pytest.raises(MismatchError, match="has no biases before its batch norms to fold"):
        fold_bias(weights(FOLDED["SE in groups"]))
    with pytest.raises(MismatchError, match="has no batch norm to fold"):
        fold_bn(fold_bn(weights(FOLDED["SE in groups"])))
    with pytest.raises(MismatchError, match="one se block has no batch norm to fold"):
        fold_bn(weights(AttentionSpec(attention="se", channels=16)))
    with pytest.raises(MismatchError, match="one se block has no classes to reorder"):
        reorder_classes(weights(AttentionSpec(attention="se", channels=16)), [0], "x")


@pytest.mark.usefixtures("folder")
def test_a_change_is_noted_in_the_plan(run):
    Path("order.txt").write_text("4\n3\n2\n1\n0\n")
    ran = run(
        "convert", "good.pth", "x.ckpt", "--fold-bn", "--reorder-classes", "order.txt", "--json", "x.json"
    )
    assert ran.code == 0
    assert "note: classes reordered by order.txt: 4 of 5 move" in ran.out
    assert "note: 3 batch norms folded into their convolutions" in ran.out
    assert "classes reordered by order.txt" in Path("x.json").read_text()
    assert run("inspect", "x.ckpt").code == 0


@pytest.mark.quick
@pytest.mark.usefixtures("folder")
def test_classes_in_another_order(run):
    order = [3, 0, 4, 1, 2]
    Path("order.txt").write_text(" ".join(map(str, order)))
    assert run("convert", "good.pth", "x.weights.h5", "--reorder-classes", "order.txt").code == 0
    with load("good.pth") as old, load("x.weights.h5") as new:
        for name in old:
            wanted = old[name][order] if name.startswith("fc.") else old[name]
            assert new[name].tobytes() == wanted.tobytes(), name


@pytest.mark.parametrize(
    ("text", "message"),
    [("0 1 2 3", "4 numbers, expected each of 0 ... 4 once"), ("0 1 2 3 3", "5 numbers, expected each of 0"),
     ("1 2 3 4 5", "expected each of 0 ... 4 once"), ("0 1 2 3 four", "'four' is not a class number"),
     ("0 1 2 3 -4", "'-4' is not a class number"), ("", "0 numbers"), ("0,1,2,3,4", "'0,1,2,3,4' is not a")],
)  # fmt: skip
def test_invalid_permutations(run, unchanged, text, message):
    Path("order.txt").write_text(text)
    with unchanged():
        ran = run("convert", "good.pth", "x.npz", "--reorder-classes", "order.txt")
    assert (ran.code, len(ran.lines)) == (2, 1)
    assert message in ran.err


def test_a_permutation_that_cannot_be_read(tmp_path):
    with pytest.raises(SourceError, match="cannot be read"):
        read_permutation(tmp_path / "none", 5)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SourceError, match="cannot be read"):
        read_permutation(tmp_path / "binary", 5)


# --------------------------------------------------------------------------------------------------
# Conversion for another family


@pytest.mark.quick
def test_the_order_of_the_maps_is_swapped_for_the_authors_code(tmp_path):
    original = float64(weights(tiny(attention="cbam", cbam_order="mean_max")))
    plan = save(original, tmp_path / "theirs.pth", family="cbam")
    assert any(
        "the two input channels of each spatial kernel are swapped" in n for n in plan.checkpoint.notes
    )
    with load(tmp_path / "theirs.pth") as theirs:
        assert theirs.spec.cbam_order == "max_mean"
        kernel = "layer1.0.cbam.spatial.conv.weight"
        np.testing.assert_array_equal(theirs[kernel], original[kernel][:, ::-1])
        assert relative_error(logits(theirs), logits(original)) < FLOAT64
    assert original.spec.cbam_order == "mean_max"


REFUSED = [
    ("timm", {"attention": "se", "stem_pool": "ceil"}, "stem_pool: 'ceil' here, 'pad1' in timm"),
    ("timm", {"attention": "se", "se_bias": False}, "se_bias: False here, True in timm"),
    ("cadene", {"attention": "se"}, "stem_pool: 'pad1' here, 'ceil' in cadene"),
    ("torchvision", {"bn_epsilon": 1e-3}, "bn_epsilon: 0.001 here, 1e-05 in torchvision"),
    ("torchvision", {"norm": "bias_bn"}, "norm: 'bias_bn' here, 'bn' in torchvision"),
    ("cbam", {"attention": "cbam", "cbam_bn": False}, "cbam_bn: False here, True in cbam"),
]


@pytest.mark.parametrize(("family", "keywords", "line"), REFUSED)
def test_networks_that_a_family_does_not_have(tmp_path, family, keywords, line):
    with pytest.raises(MismatchError) as caught:
        save(position_coded(tiny(**keywords)), tmp_path / "x.pth", family=family)
    assert line in caught.value.details
    assert list(tmp_path.iterdir()) == []


def test_names_that_a_family_does_not_have(tmp_path):
    with pytest.raises(MismatchError, match=r"torchvision has no place for conv2\.weight"):
        save(position_coded(tiny(stem="deep")), tmp_path / "x.pth", family="torchvision")
    with pytest.raises(MismatchError, match="pytorchcv has no place for an unnamed resnet: resnetd"):
        save(position_coded(tiny(stem="deep")), tmp_path / "x.pth", family="pytorchcv")
    with pytest.raises(MismatchError, match="eca has no place for one se block"):
        save(position_coded(AttentionSpec(attention="se", channels=16)), tmp_path / "x.pth", family="eca")


def test_differences_in_training_are_noted(tmp_path):
    plan = save(position_coded(tiny(dropout=0.5)), tmp_path / "x.pth", family="torchvision")
    assert "differs in training only: dropout=0.5, in torchvision 0.0" in plan.checkpoint.notes
