"""Random weights to begin with, made by NumPy: the same in every framework for the same seed."""

from __future__ import annotations

import math

import numpy as np

from weights_convert import Checkpoint
from weights_convert.spec import Spec, parameters

_START = 6  # stream of random numbers
_FILLED = {"scale": 1, "variance": 1, "offset": 0, "mean": 0, "count": 0}


def initial_weights(spec: Spec, seed: int, dtype: str = "float32") -> Checkpoint:
    """Weights as torchvision's ResNet begins with.

    Convolutions: normal, deviation sqrt(2 / fan_out) (arXiv 1502.01852). Dense layers: uniform between
    +-1/sqrt(fan_in), as `torch.nn.Linear`. Biases and offsets 0, scales 1.

    Example:
        >>> from weights_convert import model_spec
        >>> initial_weights(model_spec("se_resnet20"), seed=0)["conv1.weight"].shape
        (16, 3, 3, 3)
    """
    random = np.random.default_rng([seed, _START])
    arrays = {}
    for name, shape, role in parameters(spec):
        if role == "count":
            arrays[name] = np.zeros(shape, np.int64)
        elif role in _FILLED or role == "bias":
            arrays[name] = np.full(shape, _FILLED.get(role, 0), dtype)
        elif role.endswith("dense"):
            bound = 1 / math.sqrt(math.prod(shape[1:]))
            arrays[name] = random.uniform(-bound, bound, shape).astype(dtype)
        else:
            fan_out = shape[0] * math.prod(shape[2:])
            arrays[name] = random.normal(0, math.sqrt(2 / fan_out), shape).astype(dtype)
    return Checkpoint.from_arrays(arrays, spec.model_kwargs())
