"""timm: ResNet, ResNeXt and SENet-154 with SE, ECA, CBAM, SK (https://github.com/huggingface/pytorch-image-models).

Read from timm/models/resnet.py and sknet.py, timm/layers/squeeze_excite.py, eca.py, cbam.py and
selective_kernel.py. Its `legacy_*` models are the family `cadene`.
"""

from weights_convert.families.base import IMAGENET, TORCHVISION, V15, Case, Family, Variant
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
_SELECTIVE = Variant(
    {"attention": "sk"},
    {
        "layer{s}.{b}.conv{n}.conv": "layer{s}.{b}.conv{n}",
        "layer{s}.{b}.conv{n}.bn": "layer{s}.{b}.bn{n}",
    },
)


def _selective_in(block: str, conv: str) -> Variant:
    """The names of selective kernels, which are those of the convolution in whose place they stand."""
    theirs, ours = f"layer{{s}}.{{b}}.{conv}", "layer{s}.{b}.sk"
    return Variant(
        {"attention": "sk", "block": block},
        {
            f"{theirs}.paths.{{n}}.conv": f"{ours}.conv{{n+1}}",
            f"{theirs}.paths.{{n}}.bn": f"{ours}.bn{{n+1}}",
            f"{theirs}.attn.fc_reduce": f"{ours}.fc1",
            f"{theirs}.attn.bn": f"{ours}.bn",
            f"{theirs}.attn.fc_select": f"{ours}.fc2",
        },
    )


FAMILY = Family(
    name="timm",
    about="timm's resnet*, seresnet*, seresnext*, ecaresnet*, skresnet*, senet154 and ResNets with CBAM",
    names=TORCHVISION
    | {
        "layer{s}.{b}.se.fc{n}": "layer{s}.{b}.se.fc{n}",
        "layer{s}.{b}.se.channel.fc{n}": "layer{s}.{b}.cbam.channel.fc{n}",
        "layer{s}.{b}.se.spatial.conv.conv": "layer{s}.{b}.cbam.spatial.conv",
        "layer{s}.{b}.se.spatial.conv.bn": "layer{s}.{b}.cbam.spatial.bn",
        "layer{s}.{b}.se.conv": "layer{s}.{b}.eca.conv",
    },
    variants=(
        _DEEP_STEM,
        _AVERAGE_POOL,
        _CONVOLUTION_POOL,
        _SELECTIVE,
        _selective_in("basic", "conv1"),
        _selective_in("bottleneck", "conv2"),
    ),
    attentions=("none", "se", "cbam", "eca", "sk"),
    mlp_1x1=("se", "cbam", "sk"),
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
    cases=(Case({"norm": "gn"}, {"norm": "gn"}),),  # `norm_layer="groupnorm"`
    feeds=IMAGENET,
    labels={"se_resne": "seresne", "eca_resne": "ecaresne", "sk_resne": "skresne"},
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
