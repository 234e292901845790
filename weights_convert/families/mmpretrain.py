"""mmpretrain, once mmclassification: https://github.com/open-mmlab/mmpretrain (mmcls/models/backbones)."""

from weights_convert.families.base import V15, Family, Preprocessing, Variant

_B = "backbone.layer{s}.{b}"

FAMILY = Family(
    name="mmpretrain",
    about="mmpretrain and mmcls: ResNet, ResNeXt, SE-ResNet and SE-ResNeXt, of `style='pytorch'`",
    names={
        "backbone.conv1": "conv1",
        "backbone.bn1": "bn1",
        f"{_B}.conv{{n}}": "layer{s}.{b}.conv{n}",
        f"{_B}.bn{{n}}": "layer{s}.{b}.bn{n}",
        f"{_B}.downsample.0": "layer{s}.{b}.downsample.0",
        f"{_B}.downsample.1": "layer{s}.{b}.downsample.1",
        f"{_B}.se_layer.conv{{n}}.conv": "layer{s}.{b}.se.fc{n}",
        f"{_B}.se_layer.conv{{n}}": "layer{s}.{b}.se.fc{n}",  # older
        "head.fc": "fc",
    },
    variants=(
        Variant(
            {"stem": ("deep", "deep_tiered")},
            {
                **{f"backbone.stem.{n}.conv": f"conv{n + 1}" for n in range(3)},
                **{f"backbone.stem.{n}.bn": f"bn{n + 1}" for n in range(3)},
            },
        ),
        Variant(  # only strided projections begin with the pool
            {"downsample_pool": "avg"},
            {
                "backbone.layer1.{b}.downsample.0": "layer1.{b}.downsample.0",
                "backbone.layer1.{b}.downsample.1": "layer1.{b}.downsample.1",
                f"{_B}.downsample.1": "layer{s}.{b}.downsample.0",
                f"{_B}.downsample.2": "layer{s}.{b}.downsample.1",
            },
        ),
    ),
    attentions=("none", "se"),
    mlp_1x1=("se",),
    implies=V15 | {"se_bias": True},
    varies=("strides", "dilations", "stride_in", "bn_epsilon"),
    feeds=Preprocessing("RGB", 255, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    labels={"se_resne": "seresne"},
)
