"""qubvel's SE networks in Keras: https://github.com/qubvel/classification_models, models/senet.py.

Layers have Keras's automatic names, so only their numbers identify them; a grouped convolution is one layer
per group.
"""

from weights_convert.families.base import IMAGENET, V15, Case, Family
from weights_convert.layouts import KERAS_BOOKKEEPING

FAMILY = Family(
    name="qubvel",
    about="qubvel's classification_models (Keras .h5): seresnet50 and up, seresnext50/101, senet154",
    separator="/",
    creation_order=(
        *("conv1", "bn1", "conv2", "bn2", "conv3", "bn3"),
        *("downsample.0", "downsample.1", "se.fc1", "se.fc2"),
    ),
    models=(
        *("se_resnet50", "se_resnet101", "se_resnet152"),
        *("se_resnext50_32x4d", "se_resnext101_32x4d", "senet154"),
    ),
    attentions=("se",),
    implies=V15 | {"bn_epsilon": 9.999999747378752e-06, "bn_momentum": 0.01, "se_bias": True},
    cases=(
        Case({"block": "bottleneck", "groups": 1}, {"stride_in": "conv1"}),
        Case({"reduce_first": 2}, {"dropout": 0.2}),
    ),
    bookkeeping=KERAS_BOOKKEEPING,
    feeds=IMAGENET,
    labels={"se_resne": "seresne"},
)
