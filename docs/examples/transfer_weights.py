"""Weights of a torch module moved into a Keras model whose layers have other names.

python docs/examples/transfer_weights.py
"""

import tempfile
from pathlib import Path

import keras
from compare_a_pair import IMAGES, original

from weights_convert import transfer


def empty() -> keras.Model:
    """The network of `original`, with other names and without its weights."""
    return keras.Sequential(
        [
            keras.Input((2, 2, 3)),
            keras.layers.Conv2D(8, 3, padding="same", name="stem"),
            keras.layers.BatchNormalization(epsilon=1e-5, name="stem_bn"),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dense(4, name="head"),
        ]
    )


def main() -> None:
    certificate = transfer(original(), empty(), IMAGES)
    for pair in certificate.pairs:
        print(pair.source, pair.target, pair.how)
    print(certificate.verdict)
    with tempfile.TemporaryDirectory() as folder:
        certificate.save(Path(folder) / "certificate.json")
        transfer(original(), empty(), IMAGES, replay=Path(folder) / "certificate.json")
    print("replayed")


if __name__ == "__main__":
    main()
