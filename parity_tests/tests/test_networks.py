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
from parity_tests.watch.build import NETWORKS, same_bits
from weights_convert.spec import MODELS, ResNetSpec, model_spec

SIZES = ((64, 64), (33, 47), (50, 31))
VARIANTS = {
    "bottleneck": {},
    "basic": {"block": "basic"},
    "grouped": {"groups": 8, "width_per_group": 16},
    "stride_in_conv1": {"stride_in": "conv1", "stem_pool": "ceil"},
    "senet": {"groups": 4, "width_per_group": 32, "reduce_first": 2, "stem": "deep", "downsample_kernel": 3},
    "pool_same": {"stem_pool": "same"},
    "pool_ceil": {"stem_pool": "ceil"},
    "avg_down": {"downsample_pool": "avg", "stem": "deep"},
    "deep_tiered": {"stem": "deep_tiered", "stem_width": 10},
    "bias_bn_grouped": {"norm": "bias_bn", "groups": 8, "width_per_group": 16},
    "bias_bn_basic": {"norm": "bias_bn", "block": "basic", "stem": "deep"},
    "bias_grouped": {"norm": "bias", "groups": 8, "width_per_group": 16, "downsample_kernel": 3},
    "bias_basic": {"norm": "bias", "block": "basic", "stem": "3x3", "attention": "eca"},
    "bias_cbam": {"norm": "bias", "stem": "deep_tiered", "attention": "cbam", "bn_epsilon": 1e-3},
    "cifar": {"stem": "3x3", "block": "basic", "depths": (1, 1, 1)},
    "se": {"attention": "se"},
    "se_no_bias": {"attention": "se", "se_bias": False, "hidden_rule": "multiple_of_8"},
    "se_absolute": {"attention": "se", "hidden_rule": "absolute", "reduction": 16},
    "se_relu": {"attention": "se", "block": "basic", "relu_before_attention": True},
    "cbam": {"attention": "cbam"},
    "cbam_absolute": {"attention": "cbam", "hidden_rule": "absolute", "reduction": 3},
    "cbam_mean_max": {"attention": "cbam", "cbam_order": "mean_max", "cbam_mlp_bias": False},
    "cbam_input": {
        "attention": "cbam",
        "cbam_bn": False,
        "cbam_spatial_bias": True,
        "cbam_spatial_input": "input",
        "cbam_kernel_size": 3,
    },
    "eca": {"attention": "eca"},
    "eca_sizes": {"attention": "eca", "eca_kernel_sizes": (5, 7)},
    "epsilon": {"bn_epsilon": 1e-3},
    "one_channel": {"in_channels": 1, "num_classes": 2},
}
QUICK = ("basic", "grouped", "senet", "se", "cbam", "eca", "pool_same", "avg_down", "bias_cbam", "cifar")
FULL_DEPTH = {  # the main job, which test_docs runs, is se_resnext50_32x4d at 224
    "plain": ["eca_resnet34", "cbam_resnet50", "se_resnet56"],
    "exhaustive": [
        "resnet50",
        "resnext101_32x4d",
        "se_resnet152",
        "senet154",
        "cbam_resnet152",
        "eca_resnet152",
    ],
}
FLOAT32_DEPTH = {"plain": ["cbam_resnet18"], "exhaustive": ["se_resnext50_32x4d", "eca_resnet34", "senet154"]}


def names(table: dict[str, list[str]]) -> list:
    return table["plain"] + [pytest.param(name, marks=pytest.mark.exhaustive) for name in table["exhaustive"]]


@lru_cache(maxsize=1)  # the frameworks vary fastest: one judgement serves the three of them
def judged(spec: ResNetSpec, sizes: tuple[tuple[int, int], ...], batch: int):
    """Weights, and per size the images and what the judge makes of them."""
    weights = synthetic.weights(spec)
    images = [synthetic.images(size, batch, spec.in_channels, seed) for seed, size in enumerate(sizes)]
    return weights, [(x, numpy_reference.resnet(x, weights, spec)) for x in images]


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


@pytest.mark.quick
@pytest.mark.parametrize("framework", NETWORKS)
@pytest.mark.parametrize("variant", QUICK)
def test_float64_at_one_size(variant, framework):
    check_float64(tiny(**VARIANTS[variant]), framework, SIZES[1:2])


@pytest.mark.parametrize("framework", NETWORKS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_float64(variant, framework):
    check_float64(tiny(**VARIANTS[variant]), framework, SIZES)


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32(variant):
    """Every point within 8 times torch's own float32 noise there, in all three frameworks."""
    check_float32(tiny(**VARIANTS[variant]), SIZES)


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
