"""Weights between PyTorch, Keras 3 and TensorFlow 1, by name and role, without importing any framework.

>>> checkpoint = load("se_resnet50.pth")                    # doctest: +SKIP
>>> convert("se_resnet50.pth", "se_resnet50.weights.h5")    # doctest: +SKIP
>>> load_model("se_resnet50.pth", framework="keras")        # doctest: +SKIP
"""

from weights_convert.checkpoint import Checkpoint, load
from weights_convert.convert import convert, save
from weights_convert.errors import (
    DestinationError,
    MismatchError,
    SourceError,
    SpecError,
    WeightsConvertError,
    WriteError,
)
from weights_convert.frameworks import load_into, load_model, state_of
from weights_convert.plan import Plan
from weights_convert.spec import MODELS, AttentionSpec, ResNetSpec, model_spec, parameters

__all__ = [
    "MODELS",
    "AttentionSpec",
    "Checkpoint",
    "DestinationError",
    "MismatchError",
    "Plan",
    "ResNetSpec",
    "SourceError",
    "SpecError",
    "WeightsConvertError",
    "WriteError",
    "convert",
    "load",
    "load_into",
    "load_model",
    "model_spec",
    "parameters",
    "save",
    "state_of",
]
