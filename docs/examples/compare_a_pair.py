"""Two models that are not ours, layer by layer: a torch module and a Keras port of it with the same weights.

    python docs/examples/compare_a_pair.py

The port was made by hand; with Keras's own default epsilon of the batch norm it has one mistake.
"""

import keras
import numpy as np
import torch

from parity_tests.compare import compare_models

NAMES = {"classifier": "logits"}  # what is called otherwise in the port
IMAGES = np.random.default_rng(0).normal(size=(2, 3, 2, 2))  # (N, C, H, W)


def original() -> torch.nn.Module:
    """A small network with random weights and statistics: mean 0 and variance 1 would hide mistakes."""
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    model.add_module("conv", torch.nn.Conv2d(3, 8, 3, padding=1))
    model.add_module("norm", torch.nn.BatchNorm2d(8))
    model.add_module("relu", torch.nn.ReLU())
    model.add_module("pool", torch.nn.MaxPool2d(2))
    model.add_module("flatten", torch.nn.Flatten())
    model.add_module("classifier", torch.nn.Linear(8, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1, 1)
        model.norm.running_mean.uniform_(-1, 1)
        model.norm.running_var.uniform_(0.5, 1.5)
    return model


def port(model: torch.nn.Module, epsilon: float) -> keras.Model:
    """The same network in Keras, with the same weights."""
    other = keras.Sequential(
        [
            keras.Input((2, 2, 3)),
            keras.layers.Conv2D(8, 3, padding="same", name="conv"),
            keras.layers.BatchNormalization(epsilon=epsilon, name="norm"),
            keras.layers.ReLU(name="relu"),
            keras.layers.MaxPooling2D(2, name="pool"),
            keras.layers.Flatten(name="flatten"),
            keras.layers.Dense(4, name="logits"),
        ]
    )
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    other.get_layer("conv").set_weights([state["conv.weight"].transpose(2, 3, 1, 0), state["conv.bias"]])
    leaves = ("weight", "bias", "running_mean", "running_var")
    other.get_layer("norm").set_weights([state[f"norm.{leaf}"] for leaf in leaves])
    other.get_layer("logits").set_weights([state["classifier.weight"].T, state["classifier.bias"]])
    return other


def main() -> None:
    reference = original()
    for epsilon in (1e-3, 1e-5):
        report = compare_models(reference, port(reference, epsilon), IMAGES, names=NAMES)
        divergence = report.first_divergence()
        print(f"epsilon {epsilon}:", divergence.point if divergence else "parity holds", report.culprits())


if __name__ == "__main__":
    main()
