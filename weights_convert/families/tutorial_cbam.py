"""The `cbam_module` of many TensorFlow 1 tutorials, on tf.layers: one block, chosen by its scope.

It has a bias and no batch norm in the spatial gate, which looks at the block's input.
"""

from weights_convert.families.base import CBAM, Family
from weights_convert.layouts import TF1_BOOKKEEPING

FAMILY = Family(
    name="tutorial_cbam",
    about="tutorial-style cbam_module of TensorFlow 1: one `cbam_*` scope",
    separator="/",
    names={"mlp_1": "channel.fc1", "mlp_2": "channel.fc2", "conv2d": "spatial.conv"},
    attentions=("cbam",),
    implies=CBAM | {"cbam_bn": False, "cbam_spatial_bias": True, "cbam_spatial_input": "input"},
    kinds=("attention",),
    marks=("mlp_1/kernel",),
    bookkeeping=TF1_BOOKKEEPING,
)
