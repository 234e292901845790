"""Legs of a training in each framework: weights and optimiser are read from a file, and written to one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from weights_convert import ResNetSpec

SPEC = ResNetSpec(
    block="basic",
    depths=(1, 1),
    width=3,
    stem="3x3",
    stem_width=3,
    attention="se",
    reduction=2,
    num_classes=3,
    in_channels=2,
)
SIZE, BATCH = 8, 4
# Keras's cast and TF1 turn Python's numbers into float32 tensors, even beside float64 variables
MOMENTUM, DECAY, EPSILON = np.float64(0.9), np.float64(0.01), np.float64(1e-8)
BETAS = np.float64(0.9), np.float64(0.999)


class Leg(NamedTuple):
    """Steps of one training: the optimiser, the rate, and the numbers of the first and last batch."""

    kind: str
    rate: float
    first: int
    last: int

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Images (N, H, W, C) and one-hot labels (N, classes), other ones in every step."""
        for number in range(self.first, self.last):
            random = np.random.default_rng([number, 2])
            images = random.normal(size=(BATCH, SIZE, SIZE, 2))
            yield images, np.eye(3)[random.integers(0, 3, BATCH)]


def torch_optimizer(kind: str, parameters: Any, rate: float) -> Any:
    import torch

    if kind == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=float(MOMENTUM), weight_decay=float(DECAY))
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    betas = float(BETAS[0]), float(BETAS[1])
    return kinds[kind](parameters, lr=rate, betas=betas, eps=float(EPSILON), weight_decay=float(DECAY))


def torch_leg(source: Path | dict[str, Any] | None, target: Path | None, leg: Leg) -> Any:
    """Train in PyTorch from a training checkpoint; returns the network and its optimiser."""
    import torch
    from torch.nn.functional import cross_entropy

    import torch_impl

    net = torch_impl.ResNet(**SPEC.model_kwargs()).double()
    optimizer = torch_optimizer(leg.kind, net.parameters(), leg.rate)
    if source is not None:
        state = source if isinstance(source, dict) else torch.load(source, weights_only=True)
        net.load_state_dict(state["state_dict"])
        if "optimizer" in state:
            optimizer.load_state_dict(state["optimizer"])
    for group in optimizer.param_groups:
        assert group["lr"] == leg.rate or not isinstance(source, Path)  # a file has it
        group["lr"] = leg.rate
    for images, labels in leg.batches():
        optimizer.zero_grad()
        cross_entropy(net(torch.from_numpy(images).permute(0, 3, 1, 2)), torch.from_numpy(labels)).backward()
        optimizer.step()
    if target is not None:
        state = {"state_dict": net.state_dict(), "optimizer": optimizer.state_dict(), "step": leg.last}
        torch.save(state, target)
    return net, optimizer


@contextmanager
def float64_in_keras() -> Iterator[None]:
    import keras

    before = keras.config.floatx()
    keras.config.dtype_policy()  # made of floatx on first use, and kept
    keras.config.set_floatx("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(before)


def keras_optimizer(kind: str, rate: float, *, stock: bool = False) -> Any:
    """Keras's optimiser; Adam with PyTorch's epsilon unless it is the stock one."""
    import keras
    from keras import ops

    class PyTorchEpsilon:
        def update_step(self: Any, gradient: Any, variable: Any, learning_rate: Any) -> None:
            power = ops.power(
                ops.cast(self.beta_2, variable.dtype), ops.cast(self.iterations + 1, variable.dtype)
            )
            constant, self.epsilon = self.epsilon, self.epsilon * ops.sqrt(1 - power)
            super().update_step(gradient, variable, learning_rate)  # type: ignore[misc]
            self.epsilon = constant

    if kind == "sgd":
        return keras.optimizers.SGD(rate, momentum=MOMENTUM)
    own = {"adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW}[kind]
    chosen = own if stock else type(own.__name__, (PyTorchEpsilon, own), {})
    decay = {"weight_decay": DECAY} if kind == "adamw" else {}
    return chosen(rate, beta_1=BETAS[0], beta_2=BETAS[1], epsilon=EPSILON, **decay)


def keras_network(kind: str, rate: float, *, stock: bool = False) -> Any:
    """A compiled, built network."""
    import keras_impl

    model: Any = keras_impl.ResNet(**SPEC.model_kwargs(), dtype="float64")
    model.compile(keras_optimizer(kind, rate, stock=stock), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def keras_leg(source: Path, target: Path | None, leg: Leg, *, stock: bool = False) -> Any:
    """Train in Keras from a file of weights and optimiser; the file has the rate too."""
    import tensorflow as tf
    from keras import losses

    with float64_in_keras():
        model = keras_network(leg.kind, 0.5, stock=stock)  # the rate is in the file
        model.load_weights(source)
        assert float(model.optimizer.learning_rate) == leg.rate
        assert int(model.optimizer.iterations) == leg.first
        variables = model.trainable_variables
        coupled = 0.0 if leg.kind == "adamw" else DECAY
        for images, labels in leg.batches():
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(
                    losses.categorical_crossentropy(labels, model(images, training=True), True)
                )
            gradients = tape.gradient(loss, [v.value for v in variables])
            gradients = [g + coupled * v.value for g, v in zip(gradients, variables, strict=True)]
            model.optimizer.apply(gradients, variables)
        if target is not None:
            if target.suffix == ".keras":
                model.save(target)
            else:
                model.save_weights(target)
    return model


def tf1_leg(source: Path, target: Path, leg: Leg, *, stock: bool = False) -> None:
    """Train a TF1 graph from a checkpoint with slots; Adam with PyTorch's epsilon unless it is stock."""
    import tensorflow.compat.v1 as tf

    import tf1_compat

    with tf.Graph().as_default(), tf.Session() as session:
        images = tf.placeholder(tf.float64, (BATCH, SIZE, SIZE, 2))
        labels = tf.placeholder(tf.float64, (BATCH, 3))
        logits, _ = tf1_compat.resnet(images, is_training=True, **SPEC.model_kwargs())
        loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits_v2(labels=labels, logits=logits))
        variables, step = tf.trainable_variables(), tf.train.get_or_create_global_step()
        coupled = 0.0 if leg.kind == "adamw" else DECAY
        gradients = [g + coupled * v for g, v in zip(tf.gradients(loss, variables), variables, strict=True)]
        with tf.control_dependencies([*gradients, *tf.get_collection(tf.GraphKeys.UPDATE_OPS)]):
            decayed = [v.assign(v * (1 - leg.rate * DECAY)) for v in variables] if leg.kind == "adamw" else []
        with tf.control_dependencies([*gradients, *tf.get_collection(tf.GraphKeys.UPDATE_OPS), *decayed]):
            rate = np.float64(leg.rate)
            if leg.kind == "sgd":
                optimizer = tf.train.MomentumOptimizer(rate, MOMENTUM)
            else:
                t = tf.cast(step, tf.float64) + 1
                scale = 1.0 if stock else tf.sqrt(1 - tf.pow(BETAS[1], t))
                optimizer = tf.train.AdamOptimizer(rate, *BETAS, EPSILON * scale)
            train = optimizer.apply_gradients(zip(gradients, variables, strict=True), step)
        saver = tf.train.Saver()
        saver.restore(session, str(source))
        for pictures, wanted in leg.batches():
            session.run(train, {images: pictures, labels: wanted})
        saver.save(session, str(target), write_meta_graph=False)
