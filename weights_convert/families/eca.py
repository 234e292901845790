"""ECA as its authors published it: https://github.com/BangguWu/ECANet; k is read from the tensors."""

from weights_convert.families.base import IMAGENET, TORCHVISION, V15, Family

FAMILY = Family(
    name="eca",
    about="the ECA authors' ECANet",
    names=TORCHVISION | {"layer{s}.{b}.eca.conv": "layer{s}.{b}.eca.conv"},
    attentions=("eca",),
    implies=V15,
    feeds=IMAGENET,
    written=True,
)
