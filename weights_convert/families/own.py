"""This project's own three layouts, each the default of its frameworks' containers."""

from __future__ import annotations

from weights_convert.families.base import Family
from weights_convert.layouts import LAYOUTS
from weights_convert.spec import KINDS

_ABOUT = {
    "torch": "this project in PyTorch: the state dict of `torch_impl`",
    "keras": "this project in Keras 3: the weights of `keras_impl`",
    "tf1": "this project in TensorFlow 1: the variables of `tf1_compat`",
}
_ALL = ("none", "se", "cbam", "eca", "sk")

FAMILIES = tuple(
    Family(name=name, about=_ABOUT[name], attentions=_ALL, own=layout, kinds=tuple(KINDS), written=True)
    for name, layout in LAYOUTS.items()
)
