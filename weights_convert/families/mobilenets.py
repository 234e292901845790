"""MobileNetV1 of pytorchcv, timm, keras.applications and TF-slim.

Read in pytorchcv/models/mobilenet.py (0.0.67), timm/models/efficientnet.py (1.0.31),
keras/applications/mobilenet.py (3.15) and slim/nets/mobilenet_v1.py. The last two count the units from 1
to 13, and their classifier is a 1x1 convolution.
"""

from typing import Any

from weights_convert.families.base import IMAGENET, Family, Preprocessing
from weights_convert.layouts import KERAS_BOOKKEEPING, TF1_BOOKKEEPING

_DEPTHS = (1, 2, 2, 6, 2)
_UNITS = [f"stage{stage}.{index}" for stage, depth in enumerate(_DEPTHS, 1) for index in range(depth)]
_IMPLIES: dict[str, Any] = {
    "norm": "bn",
    "stride_padding": "pad1",
    "activation": "relu",
    "bn_epsilon": 1e-5,
    "bn_momentum": 0.1,
    "dropout": 0.0,
    "head_bias": True,
}
_HALF = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def _counted(depthwise: str, pointwise: str, norm: str) -> dict[str, str]:
    """The names of the units; the patterns are filled with a unit's number, or with its convolution."""
    names = {}
    for number, unit in enumerate(_UNITS, 1):
        for pattern, layer in ((depthwise, 1), (pointwise, 2)):
            convolution = pattern.format(number)
            names[convolution] = f"{unit}.conv{layer}"
            names[norm.format(convolution)] = f"{unit}.bn{layer}"
    return names


PYTORCHCV = Family(
    name="pytorchcv_mobilenet",
    about="osmr's pytorchcv: mobilenet_w1",
    kinds=("mobilenet",),
    names={
        "features.init_block.conv": "conv1",
        "features.init_block.bn": "bn1",
        "features.stage{s}.unit{b+1}.dw_conv.conv": "stage{s}.{b}.conv1",
        "features.stage{s}.unit{b+1}.dw_conv.bn": "stage{s}.{b}.bn1",
        "features.stage{s}.unit{b+1}.pw_conv.conv": "stage{s}.{b}.conv2",
        "features.stage{s}.unit{b+1}.pw_conv.bn": "stage{s}.{b}.bn2",
        "output": "fc",
    },
    attentions=("none",),
    implies=_IMPLIES,
    feeds=IMAGENET,
    labels={"mobilenet_v1": "mobilenet_w1"},
    written=True,
)
TIMM = Family(
    name="timm_mobilenet",
    about="timm's mobilenetv1_100",
    kinds=("mobilenet",),
    names={
        "conv_stem": "conv1",
        "bn1": "bn1",
        "blocks.{s}.{b}.conv_dw": "stage{s+1}.{b}.conv1",
        "blocks.{s}.{b}.bn1": "stage{s+1}.{b}.bn1",
        "blocks.{s}.{b}.conv_pw": "stage{s+1}.{b}.conv2",
        "blocks.{s}.{b}.bn2": "stage{s+1}.{b}.bn2",
        "classifier": "fc",
    },
    attentions=("none",),
    implies=_IMPLIES | {"activation": "relu6"},
    feeds=_HALF,
    labels={"mobilenet_v1": "mobilenetv1_100"},
    written=True,
)
KERAS = Family(
    name="keras_mobilenet",
    about="keras.applications' MobileNet (.h5)",
    kinds=("mobilenet",),
    separator="/",
    names={"conv1": "conv1", "conv1_bn": "bn1", "conv_preds": "fc"}
    | _counted("conv_dw_{}", "conv_pw_{}", "{}_bn"),
    leaves={"depthwise_kernel": "kernel"},  # Keras 2
    attentions=("none",),
    mlp_1x1=("head",),
    implies=_IMPLIES
    | {"stride_padding": "keras", "activation": "relu6", "bn_epsilon": 1e-3, "bn_momentum": 0.01}
    | {"dropout": 1e-3},
    feeds=_HALF,
    labels={"mobilenet_v1": "MobileNet"},
    bookkeeping=KERAS_BOOKKEEPING,
)
SLIM = Family(
    name="slim_mobilenet",
    about="TF-slim's MobilenetV1 (TensorFlow 1)",
    kinds=("mobilenet",),
    separator="/",
    names={
        "MobilenetV1/Conv2d_0": "conv1",
        "MobilenetV1/Conv2d_0/BatchNorm": "bn1",
        "MobilenetV1/Logits/Conv2d_1c_1x1": "fc",
    }
    | _counted("MobilenetV1/Conv2d_{}_depthwise", "MobilenetV1/Conv2d_{}_pointwise", "{}/BatchNorm"),
    leaves={"weights": "kernel", "depthwise_weights": "kernel", "biases": "bias"},
    attentions=("none",),
    mlp_1x1=("head",),
    implies=_IMPLIES
    | {"stride_padding": "same", "activation": "relu6", "bn_epsilon": 1e-3, "bn_momentum": 3e-4}
    | {"dropout": 1e-3},
    feeds=Preprocessing(
        mean=_HALF.mean,
        std=_HALF.std,
        classes="1000 are the sorted synsets; of 1001 class 0 is the background, and these follow",
    ),
    labels={"mobilenet_v1": "MobilenetV1"},
    bookkeeping=TF1_BOOKKEEPING,
)
FAMILIES = (PYTORCHCV, TIMM, KERAS, SLIM)
