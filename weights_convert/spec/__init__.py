"""Architectures as data: one file per kind of network, the named models, and checks of values.

A spec field is a keyword of the models in `torch_impl`, `keras_impl` and `tf1_compat`:
`ResNet(**spec.model_kwargs())` is the same network in each. `parameters(spec)` lists its tensors in
PyTorch naming and layout, the canonical form through which every conversion goes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from weights_convert.spec.attention import AttentionSpec, eca_kernel_size, hidden_channels
from weights_convert.spec.base import (
    COUNTS,
    TRAINING_ONLY,
    AttentionOptions,
    Parameter,
    Spec,
    changed,
    count_parameters,
    is_count,
    make_spec,
    parameters,
    spec_values,
)
from weights_convert.spec.inception import InceptionSpec
from weights_convert.spec.inception_v3 import InceptionV3Spec
from weights_convert.spec.mobilenet import MobileNetSpec
from weights_convert.spec.models import MODELS, model_name, model_spec, variant_of
from weights_convert.spec.resnet import ResNetSpec, stem_widths
from weights_convert.spec.shufflenet import ShuffleNetSpec
from weights_convert.spec.vgg import VGGSpec

_KINDS: tuple[type[Spec], ...] = (
    ResNetSpec,
    VGGSpec,
    InceptionSpec,
    InceptionV3Spec,
    MobileNetSpec,
    ShuffleNetSpec,
    AttentionSpec,
)
KINDS: dict[str, type[Spec]] = {kind.kind: kind for kind in _KINDS}


def network_spec(keywords: Mapping[str, Any]) -> Any:
    """The spec of the kind of network with exactly these keywords; None for a single block's keywords."""
    for kind in KINDS.values():
        if kind.network and {field.name for field in dataclasses.fields(kind)} == set(keywords):
            return make_spec(kind, keywords)
    return None


@cache
def numbered() -> re.Pattern[str]:
    """Pattern of a member of a list of modules, its list and its number: `layer1_0`, `features_3`."""
    names = (p.name for kind in KINDS.values() for spec in kind.widest() for p in parameters(spec))
    lists = {name for of in names for name in re.findall(r"(\w+)\.\d+\.", of)}
    patterns = {re.sub(r"\d+", r"\\d{1,9}", name) for name in lists}
    return re.compile(rf"\b({'|'.join(sorted(patterns))})_(\d{{1,9}})\b")


__all__ = [
    "COUNTS",
    "KINDS",
    "MODELS",
    "TRAINING_ONLY",
    "AttentionOptions",
    "AttentionSpec",
    "InceptionSpec",
    "InceptionV3Spec",
    "MobileNetSpec",
    "Parameter",
    "ResNetSpec",
    "ShuffleNetSpec",
    "Spec",
    "VGGSpec",
    "changed",
    "count_parameters",
    "eca_kernel_size",
    "hidden_channels",
    "is_count",
    "make_spec",
    "model_name",
    "model_spec",
    "network_spec",
    "numbered",
    "parameters",
    "spec_values",
    "stem_widths",
    "variant_of",
]
