"""Builds a network in each framework from a spec, loads weights from a file or memory, and runs it on images.

Images and outputs are (N, C, H, W) for every framework. Functions import the frameworks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from weights_convert import (
    Checkpoint,
    import_order,  # noqa: F401  (before any framework)
    load_into,
    state_of,
)
from weights_convert.frameworks import adapter
from weights_convert.spec import Spec, is_count

Points = dict[str, np.ndarray]  # stem, layer1 ..., pooled, logits


class Network(NamedTuple):
    """A live network: functions for its outputs and its weights."""

    points: Callable[[np.ndarray], Points]
    state: Callable[[], Checkpoint]


class Outcome(NamedTuple):
    """The outputs of one framework, and the weights read back from the live model."""

    points: Points
    state: Checkpoint


def torch_module(spec: Spec, source: Path | Checkpoint, dtype: str) -> Any:
    """A torch network in eval mode with weights from its own file or a checkpoint."""
    import torch

    module = adapter("torch").build(spec, dtype)
    if isinstance(source, Path):
        module.load_state_dict(torch.load(source, weights_only=True))
    else:
        load_into(module, source)
    return module


def keras_model(spec: Spec, source: Path | Checkpoint, dtype: str) -> Any:
    """A Keras network with weights from its own file or a checkpoint."""
    model = adapter("keras").build(spec, dtype)
    if isinstance(source, Path):
        model.load_weights(source)
    else:
        load_into(model, source)
    return model


class TF1Graph(NamedTuple):
    """A network in a graph of its own."""

    graph: Any
    images: Any
    logits: Any
    end_points: dict[str, Any]


def tf1_graph(spec: Spec, dtype: str, *, train: bool = False, images: np.ndarray | None = None) -> TF1Graph:
    """A TF1 network without values; `images` (N, H, W, C) are a constant of the graph, else a placeholder."""
    import tensorflow.compat.v1 as tf

    with tf.Graph().as_default() as graph:  # default graph only while building: Keras must not see it
        if images is None:
            x = tf.placeholder(dtype, (None, None, None, spec.input_channels))
        else:
            x = tf.constant(images)
        return TF1Graph(graph, x, *adapter("tf1").build(x, spec, train))


@contextmanager
def torch_network(spec: Spec, source: Path | Checkpoint, dtype: str) -> Iterator[Network]:
    import torch

    model = torch_module(spec, source, dtype)

    def points(images: np.ndarray) -> Points:
        with torch.inference_mode():
            features = model.forward_features(torch.from_numpy(images.astype(dtype)))
        return {name: feature.numpy() for name, feature in features.items()}

    yield Network(points, partial(state_of, model))


@contextmanager
def keras_network(spec: Spec, source: Path | Checkpoint, dtype: str) -> Iterator[Network]:
    import keras

    model = keras_model(spec, source, dtype)

    def points(images: np.ndarray) -> Points:
        features = model.forward_features(images.astype(dtype).transpose(0, 2, 3, 1), training=False)
        return {name: _channels_first(keras.ops.convert_to_numpy(f)) for name, f in features.items()}

    yield Network(points, partial(state_of, model))


@contextmanager
def tf1_network(spec: Spec, source: Path | Checkpoint, dtype: str) -> Iterator[Network]:
    import tensorflow.compat.v1 as tf

    graph, placeholder, _, end_points = tf1_graph(spec, dtype)
    with closing(tf.Session(graph=graph)) as session:
        if isinstance(source, Path):
            with graph.as_default():
                tf.train.Saver().restore(session, str(source))
        else:
            load_into(session, source)

        def points(images: np.ndarray) -> Points:
            features = session.run(end_points, {placeholder: images.astype(dtype).transpose(0, 2, 3, 1)})
            return {name: _channels_first(feature) for name, feature in features.items()}

        yield Network(points, partial(state_of, session))


def _channels_first(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array


Opened = Callable[[Spec, Path | Checkpoint, str], AbstractContextManager[Network]]
NETWORKS: dict[str, Opened] = {"torch": torch_network, "keras": keras_network, "tf1": tf1_network}


def _run(framework: str, spec: Spec, source: Path | Checkpoint, images: np.ndarray, dtype: str) -> Outcome:
    with NETWORKS[framework](spec, source, dtype) as network:
        return Outcome(network.points(images), network.state())


RUNNERS: dict[str, Callable[[Spec, Path | Checkpoint, np.ndarray, str], Outcome]] = {
    framework: partial(_run, framework) for framework in NETWORKS
}
SUFFIXES = {"torch": ".pth", "keras": ".weights.h5", "tf1": ".ckpt"}  # each framework's own file


def same_bits(wanted: Checkpoint, state: Checkpoint, dtype: str) -> list[str]:
    """The tensors whose bits differ in a live model; step counts are compared only if both have them."""
    different = [name for name in state if name not in wanted and not is_count(name)]
    for name in wanted:
        if name not in state:
            if not is_count(name):
                different.append(name)
            continue
        array = wanted[name] if wanted[name].dtype.kind == "i" else wanted[name].astype(dtype)
        if state[name].dtype != array.dtype or state[name].tobytes() != array.tobytes():
            different.append(name)
    return different
