"""moskomule's SE-ResNets: https://github.com/moskomule/senet.pytorch.

Its SE layer changed twice: the oldest files have a hidden width of 16 for every C, later ones C / 16 with
biases, current ones no biases. Shapes show the version.
"""

from weights_convert.families.base import IMAGENET, TORCHVISION, V15, VARIES, Family

FAMILY = Family(
    name="moskomule",
    about="moskomule's senet.pytorch, in all three of its SE layouts",
    names=TORCHVISION
    | {"layer{s}.{b}.se.fc.0": "layer{s}.{b}.se.fc1", "layer{s}.{b}.se.fc.2": "layer{s}.{b}.se.fc2"},
    attentions=("se",),
    implies=V15,
    varies=VARIES,
    caution="the attention follows the last batch norm of a block, before the sum",
    feeds=IMAGENET,
)
