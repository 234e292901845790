"""One network in each framework: built from a spec, loaded from its own file or from memory, run on images.

Images and outputs are (N, C, H, W) for every framework; the frameworks are imported inside.
"""

from __future__ import annotations

from collections.abc import Callable
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


class Outcome(NamedTuple):
    """What one framework made of the images, and the weights, read back from the live model."""

    points: Points
    state: Checkpoint


def run_torch(spec: ResNetSpec, source: Path | Checkpoint, images: np.ndarray, dtype: str) -> Outcome:
    import torch

    import torch_impl

    with torch.device("meta"):
        model = torch_impl.ResNet(**spec.model_kwargs())
    model = model.to(getattr(torch, dtype)).to_empty(device="cpu").eval()
    if isinstance(source, Path):
        model.load_state_dict(torch.load(source, weights_only=True))
    else:
        load_into(model, source)
    with torch.inference_mode():
        features = model.forward_features(torch.from_numpy(images.astype(dtype)))
    return Outcome({name: feature.numpy() for name, feature in features.items()}, state_of(model))


def run_keras(spec: ResNetSpec, source: Path | Checkpoint, images: np.ndarray, dtype: str) -> Outcome:
    import keras

    import keras_impl

    model = keras_impl.ResNet(**spec.model_kwargs(), dtype=dtype)
    if isinstance(source, Path):
        model.load_weights(source)
    else:
        load_into(model, source)
    features = model.forward_features(images.astype(dtype).transpose(0, 2, 3, 1), training=False)
    points = {name: _channels_first(keras.ops.convert_to_numpy(f)) for name, f in features.items()}
    return Outcome(points, state_of(model))


def run_tf1(spec: ResNetSpec, source: Path | Checkpoint, images: np.ndarray, dtype: str) -> Outcome:
    import tensorflow.compat.v1 as tf

    import tf1_compat

    with tf.Graph().as_default(), tf.Session() as session:
        placeholder = tf.placeholder(dtype, (None, None, None, spec.in_channels))
        _, end_points = tf1_compat.resnet(placeholder, **spec.model_kwargs())
        if isinstance(source, Path):
            tf.train.Saver().restore(session, str(source))
        else:
            load_into(session, source)
        features = session.run(end_points, {placeholder: images.astype(dtype).transpose(0, 2, 3, 1)})
        state = state_of(session)
    return Outcome({name: _channels_first(feature) for name, feature in features.items()}, state)


def _channels_first(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array


RUNNERS: dict[str, Callable[[ResNetSpec, Path | Checkpoint, np.ndarray, str], Outcome]] = {
    "torch": run_torch,
    "keras": run_keras,
    "tf1": run_tf1,
}
SUFFIXES = {"torch": ".pth", "keras": ".weights.h5", "tf1": ".ckpt"}  # each framework's own file


def same_bits(wanted: Checkpoint, state: Checkpoint, dtype: str) -> list[str]:
    """The tensors that a live model does not hold bit for bit (step counts only where both have them)."""
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
