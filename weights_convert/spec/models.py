"""The named models, one row each: the kind of network and its keywords.

A test compares the constructors of the three frameworks with this table.

    >>> from weights_convert.spec import count_parameters
    >>> spec = model_spec("se_resnet50", num_classes=4, se_bias=False)
    >>> spec.attention, spec.depths, count_parameters(spec)
    ('se', (3, 4, 6, 3), 26031172)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from weights_convert.errors import SpecError, nearest
from weights_convert.spec.base import Spec, make_spec
from weights_convert.spec.inception import InceptionSpec
from weights_convert.spec.inception_v3 import InceptionV3Spec
from weights_convert.spec.mobilenet import MobileNetSpec
from weights_convert.spec.resnet import ResNetSpec
from weights_convert.spec.shufflenet import ShuffleNetSpec
from weights_convert.spec.vgg import VGGSpec

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


_SPLIT: dict[str, Any] = {"attention": "sk", "sk_split": True}  # timm's selective kernels without groups
_SK18, _SK50 = _SPLIT | {"reduction": 8, "sk_min_hidden": 16}, _SPLIT | {"sk_min_hidden": 8}


def _with_attention(attention: str, rows: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {f"{attention}_{name}": row | {"attention": attention} for name, row in rows.items()}


_ROWS: dict[type[Spec], dict[str, dict[str, Any]]] = {
    ResNetSpec: {
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
        "sk_resnet18": _RESNETS["resnet18"] | _SK18,
        "sk_resnet34": _RESNETS["resnet34"] | _SK18,
        "sk_resnet50": _RESNETS["resnet50"] | _SK50,
        "sk_resnext50_32x4d": _RESNEXTS["resnext50_32x4d"] | {"attention": "sk"},
    },
    VGGSpec: {"vgg16_bn": {}, "se_vgg16_bn": {"attention": "se"}},
    InceptionSpec: {"bn_inception": {}, "se_bn_inception": {"attention": "se"}},
    InceptionV3Spec: {"inception_v3": {}, "se_inception_v3": {"attention": "se"}},
    MobileNetSpec: {"mobilenet_v1": {}, "se_mobilenet_v1": {"attention": "se"}},
    ShuffleNetSpec: {"shufflenet_v1_g3": {}, "se_shufflenet_v1_g3": {"attention": "se"}},
}


class Row(NamedTuple):
    """A named model."""

    kind: type[Spec]
    keywords: Mapping[str, Any]


MODELS = {name: Row(kind, keywords) for kind, rows in _ROWS.items() for name, keywords in rows.items()}
_HEAD = ("num_classes", "in_channels")


def model_spec(name: str, **keywords: Any) -> Any:
    """The spec of a named model, with any keyword changed.

    Raises:
        SpecError: an unknown model or keyword, with the nearest name, or an invalid value.
    """
    if name not in MODELS:
        raise SpecError(f"there is no model {name!r}{nearest(name, MODELS)} (`weights-convert list models`)")
    kind, defaults = MODELS[name]
    return make_spec(kind, {**defaults, **keywords}) if keywords else _named(name)


@cache
def _named(name: str) -> Spec:
    return make_spec(*MODELS[name])


def model_name(spec: Spec) -> str | None:
    """The name of the model with this architecture (classes and channels ignored), or None.

    >>> model_name(model_spec("cbam_resnet18", num_classes=7))
    'cbam_resnet18'
    """
    name, differences = variant_of(spec)
    return None if differences else name


def variant_of(spec: Spec) -> tuple[str | None, dict[str, Any]]:
    """The named model with the same blocks, and the keywords that differ (classes ignored).

    >>> variant_of(model_spec("se_resnet50", stride_in="conv1", num_classes=7))
    ('se_resnet50', {'stride_in': 'conv1'})
    """
    for name, row in MODELS.items():
        if row.kind is type(spec):
            named = _named(name)
            if all(getattr(named, keyword) == getattr(spec, keyword) for keyword in spec.structure):
                values = spec.model_kwargs().items()
                return name, {k: v for k, v in values if v != getattr(named, k) and k not in _HEAD}
    return None, {}
