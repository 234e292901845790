"""osmr's pytorchcv: https://github.com/osmr/pytorchcv, models/bninception.py."""

from weights_convert.families.base import IMAGENET, Family
from weights_convert.families.cadene_inception import IMPLIES

# theirs -> the module; units count within a stage, and a stage begins with the module that halves the map
_MODULES = {
    "stage1.unit1": "inception_3a",
    "stage1.unit2": "inception_3b",
    "stage2.unit1": "inception_3c",
    "stage2.unit2": "inception_4a",
    "stage2.unit3": "inception_4b",
    "stage2.unit4": "inception_4c",
    "stage2.unit5": "inception_4d",
    "stage3.unit1": "inception_4e",
    "stage3.unit2": "inception_5a",
    "stage3.unit3": "inception_5b",
}
_BRANCHES = {
    "branch1": "branch1.unit1",
    "branch2.conv1": "branch2.unit1",
    "branch2.conv2": "branch2.unit2",
    "branch3.conv1": "branch3.unit1",
    "branch3.conv2": "branch3.unit2",
    "branch3.conv3": "branch3.unit3",
    "branch4.conv": "branch4.unit1",
}
_REDUCING = {
    "branch1.conv1": "branch1.unit1",
    "branch1.conv2": "branch1.unit2",
    "branch2.conv1": "branch2.unit1",
    "branch2.conv2": "branch2.unit2",
    "branch2.conv3": "branch2.unit3",
}
_UNITS = {
    "features.init_block.conv1": "stem.unit1",
    "features.init_block.conv2.conv1": "stem.unit2",
    "features.init_block.conv2.conv2": "stem.unit3",
    **{
        f"features.{place}.branches.{theirs}": f"{module}.{unit}"
        for place, module in _MODULES.items()
        for theirs, unit in (_REDUCING if module in ("inception_3c", "inception_4e") else _BRANCHES).items()
    },
}

FAMILY = Family(
    name="pytorchcv_inception",
    about="osmr's pytorchcv: bninception",
    kinds=("inception",),
    names={f"{theirs}.{leaf}": f"{unit}.{leaf}" for theirs, unit in _UNITS.items() for leaf in ("conv", "bn")}
    | {"output": "fc"},
    attentions=("none",),
    implies=IMPLIES,
    feeds=IMAGENET,
    labels={"bn_inception": "bninception"},
    written=True,
)
