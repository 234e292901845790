"""Tests of the harness: it finds every mistake and names the right layer, and correct models pass."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch

import keras_impl
import torch_impl
from parity_tests.compare import Report, assert_parity, compare_models
from parity_tests.compare.investigate import live
from parity_tests.compare.layers import compare_tracers, torch_noise
from parity_tests.judge import synthetic
from parity_tests.tests.faults import CBAM, ECA, FAULTS, GROUPS, SE
from parity_tests.watch.open import tracer_of
from weights_convert import load_into
from weights_convert.spec import ResNetSpec


def reference(spec: ResNetSpec, seed: int = 0) -> torch.nn.Module:
    model = torch_impl.ResNet(**spec.model_kwargs())
    load_into(model, synthetic.weights(spec, seed))
    return model


# every fourth mistake in an ordinary run
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.exhaustive if i % 4 else []) for i, n in enumerate(FAULTS)],
)
def test_every_mistake_is_caught_and_named(name):
    fault = FAULTS[name]
    images = synthetic.images(fault.size, batch=2)
    report = compare_models(reference(fault.spec), fault.candidate(), images, train=fault.train)
    divergence = report.first_divergence()
    assert divergence is not None, "not found, or the mistake changes nothing"
    assert divergence.point == fault.first
    culprits = [layer for _, layer in report.culprits()]
    assert culprits[:1] == ([fault.culprit] if fault.culprit else []), culprits


SAMPLE = {"CBAM's maps swapped", "groups permuted", "momentum of the running statistics", "a NaN"}
ANYWHERE = [
    pytest.param(name, marks=[] if name in SAMPLE else pytest.mark.exhaustive)
    for name, fault in FAULTS.items()
    if fault.of_model is None
]


@pytest.mark.parametrize("framework", ["torch", "tf1"])
@pytest.mark.parametrize("name", ANYWHERE)
def test_mistakes_in_weights_and_keywords_are_named_in_every_framework(name, framework):
    fault = FAULTS[name]
    checkpoint, images = fault.checkpoint(), synthetic.images(fault.size, batch=2)
    assert isinstance(checkpoint.spec, ResNetSpec)
    model = reference(fault.spec)
    with live(framework, checkpoint.spec, checkpoint, "float64", train=fault.train) as (tracer, _):
        report = compare_tracers(
            tracer_of(model, "float64"),
            {framework: tracer},
            images,
            noise=torch_noise(model, images, "float64", fault.train),
            train=fault.train,
        )
    divergence = report.first_divergence()
    assert divergence is not None
    first, culprit = fault.first, fault.culprit
    if framework == "torch" and name.startswith("pool"):  # a module there, a function elsewhere
        first = culprit = "maxpool"
    assert divergence.point == first
    assert [layer for _, layer in report.culprits()][:1] == ([culprit] if culprit else [])


def test_the_documentation_lists_them():
    text = (Path(__file__).parents[2] / "docs" / "harness.md").read_text("utf-8")
    listed = re.findall(r"^\| (.+?) \| (eval|train) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    assert len(FAULTS) >= 30
    assert [(name, mode == "train", first) for name, mode, first, _ in listed] == [
        (name, fault.train, fault.first) for name, fault in FAULTS.items()
    ]
    for (_, _, _, culprit), fault in zip(listed, FAULTS.values(), strict=True):
        assert culprit == fault.culprit or (culprit.startswith("none: ") and not fault.culprit)


NETWORKS = {"se": SE, "cbam": CBAM, "eca": ECA, "groups": GROUPS}
ORDINARY = [("se", True, "float64"), ("cbam", False, "float32"), ("cbam", True, "float32")]
ORDINARY += [("eca", False, "float64"), ("groups", True, "float32")]
EVERY = [*itertools.product(NETWORKS, (False, True), ("float64", "float32"), range(20))]


@pytest.mark.parametrize(
    ("network", "train", "dtype", "seed"),
    [
        pytest.param(*case, marks=[] if case[:3] in ORDINARY and case[3] == 0 else pytest.mark.exhaustive)
        for case in EVERY
    ],
)
def test_no_false_alarm(network, train, dtype, seed):
    spec = NETWORKS[network]
    candidate = keras_impl.ResNet(**spec.model_kwargs(), dtype=dtype)
    load_into(candidate, synthetic.weights(spec, seed))
    images = synthetic.images((33, 30), batch=2, seed=seed)
    report = compare_models(reference(spec, seed), candidate, images, dtype=dtype, train=train)
    assert report.holds, report.first_divergence()
    assert report.culprits() == []


def test_assert_parity_names_the_divergence():
    fault = FAULTS["epsilon of one batch norm"]
    with pytest.raises(
        AssertionError, match=r"keras differs first at layer layer2\.0\.bn3: .* wrong by itself: layer2"
    ):
        assert_parity(reference(fault.spec), fault.candidate(), synthetic.images())
    model = reference(fault.spec)
    assert isinstance(assert_parity(model, model, synthetic.images()), Report)
