"""Small networks and their exports, for the tests of exported artefacts."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

IMAGES = np.random.default_rng(0).normal(size=(4, 3, 12, 12))


class Block(nn.Module):
    """Two convolutions with a residual connection, and one ReLU that is called twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random statistics too: mean 0 and variance 1 hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_floating_point():
                positive = name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight"))
                values = torch.rand(tensor.shape, generator=generator)
                fan = max(1, tensor[0].numel()) if tensor.ndim > 1 else 1
                tensor.copy_(0.5 + values if positive else (values - 0.5) * 3 / fan**0.5)
    return module.eval()


def residual(channels: int = 4) -> nn.Module:
    """A network of the usual layers: a stem, a block, pooling, a dense layer."""
    layers = {
        "stem": nn.Conv2d(3, channels, 3, stride=2, padding=1),
        "block": Block(channels),
        "pool": nn.MaxPool2d(2),
        "mean": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "head": nn.Linear(channels, 5),
    }
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return randomised(model)


def given(images: np.ndarray = IMAGES) -> torch.Tensor:
    return torch.tensor(images, dtype=torch.float32)


def onnx_model(module: nn.Module, *inputs: torch.Tensor, **keywords: Any) -> Any:
    """The ONNX model of a module, by the exporter through TorchScript or, with dynamo=True, the new one."""
    import io

    import onnx

    options: dict[str, Any] = {"dynamo": False, "input_names": ["images"], **keywords}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if options["dynamo"]:
            program = torch.onnx.export(module, inputs or (given(),), verbose=False, **options)
            assert program is not None
            return program.model_proto
        file: Any = io.BytesIO()
        torch.onnx.export(module, inputs or (given(),), file, **options)
    return onnx.load_from_string(file.getvalue())


def scripted(module: nn.Module, kind: str = "script", images: torch.Tensor | None = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        return (
            torch.jit.script(module)
            if kind == "script"
            else torch.jit.trace(module, given() if images is None else images)
        )


def save_script(module: nn.Module, path: Path, kind: str = "script", images: Any = None) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(scripted(module, kind, images), path)
    return path


def program(module: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module, (given(),))


def keras_net() -> Any:
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((12, 12, 3)),
            layers.Conv2D(4, 3, padding="same", name="stem"),
            layers.BatchNormalization(name="bn"),
            layers.ReLU(name="act"),
            layers.GlobalAveragePooling2D(name="mean"),
            layers.Dense(5, name="head"),
        ]
    )
    rng = np.random.default_rng(1)
    model.set_weights([rng.uniform(0.2, 1.0, weight.shape) for weight in model.get_weights()])
    return model


def saved_model(model: Any, path: Path) -> Path:
    model.export(str(path), verbose=False)
    return path


def tflite(model: Any, *, quantised: bool = False, images: np.ndarray = IMAGES) -> bytes:
    import tensorflow as tf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        if quantised:
            given_images = images.transpose(0, 2, 3, 1).astype(np.float32)
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([image[None]] for image in given_images)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.int8
        return bytes(converter.convert())


def frozen(model: Any, path: Path) -> Path:
    """A frozen graph: the variables of a Keras model as constants."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    function = tf.function(model).get_concrete_function(tf.TensorSpec((None, 12, 12, 3), tf.float32))
    definition = convert_variables_to_constants_v2(function).graph.as_graph_def()
    path.write_bytes(definition.SerializeToString())
    return path
