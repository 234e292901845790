"""Whole networks in inference, in each framework, against the NumPy judge at every stage.

Tiny networks for every keyword and odd and even sizes; every family once at full depth.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import lru_cache

import pytest

from parity_tests import harness
from parity_tests.judge import numpy_reference, synthetic, tolerances
from parity_tests.judge.synthetic import tiny
from parity_tests.tests import test_train_mode
from parity_tests.watch.build import NETWORKS, same_bits
from weights_convert.spec import MODELS, ResNetSpec, model_spec

SIZES = ((64, 64), (33, 47), (50, 31))
TWO = {"depths": (2, 1)}  # a block without a projection; in the others every block has one
VARIANTS = {
    "bottleneck": TWO,
    "basic": {"block": "basic"} | TWO,
    "stride_in_conv1": {"stride_in": "conv1", "stem_pool": "ceil"},
    "senet": {"groups": 4, "width_per_group": 32, "reduce_first": 2, "stem": "deep", "downsample_kernel": 3},
    "pool_same": {"stem_pool": "same"},
    "avg_down": {"downsample_pool": "avg", "stem": "deep"},
    "bias_bn_grouped": {"norm": "bias_bn", "groups": 8, "width_per_group": 16},
    "bias_basic": {"norm": "bias", "block": "basic", "stem": "3x3", "attention": "eca"},
    "bias_cbam": {"norm": "bias", "stem": "deep_tiered", "attention": "cbam", "bn_epsilon": 1e-3},
    "se_no_bias": {"attention": "se", "se_bias": False, "hidden_rule": "multiple_of_8"},
    "se_relu": {"attention": "se", "block": "basic", "relu_before_attention": True},
    "cbam": {"attention": "cbam"} | TWO,
    "cbam_input": {
        "attention": "cbam",
        "cbam_bn": False,
        "cbam_spatial_bias": True,
        "cbam_spatial_input": "input",
        "cbam_kernel_size": 3,
    },
    "eca": {"attention": "eca"},
    "selective": {"attention": "sk", "sk_split": True, "sk_min_hidden": 3, "activation": "silu"}
    | {"block": "basic"}
    | TWO,
    "selective_dilated": {"attention": "sk", "groups": 2, "width_per_group": 32, "sk_min_hidden": 4}
    | {"norm": "bias_bn", "strides": (1, 1), "dilations": (1, 2)},
    "group_norm": {"norm": "gn", "width": 32, "stem": "deep", "stem_width": 32, "stem_pool": "conv"}
    | {"bn_epsilon": 1e-3, "attention": "se", "block": "basic"},
    "one_channel": {"in_channels": 1, "num_classes": 2, "bn_epsilon": 1e-3},
    "averaged": {"anti_aliasing": "avg", "downsample_pool": "avg", "activation": "silu"},
    "blurred": {"anti_aliasing": "blur", "attention": "eca", "eca_padding": "circular", "block": "basic"}
    | {"activation": "leaky_relu", "global_pool": "max"}
    | TWO,
    "dilated": {"strides": (1, 1), "dilations": (1, 2), "groups": 8, "width_per_group": 16}
    | {"activation": "gelu", "downsample_kernel": 3}
    | TWO,
    "convolution_pool": {"stem_pool": "conv", "norm": "bias_bn", "strides": (1, 1), "head_bias": False}
    | {"global_pool": "avgmax"},
    "blurred_dilated": {"stem_pool": "conv", "anti_aliasing": "blur", "strides": (1, 1), "dilations": (1, 2)}
    | {"downsample_pool": "avg", "global_pool": "catavgmax"},
}
ONCE_MORE = {  # with `-m exhaustive`: also covered above in combinations, or by block in test_attention
    "se_absolute": {"attention": "se", "hidden_rule": "absolute", "reduction": 16},
    "cbam_mean_max": {"attention": "cbam", "cbam_order": "mean_max", "cbam_mlp_bias": False},
    "eca_sizes": {"attention": "eca", "eca_kernel_sizes": (5, 7)},
    "grouped": {"groups": 8, "width_per_group": 16} | TWO,
    "pool_ceil": {"stem_pool": "ceil"},
    "deep_tiered": {"stem": "deep_tiered", "stem_width": 10},
    "bias_bn_basic": {"norm": "bias_bn", "block": "basic", "stem": "deep"},
    "bias_grouped": {"norm": "bias", "groups": 8, "width_per_group": 16, "downsample_kernel": 3},
    "cifar": {"stem": "3x3", "block": "basic", "depths": (1, 1, 1)},
    "se": {"attention": "se"} | TWO,
    "cbam_absolute": {"attention": "cbam", "hidden_rule": "absolute", "reduction": 3},
    "selective_bias": {"attention": "sk", "norm": "bias", "sk_split": True, "stride_in": "conv1"},
    "epsilon": {"bn_epsilon": 1e-3},
}
SPECS = {name: tiny(**{"depths": (1, 1)} | keywords) for name, keywords in (VARIANTS | ONCE_MORE).items()}
QUICK = ("senet", "bias_cbam", "blurred_dilated")
FLOAT32 = ("basic", "senet", "cbam", "selective", "bias_bn_grouped", "bias_basic", "blurred", "dilated")
FULL_DEPTH = {  # the main job, which test_docs runs, is se_resnext50_32x4d at 224
    "plain": ["eca_resnet18", "cbam_resnet20"],
    "exhaustive": [
        "eca_resnet34",
        "cbam_resnet50",
        "se_resnet56",
        "resnet50",
        "resnext101_32x4d",
        "se_resnet152",
        "senet154",
        "sk_resnet18",
        "sk_resnext50_32x4d",
        "cbam_resnet152",
        "eca_resnet152",
    ],
}
FLOAT32_DEPTH = {
    "plain": ["cbam_resnet20"],
    "exhaustive": ["cbam_resnet18", "se_resnext50_32x4d", "eca_resnet34", "senet154"],
}


def marked(name: str) -> object:
    """A variant as a parameter: `quick`, `exhaustive` or neither."""
    marks = [pytest.mark.quick] if name in QUICK else [pytest.mark.exhaustive] if name in ONCE_MORE else []
    return pytest.param(name, marks=marks)


def names(table: dict[str, list[str]]) -> list:
    return table["plain"] + [pytest.param(name, marks=pytest.mark.exhaustive) for name in table["exhaustive"]]


@lru_cache(maxsize=1)  # the frameworks vary fastest, so that the three share one result
def judged(spec: ResNetSpec, sizes: tuple[tuple[int, int], ...], batch: int):
    """Weights, and for each size the images and the judge's outputs."""
    weights = synthetic.weights(spec)
    images = [synthetic.images(size, batch, spec.in_channels, seed) for seed, size in enumerate(sizes)]
    return weights, [(x, numpy_reference.network(x, weights, spec)) for x in images]


def check_float64(
    spec: ResNetSpec, framework: str, sizes: tuple[tuple[int, int], ...], batch: int = 2
) -> None:
    """Every point within 1e-12 of the judge, and every weight in the live model bit for bit."""
    weights, cases = judged(spec, sizes, batch)
    with NETWORKS[framework](spec, weights, "float64") as network:
        for images, reference in cases:
            points = network.points(images)
            assert list(points) == list(reference)
            errors = {p: tolerances.relative_error(points[p], reference[p]) for p in reference}
            assert max(errors.values()) <= tolerances.FLOAT64, (images.shape, errors)
        assert same_bits(weights, network.state(), "float64") == []


@pytest.mark.parametrize("framework", NETWORKS)
@pytest.mark.parametrize("variant", [marked(name) for name in SPECS])
def test_float64(variant, framework):
    check_float64(SPECS[variant], framework, SIZES)


def test_one_size():
    """For `test_environments` on JAX, which compiles every operation for every shape."""
    check_float64(test_train_mode.SPECS["grouped_cbam"], "keras", (test_train_mode.SIZE,), batch=3)


@pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=[] if v in FLOAT32 else pytest.mark.exhaustive) for v in SPECS]
)
def test_float32(variant):
    """Every point within 8 times torch's own float32 noise there, in all three frameworks."""
    check_float32(SPECS[variant], SIZES)


def check_float32(spec: ResNetSpec, sizes: tuple[tuple[int, int], ...], batch: int = 2) -> None:
    weights, cases = judged(spec, sizes, batch)
    with ExitStack() as stack:
        single = {
            name: stack.enter_context(open_(spec, weights, "float32")) for name, open_ in NETWORKS.items()
        }
        double = stack.enter_context(NETWORKS["torch"](spec, weights, "float64"))
        for images, reference in cases:
            noise, found = double.points(images), {name: n.points(images) for name, n in single.items()}
            for point in reference:
                limit = tolerances.float32_limit(
                    tolerances.relative_error(found["torch"][point], noise[point])
                )
                errors = {n: tolerances.relative_error(p[point], reference[point]) for n, p in found.items()}
                assert max(errors.values()) <= limit, (images.shape, point, limit, errors)


@pytest.mark.parametrize("framework", NETWORKS)
@pytest.mark.parametrize("name", names(FULL_DEPTH))
def test_full_depth_float64(name, framework):
    check_float64(model_spec(name), framework, ((65, 64),), batch=1)


@pytest.mark.parametrize("name", names(FLOAT32_DEPTH))
def test_full_depth_float32(name):
    check_float32(model_spec(name), ((64, 65),), batch=1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", MODELS)
def test_every_model_through_every_file_and_framework(name):
    """The main job for each named model, at an even and odd size; `docs/parity.md` has its figures at 224."""
    result = harness.prove(name, synthetic.weights(model_spec(name)), synthetic.images((98, 129)))
    assert result.holds, (result.first_divergence(), result.not_equal)
