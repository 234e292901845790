"""tensorflowcv: pytorchcv's networks in TensorFlow 1 (https://github.com/osmr/imgclsmob), saved as .npz.

A grouped convolution is stored as one kernel per group, `.../conv2/conv/convgroup1/kernel:0` and so on.
"""

from collections.abc import Mapping

from weights_convert.families import pytorchcv
from weights_convert.families.base import IMAGENET, Family, Variant
from weights_convert.layouts import TF1_BOOKKEEPING


def _paths(names: Mapping[str, str]) -> dict[str, str]:
    return {file.replace(".", "/"): canonical for file, canonical in names.items()}


_U = "features/stage{s}/unit{b+1}"

FAMILY = Family(
    name="tensorflowcv",
    about="osmr's tensorflowcv (.npz)",
    separator="/",
    names=_paths(pytorchcv.NAMES)
    | {
        f"{_U}/body/conv{{n}}/conv/convgroup{{part}}": "layer{s}.{b}.conv{n}",
        f"{_U}/se/conv{{n}}/conv": "layer{s}.{b}.se.fc{n}",
    },
    variants=tuple(Variant(v.when, _paths(v.names)) for v in pytorchcv.VARIANTS),
    attentions=("none", "se"),
    mlp_1x1=("se",),
    implies=pytorchcv.IMPLIES,
    cases=pytorchcv.CASES,
    alternatives=pytorchcv.ALTERNATIVES,
    feeds=IMAGENET,
    labels=pytorchcv.LABELS,
    bookkeeping=TF1_BOOKKEEPING,
    refused=pytorchcv.REFUSED,
)
