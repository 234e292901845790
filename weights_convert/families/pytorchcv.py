"""pytorchcv: https://github.com/osmr/imgclsmob, pytorch/pytorchcv/models (read in 0.0.67)."""

from weights_convert.families.base import CBAM, IMAGENET, V15, Case, Family, Variant

_U = "features.stage{s}.unit{b+1}"
_AMBIGUOUS = {"block": "bottleneck", "groups": 1, "stem": "7x7", "attention": ("none", "se")}

NAMES = {
    "features.init_block.conv.conv": "conv1",
    "features.init_block.conv.bn": "bn1",
    f"{_U}.body.conv{{n}}.conv": "layer{s}.{b}.conv{n}",
    f"{_U}.body.conv{{n}}.bn": "layer{s}.{b}.bn{n}",
    f"{_U}.identity_conv.conv": "layer{s}.{b}.downsample.0",
    f"{_U}.identity_conv.bn": "layer{s}.{b}.downsample.1",
    f"{_U}.se.conv{{n}}": "layer{s}.{b}.se.fc{n}",
    f"{_U}.cbam.ch_gate.mlp.fc{{n}}": "layer{s}.{b}.cbam.channel.fc{n}",
    f"{_U}.cbam.sp_gate.conv.conv": "layer{s}.{b}.cbam.spatial.conv",
    f"{_U}.cbam.sp_gate.conv.bn": "layer{s}.{b}.cbam.spatial.bn",
    f"{_U}.body.conv2.branches.branch{{n+1}}.conv": "layer{s}.{b}.sk.conv{n}",
    f"{_U}.body.conv2.branches.branch{{n+1}}.bn": "layer{s}.{b}.sk.bn{n}",
    f"{_U}.body.conv2.fc1.conv": "layer{s}.{b}.sk.fc1",
    f"{_U}.body.conv2.fc1.bn": "layer{s}.{b}.sk.bn",
    f"{_U}.body.conv2.fc2": "layer{s}.{b}.sk.fc2",
    "output": "fc",
}
VARIANTS = (
    Variant({"stem": "3x3"}, {"features.init_block.conv": "conv1", "features.init_block.bn": "bn1"}),
    Variant(
        {"stem": ("deep", "deep_tiered")},
        {f"features.init_block.conv{n}.conv": f"conv{n}" for n in (1, 2, 3)}
        | {f"features.init_block.conv{n}.bn": f"bn{n}" for n in (1, 2, 3)},
    ),
    Variant({"reduce_first": 2}, {"output.fc": "fc"}),  # SENet
    Variant(
        {"downsample_pool": "avg"},
        {
            f"{_U}.identity_block.conv.conv": "layer{s}.{b}.downsample.0",
            f"{_U}.identity_block.conv.bn": "layer{s}.{b}.downsample.1",
        },
    ),
)
IMPLIES = V15 | CBAM | {"cbam_bn_momentum": 0.1, "se_bias": True}
CASES = (Case({"reduce_first": 2}, {"dropout": 0.2}),)
ALTERNATIVES = (
    Case(_AMBIGUOUS, {"stride_in": "conv1"}),
    Case(_AMBIGUOUS, {"stride_in": "conv2"}, suffix="b"),
)
LABELS = {"se_resne": "seresne", "sk_resnext50_32x4d": "sknet50"}
REFUSED = (
    (
        {"stem": "deep", "attention": "none", "downsample_pool": "none"},
        "resnetd* has dilated convolutions, which this project does not support",
    ),
)

FAMILY = Family(
    name="pytorchcv",
    about="osmr's pytorchcv: resnet*, resnext*, seresnet*, seresnext*, senet*, cbam_resnet*, sknet*",
    names=NAMES,
    variants=VARIANTS,
    attentions=("none", "se", "cbam", "sk"),
    mlp_1x1=("se", "sk"),
    implies=IMPLIES,
    cases=CASES,
    alternatives=ALTERNATIVES,
    feeds=IMAGENET,
    labels=LABELS,
    refused=REFUSED,
    written=True,
)
