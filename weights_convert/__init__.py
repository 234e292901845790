"""Weights between PyTorch, Keras 3 and TensorFlow 1, by name and role, without importing any framework.

Example:
    >>> import tempfile, torch_impl
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     plan = save(state_of(torch_impl.se_resnet20()), f"{folder}/a.pth")
    ...     plan = convert(f"{folder}/a.pth", f"{folder}/a.weights.h5")
    ...     with load(f"{folder}/a.weights.h5") as checkpoint:
    ...         checkpoint.model, checkpoint["layer1.0.se.fc1.weight"].shape
    ('se_resnet20', (1, 16))
"""

from weights_convert.checkpoint import Checkpoint
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
from weights_convert.frameworks.transfer import Certificate, match, transfer
from weights_convert.limits import LimitError, Limits
from weights_convert.loading import load
from weights_convert.plan import Plan
from weights_convert.spec import MODELS, AttentionSpec, ResNetSpec, model_spec, parameters

__version__ = "0.1.0"

__all__ = [
    "MODELS",
    "AttentionSpec",
    "Certificate",
    "Checkpoint",
    "DestinationError",
    "LimitError",
    "Limits",
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
    "match",
    "model_spec",
    "parameters",
    "save",
    "state_of",
    "transfer",
]
