"""Names, roles, inference: every name maps back, every role is known, and shapes alone show the network."""

from __future__ import annotations

import re

import numpy as np
import pytest

from parity_tests.judge.synthetic import ATTENTION_SPECS, position_coded, tiny
from weights_convert import Checkpoint, MismatchError, SourceError, convert, load
from weights_convert.identify.candidates import INFERENCES, infer
from weights_convert.layouts import LAYOUTS, ROLES, like, permuted, skeleton
from weights_convert.spec import MODELS, Spec, model_spec, parameters

VARIANTS = [  # of `tiny`: every keyword that names and shapes show, and odd combinations
    {"block": "basic"},
    {"depths": (1,)},
    {"depths": (12, 1, 3)},
    {"depths": (1, 1, 1, 1, 1), "block": "basic", "width": 2},
    {"stem": "deep"},
    {"stem": "deep", "stem_width": 1, "norm": "bias"},
    {"stem": "deep_tiered"},
    {"stem": "deep_tiered", "stem_width": 11, "block": "basic"},
    {"stem": "deep_tiered", "stem_width": 4, "norm": "bias"},
    {"stem": "3x3", "stem_width": 12},
    {"norm": "bias_bn"},
    {"norm": "bias_bn", "block": "basic", "stem": "deep", "downsample_kernel": 3},
    {"norm": "bias"},
    {"norm": "bias", "stem": "deep"},
    {"norm": "bias", "block": "basic", "depths": (1,)},
    {"norm": "bias", "groups": 4, "width_per_group": 16, "attention": "se"},
    {"norm": "bias", "attention": "cbam"},
    {"norm": "bias", "attention": "cbam", "cbam_bn": False},
    {"norm": "bias", "attention": "eca"},
    {"norm": "bias", "attention": "eca", "width": 16, "eca_kernel_sizes": None},
    {"norm": "bias", "attention": "eca", "block": "basic", "width": 64, "eca_kernel_sizes": None},
    {"norm": "bias", "attention": "eca", "eca_kernel_sizes": (1, 9)},
    {"in_channels": 1, "num_classes": 1},
    {"in_channels": 11, "num_classes": 1001},
    {"width": 6},
    {"width": 1},
    {"groups": 4, "width_per_group": 16},
    {"groups": 2, "width_per_group": 48, "width": 10},  # 7.5 channels a group: rounded down
    {"width_per_group": 50, "width": 10},
    {"width_per_group": 50, "width": 10, "depths": (1,)},
    {"groups": 8, "width_per_group": 32, "width": 16},
    {"width_per_group": 128},
    {"reduce_first": 2},
    {"groups": 4, "width_per_group": 32, "reduce_first": 2, "stem": "deep", "downsample_kernel": 3},
    {"downsample_kernel": 3},
    {"attention": "se"},
    {"attention": "se", "se_bias": False},
    {"attention": "se", "reduction": 3, "block": "basic"},
    {"attention": "se", "reduction": 1},
    {"attention": "se", "reduction": 1000},  # hidden 1
    {"attention": "se", "hidden_rule": "multiple_of_8"},
    {"attention": "se", "hidden_rule": "multiple_of_8", "reduction": 2, "width": 10},
    {"attention": "se", "hidden_rule": "multiple_of_8", "reduction": 7, "width": 12},
    {"attention": "se", "hidden_rule": "absolute", "reduction": 16},
    {"attention": "se", "hidden_rule": "absolute", "reduction": 1000, "block": "basic"},
    {"attention": "cbam", "hidden_rule": "absolute", "reduction": 16, "depths": (1, 1, 1, 1)},
    {"attention": "cbam"},
    {"attention": "cbam", "cbam_mlp_bias": False},
    {"attention": "cbam", "cbam_kernel_size": 3},
    {"attention": "cbam", "cbam_bn": False},
    {"attention": "cbam", "cbam_bn": False, "cbam_spatial_bias": True, "block": "basic"},
    {"attention": "cbam", "cbam_spatial_bias": True},
    {"attention": "sk", "sk_split": True},
    {"attention": "sk", "sk_min_hidden": 1, "reduction": 2, "block": "basic", "depths": (1,)},
    {"attention": "sk", "sk_split": True, "block": "basic", "norm": "bias", "depths": (1, 1, 1)},
    {"attention": "sk", "groups": 8, "width_per_group": 16, "norm": "bias_bn", "reduce_first": 2},
    {"attention": "eca"},
    {"attention": "eca", "block": "basic", "width": 64},
    {"attention": "eca", "eca_kernel_sizes": (5, 7)},
    {"attention": "eca", "eca_kernel_sizes": (1, 9)},
]
ROWS = {" ".join(f"{k}={v}" for k, v in row.items()): row for row in VARIANTS}
SPECS = {
    **{name: model_spec(name) for name, row in MODELS.items() if row.kind.kind in INFERENCES},
    **{name: tiny(**row) for name, row in ROWS.items()},
    **{f"block {name}": spec for name, spec in ATTENTION_SPECS.items()},
}
# several values give the same shapes
OTHER_WORDS = ("width_per_group", "hidden_rule", "reduction", "sk_min_hidden")
STEPS = "stem_pool strides dilations activation anti_aliasing global_pool"
UNSEEN = {  # keywords that no tensor shows, in order: `Inferred.assumed`
    "resnet18": f"{STEPS} downsample_pool bn_epsilon bn_momentum dropout",
    "resnet50": f"{STEPS} stride_in downsample_pool bn_epsilon bn_momentum dropout",
    "se_resnet20": f"{STEPS} downsample_pool relu_before_attention bn_epsilon bn_momentum dropout",
    "cbam_resnet20": f"{STEPS} downsample_pool relu_before_attention cbam_order cbam_spatial_input "
    "cbam_bn_momentum bn_epsilon bn_momentum dropout",
    "block se": "",
    "block cbam": "cbam_order cbam_spatial_input cbam_bn_momentum bn_epsilon",
    "block cbam_input": "cbam_order cbam_spatial_input",  # without a batch norm: no momentum, no epsilon
    "norm=bias": f"{STEPS} stride_in downsample_pool dropout",
    "norm=bias attention=cbam": f"{STEPS} stride_in downsample_pool relu_before_attention cbam_order "
    "cbam_spatial_input cbam_bn_momentum bn_epsilon dropout",
    "norm=bias attention=cbam cbam_bn=False": f"{STEPS} stride_in downsample_pool relu_before_attention "
    "cbam_order cbam_spatial_input dropout",
    "block eca": "eca_padding channels",
}


def shapes_of(spec: Spec) -> dict[str, tuple[int, ...]]:
    return {parameter.name: parameter.shape for parameter in parameters(spec)}


def zeros(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Arrays that take no memory."""
    counts = "num_batches_tracked"
    return {n: np.broadcast_to(np.zeros((), int if n.endswith(counts) else np.float32), s)
            for n, s in shapes.items()}  # fmt: skip


@pytest.mark.quick
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SPECS)
def test_rename_and_parse_are_inverse(name: str, layout: str):
    spec, rules = SPECS[name], LAYOUTS[layout]
    there = rules.names(spec)
    without_place = {p.name for p in parameters(spec) if ROLES[p.role].tf is None and layout != "torch"}
    assert {n for n, renamed in there.items() if renamed is None} == without_place
    back = {renamed: rules.parse(renamed) for renamed in there.values() if renamed is not None}
    assert list(back.values()) == [n for n in there if n not in without_place]  # names are unique


@pytest.mark.quick
@pytest.mark.parametrize("name", SPECS)
def test_roles_agree_with_the_spec(name: str):
    for parameter in parameters(SPECS[name]):
        assert like(parameter.name).role == parameter.role
        role = ROLES[parameter.role]
        assert role.torch == parameter.name.rpartition(".")[2]
        assert permuted(permuted(parameter.shape, role.to_tf), role.to_torch) == parameter.shape
        assert role.to_tf is None or sorted(role.to_tf) == list(range(len(parameter.shape)))


def test_names_in_the_three_layouts():
    spec = tiny(attention="cbam")
    bias = tiny(attention="cbam", norm="bias_bn")
    names = {layout: LAYOUTS[layout].names(bias) | LAYOUTS[layout].names(spec) for layout in LAYOUTS}
    for canonical, keras, tf1 in [
        ("conv1.weight", "conv1/vars/0", "conv1/kernel"),
        ("conv1.bias", "conv1/vars/1", "conv1/bias"),
        ("layer2.0.downsample.0.bias", "layer2/bottleneck/downsample/conv2d/vars/1",
         "layer2_0/downsample_0/bias"),
        ("bn1.running_var", "bn1/vars/3", "bn1/moving_variance"),
        ("layer1.0.conv2.weight", "layer1/bottleneck/conv2/vars/0", "layer1_0/conv2/kernel"),
        ("layer1.1.bn3.bias", "layer1/bottleneck_1/bn3/vars/1", "layer1_1/bn3/beta"),
        ("layer2.0.downsample.0.weight", "layer2/bottleneck/downsample/conv2d/vars/0",
         "layer2_0/downsample_0/kernel"),
        ("layer2.0.downsample.1.weight", "layer2/bottleneck/downsample/batch_normalization/vars/0",
         "layer2_0/downsample_1/gamma"),
        ("layer1.0.cbam.spatial.bn.running_mean", "layer1/bottleneck/cbam/spatial/bn/vars/2",
         "layer1_0/cbam/spatial/bn/moving_mean"),
        ("fc.bias", "fc/vars/1", "fc/bias"),
    ]:  # fmt: skip
        assert (names["keras"][canonical], names["tf1"][canonical]) == (keras, tf1)


@pytest.mark.parametrize(
    "name",
    ["", ".", "weight", "conv1", "conv1.", "conv1.weights", "conv1.running_mean", "bn1.gamma", "fc.kernel",
     "layer1.0.se.weight", "layer1.0.downsample.2.weight", "conv12.weight", "conv1/kernel:0", "conv1/gamma",
     "bn1/kernel", "bn1/vars/4", "fc/vars/2", "conv1/vars/-1", "conv1/vars/x", "vars/0", "/vars/0"],
)  # fmt: skip
def test_other_names_are_nobodys(name: str):
    assert like(name) is None
    assert [layout for layout in LAYOUTS.values() if layout.parse(name)] == []


@pytest.mark.quick
@pytest.mark.parametrize("name", SPECS)
def test_the_network_is_inferred_from_shapes(name: str):
    found = infer(shapes_of(SPECS[name]))
    assert found is not None
    assert shapes_of(found.spec) == shapes_of(SPECS[name]) or "channels" in found.assumed
    if name in MODELS:
        assert found.spec == model_spec(name)
    assert found.spec.hidden_rule != "absolute" or "absolute" in name
    for keyword, value in ROWS.get(name, {}).items():
        if keyword not in OTHER_WORDS or "absolute" in name:
            assert getattr(found.spec, keyword) == value
    if name in UNSEEN:
        assert found.assumed == tuple(UNSEEN[name].split())


TENSORS = [  # (network, tensors that are clearly wrong themselves, not their neighbours)
    ("se_resnet50", r"bn1|layer[14].0"),
    ("cbam_resnet20", r"bn1|layer3"),
    ("stem=deep", r"(?!fc|layer2.0.conv)."),
    ("stem=deep_tiered", r"(?!fc|layer2.0.conv)."),
    ("groups=4 width_per_group=16", r"(?!conv1|fc|layer2.0.conv)."),
    ("attention=se hidden_rule=absolute reduction=16", r"(?!conv1|fc|layer2.0.conv)."),
    ("norm=bias_bn", r"(?!fc|layer2.0.conv)."),
    ("norm=bias", r"(?!fc|layer2.0.conv)."),
    ("norm=bias stem=deep", r"(?!fc|layer2.0.conv)."),
    ("norm=bias attention=eca", r"(?!fc|layer2.0.conv)."),
    ("block cbam", r"(?!spatial.conv)."),
    ("block se", r"."),
]


# a tensor of each kind of name, or every tensor
EVERY = pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.exhaustive)])


def chosen(names: list[str], every: bool) -> list[str]:
    """All names, or the last one of names that differ only in numbers."""
    return names if every else list({skeleton(name): name for name in names}.values())


@EVERY
@pytest.mark.parametrize(("name", "pattern"), TENSORS)
def test_one_wrong_tensor_is_the_only_one_named(name: str, pattern: str, every: bool):
    shapes = shapes_of(SPECS[name])
    for tensor in chosen([t for t in shapes if re.match(pattern, t) and not t.endswith("tracked")], every):
        wrong = [(*shapes[tensor], 1), (), *((shapes[tensor][0] + d, *shapes[tensor][1:]) for d in (-1, 1))]
        for shape in (None, *wrong):
            others = {n: s for n, s in shapes.items() if n != tensor} | ({tensor: shape} if shape else {})
            with pytest.raises(MismatchError) as caught:
                Checkpoint.from_arrays(zeros(others))
            (line,) = caught.value.details
            assert line.startswith(f"misshapen: {tensor} {shape}" if shape else f"missing: {tensor} ")


STRAYS = [  # (network, missing tensors, extra tensors)
    ("norm=bias_bn", "layer1.0.bn2", {}),
    ("block=basic", "layer1.0.bn2", {"layer1.0.conv2.bias": (8,)}),
    ("norm=bias", "layer1.1.conv3.bias", {"layer1.0.bn2.weight": (8,), "layer1.0.bn2.bias": (8,)}),
]


@pytest.mark.parametrize(("name", "lacks", "strays"), STRAYS)
def test_one_convolution_is_not_a_variant(name: str, lacks: str, strays: dict[str, tuple[int, ...]]):
    """The norm after one convolution is compared with the norm after the majority."""
    shapes = shapes_of(SPECS[name])
    others = {n: s for n, s in shapes.items() if not n.startswith(lacks)} | strays
    with pytest.raises(MismatchError) as caught:
        Checkpoint.from_arrays(zeros(others))
    missing = [n for n in shapes if n.startswith(lacks) and not n.endswith("tracked")]
    named = [" ".join(line.split()[:2]) for line in caught.value.details]
    assert sorted(named) == sorted([*(f"missing: {n}" for n in missing), *(f"extra: {n}" for n in strays)])


def test_a_stem_of_one_tensor_tells_no_width():
    found = infer({"conv3.bias": (1,), "layer1.0.conv1.bias": (1,)})  # half of 1 is 0
    assert found is not None
    assert (found.spec.stem, found.spec.stem_width) == ("deep", 64)


@EVERY
@pytest.mark.parametrize(
    "name",
    [
        "se_resnet20",
        "attention=eca",
        "reduce_first=2",
        "stem=deep_tiered",
        "norm=bias attention=eca",
        "stem=deep stem_width=1 norm=bias",
        "attention=se hidden_rule=absolute reduction=16",
        "block cbam",
        "block eca",
    ],
)
def test_inference_survives_any_shape(name: str, every: bool):
    shapes = shapes_of(SPECS[name])
    for tensor in chosen(list(shapes), every):
        for shape in [(), (0,), (0, 0, 0, 0), (1,), (4, 4), (2, 2, 2), (0, 3, 7, 7), (1, 1, 1, 1)]:
            found = infer(shapes | {tensor: shape})  # any result, but no exception
            assert found is None or parameters(found.spec)


# --------------------------------------------------------------------------------------------------
# Files without metadata, from other projects


def arrays_in(layout: str, spec: Spec, prefix: str = "") -> dict[str, np.ndarray]:
    """The position-coded tensors of a network in a layout, with its names and axes."""
    checkpoint, rules = position_coded(spec), LAYOUTS[layout]
    arrays = {}
    for parameter in parameters(spec):
        if (renamed := rules.rename(parameter, spec)) is not None:
            arrays[prefix + renamed] = rules.stored(parameter).to_file(checkpoint[parameter.name])
    return arrays


@pytest.mark.parametrize(
    ("layout", "prefix"),
    [("torch", "module."), ("torch", "_orig_mod."), ("torch", "module._orig_mod."),
     ("torch", "_orig_mod.module."), ("tf1", "net/"), ("tf1", "tower_0/encoder/"), ("tf1", ""),
     ("keras", ""), ("torch", "")],
)  # fmt: skip
@pytest.mark.parametrize(
    "name", ["attention=se", "block=basic", *(n for n in SPECS if n.startswith("block "))]
)
def test_prefixes_are_looked_through(tmp_path, layout: str, prefix: str, name: str):
    spec = SPECS[name]
    np.savez(tmp_path / "x.npz", **arrays_in(layout, spec, prefix))
    with load(tmp_path / "x.npz", assume=True) as checkpoint:
        assert checkpoint.family == layout
        assert any(repr(prefix) in note for note in checkpoint.notes) == bool(prefix)
        for name, array in position_coded(spec).items():
            if name in checkpoint or layout == "torch":
                assert np.array_equal(checkpoint[name], array)


def test_scopes_of_two_networks_must_be_chosen(tmp_path):
    spec, path = tiny(attention="eca"), tmp_path / "x.npz"
    both = arrays_in("tf1", spec, "student/") | {n: a + 1 for n, a in arrays_in("tf1", spec, "t/").items()}
    np.savez(path, **both)
    with pytest.raises(SourceError, match="several networks, choose one with --scope") as caught:
        load(path)
    assert caught.value.details == ("student/", "t/")
    for scope in ("t", "t/"):
        with load(path, scope=scope, assume=True) as checkpoint:
            assert np.array_equal(checkpoint["fc.bias"], position_coded(spec)["fc.bias"] + 1)
            assert len(checkpoint.left_out) == len(both) // 2
    with pytest.raises(SourceError, match="has no scope 'unknown'"):
        load(path, scope="unknown")


def test_two_names_of_one_tensor_are_refused(tmp_path):
    arrays = arrays_in("tf1", tiny())
    np.savez(tmp_path / "x.npz", **arrays, **{"layer1.0/conv1/kernel": arrays["layer1_0/conv1/kernel"]})
    with pytest.raises(MismatchError, match="mismatches: 1") as caught:
        load(tmp_path / "x.npz")
    assert "extra: layer1" in caught.value.details[0]


def test_assumptions_are_listed_and_can_be_set(tmp_path):
    spec, path = tiny(attention="cbam"), tmp_path / "x.npz"
    np.savez(path, **arrays_in("torch", spec))
    with pytest.warns(UserWarning, match=r"stride_in='conv2', .*cbam_order='max_mean'") as caught:
        checkpoint = load(path)
    assert len(caught) == 1
    with checkpoint:
        assert "stride_in" in checkpoint.assumed
    with pytest.warns(UserWarning, match="stem_pool='pad1'") as caught:
        checkpoint = load(path, settings={"stride_in": "conv1", "cbam_order": "mean_max"})
    assert "stride_in" not in str(caught[0].message)
    with checkpoint:
        assert (checkpoint.spec.stride_in, checkpoint.spec.cbam_order) == ("conv1", "mean_max")
        assert {"stride_in", "cbam_order"}.isdisjoint(checkpoint.assumed)
    with pytest.raises(MismatchError, match="do not match"):
        load(path, settings={"cbam_kernel_size": 3})
    with pytest.raises(MismatchError, match="do not match resnet18"):
        load(path, model="resnet18")


def test_a_scope_for_writing_does_not_disturb_the_reading(tmp_path):
    """A file without metadata, for which every family is tried."""
    spec = tiny(attention="se")
    np.savez(tmp_path / "x.npz", **dict(position_coded(spec)))
    convert(tmp_path / "x.npz", tmp_path / "x.ckpt", scope="net", assume=True)
    with load(tmp_path / "x.ckpt", assume=True) as checkpoint:
        assert checkpoint.tensors["conv1.weight"].name == "net/conv1/kernel"


def test_an_invalid_step_count_is_refused(tmp_path):
    arrays = dict(position_coded(tiny())) | {"bn1.num_batches_tracked": np.array(-5)}
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(MismatchError, match=r"bn1\.num_batches_tracked is -5, expected a number of batches"):
        convert(tmp_path / "x.npz", tmp_path / "x.weights.h5", assume=True)
