"""Valid values of a network's keywords.

`torch_impl`, `keras_impl` and `tf1_compat` have the same file, and `weights_convert/spec/checks.py` repeats
its
text: all refuse the same values in the same words. A test compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import Any

from .attention import check_bool, check_choice, check_float, check_int, check_odd
from .inception_table import module_count
from .inception_v3_table import MODULES as V3_MODULES

CHOICES = {
    "block": ("bottleneck", "basic"),
    "stem": ("7x7", "deep", "deep_tiered", "3x3"),
    "stem_pool": (None, "pad1", "ceil", "same", "conv", "none"),
    "stride_in": ("conv2", "conv1"),
    "stride_padding": ("pad1", "same", "keras"),
    "downsample_kernel": (1, 3),
    "downsample_pool": ("none", "avg"),
    "norm": ("bn", "bias_bn", "bias", "gn"),
    "activation": ("relu", "silu", "gelu", "leaky_relu", "relu6"),
    "anti_aliasing": ("none", "avg", "blur"),
    "global_pool": ("avg", "max", "avgmax", "catavgmax"),
    "attention": ("none", "se", "cbam", "eca", "sk"),
    "hidden_rule": ("floor", "multiple_of_8", "absolute"),
    "cbam_order": ("max_mean", "mean_max"),
    "cbam_spatial_input": ("refined", "input"),
    "eca_padding": ("zeros", "circular"),
    "reduction_pool": ("ceil", "pad1", "same"),
    "last_pool": ("max", "avg"),
    "shuffle_after": ("conv1", "conv2"),
    "shuffle_view": ("groups_first", "groups_last"),
    "concat_order": ("branch_shortcut", "shortcut_branch"),
    "attention_on": ("branch", "output"),
}
WITH_BIAS = ("bias_bn", "bias")  # values of `norm` with which the convolutions have biases
NORM_GROUPS = 32  # of norm="gn"
_BOOLS = (
    "se_bias",
    "relu_before_attention",
    "cbam_mlp_bias",
    "cbam_bn",
    "cbam_spatial_bias",
    "sk_split",
    "count_padding",
    "aux_head",
    "transform_input",
    "head_bias",
)
_SIZES = (
    "width",
    "groups",
    "width_per_group",
    "reduce_first",
    "stem_width",
    "reduction",
    "sk_min_hidden",
    "head_width",
    "pool_size",
    "in_channels",
)
_FLOATS = ("cbam_bn_momentum", "bn_epsilon", "bn_momentum", "width_multiplier")
MOST_STAGES, MOST_BLOCKS = 8, 640  # ResNet-1202 has 600 blocks in 3 stages
MOST_WIDTHS = 4.0  # of width_multiplier
_OR_NONE = dict.fromkeys(("strides", "dilations", "eca_kernel_sizes"), ", or None")
_OF_BASIC = {"groups": 1, "width_per_group": 64, "reduce_first": 1}  # the only values for block="basic"


def check_classes(name: str, value: Any) -> int:
    """Return the number of classes as a Python int; 0 stands for a network without a classifier."""
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < 0:
        raise ValueError(f"{name}={value!r}: expected an int of at least 0")
    return check_int(name, value) if value else 0


def check_dropout(name: str, value: Any) -> float:
    """Return a probability below 1 as a Python float."""
    probability = check_float(name, value)
    if probability >= 1:
        raise ValueError(f"{name}={value!r}: expected a probability below 1, such as 0.2")
    return probability


def check_per_stage(name: str, value: Any, check: Callable[[str, Any], int]) -> tuple[int, ...]:
    """Return a sequence (Python's or NumPy's) of one int per stage as a tuple of Python ints."""
    is_text = isinstance(value, (str, bytes))
    if is_text or not (isinstance(value, Sequence) or getattr(value, "ndim", 0) == 1):
        raise ValueError(f"{name}={value!r}: expected a sequence of ints, one per stage")
    return tuple(check(name, item) for item in value)


def check_depths(name: str, value: Any) -> tuple[int, ...]:
    """Return the number of blocks per stage."""
    depths = check_per_stage(name, value, check_int)
    if not 1 <= len(depths) <= MOST_STAGES or sum(depths) > MOST_BLOCKS:
        most = f"1 to {MOST_STAGES} stages with at most {MOST_BLOCKS} blocks in all"
        raise ValueError(f"{name}={depths!r}: expected {most}, such as (3, 4, 6, 3)")
    return depths


def check_odd_or_none(name: str, value: Any) -> tuple[int, ...] | None:
    """Return None or odd kernel sizes, one per stage."""
    return None if value is None else check_per_stage(name, value, check_odd)


def check_strides(name: str, value: Any) -> tuple[int, ...] | None:
    """Return None or the strides of the stages, each 1 or 2."""
    return None if value is None else check_per_stage(name, value, partial(check_choice, choices=(1, 2)))


def check_dilations(name: str, value: Any) -> tuple[int, ...] | None:
    """Return None or the dilations of the stages."""
    return None if value is None else check_per_stage(name, value, check_int)


def check_widths(name: str, value: Any) -> tuple[int, ...]:
    """Return the channels per stage."""
    return check_per_stage(name, value, check_int)


CHECKS: dict[str, Callable[[str, Any], Any]] = {
    **{name: partial(check_choice, choices=choices) for name, choices in CHOICES.items()},
    **dict.fromkeys(_BOOLS, check_bool),
    **dict.fromkeys(_SIZES, check_int),
    **dict.fromkeys(_FLOATS, check_float),
    "num_classes": check_classes,
    "dropout": check_dropout,
    "depths": check_depths,
    "widths": check_widths,
    "cbam_kernel_size": check_odd,
    "eca_kernel_sizes": check_odd_or_none,
    "strides": check_strides,
    "dilations": check_dilations,
}


def check_stages(c: Mapping[str, Any], name: str) -> None:
    """Raise `ValueError` unless a keyword has one number per stage."""
    stages = len(c["depths"])
    if c[name] is not None and len(c[name]) != stages:
        raise ValueError(f"{name}={c[name]!r}: expected {stages}, one per stage{_OR_NONE.get(name, '')}")


def check_plain(c: Mapping[str, Any], network: str) -> None:
    """Raise `ValueError` for keywords of a network without shortcuts that are invalid together."""
    check_stages(c, "widths")
    check_stages(c, "eca_kernel_sizes")
    if c["norm"] == "gn":
        raise ValueError(f"norm='gn': expected 'bn', 'bias_bn' or 'bias' in a {network}")
    if c["attention"] == "sk":
        raise ValueError(
            f"attention='sk': expected 'none', 'se', 'cbam' or 'eca' in a {network}; selective kernels are "
            "for residual blocks"
        )


def check_inception(c: Mapping[str, Any], modules: int) -> None:
    """Raise `ValueError` for keywords of an Inception network that are valid alone but invalid together."""
    if not 0 < c["width_multiplier"] <= MOST_WIDTHS:
        raise ValueError(
            f"width_multiplier={c['width_multiplier']!r}: expected a number above 0, at most {MOST_WIDTHS}"
        )
    sizes = c["eca_kernel_sizes"]
    if sizes is not None and len(sizes) != modules:
        raise ValueError(f"eca_kernel_sizes={sizes!r}: expected {modules}, one per module, or None")
    if c["norm"] == "gn":
        raise ValueError("norm='gn': expected 'bn', 'bias_bn' or 'bias' in an Inception network")
    if c["attention"] == "sk":
        raise ValueError(
            "attention='sk': expected 'none', 'se', 'cbam' or 'eca' in an Inception network; selective "
            "kernels are for residual blocks"
        )


def check_inception_v3(c: Mapping[str, Any]) -> None:
    """Raise `ValueError` for keywords of Inception-v3 that are valid alone but invalid together."""
    check_inception(c, len(V3_MODULES))
    if c["transform_input"] and c["in_channels"] != 3:
        raise ValueError(
            f"in_channels={c['in_channels']}: expected 3 with transform_input=True, which is for red, green "
            "and blue"
        )


def inner_width(width: int) -> int:
    """The channels inside a ShuffleNet's unit of this width, arXiv 1707.01083 table 1."""
    return width // 4


def check_shufflenet(c: Mapping[str, Any]) -> None:
    """Raise `ValueError` for keywords of a ShuffleNet that are valid alone but invalid together."""
    check_plain(c, "ShuffleNet")
    groups, inputs = c["groups"], c["stem_width"]
    for stage, width in enumerate(c["widths"], 2):
        for channels in (width, inner_width(width), width - inputs):
            if channels < 1 or channels % groups:
                raise ValueError(
                    f"widths={c['widths']}, stem_width={c['stem_width']}, groups={groups}: stage{stage} has "
                    f"convolutions of {channels} channels, expected a multiple of {groups} above 0"
                )
        inputs = width


def stage_steps(stage: int, c: Mapping[str, Any]) -> tuple[int, int, int]:
    """The stride of a stage (from 0), and the dilations of its first 3x3 convolution and of the others."""
    strides = c["strides"] or (1, *[2] * (len(c["depths"]) - 1))
    dilations = c["dilations"] or [1] * len(c["depths"])
    return strides[stage], dilations[max(stage - 1, 0)], dilations[stage]


def check_resnet(c: Mapping[str, Any]) -> None:
    """Raise `ValueError` for keywords of a residual network that are valid alone but invalid together."""
    for name in ("eca_kernel_sizes", "strides", "dilations"):
        check_stages(c, name)
    stages = len(c["depths"])
    for stage in range(stages):
        stride, dilation, _ = stage_steps(stage, c)
        if stride > 1 and dilation > 1:
            raise ValueError(
                f"dilations={c['dilations']}: layer{stage + 1} has stride 2 after dilation {dilation}, "
                "expected strides such as (1, 2, 1, 1) with dilations (1, 1, 2, 4)"
            )
    if c["anti_aliasing"] != "none" and c["stem_pool"] in ("ceil", "same"):
        raise ValueError(
            f"stem_pool={c['stem_pool']!r}: expected 'pad1', 'conv' or 'none' "
            f"with anti_aliasing={c['anti_aliasing']!r}"
        )
    if c["stem"] == "deep_tiered" and c["stem_width"] < 4:
        raise ValueError(
            f"stem_width={c['stem_width']}: expected at least 4 with stem='deep_tiered', "
            "whose first convolution is 3 * (stem_width // 4) wide"
        )
    for name, only in _OF_BASIC.items():
        if c["block"] == "basic" and c[name] != only:
            raise ValueError(f"{name}={c[name]}: expected {only} with block='basic', or block='bottleneck'")
    groups, per_group, reduce_first = (c[name] for name in _OF_BASIC)
    for stage in range(stages):
        first = c["width"] * 2**stage * per_group // 64 * groups // reduce_first
        if c["block"] == "bottleneck" and (first < 1 or first % groups):
            raise ValueError(
                f"width={c['width']}, groups={groups}, width_per_group={per_group}, "
                f"reduce_first={reduce_first}: the 3x3 convolutions of layer{stage + 1} would have "
                f"{first} input channels, expected a multiple of {groups} above 0"
            )
        if c["norm"] == "gn":
            inner, outputs = (first, 4) if c["block"] == "bottleneck" else (c["width"], 1)
            check_groups(c, stage, inner)
            check_groups(c, stage, c["width"] * 2**stage * outputs)
        if c["attention"] == "sk":
            check_selective(c, first if c["block"] == "bottleneck" else c["width"])


def check_groups(c: Mapping[str, Any], stage: int, channels: int) -> None:
    """Raise `ValueError` unless the groups of norm="gn" divide the channels of the stem and of a stage."""
    stem = 3 * (c["stem_width"] // 4) if c["stem"] == "deep_tiered" else c["stem_width"]
    for name, width in (("the stem", c["stem_width"]), ("the stem", stem), (f"layer{stage + 1}", channels)):
        if width % NORM_GROUPS:
            raise ValueError(
                f"norm='gn': {name} has norms of {width} channels, expected a multiple of {NORM_GROUPS}"
            )
    if c["attention"] == "sk":
        raise ValueError("norm='gn': expected 'bn', 'bias_bn' or 'bias' with attention='sk'")


def check_selective(c: Mapping[str, Any], channels: int) -> None:
    """Raise `ValueError` unless selective kernels can read so many channels, and the stem's."""
    if c["anti_aliasing"] != "none":
        raise ValueError(f"anti_aliasing={c['anti_aliasing']!r}: expected 'none' with attention='sk'")
    width = c["stem_width"] if c["block"] == "basic" and c["stem"] in ("7x7", "3x3") else 2
    if c["sk_split"] and (channels % (2 * c["groups"]) or width % 2):
        raise ValueError(
            f"sk_split=True: expected widths and stem_width that {2 * c['groups']} divides, or sk_split=False"
        )


TOGETHER: dict[str, Callable[[Mapping[str, Any]], None]] = {
    "resnet": check_resnet,
    "vgg": partial(check_plain, network="VGG"),
    "inception": partial(check_inception, modules=module_count()),
    "inception_v3": check_inception_v3,
    "mobilenet": partial(check_plain, network="MobileNet"),
    "shufflenet": check_shufflenet,
}


def check_keywords(keywords: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return a network's keywords as plain Python values.

    Args:
        keywords: the given keywords.
        kind: the kind of network, a key of `TOGETHER`.

    Raises:
        ValueError: a value is invalid, alone or together with another keyword's.
    """
    checked = {name: CHECKS[name](name, value) for name, value in keywords.items()}
    TOGETHER[kind](checked)
    return checked
