"""Cadene's BN-Inception: https://github.com/Cadene/pretrained-models.pytorch, models/bninception.py.

Converted from Caffe: the convolutions have biases before their batch norms.
"""

from weights_convert.families.base import Family, Preprocessing

_BRANCHES = {
    "1x1": "branch1.unit1",
    "3x3_reduce": "branch2.unit1",
    "3x3": "branch2.unit2",
    "double_3x3_reduce": "branch3.unit1",
    "double_3x3_1": "branch3.unit2",
    "double_3x3_2": "branch3.unit3",
    "pool_proj": "branch4.unit1",
}
_REDUCING = {  # without a 1x1 branch and a projection
    "3x3_reduce": "branch1.unit1",
    "3x3": "branch1.unit2",
    "double_3x3_reduce": "branch2.unit1",
    "double_3x3_1": "branch2.unit2",
    "double_3x3_2": "branch2.unit3",
}
MODULES = {  # of BN-Inception: their name of a unit -> ours
    name: _REDUCING if name in ("3c", "4e") else _BRANCHES for name in
            ("3a", "3b", "3c", "4a", "4b", "4c", "4d", "4e", "5a", "5b")}  # fmt: skip
UNITS = {  # theirs: convolution; its batch norm has "_bn" more
    "conv1_7x7_s2": "stem.unit1",
    "conv2_3x3_reduce": "stem.unit2",
    "conv2_3x3": "stem.unit3",
    **{
        f"inception_{module}_{theirs}": f"inception_{module}.{unit}"
        for module, units in MODULES.items()
        for theirs, unit in units.items()
    },
}
# of networks that Caffe's were converted to
IMPLIES = {
    "norm": "bias_bn",
    "reduction_pool": "ceil",
    "last_pool": "max",
    "count_padding": True,
    "bn_epsilon": 1e-5,
    "bn_momentum": 0.1,
    "dropout": 0.0,
}

FAMILY = Family(
    name="cadene_inception",
    about="Cadene's pretrained-models.pytorch: bninception",
    kinds=("inception",),
    names={theirs: f"{unit}.conv" for theirs, unit in UNITS.items()}
    | {f"{theirs}_bn": f"{unit}.bn" for theirs, unit in UNITS.items()}
    | {"last_linear": "fc"},
    attentions=("none",),
    implies=IMPLIES,
    labels={"bn_inception": "bninception"},
    feeds=Preprocessing("BGR", 255, (104.0, 117.0, 128.0), (1.0, 1.0, 1.0)),
    written=True,
)
