"""HiKapok's TF-SENet: https://github.com/HiKapok/TF-SENet, TensorFlow 1, converted from Caffe."""

from weights_convert.families.base import CAFFE, V15, Case, Family
from weights_convert.layouts import TF1_BOOKKEEPING

_B = "conv{s+1}_{b+1}"

FAMILY = Family(
    name="hikapok",
    about="HiKapok's TF-SENet: SE-ResNet and SE-ResNeXt checkpoints of TensorFlow 1",
    separator="/",
    names={
        "conv1/7x7_s2": "conv1",
        "conv1/7x7_s2/bn": "bn1",
        f"{_B}_1x1_reduce": "layer{s}.{b}.conv1",
        f"{_B}_1x1_reduce/bn": "layer{s}.{b}.bn1",
        f"{_B}_3x3": "layer{s}.{b}.conv2",
        f"{_B}_3x3/bn": "layer{s}.{b}.bn2",
        f"{_B}_1x1_increase": "layer{s}.{b}.conv3",
        f"{_B}_1x1_increase/bn": "layer{s}.{b}.bn3",
        f"{_B}_1x1_proj": "layer{s}.{b}.downsample.0",
        f"{_B}_1x1_proj/bn": "layer{s}.{b}.downsample.1",
        f"{_B}_1x1_down": "layer{s}.{b}.se.fc1",
        f"{_B}_1x1_up": "layer{s}.{b}.se.fc2",
        "dense": "fc",
    },
    attentions=("se",),
    mlp_1x1=("se",),
    implies=V15
    | {"stem_pool": "same", "bn_epsilon": 9.999999747378752e-06, "bn_momentum": 0.01, "se_bias": True},
    cases=(Case({"groups": 1}, {"stride_in": "conv1"}),),
    feeds=CAFFE,
    marks=("conv1/7x7_s2/kernel",),
    bookkeeping=TF1_BOOKKEEPING,
)
