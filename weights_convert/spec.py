"""Architectures as data: the keywords that change the numbers, the named models, and every model's tensors.

A spec field is a keyword of the models in `torch_impl`, `keras_impl` and `tf1_compat`:
`ResNet(**spec.model_kwargs())` is the same network in each. `parameters(spec)` lists its tensors in
PyTorch naming and layout, the canonical form through which every conversion goes.

    >>> spec = model_spec("se_resnet50", num_classes=4, se_bias=False)
    >>> spec.attention, spec.depths, count_parameters(spec)
    ('se', (3, 4, 6, 3), 26031172)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from weights_convert.errors import SpecError, nearest

COUNTS = "num_batches_tracked"  # what PyTorch's batch norms count, and other files lack
CHOICES = {
    "block": ("bottleneck", "basic"),
    "stem": ("7x7", "deep", "deep_tiered", "3x3"),
    "stem_pool": ("pad1", "ceil", "same", "none"),
    "stride_in": ("conv2", "conv1"),
    "downsample_kernel": (1, 3),
    "downsample_pool": ("none", "avg"),
    "norm": ("bn", "bias_bn", "bias"),
    "attention": ("none", "se", "cbam", "eca"),
    "hidden_rule": ("floor", "multiple_of_8", "absolute"),
    "cbam_order": ("max_mean", "mean_max"),
    "cbam_spatial_input": ("refined", "input"),
}


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """What an attention block needs to know besides its channels; the defaults are the papers' code.

    SE: arXiv 1709.01507. CBAM: 1807.06521. ECA: 1910.03151.
    """

    attention: str = "none"
    reduction: int = 16
    hidden_rule: str = "floor"
    se_bias: bool = True
    cbam_mlp_bias: bool = True
    cbam_order: str = "max_mean"
    cbam_kernel_size: int = 7
    cbam_bn: bool = True
    cbam_bn_momentum: float = 0.01
    cbam_spatial_bias: bool = False
    cbam_spatial_input: str = "refined"
    bn_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class AttentionSpec(AttentionOptions):
    """One attention block standing alone: its tensors have the network's names without the prefix.

    >>> [parameter.name for parameter in parameters(AttentionSpec(attention="se", channels=64))]
    ['fc1.weight', 'fc1.bias', 'fc2.weight', 'fc2.bias']
    """

    attention: str = "se"
    channels: int = 64
    eca_kernel_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class ResNetSpec(AttentionOptions):
    """A residual network (ResNet v1.5, ResNeXt, SENet-154) with or without attention in its blocks."""

    block: str = "bottleneck"
    depths: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64  # channels of layer1's 3x3 convolution; doubled in each further stage
    groups: int = 1
    width_per_group: int = 64  # ResNeXt: 4 means that layer1's 3x3 has 4 channels a group
    reduce_first: int = 1  # SENet-154: 2 halves the first 1x1 convolution
    stem: str = "7x7"
    stem_width: int = 64  # the deep stems end with twice as many
    stem_pool: str | None = None  # None: "none" with the "3x3" stem, else "pad1"
    stride_in: str = "conv2"
    downsample_kernel: int = 1  # of the strided projections; layer1's is 1x1
    downsample_pool: str = "none"
    norm: str = "bn"  # what follows each convolution; "bias": batch normalisation folded into it
    relu_before_attention: bool = False
    eca_kernel_sizes: tuple[int, ...] | None = None  # one per stage; None: the paper's rule
    bn_momentum: float = 0.1
    dropout: float = 0.0
    num_classes: int = 1000
    in_channels: int = 3

    def __post_init__(self) -> None:
        for name in ("depths", "eca_kernel_sizes"):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        if self.stem_pool is None:
            object.__setattr__(self, "stem_pool", "none" if self.stem == "3x3" else "pad1")
        super().__post_init__()
        if self.eca_kernel_sizes is not None and len(self.eca_kernel_sizes) != len(self.depths):
            raise SpecError(
                f"eca_kernel_sizes={self.eca_kernel_sizes}: expected {len(self.depths)} of them or None"
            )
        if self.block == "basic" and (self.groups, self.width_per_group, self.reduce_first) != (1, 64, 1):
            raise SpecError(
                "groups, width_per_group and reduce_first belong to block='bottleneck', got 'basic'"
            )
        if self.stem == "deep_tiered" and self.stem_width < 4:
            raise SpecError(
                f"stem_width={self.stem_width}: expected at least 4 with stem='deep_tiered', "
                "whose first convolution is 3 * (stem_width // 4) wide"
            )

    def model_kwargs(self) -> dict[str, Any]:
        """Every field as a keyword of `torch_impl.ResNet`, `keras_impl.ResNet` and `tf1_compat.resnet`."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


Spec = ResNetSpec | AttentionSpec


def _is_value(value: Any, example: Any) -> bool:
    """Whether `value` is of the type of a field's default; an int serves as a float."""
    if isinstance(example, bool) or isinstance(value, bool):
        return isinstance(example, bool) and isinstance(value, bool)
    if isinstance(example, float):
        return isinstance(value, (int, float)) and 0 <= value <= _MOST
    if isinstance(example, int):
        return isinstance(value, int) and 1 <= value <= _MOST
    return isinstance(value, type(example))


def _is_ints(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(_is_value(item, 1) for item in value)


# Of a network; a file that claims more is not believed. ResNet-1202 has 600 blocks in 3 stages.
MOST_STAGES, MOST_BLOCKS, MOST_CHANNELS = 8, 640, 2**16
_MOST = 2**31 - 1  # of any number

_KERNEL_SIZES = {
    "cbam_kernel_size": "odd kernel size, such as 7",
    "eca_kernel_size": "odd kernel size, such as 3, or None",
    "eca_kernel_sizes": "odd kernel sizes, one per stage, such as 3,5,5,7, or None",
}


def check_fields(spec: AttentionOptions) -> None:
    """Raise `SpecError` for the first field whose value cannot be; the message shows what can."""
    for field in dataclasses.fields(spec):
        name, value = field.name, getattr(spec, field.name)
        if name in CHOICES:
            if value not in CHOICES[name]:
                raise SpecError(f"{name}={value!r}: expected one of {', '.join(map(repr, CHOICES[name]))}")
        elif name == "depths" and not (
            _is_ints(value) and sum(value) <= MOST_BLOCKS and len(value) <= MOST_STAGES
        ):
            raise SpecError(f"depths={value!r}: expected the number of blocks of each stage, such as 3,4,6,3")
        elif name in _KERNEL_SIZES:
            sizes = value if name == "eca_kernel_sizes" else (value,)
            optional = name != "cbam_kernel_size" and value is None
            if not optional and not (_is_ints(sizes) and all(size % 2 for size in sizes)):
                raise SpecError(f"{name}={value!r}: expected {_KERNEL_SIZES[name]}")
        elif name == "dropout" and not (_is_value(value, 0.0) and value < 1):
            raise SpecError(f"dropout={value!r}: expected a probability below 1, such as 0.2")
        elif name not in ("depths", "stem_pool") and not _is_value(value, field.default):
            kind = type(field.default).__name__
            raise SpecError(f"{name}={value!r}: expected {kind}, such as {field.default!r}")


# --------------------------------------------------------------------------------------------------
# The named models: one row each. A test holds the constructors of the three frameworks to this table.

_BASIC, _BOTTLENECK = {"block": "basic"}, {"block": "bottleneck"}
_CIFAR = {"block": "basic", "stem": "3x3", "stem_width": 16, "width": 16, "num_classes": 10}

_RESNETS: dict[str, dict[str, Any]] = {
    "resnet18": _BASIC | {"depths": (2, 2, 2, 2)},
    "resnet34": _BASIC | {"depths": (3, 4, 6, 3)},
    "resnet50": _BOTTLENECK | {"depths": (3, 4, 6, 3)},
    "resnet101": _BOTTLENECK | {"depths": (3, 4, 23, 3)},
    "resnet152": _BOTTLENECK | {"depths": (3, 8, 36, 3)},
}
_CIFAR_RESNETS: dict[str, dict[str, Any]] = {
    "resnet20": _CIFAR | {"depths": (3, 3, 3)},
    "resnet32": _CIFAR | {"depths": (5, 5, 5)},
    "resnet56": _CIFAR | {"depths": (9, 9, 9)},
}
_RESNEXTS: dict[str, dict[str, Any]] = {
    "resnext50_32x4d": _RESNETS["resnet50"] | {"groups": 32, "width_per_group": 4},
    "resnext101_32x4d": _RESNETS["resnet101"] | {"groups": 32, "width_per_group": 4},
}
_SENET154: dict[str, Any] = _RESNETS["resnet152"] | {
    "groups": 64,
    "width_per_group": 4,
    "reduce_first": 2,
    "stem": "deep",
    "downsample_kernel": 3,
    "attention": "se",
    "dropout": 0.2,
}


def _with_attention(attention: str, rows: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {f"{attention}_{name}": row | {"attention": attention} for name, row in rows.items()}


MODELS: dict[str, dict[str, Any]] = {
    **_RESNETS,
    **_RESNEXTS,
    **_with_attention("se", _RESNETS),
    **_with_attention("se", _RESNEXTS),
    "senet154": _SENET154,
    **_with_attention("cbam", _RESNETS),
    **_with_attention("eca", _RESNETS),
    **_CIFAR_RESNETS,
    **_with_attention("se", _CIFAR_RESNETS),
    **_with_attention("cbam", _CIFAR_RESNETS),
    **_with_attention("eca", _CIFAR_RESNETS),
}


def model_spec(name: str, **keywords: Any) -> ResNetSpec:
    """The spec of a named model, with any keyword changed.

    Raises:
        SpecError: an unknown model, keyword or value; the nearest name is offered.
    """
    if name not in MODELS:
        raise SpecError(f"there is no model {name!r}{nearest(name, MODELS)} (`weights-convert list models`)")
    return make_spec(ResNetSpec, MODELS[name] | keywords)


def make_spec(kind: type[Any], keywords: Mapping[str, Any]) -> Any:
    """`kind(**keywords)`, where an unknown keyword is an error that offers the nearest one."""
    names = [field.name for field in dataclasses.fields(kind)]
    for keyword in keywords:
        if keyword not in names:
            raise SpecError(
                f"there is no keyword {keyword!r}{nearest(keyword, names)}; known: {', '.join(names)}"
            )
    return kind(**keywords)


def model_name(spec: Spec) -> str | None:
    """The name of the model whose architecture `spec` is (classes and channels apart), or None.

    >>> model_name(model_spec("cbam_resnet18", num_classes=7))
    'cbam_resnet18'
    """
    for name in MODELS:
        if isinstance(spec, ResNetSpec):
            head = {"num_classes": spec.num_classes, "in_channels": spec.in_channels}
            if model_spec(name, **head) == spec:
                return name
    return None


_HEAD = ("num_classes", "in_channels")
_STRUCTURE = ("block", "depths", "width", "groups", "width_per_group", "reduce_first", "attention")


def variant_of(spec: Spec) -> tuple[str | None, dict[str, Any]]:
    """The named model whose blocks a spec has, and the keywords in which it differs (classes apart).

    >>> variant_of(model_spec("se_resnet50", stride_in="conv1", num_classes=7))
    ('se_resnet50', {'stride_in': 'conv1'})
    """
    if isinstance(spec, ResNetSpec):
        for name in MODELS:
            named = model_spec(name)
            if all(getattr(named, keyword) == getattr(spec, keyword) for keyword in _STRUCTURE):
                values = vars(spec).items()
                return name, {k: v for k, v in values if v != getattr(named, k) and k not in _HEAD}
    return None, {}


# --------------------------------------------------------------------------------------------------
# Every tensor of a model, by name, shape and role.


class Parameter(NamedTuple):
    """One tensor: its canonical name, its shape in PyTorch's layout, and its role.

    The role (a key of `layouts.LEAVES`) decides a tensor's axes in each framework; its rank never does.
    """

    name: str
    shape: tuple[int, ...]
    role: str

    @property
    def trainable(self) -> bool:
        return self.role not in ("mean", "variance", "count")


def is_count(name: str) -> bool:
    """Whether a canonical tensor is one that a file may lack, because no output depends on it."""
    return name.rpartition(".")[2] == COUNTS


def parameters(spec: Spec) -> list[Parameter]:
    """Every tensor of the model, in PyTorch's order; files may lack some of them (`is_count`)."""
    if isinstance(spec, AttentionSpec):
        return list(_attention(spec, "", spec.channels, spec.eca_kernel_size))
    return list(_resnet(spec))


def count_parameters(spec: Spec) -> int:
    """The number of trainable scalars."""
    return sum(math.prod(parameter.shape) for parameter in parameters(spec) if parameter.trainable)


def hidden_channels(channels: int, reduction: int, rule: str = "floor") -> int:
    """The width between an attention MLP's two layers.

    >>> [hidden_channels(64, 16, rule) for rule in ("floor", "multiple_of_8", "absolute")]
    [4, 8, 16]
    """
    if rule == "absolute":
        return reduction
    if rule == "multiple_of_8":
        return max(8, int(channels / reduction + 4) // 8 * 8)
    return max(1, channels // reduction)


def eca_kernel_size(channels: int) -> int:
    """ECA's adaptive kernel size, arXiv 1910.03151 eq. 12 with gamma 2 and b 1: even becomes odd, at least 3.

    >>> [eca_kernel_size(channels) for channels in (64, 128, 256, 512, 1024, 2048)]
    [3, 5, 5, 5, 5, 7]
    """
    size = int(abs((math.log2(channels) + 1) / 2))
    return max(3, size if size % 2 else size + 1)


def _batch_norm(prefix: str, channels: int) -> Iterator[Parameter]:
    yield Parameter(f"{prefix}.weight", (channels,), "scale")
    yield Parameter(f"{prefix}.bias", (channels,), "offset")
    yield Parameter(f"{prefix}.running_mean", (channels,), "mean")
    yield Parameter(f"{prefix}.running_var", (channels,), "variance")
    yield Parameter(f"{prefix}.{COUNTS}", (), "count")


def _dense(prefix: str, inputs: int, outputs: int, bias: bool = True) -> Iterator[Parameter]:
    yield Parameter(f"{prefix}.weight", (outputs, inputs), "dense")
    if bias:
        yield Parameter(f"{prefix}.bias", (outputs,), "bias")


def stem_widths(stem: str, width: int) -> tuple[int, ...]:
    """The channels of each convolution of a stem.

    >>> stem_widths("7x7", 64), stem_widths("deep", 64), stem_widths("deep_tiered", 32)
    ((64,), (64, 64, 128), (24, 32, 64))
    """
    if stem == "deep":
        return width, width, 2 * width
    if stem == "deep_tiered":
        return 3 * (width // 4), width, 2 * width
    return (width,)


def _conv_norm(
    norm: str, conv: str, bn: str, inputs: int, outputs: int, kernel: int, groups: int = 1
) -> Iterator[Parameter]:
    yield Parameter(f"{conv}.weight", (outputs, inputs // groups, kernel, kernel), "conv2d")
    if norm != "bn":
        yield Parameter(f"{conv}.bias", (outputs,), "bias")
    if norm != "bias":
        yield from _batch_norm(bn, outputs)


def _attention(
    options: AttentionOptions, prefix: str, channels: int, eca_size: int | None
) -> Iterator[Parameter]:
    hidden = hidden_channels(channels, options.reduction, options.hidden_rule)
    if options.attention == "se":
        yield from _dense(f"{prefix}fc1", channels, hidden, options.se_bias)
        yield from _dense(f"{prefix}fc2", hidden, channels, options.se_bias)
    elif options.attention == "cbam":
        yield from _dense(f"{prefix}channel.fc1", channels, hidden, options.cbam_mlp_bias)
        yield from _dense(f"{prefix}channel.fc2", hidden, channels, options.cbam_mlp_bias)
        yield Parameter(f"{prefix}spatial.conv.weight", (1, 2, *[options.cbam_kernel_size] * 2), "conv2d")
        if options.cbam_spatial_bias:
            yield Parameter(f"{prefix}spatial.conv.bias", (1,), "bias")
        if options.cbam_bn:
            yield from _batch_norm(f"{prefix}spatial.bn", 1)
    elif options.attention == "eca":
        yield Parameter(f"{prefix}conv.weight", (1, 1, eca_size or eca_kernel_size(channels)), "conv1d")


def _resnet(spec: ResNetSpec) -> Iterator[Parameter]:
    conv_norm, channels = partial(_conv_norm, spec.norm), spec.in_channels
    for number, outputs in enumerate(stem_widths(spec.stem, spec.stem_width), 1):
        yield from conv_norm(
            f"conv{number}", f"bn{number}", channels, outputs, 7 if spec.stem == "7x7" else 3
        )
        channels = outputs
    for stage, depth in enumerate(spec.depths):
        planes = spec.width * 2**stage
        outputs = planes * (4 if spec.block == "bottleneck" else 1)
        inner = planes * spec.width_per_group // 64 * spec.groups
        for index in range(depth):
            prefix = f"layer{stage + 1}.{index}."
            strided = stage > 0 and index == 0
            if spec.block == "bottleneck":
                first = inner // spec.reduce_first
                yield from conv_norm(f"{prefix}conv1", f"{prefix}bn1", channels, first, 1)
                yield from conv_norm(f"{prefix}conv2", f"{prefix}bn2", first, inner, 3, spec.groups)
                yield from conv_norm(f"{prefix}conv3", f"{prefix}bn3", inner, outputs, 1)
            else:
                yield from conv_norm(f"{prefix}conv1", f"{prefix}bn1", channels, planes, 3)
                yield from conv_norm(f"{prefix}conv2", f"{prefix}bn2", planes, planes, 3)
            eca_size = spec.eca_kernel_sizes[stage] if spec.eca_kernel_sizes else None
            yield from _attention(spec, f"{prefix}{spec.attention}.", outputs, eca_size)
            if strided or channels != outputs:
                kernel = spec.downsample_kernel if strided else 1
                yield from conv_norm(
                    f"{prefix}downsample.0", f"{prefix}downsample.1", channels, outputs, kernel
                )
            channels = outputs
    yield from _dense("fc", channels, spec.num_classes)
