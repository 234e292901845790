"""Networks for inference in TensorFlow 1: batch norms folded into convolutions, variables frozen."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

from .inception import CONFIG_COLLECTION as INCEPTIONS
from .inception import inception
from .inception_v3 import CONFIG_COLLECTION as INCEPTIONS_V3
from .inception_v3 import inceptionv3
from .mobilenet import CONFIG_COLLECTION as MOBILENETS
from .mobilenet import mobilenet
from .resnet import CONFIG_COLLECTION as RESNETS
from .resnet import resnet
from .shufflenet import CONFIG_COLLECTION as SHUFFLENETS
from .shufflenet import shufflenet
from .vgg import CONFIG_COLLECTION as VGGS
from .vgg import vgg


def optimize_for_inference(session: tf.Session, scope: str | None = None) -> tf.GraphDef:
    """The same network for inference only, and faster: a frozen graph.

    With each batch norm W' = W gamma / sqrt(variance + epsilon) and
    b' = beta + (b - mean) gamma / sqrt(variance + epsilon), computed in float64 and rounded once.

    Args:
        session: holds the network's initialised variables; it is not changed.
        scope: variable scope of the network; None if the graph holds only one network.

    Returns:
        A graph with the input "images:0" (N, H, W, C) and the output "logits:0" (N, num_classes).

    Raises:
        ValueError: the graph holds no such network.

    Example:
        >>> from tf1_compat import se_resnet20
        >>> with tf.Graph().as_default(), tf.Session() as session:
        ...     _ = se_resnet20(tf.placeholder("float32", (None, 32, 32, 3)), scope="net")
        ...     session.run(tf.global_variables_initializer())
        ...     graph_def = optimize_for_inference(session)
        >>> with tf.Graph().as_default(), tf.Session() as session:
        ...     _ = tf.import_graph_def(graph_def, name="")
        ...     session.run("logits:0", {"images:0": np.zeros((1, 32, 32, 3))}).shape
        (1, 10)
    """
    scope, network, keywords = _network(session.graph, scope)
    prefix = f"{scope}/" if scope else ""
    variables = {
        variable.op.name.removeprefix(prefix): variable
        for variable in session.graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES)
        if variable.op.name.startswith(prefix)
    }
    values, dtype = session.run(variables), next(iter(variables.values())).dtype.base_dtype
    spatial_bias = keywords["cbam_spatial_bias"] or keywords["cbam_bn"]
    norm = "gn" if keywords["norm"] == "gn" else "bias"  # a group norm depends on the image
    folded = keywords | {"norm": norm, "cbam_bn": False, "cbam_spatial_bias": spatial_bias}
    with tf.Graph().as_default(), tf.Session() as frozen:
        images = tf.placeholder(dtype, (None, None, None, keywords["in_channels"]), "images")
        tf.identity(network(images, **folded)[0], "logits")
        feed = {
            # the tensor of the initial value: the variable takes the value fed for it
            variable.initializer.inputs[1]: _folded(variable.op.name, values, keywords)
            for variable in tf.global_variables()
        }
        frozen.run(tf.global_variables_initializer(), feed)
        return tf.graph_util.convert_variables_to_constants(frozen, frozen.graph_def, ["logits"])


def _network(graph: tf.Graph, scope: str | None) -> tuple[str, Callable, dict]:
    """Scope, function and keywords of the selected network."""
    found = {
        note["scope"]: (network, note["keywords"])
        for collection, network in (
            (RESNETS, resnet),
            (VGGS, vgg),
            (INCEPTIONS, inception),
            (INCEPTIONS_V3, inceptionv3),
            (MOBILENETS, mobilenet),
            (SHUFFLENETS, shufflenet),
        )
        for note in map(json.loads, graph.get_collection(collection))
    }
    if scope is None and len(found) == 1:
        scope = next(iter(found))
    if scope is None or scope not in found:
        raise ValueError(f"scope={scope!r}: expected one of the graph's networks, {sorted(found)}")
    return scope, *found[scope]


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
