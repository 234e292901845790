"""The architectures: exact parameter counts, and every framework's names and shapes against `spec.py`."""

from __future__ import annotations

import inspect
import math
from functools import partial
from pathlib import Path

import keras
import pytest
import tensorflow.compat.v1 as tf
import torch

import keras_impl
import tf1_compat
import torch_impl
from parity_tests.judge.synthetic import tiny
from weights_convert import frameworks, state_of
from weights_convert.errors import SpecError
from weights_convert.layouts import LAYOUTS
from weights_convert.spec import MODELS, ResNetSpec, Spec, count_parameters, model_spec, parameters

IMPLEMENTATIONS = [torch_impl, keras_impl, tf1_compat]
COUNTS = {  # trainable scalars; the ImageNet models have 1000 classes, the CIFAR sizes 10
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x4d": 44_177_704,
    "se_resnet18": 11_778_592,
    "se_resnet34": 21_958_868,
    "se_resnet50": 28_088_024,
    "se_resnet101": 49_326_872,
    "se_resnet152": 66_821_848,
    "se_resnext50_32x4d": 27_559_896,
    "se_resnext101_32x4d": 48_955_416,
    "senet154": 115_088_984,
    "cbam_resnet18": 11_779_392,
    "cbam_resnet34": 21_960_468,
    "cbam_resnet50": 28_089_624,
    "cbam_resnet101": 49_330_172,
    "cbam_resnet152": 66_826_848,
    "eca_resnet18": 11_689_548,
    "eca_resnet34": 21_797_746,
    "eca_resnet50": 25_557_118,
    "eca_resnet101": 44_549_331,
    "eca_resnet152": 60_193_064,
    "resnet20": 272_474,
    "resnet32": 466_906,
    "resnet56": 855_770,
    "se_resnet20": 274_847,
    "se_resnet32": 470_861,
    "se_resnet56": 862_889,
    "cbam_resnet20": 275_747,
    "cbam_resnet32": 472_361,
    "cbam_resnet56": 865_589,
    "eca_resnet20": 272_501,
    "eca_resnet32": 466_951,
    "eca_resnet56": 855_851,
    "sk_resnet18": 11_958_056,
    "sk_resnet34": 22_282_376,
    "sk_resnet50": 25_803_160,
    "sk_resnext50_32x4d": 27_479_784,
    "vgg16_bn": 138_365_992,
    "se_vgg16_bn": 138_596_784,
    "bn_inception": 11_285_224,
    "se_bn_inception": 11_931_622,
    "inception_v3": 23_834_568,
    "se_inception_v3": 25_496_188,
    "mobilenet_v1": 4_231_976,
    "se_mobilenet_v1": 4_718_044,
    "shufflenet_v1_g3": 1_865_728,
    "se_shufflenet_v1_g3": 2_484_533,
}
VARIANT_COUNTS = [
    ("se_resnet50", {"se_bias": False}, 28_071_976),
    ("se_resnet50", {"se_bias": False, "num_classes": 4}, 26_031_172),
    ("eca_resnet18", {"eca_kernel_sizes": (3, 5, 7, 7)}, 11_689_556),
    ("eca_resnet34", {"eca_kernel_sizes": (3, 3, 5, 7)}, 21_797_744),
    ("eca_resnet50", {"eca_kernel_sizes": (3, 5, 5, 7)}, 25_557_112),
    ("eca_resnet101", {"eca_kernel_sizes": (3, 3, 5, 7)}, 44_549_317),
    ("eca_resnet152", {"eca_kernel_sizes": (3, 3, 5, 7)}, 60_193_042),
    ("eca_resnet50", {"stem": "3x3"}, 25_549_438),
    ("resnet50", {"norm": "bias_bn"}, 25_583_592),
    ("resnet50", {"norm": "bias"}, 25_530_472),
    ("resnet50", {"stem": "deep", "stem_width": 32}, 25_576_264),
    ("resnet50", {"stem": "deep_tiered", "stem_width": 32}, 25_573_728),
    ("se_resnet18", {"hidden_rule": "absolute"}, 11_753_000),
    ("sk_resnet50", {"stem": "deep", "stem_width": 32, "downsample_pool": "avg"}, 25_822_392),  # skresnet50d
    ("vgg16_bn", {"norm": "bn"}, 138_361_768),
    ("se_vgg16_bn", {"se_bias": False}, 138_592_296),
    ("se_vgg16_bn", {"norm": "bn", "se_bias": False}, 138_588_072),
    ("se_mobilenet_v1", {"se_bias": False}, 4_711_720),
    ("mobilenet_v1", {"num_classes": 10}, 4_231_976 - 990 * 1025),
    ("se_shufflenet_v1_g3", {"se_bias": False}, 2_476_144),
    ("se_shufflenet_v1_g3", {"attention_on": "output"}, 2_594_908),
    ("se_shufflenet_v1_g3", {"attention_on": "output", "se_bias": False}, 2_585_728),
    ("shufflenet_v1_g3", {"head_bias": False}, 1_864_728),
    ("shufflenet_v1_g3", {"num_classes": 10}, 1_865_728 - 990 * 961),
    ("vgg16_bn", {"num_classes": 10}, 138_365_992 - 990 * 4097),
    ("bn_inception", {"norm": "bias_bn"}, 11_295_240),
    ("se_bn_inception", {"se_bias": False}, 11_924_584),
    ("se_bn_inception", {"norm": "bias_bn", "num_classes": 10}, 11_941_638 - 990 * 1025),
    ("inception_v3", {"aux_head": True}, 27_161_264),
    ("inception_v3", {"aux_head": True, "num_classes": 10}, 27_161_264 - 990 * (2049 + 769)),
    ("se_inception_v3", {"aux_head": True}, 28_822_884),
    ("se_inception_v3", {"se_bias": False}, 25_485_512),
    ("se_inception_v3", {"aux_head": True, "se_bias": False}, 28_812_208),
]
TEXTS = ["models.py", "named.py", "keywords.py", "inception_table.py", "inception_v3_table.py"]
# `test_constructors_are_the_spec_rows` covers all rows; an ordinary run builds one of each kind of block
BUILT = [
    "resnet18",
    "se_resnet20",
    "cbam_resnet20",
    "eca_resnet18",
]  # and the main job builds se_resnext50_32x4d
EVERY = BUILT + [pytest.param(n, marks=pytest.mark.exhaustive) for n in MODELS if n not in BUILT]


def torch_tensors(spec: Spec) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = getattr(torch_impl, spec.network)(**spec.model_kwargs())
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def tf1_tensors(spec: Spec) -> dict[str, tuple[int, ...]]:
    with tf.Graph().as_default():
        images = tf.placeholder(tf.float32, (None, None, None, spec.input_channels))
        getattr(tf1_compat, spec.network.lower())(images, **spec.model_kwargs())
        return {variable.op.name: tuple(variable.shape.as_list()) for variable in tf.global_variables()}


def expected(spec: Spec, family: str) -> dict[str, tuple[int, ...]]:
    """Every tensor's name and shape in a framework, from the spec."""
    layout, found = LAYOUTS[family], {}
    for parameter in parameters(spec):
        if renamed := layout.rename(parameter, spec):
            found[renamed] = layout.stored(parameter).shape(parameter.shape)
    return found


@pytest.mark.quick
def test_no_model_is_missing():
    assert set(COUNTS) == set(MODELS)


@pytest.mark.quick
@pytest.mark.parametrize("name", MODELS)
def test_spec_count(name):
    assert count_parameters(model_spec(name)) == COUNTS[name]


@pytest.mark.quick
@pytest.mark.parametrize(("name", "keywords", "count"), VARIANT_COUNTS)
def test_variant_count(name, keywords, count):
    assert count_parameters(model_spec(name, **keywords)) == count
    with torch.device("meta"):
        model = getattr(torch_impl, name)(**keywords)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.quick
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_constructors_are_the_spec_rows(implementation, name):
    """Names a missing constructor, or one whose defaults differ from the spec's row."""
    constructor = getattr(implementation, name)
    assert name in implementation.__all__
    assert model_spec(name) == MODELS[name].kind(**constructor.defaults)
    shown = inspect.signature(constructor).parameters  # shown by editors and `help()`
    for keyword, value in model_spec(name).model_kwargs().items():
        assert shown[keyword].default == value or shown[keyword].default is None, keyword
    assert str(shown["num_classes"]).startswith("num_classes: int = 1")


@pytest.mark.quick
@pytest.mark.parametrize("file", TEXTS)
def test_the_table_of_models_is_one_text(file):
    texts = {Path(module.__file__).with_name(file).read_text("utf-8") for module in IMPLEMENTATIONS}
    assert len(texts) == 1


@pytest.mark.quick
@pytest.mark.parametrize("name", MODELS)
def test_torch_tensors(name):
    """Names, shapes and the order of the state dict equal those of `parameters`."""
    tensors = torch_tensors(model_spec(name))
    assert list(tensors.items()) == [(p.name, p.shape) for p in parameters(model_spec(name))]


@pytest.mark.parametrize("name", EVERY)
def test_tf1_tensors(name):
    spec = model_spec(name)
    assert tf1_tensors(spec) == expected(spec, "tf1")


@pytest.mark.parametrize("name", EVERY)
def test_keras_tensors(name):
    check_keras(model_spec(name))


def check_keras(spec: Spec) -> keras.Model:
    model = getattr(keras_impl, spec.network)(**spec.model_kwargs())
    assert model.count_params() - count_statistics(spec) == count_parameters(spec)
    adapter = frameworks.adapter("keras")
    variables = adapter._variables(adapter._found(model, None))
    shapes = {name: tuple(variable.shape) for name, (variable, _) in variables.items()}
    layout = LAYOUTS["keras"]
    assert shapes == {p.name: layout.stored(p).shape(p.shape) for p in parameters(spec) if p.role != "count"}
    return model


def count_statistics(spec: ResNetSpec) -> int:
    return sum(math.prod(p.shape) for p in parameters(spec) if p.role in ("mean", "variance"))


VARIANTS = [
    {"block": "basic", "attention": "se", "relu_before_attention": True},
    {"groups": 4, "width_per_group": 32, "reduce_first": 2, "stem": "deep", "downsample_kernel": 3},
    {"attention": "cbam", "cbam_bn": False, "cbam_spatial_bias": True, "cbam_mlp_bias": False},
    {"attention": "cbam", "cbam_kernel_size": 3, "hidden_rule": "multiple_of_8"},
    {"attention": "eca", "eca_kernel_sizes": (5, 3), "in_channels": 1, "num_classes": 2},
    {"attention": "se", "se_bias": False, "stem": "3x3", "downsample_pool": "avg"},
    {"norm": "bias_bn", "stem": "deep_tiered", "groups": 4, "width_per_group": 32},
    {"norm": "bias", "stem": "deep_tiered", "stem_width": 11, "downsample_kernel": 3},
    {"norm": "bias", "block": "basic", "attention": "cbam", "hidden_rule": "absolute"},
    {"attention": "se", "hidden_rule": "absolute", "reduction": 16},
    {"attention": "sk", "sk_split": True, "block": "basic", "norm": "bias_bn"},
    {"norm": "gn", "width": 32, "stem_width": 32},
    {"attention": "sk", "groups": 4, "width_per_group": 32, "reduction": 2, "sk_min_hidden": 1},
]


@pytest.mark.parametrize("keywords", [pytest.param(VARIANTS[0], marks=pytest.mark.quick), *VARIANTS[1:]])
def test_variants_have_the_same_tensors_everywhere(keywords):
    spec = tiny(**({"depths": (1, 1)} | keywords))
    assert torch_tensors(spec) == {p.name: p.shape for p in parameters(spec)}
    assert tf1_tensors(spec) == expected(spec, "tf1")
    state = state_of(check_keras(spec))
    assert {name: state[name].shape for name in state} == {
        p.name: p.shape for p in parameters(spec) if p.role != "count"
    }


BAD_VALUES = [
    ({"stem": "7X7"}, "stem='7X7': expected one of '7x7', 'deep', 'deep_tiered', '3x3'"),
    ({"stem": "deep_tiered", "stem_width": 3}, "stem_width=3: expected at least 4 with stem='deep_tiered'"),
    ({"norm": "ln"}, "norm='ln': expected one of 'bn', 'bias_bn', 'bias', 'gn'"),
    ({"attention": "sse"}, "attention='sse'"),
    ({"depths": (3, 0)}, "depths=0: expected an int of at least 1"),
    ({"depths": ()}, "depths=(): expected 1 to 8 stages with at most 640 blocks in all"),
    ({"cbam_kernel_size": 4}, "cbam_kernel_size=4: expected an odd int of at least 1"),
    ({"eca_kernel_sizes": (3, 4, 5, 7)}, "eca_kernel_sizes=4: expected an odd int of at least 1"),
    ({"eca_kernel_sizes": (3, 5)}, "eca_kernel_sizes=(3, 5): expected 4"),
    ({"num_classes": "10"}, "num_classes='10': expected an int of at least 0"),
    ({"num_classes": True}, "num_classes=True: expected an int of at least 0"),
    ({"se_bias": 1}, "se_bias=1: expected one of True, False"),
    ({"bn_epsilon": -1e-5}, "bn_epsilon=-1e-05: expected a finite float of at least 0"),
    ({"norm": "gn", "width": 48}, "norm='gn': layer1 has norms of 48 channels, expected a multiple of 32"),
    ({"attention": "sk", "anti_aliasing": "avg"}, "anti_aliasing='avg': expected 'none' with attention='sk'"),
    (
        {"attention": "sk", "sk_split": True, "width": 5, "block": "basic"},
        "sk_split=True: expected widths and stem_width that 2 divides, or sk_split=False",
    ),
    ({"block": "basic", "groups": 32}, "groups=32: expected 1 with block='basic', or block='bottleneck'"),
]


@pytest.mark.quick
@pytest.mark.parametrize(("keywords", "message"), BAD_VALUES)
def test_bad_value(keywords, message):
    with pytest.raises(SpecError) as caught:
        ResNetSpec(**keywords)
    assert str(caught.value).startswith(message)


@pytest.mark.quick
def test_unknown_names_offer_the_nearest():
    with pytest.raises(SpecError, match="'seresnet50'; did you mean 'se_resnet50'"):
        model_spec("seresnet50")
    with pytest.raises(SpecError, match="'num_clases'; did you mean 'num_classes'"):
        model_spec("resnet18", num_clases=3)


@pytest.mark.quick
@pytest.mark.parametrize(
    "keywords",
    [{"stem": "x"}, {"norm": "ln"}, {"attention": "sse"}, {"hidden_rule": "ceil", "attention": "se"}],
)
def test_every_framework_refuses_a_wrong_value(keywords):
    for build in (torch_impl.ResNet, keras_impl.ResNet, partial(tf1_compat.resnet, tf.zeros((1, 8, 8, 3)))):
        with pytest.raises(ValueError, match="expected one of"):
            build(**(tiny().model_kwargs() | keywords))
