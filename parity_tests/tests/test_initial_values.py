"""Fresh networks: each parameter starts from PyTorch's distribution in the three frameworks."""

from __future__ import annotations

import math
import re
from collections import defaultdict

import keras
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import torch

import keras_impl
import tf1_compat
import torch_impl
from parity_tests.judge.synthetic import tiny
from weights_convert import Checkpoint, state_of
from weights_convert.spec import ResNetSpec, model_spec

# Wider than usual networks, so that enough numbers show a deviation.
SPECS = {
    "cbam_resnet20": model_spec("cbam_resnet20"),
    "se_resnext": tiny(attention="se", groups=4, width_per_group=16, width=64, reduction=1, num_classes=64),
    "eca": tiny(attention="eca", eca_kernel_sizes=(101, 101), depths=(5, 5)),
    "bias_bn": tiny(norm="bias_bn", stem="deep", width=32, stem_width=32, attention="cbam", reduction=1),
    "bias": tiny(norm="bias", block="basic", attention="cbam", cbam_spatial_bias=True, depths=(9, 9)),
}
SEEDS = (1, 2, 3)


def torch_state(spec: ResNetSpec, seed: int) -> Checkpoint:
    torch.manual_seed(seed)
    return state_of(torch_impl.ResNet(**spec.model_kwargs()))


def keras_state(spec: ResNetSpec, seed: int) -> Checkpoint:
    keras.utils.set_random_seed(seed)
    return state_of(keras_impl.ResNet(**spec.model_kwargs()))


def tf1_state(spec: ResNetSpec, seed: int) -> Checkpoint:
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(seed)
        tf1_compat.resnet(tf.zeros((1, 32, 32, spec.in_channels)), **spec.model_kwargs())
        session.run(tf.global_variables_initializer())
        return state_of(session)


STATES = {"torch": torch_state, "keras": keras_state, "tf1": tf1_state}


def pooled(framework: str, spec: ResNetSpec) -> dict[str, np.ndarray]:
    """The values of each kind of parameter, over all its tensors (in blocks of one shape, of every seed)."""
    values = defaultdict(list)
    for seed in SEEDS:
        for name, array in STATES[framework](spec, seed).items():
            kind = f"{re.sub(r'(?<=layer.)[.][0-9]+', '', name)} {array.shape}"
            values[kind].append(array.ravel().astype(np.float64))
    return {kind: np.concatenate(arrays) for kind, arrays in values.items() if "num_batches" not in kind}


@pytest.mark.parametrize(
    "name",
    ["se_resnext", "bias_bn"]
    + [pytest.param(name, marks=pytest.mark.exhaustive) for name in ("cbam_resnet20", "eca", "bias")],
)
def test_the_three_start_from_the_same_distributions(name):
    """Mean, deviation and mean size (which distinguishes uniform and normal), within five standard errors."""
    spec = SPECS[name]
    reference = pooled("torch", spec)
    for framework in ("keras", "tf1"):
        different = []
        ours = pooled(framework, spec)
        assert set(ours) == set(reference)
        for kind, values in reference.items():
            noise = 5 * math.sqrt(2 / values.size)  # of the difference of two samples
            deviation, other = values.std(), ours[kind].std()
            assert values.size > 1 or deviation == 0
            close = (
                abs(ours[kind].mean() - values.mean()) <= noise * deviation
                and abs(other - deviation) <= noise * deviation
                and abs(np.abs(ours[kind]).mean() - np.abs(values).mean()) <= noise * deviation
            )
            if not close:
                different.append((kind, values.size, float(deviation), float(other)))
        assert not different, (framework, different)


@pytest.mark.parametrize("block", ["SqueezeExcitation", "CBAM", "ECA", "BasicBlock", "Bottleneck"])
def test_blocks_alone_start_as_in_the_networks(block):
    """With enough channels to distinguish the standard deviations of the kernels."""
    arguments = (64, 64) if block in ("BasicBlock", "Bottleneck") else (64,)
    keywords = {
        "ECA": {"kernel_size": 301},
        "CBAM": {"kernel_size": 15},
        "SqueezeExcitation": {"reduction": 2},
    }.get(block, {})
    torch.manual_seed(1)
    keras.utils.set_random_seed(1)
    module = getattr(torch_impl, block)(*arguments, **keywords)
    layer = getattr(keras_impl, block)(*arguments, **keywords)
    layer.build((None, 8, 8, 64))
    kernels = {p.numel(): p.std().item() for p in module.parameters() if p.dim() > 1}
    ours = {int(np.prod(v.shape)): np.std(v) for v in layer.trainable_variables if len(v.shape) > 1}
    assert ours.keys() == kernels.keys()
    for size, deviation in kernels.items():
        assert ours[size] == pytest.approx(deviation, rel=5 * math.sqrt(2 / size)), size


@pytest.mark.parametrize("framework", STATES)
def test_no_two_tensors_are_alike(framework):
    """One initialiser with one seed would give equal tensors for equal shapes."""
    state = STATES[framework](tiny(norm="bias", block="basic", attention="cbam", cbam_spatial_bias=True), 1)
    random = [a.tobytes() for n, a in state.items() if a.ndim > 1 or (n.endswith("bias") and a.size > 1)]
    assert len(set(random)) == len(random)
