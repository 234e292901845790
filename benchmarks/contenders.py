"""The contenders of `benchmarks models`: each builds SE-ResNeXt-50 in its own way and returns a step to time.

`python -m benchmarks.contenders NAME FORWARD_OR_TRAIN BATCH DTYPE` runs a worker: for every line on its
standard input it takes one step and prints its seconds.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MODEL = "se_resnext50_32x4d"
SIZE = 224
SGEMM = 3000  # rows and columns of the matrices whose product measures the machine's rate


class Job(NamedTuple):
    """The task of a contender."""

    train: bool
    batch: int
    dtype: str

    @property
    def images(self) -> np.ndarray:  # (N, H, W, C)
        return np.random.default_rng(0).normal(0, 1, (self.batch, SIZE, SIZE, 3)).astype(self.dtype)

    @property
    def labels(self) -> np.ndarray:
        return np.arange(self.batch, dtype=np.int64)


Step = Callable[[], Any]


# --------------------------------------------------------------------------------------------------
# PyTorch


def _torch_model() -> Any:
    import torch

    import torch_impl

    torch.manual_seed(0)
    return getattr(torch_impl, MODEL)()


def _torch_step(make: Callable[[], Any], job: Job, *, channels_last: bool = False) -> Step:
    import torch
    import torch.nn.functional as F

    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.from_numpy(job.images.transpose(0, 3, 1, 2).copy()).to(memory_format=layout)
    model = make().to(x.dtype).to(memory_format=layout).train(job.train)
    if not job.train:

        def forward() -> None:
            with torch.inference_mode():
                model(x)

        return forward
    labels, optimizer = torch.from_numpy(job.labels), torch.optim.SGD(model.parameters(), 1e-3, 0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return step


def _torch_folded() -> Any:
    import torch_impl

    return torch_impl.optimize_for_inference(_torch_model(), compile=False)


def torch_optimized(job: Job) -> Step:
    import torch

    import torch_impl

    model = torch_impl.optimize_for_inference(_torch_model())
    x = torch.from_numpy(job.images.transpose(0, 3, 1, 2).copy()).to(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.inference_mode():
            model(x)

    return forward


def _foreign(family: str, make: Callable[[], Any]) -> Any:
    """Another project's model with our converted weights; it gives our output."""
    import torch

    from weights_convert import save, state_of

    ours, theirs = _torch_model().eval(), make().eval()
    with tempfile.TemporaryDirectory() as folder:
        save(state_of(ours), path := Path(folder) / "theirs.pth", family=family)
        theirs.load_state_dict(torch.load(path, weights_only=True))
    with torch.inference_mode():
        x = torch.zeros(1, 3, SIZE, SIZE)
        torch.testing.assert_close(theirs(x), ours(x))
    return theirs


def _timm() -> Any:
    import timm

    return _foreign("timm", lambda: timm.create_model("seresnext50_32x4d"))


def _pytorchcv() -> Any:
    from pytorchcv.model_provider import get_model

    return _foreign("pytorchcv", lambda: get_model("seresnext50_32x4d"))


# --------------------------------------------------------------------------------------------------
# Keras and TensorFlow 1


def _keras_step(job: Job, *, optimized: bool = False, eager: bool = False) -> Step:
    import keras

    import keras_impl

    keras.utils.set_random_seed(0)
    model, images = getattr(keras_impl, MODEL)(dtype=job.dtype), job.images
    if job.train:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(1e-3, 0.9), loss, run_eagerly=eager)
        return lambda: model.train_on_batch(images, job.labels)
    if optimized:
        model = keras_impl.optimize_for_inference(model)
    if eager:
        tensor = keras.ops.convert_to_tensor(images)
        return lambda: keras.ops.convert_to_numpy(model(tensor, training=False))
    return lambda: model.predict_on_batch(images)


def _stock_step(job: Job, *, eager: bool = False) -> Step:
    """With Keras's own grouped convolution."""
    from keras import ops

    from keras_impl import layers

    def stock(x: Any, kernel: Any, strides: Any, padding: str, groups: int, dilations: Any = 1) -> Any:  # noqa: ARG001
        return ops.conv(x, kernel, strides, padding, "channels_last", dilations)

    layers.grouped_conv2d = stock
    return _keras_step(job, eager=eager)


def _tf1_network(job: Job) -> tuple[Any, Any, Any]:
    import tensorflow.compat.v1 as tf

    import tf1_compat

    tf.disable_eager_execution()
    images = tf.placeholder(job.dtype, (None, SIZE, SIZE, 3))
    logits, _ = getattr(tf1_compat, MODEL)(images, is_training=job.train)
    return tf, images, logits


def tf1(job: Job) -> Step:
    tf, images, logits = _tf1_network(job)
    session, feed = tf.Session(), {images: job.images}
    if not job.train:
        session.run(tf.global_variables_initializer())
        return lambda: session.run(logits, feed)
    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=job.labels, logits=logits))
    with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
        step = tf.train.MomentumOptimizer(1e-3, 0.9).minimize(loss)
    session.run(tf.global_variables_initializer())
    return lambda: session.run(step, feed)


def tf1_optimized(job: Job) -> Step:
    import tf1_compat

    tf, _, _ = _tf1_network(job)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        graph_def = tf1_compat.optimize_for_inference(session)
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(graph_def, name="")
    session, images = tf.Session(graph=graph), job.images
    return lambda: session.run("logits:0", {"images:0": images})


# --------------------------------------------------------------------------------------------------
# Inference engines, and the machine's rate


def _onnx_file(folder: str, job: Job) -> Path:
    import torch

    path, x = Path(folder) / "model.onnx", torch.zeros(job.batch, 3, SIZE, SIZE)
    torch.onnx.export(_torch_model().eval(), (x,), path, input_names=["images"], dynamo=True, verbose=False)
    return path


def onnxruntime_(job: Job) -> Step:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        session = onnxruntime.InferenceSession(_onnx_file(folder, job), providers=["CPUExecutionProvider"])
    images = job.images.transpose(0, 3, 1, 2).copy()
    return lambda: session.run(None, {"images": images})


def openvino_(job: Job) -> Step:
    import openvino

    core = openvino.Core()
    with tempfile.TemporaryDirectory() as folder:
        model = core.read_model(_onnx_file(folder, job))
        # float32, like the others: its default may be bfloat16
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    images = job.images.transpose(0, 3, 1, 2).copy()
    return lambda: compiled(images)


def sgemm(job: Job) -> Step:
    a = np.random.default_rng(0).random((SGEMM, SGEMM)).astype(job.dtype)
    return lambda: a @ a


KEPT = {  # otherwise glibc returns freed memory, and every large activation is mapped and cleared again
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
}
CONTENDERS: dict[str, Callable[[Job], Step]] = {
    "torch": partial(_torch_step, _torch_model),
    "torch, channels_last": partial(_torch_step, _torch_model, channels_last=True),
    "torch, folded": partial(_torch_step, _torch_folded, channels_last=True),
    "torch, optimized": torch_optimized,
    "torch, memory kept": partial(_torch_step, _torch_model),
    "torch, optimized, memory kept": torch_optimized,
    "timm": partial(_torch_step, _timm),
    "timm, channels_last": partial(_torch_step, _timm, channels_last=True),
    "pytorchcv": partial(_torch_step, _pytorchcv),
    "pytorchcv, channels_last": partial(_torch_step, _pytorchcv, channels_last=True),
    "keras": _keras_step,
    "keras, eager": partial(_keras_step, eager=True),
    "keras, optimized": partial(_keras_step, optimized=True),
    "stock Keras": _stock_step,
    "stock Keras, eager": partial(_stock_step, eager=True),
    "tf1": tf1,
    "tf1, optimized": tf1_optimized,
    "ONNX Runtime": onnxruntime_,
    "OpenVINO": openvino_,
    "sgemm": sgemm,
}


def worker(name: str, mode: str, batch: str, dtype: str) -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps output of libraries out of the answers
    step = CONTENDERS[name](Job(mode == "train", int(batch), dtype))
    step()
    step()
    print("ready", file=out, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print(time.perf_counter() - start, file=out, flush=True)


if __name__ == "__main__":
    worker(*sys.argv[1:])
