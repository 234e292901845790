"""keras-hub's ResNets: https://keras.io/keras_hub/api/models/resnet/.

A preset is a folder: model.weights.h5, the classifier in task.weights.h5, config.json and task.json.
"""

from weights_convert.families.base import V15, Family
from weights_convert.layouts import KERAS_BOOKKEEPING

FAMILY = Family(
    name="keras_hub",
    about="keras-hub's ResNetBackbone and ResNetImageClassifier: presets and weights, without pre-activation",
    separator="/",
    names={
        "conv{n}_conv": "conv{n}",
        "conv{n}_bn": "bn{n}",
        "stack{s}_block{b}_0_conv": "layer{s+1}.{b}.downsample.0",
        "stack{s}_block{b}_0_bn": "layer{s+1}.{b}.downsample.1",
        "stack{s}_block{b}_{n}_conv": "layer{s+1}.{b}.conv{n}",
        "stack{s}_block{b}_{n}_bn": "layer{s+1}.{b}.bn{n}",
        "predictions": "fc",
    },
    attentions=("none",),
    implies=V15,
    bookkeeping=KERAS_BOOKKEEPING,
    varies=("strides", "downsample_pool", "global_pool"),
)
