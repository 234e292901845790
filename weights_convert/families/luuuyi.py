"""luuuyi's CBAM: https://github.com/luuuyi/CBAM.PyTorch; no biases, no batch norm, maps [mean, max]."""

from weights_convert.families.base import CBAM, IMAGENET, TORCHVISION, V15, VARIES, Family

FAMILY = Family(
    name="luuuyi",
    about="luuuyi's CBAM.PyTorch",
    names=TORCHVISION
    | {
        "layer{s}.{b}.ca.fc.0": "layer{s}.{b}.cbam.channel.fc1",
        "layer{s}.{b}.ca.fc.2": "layer{s}.{b}.cbam.channel.fc2",
        "layer{s}.{b}.ca.fc{n}": "layer{s}.{b}.cbam.channel.fc{n}",  # older
        "layer{s}.{b}.sa.conv1": "layer{s}.{b}.cbam.spatial.conv",
    },
    attentions=("cbam",),
    mlp_1x1=("cbam",),
    implies=V15 | CBAM | {"cbam_mlp_bias": False, "cbam_order": "mean_max", "cbam_bn": False},
    varies=VARIES,
    caution="the attention follows the last batch norm of a block, before the sum",
    feeds=IMAGENET,
)
