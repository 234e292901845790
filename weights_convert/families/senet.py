"""The SENet authors' Caffe files: https://github.com/hujie-frank/SENet, models/*.prototxt.

Layers have the names of the prototxt; `formats.caffe` gives their blobs PyTorch's leaf names, and the
tensors of a Scale to the BatchNorm before it.
"""

from typing import Any

from weights_convert.families.base import CAFFE, V15, Case, Family
from weights_convert.families.cadene_inception import MODULES

_B = "conv{s+1}_{b+1}"
_CAFFE: dict[str, Any] = {
    "se_bias": True,
    "bn_epsilon": 9.999999747378752e-06,  # the default of caffe.proto, a float
    "bn_momentum": 0.001,
}
_STEM = {
    "conv1/7x7_s2": "stem.unit1",
    "conv2/3x3_reduce": "stem.unit2",
    "conv2/3x3": "stem.unit3",
}
_STEPS = {  # Cadene's names, which count otherwise
    "double_3x3_reduce": "double3x3_reduce",
    "double_3x3_1": "double3x3a",
    "double_3x3_2": "double3x3b",
}
_UNITS = _STEM | {
    f"inception_{module}/{_STEPS.get(theirs, theirs)}": f"inception_{module}.{unit}"
    for module, units in MODULES.items()
    for theirs, unit in units.items()
}

RESNETS = Family(
    name="senet",
    about="the SENet authors' Caffe models: SE-ResNet, SE-ResNeXt, SENet-154",
    names={
        "conv1/7x7_s2": "conv1",
        "conv1/7x7_s2/bn": "bn1",
        "conv1_1/3x3_s2": "conv1",
        "conv1_1/3x3_s2/bn": "bn1",
        "conv1_{n}/3x3": "conv{n}",
        "conv1_{n}/3x3/bn": "bn{n}",
        f"{_B}_1x1_reduce": "layer{s}.{b}.conv1",
        f"{_B}_1x1_reduce/bn": "layer{s}.{b}.bn1",
        f"{_B}_3x3": "layer{s}.{b}.conv2",
        f"{_B}_3x3/bn": "layer{s}.{b}.bn2",
        f"{_B}_1x1_increase": "layer{s}.{b}.conv3",
        f"{_B}_1x1_increase/bn": "layer{s}.{b}.bn3",
        f"{_B}_1x1_proj": "layer{s}.{b}.downsample.0",
        f"{_B}_1x1_proj/bn": "layer{s}.{b}.downsample.1",
        f"{_B}_1x1_down": "layer{s}.{b}.se.fc1",
        f"{_B}_1x1_up": "layer{s}.{b}.se.fc2",
        "classifier": "fc",
    },
    attentions=("se",),
    mlp_1x1=("se",),
    implies=V15 | {"stem_pool": "ceil"} | _CAFFE,
    cases=(
        Case({"block": "bottleneck", "groups": 1}, {"stride_in": "conv1"}),
        Case({"reduce_first": 2}, {"dropout": 0.2}),
    ),
    feeds=CAFFE,
)
INCEPTION = Family(
    name="senet_inception",
    about="the SENet authors' Caffe model: SE-BN-Inception",
    kinds=("inception",),
    names={theirs: f"{unit}.conv" for theirs, unit in _UNITS.items()}
    | {f"{theirs}/bn": f"{unit}.bn" for theirs, unit in _UNITS.items()}
    | {f"inception_{module}_1x1_down": f"inception_{module}.se.fc1" for module in MODULES}
    | {f"inception_{module}_1x1_up": f"inception_{module}.se.fc2" for module in MODULES}
    | {"classifier": "fc"},
    attentions=("se",),
    mlp_1x1=("se",),
    implies={
        "norm": "bn",
        "reduction_pool": "ceil",
        "last_pool": "max",
        "count_padding": True,
        "dropout": 0.0,
    }
    | _CAFFE,
    feeds=CAFFE,
)
FAMILIES = (RESNETS, INCEPTION)
