"""Cadene's SE-ResNet, SE-ResNeXt and SENet-154, and timm's `legacy_*` (the same code).

https://github.com/Cadene/pretrained-models.pytorch, pretrainedmodels/models/senet.py; converted from Caffe.
"""

from weights_convert.families.base import IMAGENET, V15, Case, Family

FAMILY = Family(
    name="cadene",
    about="Cadene's pretrained-models.pytorch, and timm's legacy_se* models",
    names={
        "layer0.conv{n}": "conv{n}",
        "layer0.bn{n}": "bn{n}",
        "layer{s}.{b}.conv{n}": "layer{s}.{b}.conv{n}",
        "layer{s}.{b}.bn{n}": "layer{s}.{b}.bn{n}",
        "layer{s}.{b}.downsample.{n}": "layer{s}.{b}.downsample.{n}",
        "layer{s}.{b}.se_module.fc{n}": "layer{s}.{b}.se.fc{n}",
        "last_linear": "fc",
    },
    attentions=("se",),
    mlp_1x1=("se",),
    implies=V15 | {"stem_pool": "ceil", "se_bias": True},
    cases=(
        Case({"block": "bottleneck", "groups": 1}, {"stride_in": "conv1"}),
        Case({"block": "basic"}, {"relu_before_attention": True}),
        Case({"reduce_first": 2}, {"dropout": 0.2}),
    ),
    feeds=IMAGENET,
    written=True,
)
