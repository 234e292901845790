"""Keras's own ResNet-50, 101 and 152: https://keras.io/api/applications/resnet/.

Its convolutions have biases before the batch norms, and the stride is on the first 1x1.
"""

from weights_convert.families.base import V15, Family, Preprocessing
from weights_convert.layouts import KERAS_BOOKKEEPING

FAMILY = Family(
    name="keras_applications",
    about="keras.applications' ResNet50, ResNet101 and ResNet152 (.h5)",
    separator="/",
    names={
        "conv1_conv": "conv1",
        "conv1_bn": "bn1",
        "conv{s+1}_block{b+1}_0_conv": "layer{s}.{b}.downsample.0",
        "conv{s+1}_block{b+1}_0_bn": "layer{s}.{b}.downsample.1",
        "conv{s+1}_block{b+1}_{n}_conv": "layer{s}.{b}.conv{n}",
        "conv{s+1}_block{b+1}_{n}_bn": "layer{s}.{b}.bn{n}",
        "predictions": "fc",
        "probs": "fc",  # older
    },
    attentions=("none",),
    implies=V15 | {"norm": "bias_bn", "stride_in": "conv1", "bn_epsilon": 1.001e-5, "bn_momentum": 0.01},
    bookkeeping=KERAS_BOOKKEEPING,
    feeds=Preprocessing("BGR", 255, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0)),
)
