"""Two models that are not ours, layer by layer: a torch module and a Keras model with the same weights.

    python docs/examples/compare_a_pair.py

The port below was made by hand and has one mistake: Keras's batch norm has another default epsilon.
"""

import keras
import numpy as np
import torch

from parity_tests.compare import compare_models

reference = torch.nn.Sequential()
reference.add_module("conv", torch.nn.Conv2d(3, 8, 3, padding=1))
reference.add_module("norm", torch.nn.BatchNorm2d(8))
reference.add_module("relu", torch.nn.ReLU())
reference.add_module("pool", torch.nn.MaxPool2d(2))
reference.add_module("flatten", torch.nn.Flatten())
reference.add_module("classifier", torch.nn.Linear(8, 4))


def port(epsilon: float) -> keras.Model:
    """The same network in Keras, with the same weights."""
    model = keras.Sequential(
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
    state = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    model.get_layer("conv").set_weights([state["conv.weight"].transpose(2, 3, 1, 0), state["conv.bias"]])
    norm = [state[f"norm.{leaf}"] for leaf in ("weight", "bias", "running_mean", "running_var")]
    model.get_layer("norm").set_weights(norm)
    model.get_layer("logits").set_weights([state["classifier.weight"].T, state["classifier.bias"]])
    return model


torch.manual_seed(0)
with torch.no_grad():  # mean 0 and variance 1 would hide mistakes
    for parameter in reference.parameters():
        parameter.uniform_(-1, 1)
    reference.norm.running_mean.uniform_(-1, 1)
    reference.norm.running_var.uniform_(0.5, 1.5)

images = np.random.default_rng(0).normal(size=(2, 3, 2, 2))  # (N, C, H, W)
names = {"classifier": "logits"}  # what is called otherwise in the port
for epsilon in (1e-3, 1e-5):
    report = compare_models(reference, port(epsilon), images, names=names)
    divergence = report.first_divergence()
    print(f"epsilon {epsilon}:", divergence.point if divergence else "parity holds", report.culprits())
