"""ECA as its authors published it: https://github.com/BangguWu/ECANet; k is read from the tensors."""

from weights_convert.families.base import IMAGENET, TORCHVISION, V15, VARIES, Family

FAMILY = Family(
    name="eca",
    about="the ECA authors' ECANet",
    names=TORCHVISION | {"layer{s}.{b}.eca.conv": "layer{s}.{b}.eca.conv"},
    attentions=("eca",),
    implies=V15,
    varies=VARIES,
    caution="the attention follows the last batch norm of a block, before the sum",
    feeds=IMAGENET,
    written=True,
)
