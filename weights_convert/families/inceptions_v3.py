"""Inception-v3 of torchvision, timm, Cadene's package, moskomule, pytorchcv, keras.applications and TF-slim.

Read in torchvision/models/inception.py (0.29.1), timm/models/inception_v3.py (1.0.31),
pretrainedmodels/models/inceptionv3.py (0.7.4), senet.pytorch/senet/se_inception.py,
pytorchcv/models/inceptionv3.py (0.0.67), keras/applications/inception_v3.py (3.15) and
slim/nets/inception_v3.py.
"""

import re
from collections.abc import Iterator
from typing import Any

from weights_convert.families.base import IMAGENET, Family, Preprocessing
from weights_convert.families.counted import AS_LISTED
from weights_convert.layouts import KERAS_BOOKKEEPING, TF1_BOOKKEEPING
from weights_convert.spec import InceptionV3Spec
from weights_convert.spec.inception_table import Branch, Conv, Fork, Pool, convolutions
from weights_convert.spec.inception_v3_table import aux_of, network_of

_TABLE = network_of(vars(InceptionV3Spec()))
_STEM = [conv.name for conv, _ in convolutions(_TABLE.stem)]
_AUX = [f"AuxLogits.{conv.name}" for conv, _ in convolutions(aux_of(vars(InceptionV3Spec())))]
_UNITS = [
    *_STEM,
    *(
        f"{module.name}.{conv.name}"
        for module in _TABLE.modules
        for steps in module.branches
        for conv, _ in convolutions(steps)
    ),
    *_AUX,
]
_IMPLIES: dict[str, Any] = {  # torchvision's
    "norm": "bn",
    "last_pool": "avg",
    "count_padding": True,
    "transform_input": False,
    "bn_epsilon": 1e-3,
    "bn_momentum": 0.1,
    "dropout": 0.5,
    "head_bias": True,
}
_HALF = Preprocessing(
    mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), size=299, crop=0.875, interpolation="bilinear"
)
_BACKGROUND = Preprocessing(
    mean=_HALF.mean,
    std=_HALF.std,
    size=299,
    crop=0.875,
    interpolation="bilinear",
    classes="1000 are the sorted synsets; of 1001 class 0 is the background, and these follow",
)

TORCHVISION = Family(
    name="torchvision_inception",
    about="torchvision's inception_v3; timm's, Cadene's and moskomule's copies of it",
    kinds=("inception_v3",),
    names={f"{unit}.{leaf}": f"{unit}.{leaf}" for unit in _UNITS for leaf in ("conv", "bn")}
    | {"AuxLogits.fc": "AuxLogits.fc", "fc": "fc", "last_linear": "fc"},
    attentions=("none",),
    implies=_IMPLIES,
    varies=("last_pool", "count_padding", "transform_input"),
    feeds=_HALF,
    feeds_cases=(({"transform_input": True}, Preprocessing(size=299, crop=0.875, interpolation="bilinear")),),
    bookkeeping=(
        (re.compile(r"(.*\.)?SELayer\.fc\.[02]\.weight"), "weights of an SE layer that its code never runs"),
    ),
    written=True,
)


def _pytorchcv(steps: Branch, branch: int) -> Iterator[tuple[str, str]]:
    """Each unit of a branch: pytorchcv's name and ours."""
    first = steps[0]
    alone = isinstance(first, Pool) or (isinstance(first, Conv) and first.name == "branch1x1")
    for number, step in enumerate(steps, 1):
        if isinstance(step, Conv):
            yield f"branch{branch}.{'conv' if alone else f'conv_list.conv{number}'}", step.name
        elif isinstance(step, Fork):
            for conv, name in zip(step.convs, ("conv1x3", "conv3x1"), strict=True):
                yield f"branch{branch}.{name}", conv.name


_STAGES = {"5": ("b", "c", "d"), "6": ("a", "b", "c", "d", "e"), "7": ("a", "b", "c")}
_PLACES = {  # module -> its place in pytorchcv's network
    f"Mixed_{stage}{letter}": f"features.stage{int(stage) - 4}.unit{unit}"
    for stage, letters in _STAGES.items()
    for unit, letter in enumerate(letters, 1)
}
_OF_PYTORCHCV = {f"features.init_block.conv{n}": unit for n, unit in enumerate(_STEM, 1)} | {
    f"{_PLACES[module.name]}.branches.{theirs}": f"{module.name}.{ours}"
    for module in _TABLE.modules
    for branch, steps in enumerate(module.branches, 1)
    for theirs, ours in _pytorchcv(steps, branch)
}
PYTORCHCV = Family(
    name="pytorchcv_inception_v3",
    about="osmr's pytorchcv: inceptionv3",
    kinds=("inception_v3",),
    names={
        f"{theirs}.{leaf}": f"{ours}.{leaf}"
        for theirs, ours in _OF_PYTORCHCV.items()
        for leaf in ("conv", "bn")
    }
    | {"output.fc": "fc"},
    attentions=("none",),
    implies=_IMPLIES,
    feeds=IMAGENET,
    labels={"inception_v3": "inceptionv3"},
    written=True,
)
KERAS = Family(
    name="keras_inception_v3",
    about="keras.applications' InceptionV3 (.h5)",
    kinds=("inception_v3",),
    separator="/",
    names={"predictions": "fc"},
    creation_order=AS_LISTED,
    models=("inception_v3",),
    absent=("scale",),
    attentions=("none",),
    implies=_IMPLIES | {"count_padding": False, "bn_momentum": 0.01, "dropout": 0.0},
    labels={"inception_v3": "InceptionV3"},
    feeds=_HALF,
    bookkeeping=KERAS_BOOKKEEPING,
)

_DOUBLE = ("0a_1x1", "0b_3x3", "0c_3x3")
_SLIM = {  # our module -> of each branch with weights, slim's names of its convolutions
    "5b": (("0a_1x1",), ("0a_1x1", "0b_5x5"), _DOUBLE, ("0b_1x1",)),
    "5c": (("0a_1x1",), ("0b_1x1", "/Conv_1_0c_5x5"), _DOUBLE, ("0b_1x1",)),
    "6a": (("1a_1x1",), ("0a_1x1", "0b_3x3", "1a_1x1")),
    "6b": (
        ("0a_1x1",),
        ("0a_1x1", "0b_1x7", "0c_7x1"),
        ("0a_1x1", "0b_7x1", "0c_1x7", "0d_7x1", "0e_1x7"),
        ("0b_1x1",),
    ),
    "7a": (("0a_1x1", "1a_3x3"), ("0a_1x1", "0b_1x7", "0c_7x1", "1a_3x3")),
    "7b": (
        ("0a_1x1",),
        ("0a_1x1", "0b_1x3", "0b_3x1"),
        ("0a_1x1", "0b_3x3", "0c_1x3", "0d_3x1"),
        ("0b_1x1",),
    ),
    "7c": (
        ("0a_1x1",),
        ("0a_1x1", "0b_1x3", "0c_3x1"),
        ("0a_1x1", "0b_3x3", "0c_1x3", "0d_3x1"),
        ("0b_1x1",),
    ),
}
_SLIM |= {"5d": _SLIM["5b"], **dict.fromkeys(("6c", "6d", "6e"), _SLIM["6b"])}


def _slim(module: str) -> Iterator[str]:
    """Slim's names of a module's convolutions, in our order."""
    for branch, names in enumerate(_SLIM[module.removeprefix("Mixed_")]):
        for name in names:  # one of them is not called Conv2d
            yield f"{module}/Branch_{branch}/{name[1:] if name[0] == '/' else f'Conv2d_{name}'}"


_OF_SLIM = [
    *_STEM,
    *(name for module in _TABLE.modules for name in _slim(module.name)),
    "AuxLogits/Conv2d_1b_1x1",
    "AuxLogits/Conv2d_2a_5x5",
]
SLIM = Family(
    name="slim_inception_v3",
    about="TF-slim's InceptionV3 (TensorFlow 1)",
    kinds=("inception_v3",),
    separator="/",
    names={
        f"InceptionV3/{theirs}{end}": f"{ours}.{leaf}"
        for theirs, ours in zip(_OF_SLIM, _UNITS, strict=True)
        for end, leaf in (("", "conv"), ("/BatchNorm", "bn"))
    }
    | {
        "InceptionV3/AuxLogits/Conv2d_2b_1x1": "AuxLogits.fc",
        "InceptionV3/Logits/Conv2d_1c_1x1": "fc",
    },
    leaves={"weights": "kernel", "biases": "bias"},
    absent=("scale",),
    attentions=("none",),
    mlp_1x1=("head",),
    implies=_IMPLIES | {"count_padding": False, "bn_momentum": 3e-4, "dropout": 0.2},
    labels={"inception_v3": "InceptionV3"},
    feeds=_BACKGROUND,
    bookkeeping=TF1_BOOKKEEPING,
)
FAMILIES = (TORCHVISION, PYTORCHCV, KERAS, SLIM)
