"""timm: ResNet, ResNeXt and SENet-154 with SE, ECA, CBAM (https://github.com/huggingface/pytorch-image-models).

Read from timm/models/resnet.py, timm/layers/squeeze_excite.py, eca.py and cbam.py. Its `legacy_*` models are
the family `cadene`.
"""

from weights_convert.families.base import IMAGENET, TORCHVISION, V15, Family, Variant
from weights_convert.families.timm_models import keywords_of

_DEEP_STEM = Variant(
    {"stem": ("deep", "deep_tiered")},
    {
        "conv1.0": "conv1",
        "conv1.1": "bn1",
        "conv1.3": "conv2",
        "conv1.4": "bn2",
        "conv1.6": "conv3",
        "bn1": "bn3",
    },
)
_AVERAGE_POOL = Variant(  # "d" models: the projection begins with the pool, in layer1 with an identity
    {"downsample_pool": "avg"},
    {
        "layer{s}.{b}.downsample.1": "layer{s}.{b}.downsample.0",
        "layer{s}.{b}.downsample.2": "layer{s}.{b}.downsample.1",
    },
)
_CONVOLUTION_POOL = Variant(  # ResNet-RS
    {"stem_pool": "conv"}, {"maxpool.0": "pool_conv", "maxpool.1": "pool_bn"}
)

FAMILY = Family(
    name="timm",
    about="timm's resnet*, seresnet*, seresnext*, ecaresnet*, senet154 and ResNets with CBAM",
    names=TORCHVISION
    | {
        "layer{s}.{b}.se.fc{n}": "layer{s}.{b}.se.fc{n}",
        "layer{s}.{b}.se.channel.fc{n}": "layer{s}.{b}.cbam.channel.fc{n}",
        "layer{s}.{b}.se.spatial.conv.conv": "layer{s}.{b}.cbam.spatial.conv",
        "layer{s}.{b}.se.spatial.conv.bn": "layer{s}.{b}.cbam.spatial.bn",
        "layer{s}.{b}.se.conv": "layer{s}.{b}.eca.conv",
    },
    variants=(_DEEP_STEM, _AVERAGE_POOL, _CONVOLUTION_POOL),
    attentions=("none", "se", "cbam", "eca"),
    mlp_1x1=("se", "cbam"),
    implies=V15
    | {
        "se_bias": True,
        "cbam_mlp_bias": False,
        "cbam_order": "mean_max",
        "cbam_bn": True,
        "cbam_bn_momentum": 0.1,
        "cbam_spatial_bias": False,
        "cbam_spatial_input": "refined",
    },
    feeds=IMAGENET,
    labels={"se_resne": "seresne", "eca_resne": "ecaresne"},
    varies=(
        "strides",
        "dilations",
        "activation",
        "anti_aliasing",
        "global_pool",
        "eca_padding",
        "bn_epsilon",
    ),
    spelled=keywords_of,
    written=True,
)
