"""Other projects' checkpoints: their family and network, every tensor's place, and refused files.

`listings/` holds names and shapes of real models, written by the projects' own code. For projects that cannot
be installed, `FOREIGN` renames our tensors after their source code, independently of the family's table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from parity_tests.judge.synthetic import position_coded, tiny
from weights_convert import MismatchError, load, loading
from weights_convert.families import FAMILIES, inceptions_v3, mobilenets, shufflenets
from weights_convert.formats import FORMATS
from weights_convert.formats.base import Reader, TensorInfo
from weights_convert.layouts import ROLES, like
from weights_convert.plan import make_plan
from weights_convert.spec import AttentionSpec, Spec, is_count, variant_of

LISTINGS = Path(__file__).parent / "listings"
D = {"stem": "deep", "stem_width": 32, "downsample_pool": "avg"}
T = D | {"stem": "deep_tiered"}
CAFFE_EPSILON = {"bn_epsilon": 9.999999747378752e-06, "bn_momentum": 0.01}
TIMM_CBAM = {"cbam_mlp_bias": False, "cbam_order": "mean_max", "cbam_bn_momentum": 0.1}
SAME = "torch torchvision timm"

READ = [  # listing, families with the same result, the named model, and its differences
    ("legacy_senet154", "cadene", "senet154", {"stem_pool": "ceil"}),
    ("legacy_seresnet18", "cadene", "se_resnet18", {"stem_pool": "ceil", "relu_before_attention": True}),
    ("legacy_seresnet50", "cadene", "se_resnet50", {"stem_pool": "ceil", "stride_in": "conv1"}),
    ("legacy_seresnext50_32x4d", "cadene", "se_resnext50_32x4d", {"stem_pool": "ceil"}),
    ("timm_cbam_resnet50", "timm", "cbam_resnet50", TIMM_CBAM),
    ("timm_eca_resnet50", "timm", "eca_resnet50", {}),
    ("timm_seresnet18", "timm", "se_resnet18", {"hidden_rule": "multiple_of_8"}),
    ("timm_seresnet50", "timm", "se_resnet50", {}),
    ("timm_seresnext50_32x4d", "timm", "se_resnext50_32x4d", {}),
    ("timm_ecaresnet50d", "timm", "eca_resnet50", D),
    ("timm_ecaresnet26t", "timm", None, {}),
    ("timm_ecaresnetlight", "timm", None, {}),
    ("timm_resnet18d", "timm", "resnet18", D),
    ("timm_senet154", "timm", "senet154", {"dropout": 0.0}),
    ("timm_seresnext26d_32x4d", "timm", None, {}),
    ("timm_seresnext26t_32x4d", "timm", None, {}),
    ("timm_seresnext101d_32x8d", "timm", None, {}),
    ("torchvision_resnet18", SAME, "resnet18", {}),
    ("torchvision_resnext50_32x4d", SAME, "resnext50_32x4d", {}),
    ("pretrainedmodels_resnet18", "torchvision", "resnet18", {}),
    ("pytorchcv_resnet18", "pytorchcv", "resnet18", {}),
    ("pytorchcv_resneta50b", "pytorchcv", "resnet50", D),
    ("pytorchcv_resnext50_32x4d", "pytorchcv", "resnext50_32x4d", {}),
    ("pytorchcv_seresnet20_cifar10", "pytorchcv", "se_resnet20", {}),
    ("pytorchcv_senet52", "pytorchcv", None, {}),
    ("pytorchcv_cbam_resnet18", "pytorchcv", "cbam_resnet18", {"cbam_bn_momentum": 0.1}),
    ("pytorchcv_cbam_resnet50", "pytorchcv", "cbam_resnet50", {"cbam_bn_momentum": 0.1}),
    ("qubvel_seresnet50", "qubvel", "se_resnet50", CAFFE_EPSILON | {"stride_in": "conv1"}),
    ("qubvel_seresnext50", "qubvel", "se_resnext50_32x4d", CAFFE_EPSILON),
    ("keras_applications_resnet50", "keras_applications", "resnet50",
     {"norm": "bias_bn", "stride_in": "conv1", "bn_epsilon": 1.001e-5, "bn_momentum": 0.01}),
    ("keras_hub_resnet18", "keras_hub", "resnet18", {}),
    ("pytorchcv_shufflenet_g3_w1", "pytorchcv_shufflenet", "shufflenet_v1_g3", {}),
    ("timm_mobilenetv1_100", "timm_mobilenet", "mobilenet_v1", {"activation": "relu6"}),
]  # fmt: skip
UNNAMED = {  # keywords of the networks without a name
    "timm_ecaresnet26t": {"depths": (2, 2, 2, 2), "attention": "eca"} | T,
    "timm_ecaresnetlight": {"depths": (1, 1, 11, 3), "stem": "7x7", "downsample_pool": "avg"},
    "timm_seresnext26d_32x4d": {"depths": (2, 2, 2, 2), "groups": 32, "width_per_group": 4} | D,
    "timm_seresnext26t_32x4d": {"depths": (2, 2, 2, 2), "groups": 32, "width_per_group": 4} | T,
    "timm_seresnext101d_32x8d": {"depths": (3, 4, 23, 3), "groups": 32, "width_per_group": 8} | D,
    "pytorchcv_senet52": {"groups": 32, "stem": "deep", "downsample_kernel": 3, "dropout": 0.2},
}
REFUSED = [
    ("pytorchcv_bam_resnet18", "match no known family; the nearest is"),
    ("timm_seresnet33ts", "timm's ByobNet"),
    ("timm_resnet50_attn_lcbam", r"do not match timm's cbam_resnet50; mismatches: 16"),
    ("pytorchcv_resnetd50b", "do not match pytorchcv's resnet50; mismatches: 1\n +resnetd.* has dilated"),
]
AMBIGUOUS = ["pytorchcv_resnet50", "pytorchcv_seresnet50"]


class ListingReader(Reader):
    """A file with known names and shapes only."""

    format = "torch"

    def read(self, name: str) -> np.ndarray:
        shape, dtype = self.tensors[name]
        return np.broadcast_to(np.zeros((), dtype), shape)


def shapes_in(listing: str) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(shape) for name, shape in json.loads((LISTINGS / f"{listing}.json").read_text()).items()
    }


@pytest.fixture
def read_shapes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`load` of a file with these names and shapes."""

    def read(shapes: dict[str, tuple[int, ...]], **options: Any) -> Any:
        reader = ListingReader(Path("model.file"))
        for name, shape in shapes.items():
            dtype = np.dtype(np.int64 if is_count(name) else np.float32)
            reader.tensors[name] = TensorInfo(shape, dtype)
        monkeypatch.setattr(loading, "open_reader", lambda *_: reader)
        return load("model.file", assume=True, **options)

    return read


def test_no_listing_is_forgotten():
    known = {name for name, *_ in READ} | {name for name, _ in REFUSED} | set(AMBIGUOUS)
    assert {path.stem for path in LISTINGS.glob("*.json")} == known


@pytest.mark.quick
@pytest.mark.parametrize(("listing", "families", "model", "variant"), READ)
def test_listings_are_read_completely(read_shapes, tmp_path, listing, families, model, variant):
    shapes = shapes_in(listing)
    checkpoint = read_shapes(shapes)
    assert [checkpoint.family, *checkpoint.same_as] == families.split()
    assert variant_of(checkpoint.spec) == (model, variant)
    for keyword, value in UNNAMED.get(listing, {}).items():
        assert getattr(checkpoint.spec, keyword) == value, keyword
    assert checkpoint.left_out == {}
    scalars = sum(int(np.prod(tensor.info.shape)) for tensor in checkpoint.tensors.values())
    assert scalars == sum(int(np.prod(shape)) for shape in shapes.values())
    for suffix in (".pth", ".weights.h5", ".ckpt"):
        plan = make_plan(checkpoint, tmp_path / f"x{suffix}")
        counts = len(plan.metadata.get("num_batches_tracked", {}))
        assert len(plan.moves) + counts == len(checkpoint)
    if checkpoint.feeds is not None:
        assert checkpoint.feeds.channels in ("RGB", "BGR")


@pytest.mark.parametrize("wrapper", ["module.", "module.model.", "_orig_mod.", "net.backbone."])
def test_wrappers_are_looked_through(read_shapes, wrapper):
    plain = read_shapes(shapes_in("timm_seresnet18"))
    wrapped = read_shapes({wrapper + name: shape for name, shape in shapes_in("timm_seresnet18").items()})
    assert wrapped.spec == plain.spec
    assert wrapped.family == "timm"
    assert f"removed the prefix {wrapper!r}" in wrapped.notes


def test_averaged_models_of_torch_are_read(read_shapes):
    """torch.optim.swa_utils.AveragedModel has a count beside the wrapped names."""
    shapes = {f"module.{name}": shape for name, shape in shapes_in("timm_seresnet18").items()}
    checkpoint = read_shapes({"n_averaged": (), **shapes})
    assert (checkpoint.family, checkpoint.model) == ("timm", None)
    assert list(checkpoint.left_out) == ["n_averaged"]


@pytest.mark.quick
@pytest.mark.parametrize(("listing", "message"), REFUSED)
def test_other_networks_are_refused(read_shapes, listing, message):
    with pytest.raises(MismatchError, match=message):
        read_shapes(shapes_in(listing))


@pytest.mark.quick
@pytest.mark.parametrize("listing", AMBIGUOUS)
def test_what_only_the_user_can_tell(read_shapes, listing):
    shapes, name = shapes_in(listing), listing.removeprefix("pytorchcv_")
    with pytest.raises(MismatchError) as caught:
        read_shapes(shapes)
    assert str(caught.value).splitlines() == [
        "model.file: its names and shapes match 2 networks that compute different numbers; choose one:",
        f"  --model pytorchcv:{name}  (--set stride_in=conv1)",
        f"  --model pytorchcv:{name}b  (--set stride_in=conv2)",
    ]
    for options, stride in [
        ({"model": f"pytorchcv:{name}"}, "conv1"),
        ({"model": f"pytorchcv:{name}b"}, "conv2"),
        ({"settings": {"stride_in": "conv1"}}, "conv1"),
        ({"settings": {"stride_in": "conv2"}}, "conv2"),
    ]:
        checkpoint = read_shapes(shapes, **options)
        assert (checkpoint.family, checkpoint.spec.stride_in) == ("pytorchcv", stride)
    with pytest.raises(MismatchError, match=rf"is not pytorchcv:{name}c; did you mean '{name}b?'\?"):
        read_shapes(shapes, model=f"pytorchcv:{name}c")


# --------------------------------------------------------------------------------------------------
# Projects that cannot be installed: our tensors under the names from their source code


class Foreign(NamedTuple):
    """The file of another project's network: substitutions on canonical names, in order."""

    family: str
    spec: Spec
    names: list[tuple[str, str]]
    tensorflow: bool = False
    convolved: bool = False  # the attention's MLP consists of 1x1 convolutions
    scope: str = ""
    groups: str = ""  # format of a group's number, if groups are stored separately


SE_1, SE_2 = r"\.se\.fc1\.", r"\.se\.fc2\."
MOSKOMULE = [(SE_1, ".se.fc.0."), (SE_2, ".se.fc.2.")]
MMPRETRAIN = [(SE_1, ".se_layer.conv1.conv."), (SE_2, ".se_layer.conv2.conv."), (r"^fc\.", "head.fc."),
              (r"^(?!head)", "backbone.")]  # fmt: skip
OFFICIAL = {"attention": "cbam", "reduction": 4}
LUUUYI = OFFICIAL | {"cbam_mlp_bias": False, "cbam_order": "mean_max", "cbam_bn": False}
CAFFE = {"attention": "se", "stem_pool": "same"} | CAFFE_EPSILON
KOBISO = AttentionSpec(attention="cbam", channels=32, reduction=8, cbam_order="mean_max", cbam_bn=False)
HIKAPOK = [
    (r"^conv1\.", "conv1/7x7_s2."), (r"^bn1\.", "conv1/7x7_s2/bn."), (r"^fc\.", "dense."),
    (r"^layer1\.", "conv2_"), (r"^layer2\.", "conv3_"),
    (r"_2\.", "_3_"), (r"_1\.", "_2_"), (r"_0\.", "_1_"),  # blocks count from 1
    (r"_conv1\.", "_1x1_reduce."), (r"_conv2\.", "_3x3."), (r"_conv3\.", "_1x1_increase."),
    (r"_bn1\.", "_1x1_reduce/bn."), (r"_bn2\.", "_3x3/bn."), (r"_bn3\.", "_1x1_increase/bn."),
    (r"_downsample\.0\.", "_1x1_proj."), (r"_downsample\.1\.", "_1x1_proj/bn."),
    (r"_se\.fc1\.", "_1x1_down."), (r"_se\.fc2\.", "_1x1_up."),
]  # fmt: skip
OSMR = [
    (r"^conv1\.", "features.init_block.conv.conv."), (r"^bn1\.", "features.init_block.conv.bn."),
    (r"^fc\.", "output."), (r"^layer(\d)\.2\.", r"features.stage\1.unit3."),
    (r"^layer(\d)\.1\.", r"features.stage\1.unit2."), (r"^layer(\d)\.0\.", r"features.stage\1.unit1."),
    (r"(unit\d)\.conv(\d)\.", r"\1.body.conv\2.conv."), (r"(unit\d)\.bn(\d)\.", r"\1.body.conv\2.bn."),
    (r"\.downsample\.0\.", ".identity_conv.conv."), (r"\.downsample\.1\.", ".identity_conv.bn."),
    (r"\.se\.fc(\d)\.", r".se.conv\1.conv."), (r"\.", "/"),
]  # fmt: skip
TRANSFORMERS = [
    (r"^conv1\.", "embedder.embedder.convolution."), (r"^bn1\.", "embedder.embedder.normalization."),
    (r"^layer1\.(\d)\.", r"encoder.stages.0.layers.\1."),
    (r"^layer2\.(\d)\.", r"encoder.stages.1.layers.\1."),
    (r"\.conv1\.", ".layer.0.convolution."), (r"\.bn1\.", ".layer.0.normalization."),
    (r"\.conv2\.", ".layer.1.convolution."), (r"\.bn2\.", ".layer.1.normalization."),
    (r"\.conv3\.", ".layer.2.convolution."), (r"\.bn3\.", ".layer.2.normalization."),
    (r"\.downsample\.0\.", ".shortcut.convolution."), (r"\.downsample\.1\.", ".shortcut.normalization."),
    (r"^fc\.", "classifier.1."), (r"^(?!classifier)", "resnet."),
]  # fmt: skip
FOREIGN = {
    "transformers": Foreign("transformers", tiny(), TRANSFORMERS),
    "moskomule": Foreign("moskomule", tiny(attention="se", se_bias=False), MOSKOMULE),
    "moskomule with biases": Foreign("moskomule", tiny(attention="se"), MOSKOMULE),
    "moskomule, the oldest": Foreign(
        "moskomule", tiny(attention="se", hidden_rule="absolute", reduction=6), MOSKOMULE
    ),
    "moskomule for CIFAR": Foreign(
        "moskomule", tiny(attention="se", block="basic", stem="3x3", se_bias=False), MOSKOMULE
    ),
    "official CBAM": Foreign(
        "cbam",
        tiny(**OFFICIAL),
        [(r"cbam\.channel\.fc1", "cbam.ChannelGate.mlp.1"), (r"cbam\.channel\.fc2", "cbam.ChannelGate.mlp.3"),
         (r"cbam\.spatial", "cbam.SpatialGate.spatial"), (r"^", "module.")],
    ),
    "luuuyi": Foreign(
        "luuuyi",
        tiny(**LUUUYI),
        [(r"cbam\.channel\.fc1", "ca.fc.0"), (r"cbam\.channel\.fc2", "ca.fc.2"),
         (r"cbam\.spatial\.conv", "sa.conv1")],
        convolved=True,
    ),
    "luuuyi's descendants": Foreign(
        "luuuyi", tiny(**LUUUYI, block="basic"),
        [(r"cbam\.channel", "ca"), (r"cbam\.spatial\.conv", "sa.conv1")], convolved=True,
    ),
    "mmpretrain": Foreign("mmpretrain", tiny(attention="se"), MMPRETRAIN, convolved=True),
    "mmpretrain without attention": Foreign("mmpretrain", tiny(block="basic"), MMPRETRAIN),
    "mmcls, older": Foreign(
        "mmpretrain",
        tiny(attention="se", groups=2, width_per_group=32),
        [(SE_1, ".se_layer.conv1."), (SE_2, ".se_layer.conv2."), *MMPRETRAIN[2:]],
        convolved=True,
    ),
    "mmpretrain, deep stem and average pool": Foreign(
        "mmpretrain",
        tiny(stem="deep", downsample_pool="avg"),
        [(r"^conv(\d)", r"stem.\1.conv"), (r"^bn(\d)", r"stem.\1.bn"), (r"^stem\.1", "stem.0"),
         (r"^stem\.2", "stem.1"), (r"^stem\.3", "stem.2"), (r"(layer2.*)downsample\.1", r"\1downsample.2"),
         (r"(layer2.*)downsample\.0", r"\1downsample.1"), *MMPRETRAIN[2:]],
    ),
    "tensorflowcv": Foreign(
        "tensorflowcv",
        tiny(attention="se", groups=4, width_per_group=16),
        OSMR,
        tensorflow=True,
        convolved=True,
        groups="conv/convgroup{}/kernel:0",
    ),
    "tensorflowcv, basic blocks": Foreign("tensorflowcv", tiny(block="basic"), OSMR, tensorflow=True),
    "hikapok": Foreign(
        "hikapok", tiny(**CAFFE, stride_in="conv1"), HIKAPOK, tensorflow=True, convolved=True
    ),
    "hikapok in a scope, groups": Foreign(
        "hikapok", tiny(**CAFFE, groups=4, width_per_group=16), HIKAPOK,
        tensorflow=True, convolved=True, scope="net/",
    ),
    "kobiso's CBAM": Foreign(
        "kobiso", KOBISO,
        [(r"^channel\.fc1", "ch_at/mlp_0"), (r"^channel\.fc2", "ch_at/mlp_1"), (r"^spatial\.", "sp_at/")],
        tensorflow=True, scope="cbam_2_0/",
    ),
    "kobiso's SE": Foreign(
        "kobiso", AttentionSpec(attention="se", channels=32, reduction=8),
        [(r"^fc1", "bottleneck_fc"), (r"^fc2", "recover_fc")], tensorflow=True, scope="a/se_1_1/",
    ),
    "the tutorials' cbam_module": Foreign(
        "tutorial_cbam",
        AttentionSpec(attention="cbam", channels=16, reduction=2, cbam_bn=False, cbam_spatial_bias=True,
                      cbam_spatial_input="input"),
        [(r"^channel\.fc1", "mlp_1"), (r"^channel\.fc2", "mlp_2"), (r"^spatial\.conv", "conv2d")],
        tensorflow=True, scope="cbam_block/",
    ),
}  # fmt: skip


def meaning(spec: Spec) -> dict[str, Any]:
    """The keywords that apply to this network, for example no reduction without an MLP."""
    return {keyword: value for keyword, value in vars(spec).items() if spec.concerns(keyword)}


def foreign_arrays(foreign: Foreign) -> dict[str, np.ndarray]:
    """The position-coded tensors of a network in the other project's layout."""
    arrays: dict[str, np.ndarray] = {}
    for name, array in position_coded(foreign.spec).items():
        role = ROLES[like(name).role]
        kernel = array
        if foreign.convolved and re.search(r"\.(se|channel)\.fc[12]\.weight$", name):
            kernel = array[:, :, None, None]
        changed = name
        for pattern, replacement in foreign.names:
            changed = re.sub(pattern, replacement, changed)
        if not foreign.tensorflow:
            arrays[foreign.scope + changed] = kernel
            continue
        if role.tf is None:
            continue
        if kernel.ndim > 1:  # O I H W -> H W I O, or O I -> I O
            kernel = np.moveaxis(kernel, (0, 1), (-1, -2))
        mark = ":0" if foreign.groups else ""
        changed = foreign.scope + re.sub(r"[./]\w+$", f"/{role.tf}{mark}", changed)
        if foreign.groups and re.search(r"layer\d\.\d\.conv2\.weight", name):
            for group, part in enumerate(np.split(kernel, foreign.spec.groups, -1), 1):
                arrays[changed.replace("conv/kernel:0", foreign.groups.format(group))] = part
        else:
            arrays[changed] = kernel
    return arrays


@pytest.mark.quick
@pytest.mark.parametrize("name", FOREIGN)
def test_every_tensor_finds_its_place(tmp_path, name):
    foreign = FOREIGN[name]
    arrays = foreign_arrays(foreign)
    path = tmp_path / ("x.ckpt" if foreign.scope else "x.npz")
    container = FORMATS["tf1" if foreign.scope else "npz"]
    arrays = {n: np.asarray(a, order="C") for n, a in arrays.items()}
    assert container.write is not None
    container.write(
        path, {n: TensorInfo(a.shape, a.dtype) for n, a in arrays.items()}, arrays.__getitem__, {}
    )
    wanted = position_coded(foreign.spec)
    with load(path, assume=True) as checkpoint:
        assert checkpoint.family == foreign.family
        assert meaning(checkpoint.spec) == meaning(foreign.spec)
        assert checkpoint.left_out.keys() <= {"samenet"}
        for tensor in checkpoint:
            assert checkpoint[tensor].tobytes() == wanted[tensor].tobytes(), tensor
        counts = 0 if foreign.tensorflow else sum(n.endswith("tracked") for n in wanted)
        assert len(checkpoint) == len([n for n in wanted if not n.endswith("tracked")]) + counts


def test_every_family_is_tested():
    tested = {foreign.family for foreign in FOREIGN.values()}
    tested |= {family for _, families, _, _ in READ for family in families.split()}
    tested |= {family.name for family in mobilenets.FAMILIES}  # test_mobilenet_families
    tested |= {family.name for family in shufflenets.FAMILIES}  # test_shufflenet_families
    tested |= {family.name for family in inceptions_v3.FAMILIES}  # test_inception_v3_families
    tested |= {"cadene_inception", "pytorchcv_inception"}  # test_families_written, test_families_live
    tested |= {"senet", "senet_inception"}  # test_caffe
    assert tested | {"keras", "tf1", "eca"} == set(FAMILIES)  # keras and tf1: test_layouts; eca: below


def test_every_family_is_documented():
    text = (LISTINGS.parents[2] / "docs" / "families.md").read_text("utf-8")
    rows = re.findall(r"^\| ([\w, ]+) \| [^|]+ \| (read, written|read) \|", text, re.MULTILINE)
    documented = {name: mode for names, mode in rows for name in names.split(", ")}
    assert documented == {n: "read, written" if f.written else "read" for n, f in FAMILIES.items()}


def test_the_eca_authors_names_are_ours(tmp_path):
    spec = tiny(attention="eca", eca_kernel_sizes=(5, 7))
    np.savez(tmp_path / "x.npz", **{f"module.{name}": array for name, array in position_coded(spec).items()})
    with load(tmp_path / "x.npz", assume=True) as checkpoint:
        assert (checkpoint.family, checkpoint.same_as) == ("torch", ("eca",))
        assert meaning(checkpoint.spec) == meaning(spec)
        assert checkpoint.feeds is not None
