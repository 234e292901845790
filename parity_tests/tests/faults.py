"""Typical mistakes of ports, each as a small change of a Keras model, its weights or its keywords.

The harness must find each of `FAULTS` and name the wrong layer (`test_faults.py`). `first` is the first point
that differs, `culprit` the layer that is wrong by itself; "" for a mistake between layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import ops

import keras_impl
from keras_impl.attention import mean
from parity_tests.judge.synthetic import tiny, weights
from weights_convert import Checkpoint, load_into
from weights_convert.spec import ResNetSpec

Arrays = dict[str, np.ndarray]
SE, CBAM, ECA = tiny(attention="se"), tiny(attention="cbam"), tiny(attention="eca")
GROUPS = tiny(attention="se", groups=4, width_per_group=16)


@dataclass(frozen=True)
class Fault:
    """One mistake.

    Attributes:
        spec: the network.
        first, culprit: expected names; `culprit` is "" for no layer.
        keywords: changed keywords of the candidate.
        of_weights: changes the candidate's weights in place.
        of_model: changes the candidate.
        train: whether the mistake shows only in training.
        size: of the images, if the mistake shows only at this size.
    """

    spec: ResNetSpec
    first: str
    culprit: str
    keywords: dict[str, Any] = field(default_factory=dict)
    of_weights: Callable[[Arrays], None] | None = None
    of_model: Callable[[Any], None] | None = None
    train: bool = False
    size: tuple[int, int] = (32, 32)

    def checkpoint(self) -> Checkpoint:
        """The weights and keywords with the mistake in them."""
        arrays = dict(weights(self.spec))
        if self.of_weights is not None:
            self.of_weights(arrays)
        return Checkpoint.from_arrays(arrays, vars(self.spec) | self.keywords)

    def candidate(self) -> keras.Model:
        """The Keras model with the mistake in it."""
        checkpoint = self.checkpoint()
        model = keras_impl.ResNet(**vars(checkpoint.spec), dtype="float64")
        load_into(model, checkpoint)
        if self.of_model is not None:
            self.of_model(model)
        return model


def called(path: str, changed: Callable[[Any, Any], Any]) -> Callable[[Any], None]:
    """Replace a layer's call by `changed(its own call, x)`."""

    def change(model: Any) -> None:
        layer = at(model, path)
        own = layer.call
        layer.call = lambda x, training=None: changed(lambda y: _call(own, y, training), x)

    return change


def _call(own: Callable[..., Any], x: Any, training: bool | None) -> Any:
    try:
        return own(x, training=training)
    except TypeError:  # a layer without the argument `training`
        return own(x)


def at(model: Any, path: str) -> Any:
    for step in path.split("."):
        model = model[int(step)] if step.isdigit() else getattr(model, step)
    return model


def attribute(path: str, name: str, value: Any) -> Callable[[Any], None]:
    return lambda model: setattr(at(model, path), name, value)


def array(name: str, changed: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name] = np.asarray(changed(arrays[name].copy()), order="C")

    return change


def swapped(*pairs: tuple[str, str]) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        for a, b in pairs:
            arrays[a], arrays[b] = arrays[b], arrays[a]

    return change


def all_arrays(changed: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        for name, value in arrays.items():
            arrays[name] = changed(value) if value.dtype.kind == "f" else value

    return change


def one_value(change: Callable[[float], float]) -> Callable[[np.ndarray], np.ndarray]:
    def changed(values: np.ndarray) -> np.ndarray:
        values.flat[0] = change(float(values.flat[0]))
        return values

    return changed


def _thousand_ulps(value: float) -> float:
    return float(np.float32(value) + 1000 * np.spacing(np.float32(value)))


def channel_gate_without_max(model: Any) -> None:
    layer = at(model, "layer1.0.cbam.channel")
    layer.call = lambda x: x * ops.sigmoid(2 * layer.mlp(mean(x, (1, 2))))[:, None, None, :]


def sigmoid_twice(model: Any) -> None:
    se = at(model, "layer1.0.se")

    def call(x: Any) -> Any:
        s = ops.sigmoid(ops.sigmoid(se.fc2(ops.relu(se.fc1(mean(x, (1, 2)))))))
        return x * s[:, None, None, :]

    se.call = call


def stock_batch_norm(path: str) -> Callable[[Any], None]:
    """Keras's own batch norm, with a biased running variance."""

    def change(model: Any) -> None:
        layer = at(model, path)
        stock = keras.layers.BatchNormalization.call
        layer.call = lambda x, training=None, mask=None: stock(layer, x, training=training, mask=mask)

    return change


def always_training(path: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        layer = at(model, path)
        own = layer.call
        layer.call = lambda x, training=None, mask=None: own(x, training=True)  # noqa: ARG005

    return change


def keras_same(model: Any) -> None:
    """Keras's "same" for the strided stem, which pads an even size at the end only."""
    conv = model.conv1
    conv.call = lambda x: ops.conv(x, conv.kernel, 2, "same", "channels_last")


def without_shortcut(model: Any) -> None:
    block = at(model, "layer1.1")
    block.shortcut = lambda x, training: ops.zeros_like(x)  # noqa: ARG005


def without_attention(model: Any) -> None:
    at(model, "layer1.1").attention = None


def softmax_at_the_end(model: Any) -> None:
    own = model.call
    model.call = lambda x, training=None: ops.softmax(own(x, training=training))


def without_last_relu(model: Any) -> None:
    block = at(model, "layer1.1")
    block.call = lambda x, training=None: block.se(block.branch(x, training)) + block.shortcut(x, training)


def max_for_the_global_mean(model: Any) -> None:
    def call(x: Any, training: bool | None = None) -> Any:
        x = model.forward_stem(x, training)
        for name in model.stage_names:
            for block in getattr(model, name):
                x = block(x, training=training)
        return model.fc(ops.max(x, (1, 2)))

    model.call = call


FAULTS: dict[str, Fault] = {
    # keywords
    "epsilon of every batch norm": Fault(SE, "bn1", "bn1", {"bn_epsilon": 1.001e-5}),
    "pool padded as Caffe does": Fault(SE, "input of layer1.0.conv1", "", {"stem_pool": "ceil"}),
    "pool padded as TensorFlow does": Fault(SE, "input of layer1.0.conv1", "", {"stem_pool": "same"}),
    "stride on the wrong convolution": Fault(SE, "layer2.0.conv1", "layer2.0.conv1", {"stride_in": "conv1"}),
    "relu before SE": Fault(SE, "input of layer1.0.se.fc1", "layer1.0", {"relu_before_attention": True}),
    "CBAM's maps swapped": Fault(
        CBAM, "input of layer1.0.cbam.spatial.conv", "layer1.0.cbam.spatial", {"cbam_order": "mean_max"}
    ),
    "CBAM's gate looks at the input": Fault(
        CBAM, "input of layer1.0.cbam.spatial.conv", "layer1.0.cbam", {"cbam_spatial_input": "input"}
    ),
    "no average pool in the projection": Fault(
        tiny(downsample_pool="avg"), "input of layer2.0.downsample.0", "layer2.0.downsample.0",
        {"downsample_pool": "none"},
    ),
    "momentum of the running statistics": Fault(
        SE, "bn1.running_mean", "", {"bn_momentum": 0.01}, train=True
    ),
    "momentum of CBAM's batch norm": Fault(
        CBAM, "layer1.0.cbam.spatial.bn.running_mean", "", {"cbam_bn_momentum": 0.1}, train=True
    ),
    # weights
    "a square kernel transposed": Fault(
        SE, "layer1.0.conv2", "layer1.0.conv2",
        of_weights=array("layer1.0.conv2.weight", lambda k: k.swapaxes(2, 3))
    ),
    "inputs and outputs transposed": Fault(
        SE, "layer1.1.conv2", "layer1.1.conv2",
        of_weights=array("layer1.1.conv2.weight", lambda k: k.swapaxes(0, 1))
    ),
    "a kernel rotated by 180 degrees": Fault(
        SE, "layer2.0.conv2", "layer2.0.conv2",
        of_weights=array("layer2.0.conv2.weight", lambda k: k[:, :, ::-1, ::-1])
    ),
    "fc1 and fc2 of equal size swapped": Fault(
        tiny(attention="se", reduction=1), "layer1.0.se.fc1", "layer1.0.se.fc1",
        of_weights=swapped(("layer1.0.se.fc1.weight", "layer1.0.se.fc2.weight"),
                           ("layer1.0.se.fc1.bias", "layer1.0.se.fc2.bias")),
    ),
    "groups permuted": Fault(
        GROUPS, "layer1.0.conv2", "layer1.0.conv2",
        of_weights=array("layer1.0.conv2.weight", lambda k: np.roll(k, 2, 0))
    ),
    "a bias missing": Fault(
        SE, "layer1.0.se.fc2", "layer1.0.se.fc2",
        of_weights=array("layer1.0.se.fc2.bias", np.zeros_like)
    ),
    "a stale running mean": Fault(
        SE, "layer1.1.bn3", "layer1.1.bn3", of_weights=array("layer1.1.bn3.running_mean", np.zeros_like)
    ),
    "variance stored as standard deviation": Fault(
        SE, "layer1.0.bn1", "layer1.0.bn1", of_weights=array("layer1.0.bn1.running_var", np.sqrt)
    ),
    "gamma and beta swapped": Fault(
        SE, "layer2.0.bn2", "layer2.0.bn2",
        of_weights=swapped(("layer2.0.bn2.weight", "layer2.0.bn2.bias"))
    ),
    "two blocks swapped": Fault(
        SE, "layer1.0.bn2", "layer1.0.bn2",
        of_weights=swapped(("layer1.0.bn2.weight", "layer1.1.bn2.weight"))
    ),
    "one weight off by 1000 float32 ulps": Fault(
        SE, "conv1", "conv1", of_weights=array("conv1.weight", one_value(_thousand_ulps))
    ),
    "a NaN": Fault(
        SE, "layer1.1.conv1", "layer1.1.conv1",
        of_weights=array("layer1.1.conv1.weight", one_value(lambda _: float("nan"))),
    ),
    "an infinity": Fault(
        SE, "layer2.0.bn3", "layer2.0.bn3",
        of_weights=array("layer2.0.bn3.bias", one_value(lambda _: float("inf")))
    ),
    "a round trip through float16": Fault(
        SE, "conv1", "conv1", of_weights=all_arrays(lambda a: a.astype(np.float16).astype(a.dtype))
    ),
    "a round trip through bfloat16's bits": Fault(
        SE, "conv1", "conv1",
        of_weights=all_arrays(lambda a: (a.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)),
    ),
    "ECA's kernel reversed": Fault(
        ECA, "layer1.0.eca.conv", "layer1.0.eca.conv",
        of_weights=array("layer1.0.eca.conv.weight", lambda k: k[..., ::-1])
    ),
    "CBAM's spatial kernel transposed": Fault(
        CBAM, "layer1.0.cbam.spatial.conv", "layer1.0.cbam.spatial.conv",
        of_weights=array("layer1.0.cbam.spatial.conv.weight", lambda k: k.swapaxes(2, 3)),
    ),
    "classes in another order": Fault(
        SE, "fc", "fc", of_weights=array("fc.weight", lambda k: np.roll(k, 1, 0))
    ),
    # code
    "epsilon of one batch norm": Fault(
        SE, "layer2.0.bn3", "layer2.0.bn3", of_model=attribute("layer2.0.bn3", "epsilon", 1.001e-5)
    ),
    "SAME padding of a strided convolution": Fault(SE, "conv1", "conv1", of_model=keras_same),
    "max replaced by mean in the channel gate": Fault(
        CBAM, "layer1.0.cbam.channel", "layer1.0.cbam.channel", of_model=channel_gate_without_max
    ),
    "sigmoid twice": Fault(SE, "layer1.0.se", "layer1.0.se", of_model=sigmoid_twice),
    "softmax at the end": Fault(SE, "fc", "fc", of_model=attribute("fc", "activation", ops.softmax)),
    "gelu in the place of relu": Fault(
        SE, "layer1.0.se.fc1", "layer1.0.se.fc1",
        of_model=attribute("layer1.0.se.fc1", "activation", ops.gelu)
    ),
    "BGR for RGB": Fault(SE, "conv1", "conv1", of_model=called("conv1", lambda own, x: own(x[..., ::-1]))),
    "height and width transposed": Fault(
        SE, "conv1", "conv1",
        of_model=called("conv1", lambda own, x: own(ops.transpose(x, (0, 2, 1, 3))))
    ),
    "dropout in inference": Fault(
        SE, "dropout", "dropout", of_model=called("dropout", lambda _, x: x * 0.8)
    ),
    "batch statistics in inference": Fault(
        SE, "layer1.0.bn2", "layer1.0.bn2",
        of_model=always_training("layer1.0.bn2"),
    ),
    "softmax after the last layer": Fault(SE, "output", "", of_model=softmax_at_the_end),
    "no attention in one block": Fault(SE, "layer1.1.se.fc1", "layer1.1", of_model=without_attention),
    "no shortcut": Fault(SE, "layer1.1", "layer1.1", of_model=without_shortcut),
    "no relu after the addition": Fault(SE, "layer1.1", "layer1.1", of_model=without_last_relu),
    "max in the place of the global mean": Fault(SE, "input of fc", "", of_model=max_for_the_global_mean),
    "biased running variance": Fault(
        SE, "layer1.0.bn2.running_var", "", of_model=stock_batch_norm("layer1.0.bn2"), train=True
    ),
    "running statistics never updated": Fault(
        SE, "layer1.1.bn1.running_mean", "", of_model=attribute("layer1.1.bn1", "momentum", 1.0), train=True
    ),
}  # fmt: skip
