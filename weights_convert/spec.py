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
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from weights_convert import checks
from weights_convert.errors import SpecError, nearest

MOST_CHANNELS = 2**16  # of an attention inferred from shapes
COUNTS = "num_batches_tracked"  # step counts of PyTorch's batch norms, absent in other files
TRAINING_ONLY = ("bn_momentum", "cbam_bn_momentum", "dropout")  # keywords without effect on inference


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """The options of an attention block besides its channels; the defaults are those of the papers' code.

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


@dataclass(frozen=True, kw_only=True)
class AttentionSpec(AttentionOptions):
    """A single attention block: its tensors have the network's names without the prefix.

    >>> [parameter.name for parameter in parameters(AttentionSpec(attention="se", channels=64))]
    ['fc1.weight', 'fc1.bias', 'fc2.weight', 'fc2.bias']
    """

    attention: str = "se"
    channels: int = 64
    eca_kernel_size: int | None = None

    def __post_init__(self) -> None:
        with _as_spec_error():
            checked = {name: _OF_A_BLOCK[name](name, value) for name, value in vars(self).items()}
        _set(self, checked)


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
    norm: str = "bn"  # after each convolution; "bias": batch normalisation folded into the convolution
    relu_before_attention: bool = False
    eca_kernel_sizes: tuple[int, ...] | None = None  # one per stage; None: the paper's rule
    bn_momentum: float = 0.1
    dropout: float = 0.0
    num_classes: int = 1000
    in_channels: int = 3

    def __post_init__(self) -> None:
        with _as_spec_error():
            checked = checks.check_keywords(vars(self))
        if checked["stem_pool"] is None:
            checked["stem_pool"] = "none" if checked["stem"] == "3x3" else "pad1"
        _set(self, checked)

    def model_kwargs(self) -> dict[str, Any]:
        """Every field as a keyword of `torch_impl.ResNet`, `keras_impl.ResNet` and `tf1_compat.resnet`."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


Spec = ResNetSpec | AttentionSpec


def _odd_or_none(name: str, value: Any) -> int | None:
    return None if value is None else checks.check_odd(name, value)


_OF_A_BLOCK = checks.CHECKS | {
    "attention": partial(checks.check_choice, choices=("se", "cbam", "eca")),
    "channels": checks.check_int,
    "eca_kernel_size": _odd_or_none,
}


@contextmanager
def _as_spec_error() -> Iterator[None]:
    """Raise the models' errors for invalid keywords as `SpecError`."""
    try:
        yield
    except ValueError as error:
        raise SpecError(str(error)) from None


def _set(spec: AttentionOptions, checked: Mapping[str, Any]) -> None:
    """Replace the given values, such as NumPy's, by plain Python values."""
    for name, value in checked.items():
        object.__setattr__(spec, name, value)


# --------------------------------------------------------------------------------------------------
# The named models, one row each. A test compares the constructors of the three frameworks with this table.

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
        SpecError: an unknown model or keyword, with the nearest name, or an invalid value.
    """
    if name not in MODELS:
        raise SpecError(f"there is no model {name!r}{nearest(name, MODELS)} (`weights-convert list models`)")
    return make_spec(ResNetSpec, MODELS[name] | keywords)


def make_spec(kind: type[Any], keywords: Mapping[str, Any]) -> Any:
    """`kind(**keywords)`; the error for an unknown keyword suggests the nearest one."""
    names = [field.name for field in dataclasses.fields(kind)]
    for keyword in keywords:
        if keyword not in names:
            raise SpecError(
                f"there is no keyword {keyword!r}{nearest(keyword, names)}; known: {', '.join(names)}"
            )
    return kind(**keywords)


def model_name(spec: Spec) -> str | None:
    """The name of the model with this architecture (classes and channels ignored), or None.

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
    """The named model with the same blocks, and the keywords that differ (classes ignored).

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
    """Whether a file may lack this canonical tensor, because no output depends on it."""
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
    """The hidden width of an attention MLP.

    >>> [hidden_channels(64, 16, rule) for rule in ("floor", "multiple_of_8", "absolute")]
    [4, 8, 16]
    """
    if rule == "absolute":
        return reduction
    if rule == "multiple_of_8":
        return max(8, int(channels / reduction + 4) // 8 * 8)
    return max(1, channels // reduction)


def eca_kernel_size(channels: int) -> int:
    """ECA's kernel size, arXiv 1910.03151 eq. 12 with gamma 2 and b 1: rounded up to odd, at least 3.

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
