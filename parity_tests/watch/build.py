"""Builds a network in each framework from a spec, loads weights from a file or memory, and runs it on images.

Images and outputs are (N, C, H, W) for every framework. Functions import the frameworks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from weights_convert import (
    Checkpoint,
    import_order,  # noqa: F401  (before any framework)
    load_into,
    state_of,
)
from weights_convert.spec import ResNetSpec, is_count

Points = dict[str, np.ndarray]  # stem, layer1 ..., pooled, logits


class Network(NamedTuple):
    """A live network: functions for its outputs and its weights."""

    points: Callable[[np.ndarray], Points]
    state: Callable[[], Checkpoint]


class Outcome(NamedTuple):
    """The outputs of one framework, and the weights read back from the live model."""

    points: Points
    state: Checkpoint


@contextmanager
def torch_network(spec: ResNetSpec, source: Path | Checkpoint, dtype: str) -> Iterator[Network]:
    import torch

    import torch_impl

    with torch.device("meta"):
        model = torch_impl.ResNet(**spec.model_kwargs())
    model = model.to(getattr(torch, dtype)).to_empty(device="cpu").eval()
    if isinstance(source, Path):
        model.load_state_dict(torch.load(source, weights_only=True))
    else:
        load_into(model, source)

    def points(images: np.ndarray) -> Points:
        with torch.inference_mode():
            features = model.forward_features(torch.from_numpy(images.astype(dtype)))
        return {name: feature.numpy() for name, feature in features.items()}

    yield Network(points, partial(state_of, model))


@contextmanager
def keras_network(spec: ResNetSpec, source: Path | Checkpoint, dtype: str) -> Iterator[Network]:
    import keras

    import keras_impl

    model = keras_impl.ResNet(**spec.model_kwargs(), dtype=dtype)
    if isinstance(source, Path):
        model.load_weights(source)
    else:
        load_into(model, source)

    def points(images: np.ndarray) -> Points:
        features = model.forward_features(images.astype(dtype).transpose(0, 2, 3, 1), training=False)
        return {name: _channels_first(keras.ops.convert_to_numpy(f)) for name, f in features.items()}

    yield Network(points, partial(state_of, model))


@contextmanager
def tf1_network(spec: ResNetSpec, source: Path | Checkpoint, dtype: str) -> Iterator[Network]:
    import tensorflow.compat.v1 as tf

    import tf1_compat

    with tf.Graph().as_default() as graph:  # default graph only while building: Keras must not see it
        placeholder = tf.placeholder(dtype, (None, None, None, spec.in_channels))
        _, end_points = tf1_compat.resnet(placeholder, **spec.model_kwargs())
        saver = tf.train.Saver()
    with closing(tf.Session(graph=graph)) as session:
        if isinstance(source, Path):
            with graph.as_default():
                saver.restore(session, str(source))
        else:
            load_into(session, source)

        def points(images: np.ndarray) -> Points:
            features = session.run(end_points, {placeholder: images.astype(dtype).transpose(0, 2, 3, 1)})
            return {name: _channels_first(feature) for name, feature in features.items()}

        yield Network(points, partial(state_of, session))


def _channels_first(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array


Opened = Callable[[ResNetSpec, Path | Checkpoint, str], AbstractContextManager[Network]]
NETWORKS: dict[str, Opened] = {"torch": torch_network, "keras": keras_network, "tf1": tf1_network}


def _run(
    framework: str, spec: ResNetSpec, source: Path | Checkpoint, images: np.ndarray, dtype: str
) -> Outcome:
    with NETWORKS[framework](spec, source, dtype) as network:
        return Outcome(network.points(images), network.state())


RUNNERS: dict[str, Callable[[ResNetSpec, Path | Checkpoint, np.ndarray, str], Outcome]] = {
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
