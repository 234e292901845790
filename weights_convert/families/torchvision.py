"""torchvision: ResNet and ResNeXt (https://github.com/pytorch/vision, models/resnet.py)."""

from weights_convert.families.base import IMAGENET, TORCHVISION, V15, VARIES, Family

FAMILY = Family(
    name="torchvision",
    about="torchvision's ResNet and ResNeXt; Cadene's copies of them too",
    names=TORCHVISION | {"last_linear": "fc"},
    attentions=("none",),
    implies=V15,
    varies=VARIES,
    feeds=IMAGENET,
    written=True,
)
