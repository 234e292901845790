"""Other projects' networks with random weights: saved and run by their own code.

Functions import the packages, because most of them are not installed everywhere.
"""

from __future__ import annotations

import importlib
import types
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import nn

from parity_tests.judge.synthetic import DAMPING, images
from weights_convert import load_model

SIZE = (97, 130)  # leads to odd maps, which show a pool or a stride that rounds differently
KERAS = ("keras.applications", "classification_models")


@dataclass(frozen=True)
class Foreign:
    """One network of another project.

    Attributes:
        package: name of the module to import.
        model: its name there; `resnet50_cbam` in timm is built from timm's parts.
        family: the expected family of its checkpoint.
        known_as: FAMILY:NAME, if the user has to specify it.
        size: of the images, height and width.
        residual: whether its blocks add to their input.
    """

    package: str
    model: str
    family: str
    known_as: str | None = None
    size: tuple[int, int] = SIZE
    residual: bool = True

    def __str__(self) -> str:
        return f"{self.package}-{self.model}"

    @property
    def seed(self) -> int:
        return zlib.crc32(str(self).encode())


@dataclass(frozen=True)
class Saved:
    """A network's file, and the outputs of its own code.

    Attributes:
        path: a file in the project's usual format.
        images: (N, C, H, W), float32.
        outputs: dtype -> logits of the project's own code.
        norms: epsilon and momentum (PyTorch's) of its batch norms.
    """

    network: Foreign
    path: Path
    images: np.ndarray
    outputs: dict[str, np.ndarray]
    norms: set[tuple[float, float]]


def save_foreign(network: Foreign, folder: Path) -> Saved:
    """Build the network with seeded random weights, run it and save it into a folder."""
    make = _save_keras if network.package in KERAS else _save_torch
    saved = make(network, folder)
    y = saved.outputs["float64"]
    # constant outputs would compare nothing
    assert np.isfinite(y).all()
    assert np.abs(y[0] - y[1]).max() > 0.01 * np.abs(y).max()
    return saved


def logits(path: Path, framework: str, inputs: np.ndarray, **keywords: Any) -> np.ndarray:
    """This project's outputs for a file and images (N, C, H, W) of the file's dtype."""
    model = load_model(path, framework, assume=True, **keywords)
    if framework == "torch":
        return run_torch(model, inputs)
    inputs = inputs.transpose(0, 2, 3, 1)
    if framework == "keras":
        import keras

        return keras.ops.convert_to_numpy(model(inputs, training=False))
    import tensorflow.compat.v1 as tf

    with tf.Graph().as_default(), tf.Session() as session:
        placeholder = tf.placeholder(inputs.dtype, (None, None, None, inputs.shape[-1]))
        y, _ = model(placeholder)
        session.run(tf.global_variables_initializer())
        return session.run(y, {placeholder: inputs})


def run_torch(model: nn.Module, inputs: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(inputs)).numpy()


# --------------------------------------------------------------------------------------------------
# PyTorch


def torch_network(network: Foreign) -> nn.Module:
    """The network as built by its project."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other projects' code
        package = importlib.import_module(network.package)
        if network.package == "pytorchcv":
            provider = importlib.import_module("pytorchcv.model_provider")
            model = provider.get_model(network.model, pretrained=False)
            # replace a fixed 7x7 average, for images of 224 only, by a global one, which is the same there
            model.features.final_pool = nn.AdaptiveAvgPool2d(1)
        elif network.package == "pretrainedmodels":
            model = getattr(package, network.model)(num_classes=1000, pretrained=None)
            for pool in {"avg_pool", "global_pool"} & dict(model.named_children()).keys():  # as above
                setattr(model, pool, nn.AdaptiveAvgPool2d(1))
        elif network.package == "torchvision":
            model = getattr(package.models, network.model)(weights=None)
        elif network.model == "resnet50_cbam":
            parts = importlib.import_module("timm.models.resnet")
            model = parts.ResNet(parts.Bottleneck, [3, 4, 6, 3], block_args={"attn_layer": "cbam"})
        else:
            model = package.create_model(network.model, pretrained=False)
    return model.eval()


def randomise(model: nn.Module, seed: int, residual: bool = True) -> None:
    """Set random weights and BN statistics; damp the last batch norm of each branch, as in `synthetic`."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, mean: float, deviation: float) -> None:
        tensor.copy_(mean + deviation * torch.randn(tensor.shape, generator=generator))

    damped = 0
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                normal(module.weight, 1, 0.1)
                normal(module.bias, 0, 0.1)
                normal(module.running_mean, 0, 0.1)
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
            elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
                gain = 1 if isinstance(module, nn.Linear) else 2
                normal(module.weight, 0, (gain / module.weight[0].numel()) ** 0.5)
                if module.bias is not None:
                    normal(module.bias, 0, 0.1)
        for module in model.modules():
            if (last := _last_norm(module)) is not None:
                last.weight.mul_(DAMPING)
                damped += 1
    assert damped > 3 if residual else not damped


def _last_norm(module: Any) -> Any:
    """The last batch norm in the branch of a residual block; None for another module."""
    if hasattr(module, "body") and hasattr(module, "activ"):  # pytorchcv's units
        return list(module.body.children())[-1].bn
    if hasattr(module, "conv1") and hasattr(module, "bn2") and hasattr(module, "downsample"):
        return getattr(module, "bn3", module.bn2)
    return None


def torch_norms(model: nn.Module) -> set[tuple[float, float]]:
    return {(m.eps, m.momentum or 0.0) for m in model.modules() if isinstance(m, nn.BatchNorm2d)}


def both_dtypes(model: nn.Module, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """dtype -> output; leaves the model in float64."""
    single = run_torch(model.float(), inputs)
    return {"float32": single, "float64": run_torch(model.double(), inputs.astype(np.float64))}


def _save_torch(network: Foreign, folder: Path) -> Saved:
    model, inputs = torch_network(network), images(network.size, seed=network.seed)
    randomise(model, network.seed, network.residual)
    torch.save(model.state_dict(), folder / "foreign.pth")
    return Saved(network, folder / "foreign.pth", inputs, both_dtypes(model, inputs), torch_norms(model))


# --------------------------------------------------------------------------------------------------
# Keras


@contextmanager
def _keras_dtype(dtype: str) -> Iterator[None]:
    """Set Keras's default dtype, because these projects' functions have no such argument."""
    import keras

    before = keras.config.floatx(), keras.config.dtype_policy()
    try:
        keras.config.set_floatx(dtype)
        keras.config.set_dtype_policy(dtype)
        yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


def _keras_network(network: Foreign, dtype: str) -> Any:
    """The network as built by its project, without the final softmax."""
    import keras

    shape = (*network.size, 3)
    with _keras_dtype(dtype):
        if network.package == "keras.applications":
            build = getattr(keras.applications, network.model)
            return build(weights=None, input_shape=shape, classifier_activation=None)
        model = _qubvel(network.model, shape)
        return keras.Model(model.input, model.layers[-2].output)


def _qubvel(name: str, shape: tuple[int, ...]) -> Any:
    """A network of qubvel, whose code is written for Keras 2, built with Keras 3."""
    import keras

    class Lambda(keras.layers.Layer):  # Keras 3's own layer needs the shape
        def __init__(self, function: Any, arguments: dict[str, Any]):
            super().__init__()
            self.function, self.arguments = function, arguments

        def call(self, x: Any) -> Any:
            return self.function(x, **self.arguments)

    build = getattr(importlib.import_module("classification_models.models.senet"), name)
    backend = types.SimpleNamespace(
        image_data_format=keras.config.image_data_format,
        int_shape=lambda x: tuple(x.shape),
        is_keras_tensor=keras.utils.is_keras_tensor,
    )
    layers = types.SimpleNamespace(**vars(keras.layers) | {"Lambda": Lambda})
    modules = {"backend": backend, "layers": layers, "models": keras.models, "utils": keras.utils}
    return build(input_shape=shape, weights=None, **modules)


def _randomise_keras(model: Any, seed: int) -> None:
    """`randomise` for a Keras model."""
    import keras

    random = np.random.default_rng(seed)
    damped = {layer.name for layer in model.layers if layer.name.endswith("_3_bn")}
    for layer in model.layers:
        if isinstance(layer, keras.layers.Multiply):  # of the attention: branch and gate
            damped.add(layer.input[0]._keras_history.operation.name)
    assert len(damped) > 3
    for layer in model.layers:
        for variable in layer.weights:
            leaf, shape = variable.path.rpartition("/")[2], tuple(variable.shape)
            if leaf == "kernel":
                gain = 1 if len(shape) == 2 else 2
                value = random.normal(0, (gain / np.prod(shape[:-1])) ** 0.5, shape)
            elif leaf == "gamma":
                value = random.normal(1, 0.1, shape) * (DAMPING if layer.name in damped else 1)
            elif leaf == "moving_variance":
                value = random.uniform(0.5, 1.5, shape)
            else:
                value = random.normal(0, 0.1, shape)
            variable.assign(value.astype(np.float32))


def _save_keras(network: Foreign, folder: Path) -> Saved:
    import keras

    path, inputs = folder / "foreign.h5", images(network.size, seed=network.seed)
    outputs, model = {}, _keras_network(network, "float32")
    _randomise_keras(model, network.seed)
    if network.package == "keras.applications":
        model.save(path)
    else:
        _save_as_keras_2(model, path)
    wide = _keras_network(network, "float64")
    wide.set_weights([value.astype(np.float64) for value in model.get_weights()])
    for dtype, built in {"float32": model, "float64": wide}.items():
        x = inputs.astype(dtype).transpose(0, 2, 3, 1)
        outputs[dtype] = keras.ops.convert_to_numpy(built(x, training=False))
        assert outputs[dtype].dtype == dtype
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    return Saved(network, path, inputs, outputs, {(n.epsilon, round(1 - n.momentum, 12)) for n in norms})


def _save_as_keras_2(model: Any, path: Path) -> None:
    """`save_weights` of Keras 2: a group per layer, `conv2d_1/conv2d_1/kernel:0`."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"2.2.4"
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{v.path.rpartition('/')[2]}:0" for v in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, variable in zip(names, layer.weights, strict=True):
                group.create_dataset(name, data=np.asarray(variable))
