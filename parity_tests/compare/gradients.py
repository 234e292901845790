"""Gradients of one loss with the same weights in each framework, against PyTorch's.

    L = mean over n of -log softmax(logits[n])[y[n]],  y: seeded labels
    g = dL / d(input), dL / d(stem), dL / d(layer1) ... dL / d(logits), dL / d(every trainable parameter)

The loss is the cross-entropy, as in training, plus 0.4 times that of an auxiliary head; unlike a linear
projection of the logits, its gradient depends on every parameter, the last bias included. Names are
canonical, arrays are in PyTorch's layout. Keras runs on its TensorFlow backend.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from parity_tests.compare import networks
from parity_tests.compare.networks import Arrays
from parity_tests.compare.report import Point
from parity_tests.judge import tolerances
from parity_tests.watch.build import keras_model, tf1_graph, torch_module
from weights_convert import Checkpoint, load_into
from weights_convert.spec import parameters


def gradients(
    checkpoint: Checkpoint,
    images: np.ndarray,
    *,
    frameworks: Sequence[str] = networks.FRAMEWORKS,
    dtype: str = "float64",
    train: bool = True,
) -> list[Point]:
    """The gradients of every framework except torch against torch's in float64; dropout is off.

    In float64 every point has a limit. In float32 only networks of a few blocks have one; for deeper networks
    the limit is infinite: compare the error with `Point.noise`, the error of torch's own float32. All errors
    are against torch's float64.

    Args:
        checkpoint: of a network.
        images: (N, C, H, W).
        frameworks: frameworks to compare; torch is always the reference.
        dtype: "float64" or "float32".
        train: whether batch normalisation uses the batch's statistics or the running statistics.

    Returns:
        The points: "input", the end points in order, then the parameters in PyTorch's order.

    Raises:
        SpecError: not a network, only one class, or an unknown framework or dtype.
        MismatchError: the weights do not fit into `dtype`.
    """
    spec, checkpoint = networks.check(checkpoint, frameworks, dtype)
    labels = networks.seeded_labels(len(images), spec.num_classes)
    reference = RUNNERS[networks.REFERENCE](checkpoint, images, labels, "float64", train)
    found = {
        f: RUNNERS[f](checkpoint, images, labels, dtype, train) for f in networks.candidates_of(frameworks)
    }
    noise: Arrays = {}
    if dtype == "float32":
        noise = RUNNERS[networks.REFERENCE](checkpoint, images, labels, dtype, train)
    known = {parameter.name for parameter in parameters(spec)}
    names = (*(name for name in reference if name not in known), *networks.trainable(checkpoint))
    # a single tensor may have no noise by chance: use the largest noise of the network
    floor = max((networks.error(name, noise, reference) for name in names), default=0.0) if noise else None
    points = []
    for name in names:
        errors = {f: networks.error(name, arrays, reference) for f, arrays in found.items()}
        points.append(Point(name, reference[name].shape, errors, limit(name, spec, floor), floor))
    return points


def limit(name: str, spec: Any, noise: float | None) -> float:
    """The limit of an error at a point, in float32 if a noise is given; `tolerances` has the reasons."""
    if noise is not None:
        shallow = max(tolerances.FLOAT32_SHALLOW_GRADIENT, tolerances.float32_limit(noise))
        return shallow if networks.is_shallow(spec) else math.inf
    inside_cbam = spec.attention == "cbam" and name != "input"
    return tolerances.FLOAT64_CBAM_GRADIENT if inside_cbam else tolerances.FLOAT64_GRADIENT


def notes(checkpoint: Checkpoint, dtype: str) -> list[str]:
    """Conditions under which the figures were measured."""
    spec, lines = networks.spec_of(checkpoint), []
    if spec.dropout:
        lines.append(f"gradients and training: dropout is off; the network has {spec.dropout}")
    kink = "rounding can move a value near 0 across a ReLU's kink, and gradients jump"
    if dtype == "float32" and networks.is_shallow(spec):
        lines.append(f"float32 gradients and training: {kink}; rare with {spec.blocks} blocks")
    elif dtype == "float32":
        lines.append(
            f"float32 gradients and training of {spec.blocks} blocks have no limit: {kink},"
            " in torch alone too (compare the errors with the noise and the one-ulp change)"
        )
    return lines


# --------------------------------------------------------------------------------------------------
# The frameworks


def _torch(checkpoint: Checkpoint, images: np.ndarray, labels: np.ndarray, dtype: str, train: bool) -> Arrays:
    import torch

    model = torch_module(checkpoint.spec, checkpoint, dtype).train(train)
    x = torch.from_numpy(images.astype(dtype)).requires_grad_()
    points = {"input": x, **model.forward_features(x)}
    loss = networks.torch_loss(networks.outputs_of(points), torch.from_numpy(labels))
    wanted = points | dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(wanted.values()))
    return {name: gradient.numpy() for name, gradient in zip(wanted, found, strict=True)}


def _keras(checkpoint: Checkpoint, images: np.ndarray, labels: np.ndarray, dtype: str, train: bool) -> Arrays:
    import tensorflow as tf

    model = keras_model(checkpoint.spec, checkpoint, dtype)
    x = tf.constant(networks.channels_last(images, dtype))
    canonical = networks.to_canonical(checkpoint.spec)
    variables = networks.keras_variables(checkpoint.spec, model)
    with tf.GradientTape() as tape:
        tape.watch(x)
        points = {"input": x, **model.forward_features(x, training=train)}
        loss = networks.keras_loss(networks.outputs_of(points), labels)
    wanted = points | {name: variables[name].value for name in networks.trainable(checkpoint)}
    found = tape.gradient(loss, wanted)
    return {name: canonical(name, gradient.numpy()) for name, gradient in found.items()}


def _tf1(checkpoint: Checkpoint, images: np.ndarray, labels: np.ndarray, dtype: str, train: bool) -> Arrays:
    import tensorflow.compat.v1 as tf

    graph, x, _, end_points = tf1_graph(checkpoint.spec, dtype, train=train)
    with graph.as_default(), tf.Session() as session:
        canonical = networks.to_canonical(checkpoint.spec)
        variables = networks.tf1_variables(checkpoint.spec, graph)
        wanted = {"input": x, **end_points} | {
            name: variables[name] for name in networks.trainable(checkpoint)
        }
        loss = networks.tf1_loss(networks.outputs_of(end_points), labels)
        found = tf.gradients(loss, list(wanted.values()))
        load_into(session, checkpoint)
        values = session.run(found, {x: networks.channels_last(images, dtype)})
    return {name: canonical(name, value) for name, value in zip(wanted, values, strict=True)}


Runner = Callable[[Any, np.ndarray, np.ndarray, str, bool], Arrays]
RUNNERS: dict[str, Runner] = {"torch": _torch, "keras": _keras, "tf1": _tf1}
