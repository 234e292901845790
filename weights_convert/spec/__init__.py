"""Architectures as data: one file per kind of network, the named models, and checks of values.

A spec field is a keyword of the models in `torch_impl`, `keras_impl` and `tf1_compat`:
`ResNet(**spec.model_kwargs())` is the same network in each. `parameters(spec)` lists its tensors in
PyTorch naming and layout, the canonical form through which every conversion goes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
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
from weights_convert.spec.mobilenet import MobileNetSpec
from weights_convert.spec.models import MODELS, model_name, model_spec, variant_of
from weights_convert.spec.resnet import ResNetSpec, stem_widths
from weights_convert.spec.vgg import VGGSpec

_KINDS: tuple[type[Spec], ...] = (ResNetSpec, VGGSpec, InceptionSpec, MobileNetSpec, AttentionSpec)
KINDS: dict[str, type[Spec]] = {kind.kind: kind for kind in _KINDS}


def network_spec(keywords: Mapping[str, Any]) -> Any:
    """The spec of the kind of network with exactly these keywords; None for a single block's keywords."""
    for kind in KINDS.values():
        if kind.network and {field.name for field in dataclasses.fields(kind)} == set(keywords):
            return make_spec(kind, keywords)
    return None


__all__ = [
    "COUNTS",
    "KINDS",
    "MODELS",
    "TRAINING_ONLY",
    "AttentionOptions",
    "AttentionSpec",
    "InceptionSpec",
    "MobileNetSpec",
    "Parameter",
    "ResNetSpec",
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
    "parameters",
    "spec_values",
    "stem_widths",
    "variant_of",
]
