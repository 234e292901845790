"""ResNets of transformers: https://github.com/huggingface/transformers (models/resnet/modeling_resnet.py).

`ResNetForImageClassification` has the prefix `resnet.`, `ResNetModel` none. A folder's config.json says what
names do not show: `families/configs.py`.
"""

from weights_convert.families.base import IMAGENET, V15, Family

_NAMES = {
    "embedder.embedder.convolution": "conv1",
    "embedder.embedder.normalization": "bn1",
    "encoder.stages.{s}.layers.{b}.layer.{n}.convolution": "layer{s+1}.{b}.conv{n+1}",
    "encoder.stages.{s}.layers.{b}.layer.{n}.normalization": "layer{s+1}.{b}.bn{n+1}",
    "encoder.stages.{s}.layers.{b}.shortcut.convolution": "layer{s+1}.{b}.downsample.0",
    "encoder.stages.{s}.layers.{b}.shortcut.normalization": "layer{s+1}.{b}.downsample.1",
}

FAMILY = Family(
    name="transformers",
    about="transformers' ResNetForImageClassification and ResNetModel",
    names={f"resnet.{theirs}": ours for theirs, ours in _NAMES.items()} | _NAMES | {"classifier.1": "fc"},
    attentions=("none",),
    implies=V15,
    feeds=IMAGENET,
    varies=("strides", "activation", "stride_in"),
)
