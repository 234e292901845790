"""CBAM as its authors published it: https://github.com/Jongchan/attention-module."""

from weights_convert.families.base import CBAM, IMAGENET, TORCHVISION, V15, VARIES, Family

FAMILY = Family(
    name="cbam",
    about="the CBAM authors' attention-module",
    names=TORCHVISION
    | {
        "layer{s}.{b}.cbam.ChannelGate.mlp.1": "layer{s}.{b}.cbam.channel.fc1",
        "layer{s}.{b}.cbam.ChannelGate.mlp.3": "layer{s}.{b}.cbam.channel.fc2",
        "layer{s}.{b}.cbam.SpatialGate.spatial.conv": "layer{s}.{b}.cbam.spatial.conv",
        "layer{s}.{b}.cbam.SpatialGate.spatial.bn": "layer{s}.{b}.cbam.spatial.bn",
    },
    attentions=("cbam",),
    implies=V15 | CBAM,
    varies=VARIES,
    caution="the attention follows the last batch norm of a block, before the sum",
    feeds=IMAGENET,
    written=True,
)
