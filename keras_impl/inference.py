"""Networks for inference in Keras 3: batch norms folded into the preceding convolutions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from .live import Network


def optimize_for_inference(model: keras.Model) -> keras.Model:
    """The same network for inference only, and faster.

    With each batch norm W' = W gamma / sqrt(variance + epsilon) and
    b' = beta + (b - mean) gamma / sqrt(variance + epsilon), computed in float64 and rounded once.

    Args:
        model: a network, or a sequential or functional model with networks in it; it is not changed.

    Returns:
        The model with `norm="bias"` networks, not trainable. `predict_on_batch(images)` and `predict` run it
        compiled; calling it directly runs layer by layer, several times slower for one image.

    Raises:
        TypeError: `model` is neither a network of this package nor a model with one in it.

    Example:
        >>> from keras_impl import se_resnet20
        >>> fast = optimize_for_inference(se_resnet20())
        >>> fast.predict_on_batch(np.zeros((1, 32, 32, 3), "float32")).shape
        (1, 10)
    """
    if isinstance(model, Network):
        return _without_norms(model)
    if type(model).__name__ not in ("Functional", "Sequential") or not _holds_network(model):
        raise TypeError(
            f"received a {type(model).__name__}, expected a network of keras_impl, or a sequential or "
            "functional model with one in it"
        )
    pairs: list[tuple[keras.layers.Layer, keras.layers.Layer]] = []

    def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, Network):
            return _without_norms(layer)
        pairs.append((layer, type(layer).from_config(layer.get_config())))
        return pairs[-1][1]

    fast = keras.models.clone_model(model, clone_function=copy, recursive=True)
    for layer, same in pairs:
        same.set_weights(layer.get_weights())
    fast.trainable = False
    return fast


def _holds_network(model: keras.Model) -> bool:
    inner = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    return any(isinstance(layer, Network) or _holds_network(layer) for layer in inner)


def _without_norms(model: Any) -> Any:
    config = model.get_config()
    spatial_bias = config["cbam_spatial_bias"] or config["cbam_bn"]
    norm = "gn" if config["norm"] == "gn" else "bias"  # a group norm depends on the image
    folded = {"norm": norm, "cbam_bn": False, "cbam_spatial_bias": spatial_bias, "trainable": False}
    values = {_name(variable.path): ops.convert_to_numpy(variable) for variable in model.variables}
    fast = type(model).from_config(config | folded)
    for variable in fast.variables:
        variable.assign(_folded(_name(variable.path), values, config))
    return fast


def _name(path: str) -> str:
    """A variable's path within its model."""
    return path.partition("/")[2]


def _folded(name: str, values: Mapping[str, np.ndarray], keywords: Mapping[str, Any]) -> np.ndarray:
    """The variable `name` of the network without batch norms.

    Args:
        values, keywords: of the network with batch norms.
    """
    if "head_width" in keywords:
        numbers = _numbers(keywords)
        name = re.sub(r"features_(\d+)", lambda found: f"features_{numbers[int(found[1])]}", name)
    layer, _, leaf = name.rpartition("/")
    bn, epsilon = _bn_after(layer), keywords["bn_epsilon"]
    if f"{bn}/moving_mean" not in values:
        return values[name]
    gamma, beta, mean, variance = (
        values[f"{bn}/{n}"].astype("float64") for n in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    scale = gamma / np.sqrt(variance + epsilon)
    if leaf == "kernel":  # (kH, kW, C, O), of a depthwise convolution (kH, kW, C, 1)
        return values[name] * (scale if values[name].shape[-1] > 1 else scale[:, None])
    return beta + (values.get(name, 0) - mean) * scale


def _numbers(keywords: Mapping[str, Any]) -> list[int]:
    """The numbers of a VGG's layers that are not batch norms, in `features`."""
    step = 2 if keywords["norm"] == "bias" else 3  # a convolution, its batch norm, the ReLU
    numbers, number = [], 0
    for depth in keywords["depths"]:
        for _ in range(depth):
            numbers += [number, number + step - 1]
            number += step
        numbers.append(number)  # the max-pool
        number += 1
    return numbers


def _bn_after(conv: str) -> str:
    """The name of the batch norm after a convolution; in selective kernels also after the layer `fc1`."""
    if conv.endswith("sk/fc1"):
        return f"{conv[:-3]}bn"
    name = re.sub(r"conv(\d?)$", r"bn\1", conv)
    return re.sub(r"(downsample|features)_(\d+)$", lambda found: f"{found[1]}_{int(found[2]) + 1}", name)
