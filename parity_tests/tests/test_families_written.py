"""Checkpoints written in other projects' layouts, and families on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from parity_tests.judge.synthetic import position_coded, tiny
from parity_tests.tests.test_families import FOREIGN, foreign_arrays, shapes_in
from weights_convert import convert, load, load_model, save, state_of
from weights_convert.families import FAMILIES
from weights_convert.formats import open_reader
from weights_convert.spec import InceptionSpec, InceptionV3Spec, MobileNetSpec, ShuffleNetSpec

# --------------------------------------------------------------------------------------------------
# There and back

WRITTEN = {
    "torchvision": tiny(),
    "timm": tiny(attention="cbam", cbam_mlp_bias=False, cbam_order="mean_max", cbam_bn_momentum=0.1),
    "timm d": tiny(attention="se", stem="deep", downsample_pool="avg"),
    "timm t": tiny(attention="eca", stem="deep_tiered", downsample_pool="avg", stem_width=16),
    "timm sk": tiny(attention="sk", sk_split=True, block="basic", sk_min_hidden=16, reduction=8),
    "timm skx": tiny(attention="sk", groups=4, width_per_group=32, stem="deep", downsample_pool="avg"),
    "cadene": tiny(attention="se", stem_pool="ceil", stride_in="conv1"),
    "cadene basic": tiny(attention="se", stem_pool="ceil", block="basic", relu_before_attention=True),
    "cadene_inception": InceptionSpec(width_multiplier=0.0625, norm="bias_bn"),
    "pytorchcv_inception": InceptionSpec(width_multiplier=0.0625, norm="bias_bn"),
    "torchvision_inception": InceptionV3Spec(width_multiplier=0.0625, aux_head=True),
    "pytorchcv_inception_v3": InceptionV3Spec(width_multiplier=0.0625),
    "pytorchcv": tiny(attention="cbam", cbam_bn_momentum=0.1),
    "pytorchcv sk": tiny(attention="sk", groups=4, width_per_group=32),
    "pytorchcv b": tiny(attention="se"),
    "pytorchcv senet": tiny(
        attention="se",
        groups=4,
        width_per_group=16,
        reduce_first=2,
        stem="deep",
        downsample_kernel=3,
        dropout=0.2,
    ),
    "cbam": tiny(attention="cbam"),
    "eca": tiny(attention="eca"),
    "pytorchcv_mobilenet": MobileNetSpec(num_classes=5),
    "timm_mobilenet": MobileNetSpec(num_classes=5, activation="relu6"),
    "pytorchcv_shufflenet": ShuffleNetSpec(num_classes=5),
    "megvii_shufflenet": ShuffleNetSpec(
        num_classes=5,
        head_bias=False,
        shuffle_after="conv2",
        shuffle_view="groups_last",
        concat_order="shortcut_branch",
    ),
}


@pytest.mark.parametrize("suffix", [".pth", pytest.param(".safetensors", marks=pytest.mark.quick), ".npz"])
@pytest.mark.parametrize("name", WRITTEN)
def test_written_families_come_back(tmp_path, name, suffix):
    spec, family = WRITTEN[name], name.partition(" ")[0]
    assert FAMILIES[family].written
    source = position_coded(spec)
    np.savez(tmp_path / "ours.npz", **dict(source))
    settings = {k: getattr(spec, k) for k in spec.__dataclass_fields__}
    convert(tmp_path / "ours.npz", tmp_path / f"theirs{suffix}", settings=settings, to_family=family)
    with load(tmp_path / f"theirs{suffix}") as theirs:
        assert (theirs.family, theirs.spec) == (family, spec)
        for tensor in source:
            assert theirs[tensor].tobytes() == source[tensor].tobytes()


def test_all_written_families_are_tested():
    assert {name.partition(" ")[0] for name in WRITTEN} | {"torch", "keras", "tf1"} == {
        family.name for family in FAMILIES.values() if family.written
    }


# --------------------------------------------------------------------------------------------------
# On the command line


def pytorchcv_file(path: Path) -> None:
    """A small network with pytorchcv's names whose stride only the user knows."""
    source = position_coded(tiny(attention="se"))
    save(source, path.with_name("ours.pth"))
    plan = convert(path.with_name("ours.pth"), path.with_name("theirs.pth"), to_family="pytorchcv")
    with load(plan.destination) as theirs:
        np.savez(
            path, **{theirs.tensors[n].name: a for n, a in zip(theirs, raw(plan.destination), strict=True)}
        )


def raw(path: Path) -> list[np.ndarray]:
    """The tensors of a file without conversion."""
    with open_reader(path) as reader:
        return [reader.read(name) for name in reader.tensors]


def test_the_command_shows_the_choice_and_writes_nothing(run, folder, unchanged):
    pytorchcv_file(folder / "theirs.npz")
    for command in (["convert", "theirs.npz", "x.npz"], ["inspect", "theirs.npz"]):
        with unchanged():
            ran = run(*command)
        assert (ran.code, ran.out) == (2, "")
        assert [line.strip() for line in ran.lines[1:]] == ["--set stride_in=conv1", "--set stride_in=conv2"]
    ran = run("inspect", "theirs.npz", "--set", "stride_in=conv1")
    assert ran.code == 0
    assert "convert theirs.npz theirs.weights.h5 --set stride_in=conv1" in ran.out
    assert run("convert", "theirs.npz", "x.npz", "--set", "stride_in=conv1").code == 0
    with load("x.npz") as checkpoint:
        assert checkpoint.spec.stride_in == "conv1"


def test_inspect_tells_whose_and_what_it_is_fed(run, folder):
    foreign = FOREIGN["hikapok"]
    np.savez(folder / "caffe.npz", **foreign_arrays(foreign))
    ran = run("inspect", "caffe.npz")
    assert "family        hikapok: HiKapok's TF-SENet" in ran.out
    assert (
        "fed           BGR from 0 to 255, minus (104.0, 117.0, 123.0); classes: ILSVRC2017's order" in ran.out
    )
    assert "note          as hikapok's networks: stem_pool='same'" in ran.out
    assert run("inspect", "caffe.npz", "--json", "facts.json").code == 0
    facts = json.loads(Path("facts.json").read_text())
    assert facts["feeds"]["channels"] == "BGR"
    assert facts["family"] == "hikapok"
    assert facts["spec"]["stride_in"] == "conv1"


def test_an_unknown_family_is_refused_with_the_nearest(run, folder, unchanged):
    shapes = shapes_in("pytorchcv_bam_resnet18")
    np.savez(folder / "x.npz", **{n: np.broadcast_to(np.float32(0), s) for n, s in shapes.items()})
    with unchanged():
        ran = run("convert", "x.npz", "y.npz")
    assert ran.code == 2
    assert re.search(r"^x.npz: the names of its \d+ tensors match no known family; the nearest is '", ran.err)
    shown = "features.stage1.unit1.res_unit.body.conv1.conv.weight (64, 64, 3, 3)"
    assert any(shown in line for line in ran.lines[1:])


@pytest.mark.parametrize("framework", ["torch", "keras", "tf1"])
def test_a_foreign_file_alone_is_enough_for_a_model(tmp_path, framework):
    """Every tensor arrives bit for bit in the right variant; test_families_live compares the outputs."""
    foreign = FOREIGN["official CBAM"]
    np.savez(tmp_path / "x.npz", **foreign_arrays(foreign))
    model = load_model(tmp_path / "x.npz", framework, assume=True)
    if framework == "tf1":
        with tf.Graph().as_default(), tf.Session() as session:
            model(tf.zeros((1, 33, 33, 3)))
            session.run(tf.global_variables_initializer())
            state = state_of(session)
    else:
        state = state_of(model)
    wanted = position_coded(foreign.spec)
    for name in state:
        assert state[name].tobytes() == wanted[name].tobytes(), name
    assert state.spec.cbam_order == "max_mean"
