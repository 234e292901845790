"""The judge: attention blocks and networks, forward, in plain NumPy float64.

Written from the papers' equations, independently of the three implementations, with NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from parity_tests.judge.numpy_reference.inception import inception
from parity_tests.judge.numpy_reference.inception_v3 import inception_v3
from parity_tests.judge.numpy_reference.layers import Weights
from parity_tests.judge.numpy_reference.mobilenet import mobilenet
from parity_tests.judge.numpy_reference.resnet import resnet
from parity_tests.judge.numpy_reference.shufflenet import shufflenet
from parity_tests.judge.numpy_reference.vgg import vgg

_NETWORKS: dict[str, Callable[..., dict[str, np.ndarray]]] = {
    "resnet": resnet,
    "vgg": vgg,
    "inception": inception,
    "inception_v3": inception_v3,
    "mobilenet": mobilenet,
    "shufflenet": shufflenet,
}


def network(images: np.ndarray, weights: Weights, spec: Any) -> dict[str, np.ndarray]:
    """Every compared point of a network, in the order of `spec.stages()`."""
    return _NETWORKS[spec.kind](images, weights, spec)
