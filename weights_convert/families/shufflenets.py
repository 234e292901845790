"""ShuffleNetV1 of pytorchcv and of its authors (megvii), with three groups.

Read in pytorchcv/models/shufflenet.py (0.0.67) and in ShuffleNetV1/blocks.py and network.py of
https://github.com/megvii-model/ShuffleNet-Series. The authors' code counts the units from 0 to 15, shuffles
after the 3x3 convolution, and puts the shortcut of a strided unit first.
"""

from typing import Any

from weights_convert.families.base import IMAGENET, Family, Preprocessing

_DEPTHS = (4, 8, 4)
_UNITS = [f"stage{stage}.{index}" for stage, depth in enumerate(_DEPTHS, 2) for index in range(depth)]
_IMPLIES: dict[str, Any] = {
    "norm": "bn",
    "shuffle_after": "conv1",
    "shuffle_view": "groups_first",
    "concat_order": "branch_shortcut",
    "count_padding": True,
    "bn_epsilon": 1e-5,
    "bn_momentum": 0.1,
    "dropout": 0.0,
    "head_bias": True,
}
_MAIN = {  # layer in a unit -> in the authors' code
    "conv1": "branch_main_1.0",
    "bn1": "branch_main_1.1",
    "conv2": "branch_main_1.3",
    "bn2": "branch_main_1.4",
    "conv3": "branch_main_2.0",
    "bn3": "branch_main_2.1",
}

PYTORCHCV = Family(
    name="pytorchcv_shufflenet",
    about="osmr's pytorchcv: shufflenet_g3_w1",
    kinds=("shufflenet",),
    names={
        "features.init_block.conv": "conv1",
        "features.init_block.bn": "bn1",
        "features.stage{s+1}.unit{b+1}.compress_conv1": "stage{s+2}.{b}.conv1",
        "features.stage{s+1}.unit{b+1}.compress_bn1": "stage{s+2}.{b}.bn1",
        "features.stage{s+1}.unit{b+1}.dw_conv2": "stage{s+2}.{b}.conv2",
        "features.stage{s+1}.unit{b+1}.dw_bn2": "stage{s+2}.{b}.bn2",
        "features.stage{s+1}.unit{b+1}.expand_conv3": "stage{s+2}.{b}.conv3",
        "features.stage{s+1}.unit{b+1}.expand_bn3": "stage{s+2}.{b}.bn3",
        "output": "fc",
    },
    attentions=("none",),
    implies=_IMPLIES,
    feeds=IMAGENET,
    labels={"shufflenet_v1_g3": "shufflenet_g3_w1"},
    written=True,
)
MEGVII = Family(
    name="megvii_shufflenet",
    about="the authors' ShuffleNetV1 (megvii-model/ShuffleNet-Series), 1.0x with 3 groups",
    kinds=("shufflenet",),
    names={"first_conv.0": "conv1", "first_conv.1": "bn1", "classifier.0": "fc"}
    | {
        f"features.{number}.{theirs}": f"{unit}.{ours}"
        for number, unit in enumerate(_UNITS)
        for ours, theirs in _MAIN.items()
    },
    attentions=("none",),
    implies=_IMPLIES
    | {"shuffle_after": "conv2", "shuffle_view": "groups_last", "concat_order": "shortcut_branch"}
    | {"head_bias": False},
    feeds=Preprocessing(
        "BGR", 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), size=224, crop=0.875, interpolation="bilinear"
    ),
    labels={"shufflenet_v1_g3": "ShuffleNetV1"},
    written=True,
)
FAMILIES = (PYTORCHCV, MEGVII)
