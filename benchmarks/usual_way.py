"""The usual way to convert a network: load it, build the other framework's model, assign, save.

`python -m benchmarks.usual_way MODEL SRC DST`; the suffixes select the direction: .pth to .weights.h5, back,
.ckpt. Written as in a notebook, with the necessary steps only.
"""

from __future__ import annotations

import os
import re
import sys

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

TO_TORCH = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "bias": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def torch_name(path: str) -> str:
    """layer1_0/conv1/kernel -> layer1.0.conv1.weight"""
    module, _, leaf = path.rpartition("/")
    return re.sub(r"_(\d+)", r".\1", module).replace("/", ".") + "." + TO_TORCH[leaf]


def to_tensorflow(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def to_torch(array: np.ndarray) -> np.ndarray:
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def torch_to_keras(model: str, src: str, dst: str) -> None:
    import torch

    import keras_impl

    state = torch.load(src, weights_only=True)
    network = getattr(keras_impl, model)()
    for variable in network.weights:
        name = torch_name(variable.path.partition("/")[2])
        variable.assign(to_tensorflow(state[name].numpy()))
    network.save_weights(dst)


def keras_to_torch(model: str, src: str, dst: str) -> None:
    import torch

    import keras_impl
    import torch_impl

    source = getattr(keras_impl, model)()
    source.load_weights(src)
    network = getattr(torch_impl, model)()
    state = network.state_dict()
    for variable in source.weights:
        name = torch_name(variable.path.partition("/")[2])
        state[name].copy_(torch.from_numpy(np.ascontiguousarray(to_torch(variable.numpy()))))
    torch.save(state, dst)


def torch_to_tf1(model: str, src: str, dst: str) -> None:
    import tensorflow.compat.v1 as tf
    import torch

    import tf1_compat

    state = torch.load(src, weights_only=True)
    tf.disable_eager_execution()
    getattr(tf1_compat, model)(tf.zeros((1, 224, 224, 3)))
    variables = tf.global_variables()
    with tf.Session() as session:
        arrays = (to_tensorflow(state[torch_name(variable.op.name)].numpy()) for variable in variables)
        feed = {v.initializer.inputs[1]: array for v, array in zip(variables, arrays, strict=True)}
        session.run([variable.initializer for variable in variables], feed)  # all at once, the fastest way
        tf.train.Saver(variables).save(session, dst, write_meta_graph=False)


if __name__ == "__main__":
    model, src, dst = sys.argv[1:]
    if dst.endswith(".pth"):
        keras_to_torch(model, src, dst)
    elif dst.endswith(".weights.h5"):
        torch_to_keras(model, src, dst)
    else:
        torch_to_tf1(model, src, dst)
