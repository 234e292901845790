"""kobiso's attention blocks in TensorFlow 1: https://github.com/kobiso/CBAM-tensorflow, attention_module.py.

Single blocks, chosen by their scope: the convolutions around them are numbered in order of creation.
"""

from weights_convert.families.base import Family
from weights_convert.layouts import TF1_BOOKKEEPING

FAMILY = Family(
    name="kobiso",
    about="kobiso's CBAM-tensorflow: one `se_*` or `cbam_*` scope",
    separator="/",
    names={
        "bottleneck_fc": "fc1",
        "recover_fc": "fc2",
        "ch_at/mlp_0": "channel.fc1",
        "ch_at/mlp_1": "channel.fc2",
        "sp_at/conv": "spatial.conv",
    },
    attentions=("se", "cbam"),
    implies={  # shapes show the older version's bias in the spatial gate, and its ratio
        "cbam_mlp_bias": True,
        "cbam_order": "mean_max",
        "cbam_bn": False,
        "cbam_spatial_input": "refined",
        "se_bias": True,
    },
    kinds=("attention",),
    marks=("ch_at/mlp_0/kernel", "bottleneck_fc/kernel"),
    bookkeeping=TF1_BOOKKEEPING,
)
