"""Expectations of keras.applications' users: `input`, `output`, `layer.output`, features to save.

A network is a subclassed model, so that its layers keep their names in files. Its constructor also runs it
once on a symbolic input. `keras.Model(model.input, model.get_layer("layer3_0").output)` therefore works, is
saved and loaded like every functional model, and keeps the network's keywords, which the converter reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

METADATA = "samenet"  # name of the keywords in a weights file


def write_metadata(store: Any, metadata: dict[str, Any]) -> None:
    """Write the metadata to a layer's variables in a weights file, as the bytes of a text."""
    store[METADATA] = np.frombuffer(json.dumps(metadata).encode(), np.uint8)


@keras.saving.register_keras_serializable("samenet")
class Keywords(keras.layers.Layer):
    """Passes images on, and carries the keywords of their network into functional models made of its layers.

    Args:
        metadata: returns the network's metadata; they are read when the functional model is saved.
    """

    def __init__(self, metadata: Callable[[], dict[str, Any]], **keywords: Any):
        super().__init__(**keywords)
        self.metadata = metadata

    def call(self, images: Any) -> Any:
        return images

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def save_own_variables(self, store: Any) -> None:
        write_metadata(store, self.metadata())

    def load_own_variables(self, store: Any) -> None:
        """Load nothing: the layer has no variables."""

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"metadata": json.dumps(self.metadata())}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Keywords:
        metadata = json.loads(config["metadata"])
        return super().from_config(config | {"metadata": lambda: metadata})


@dataclass
class _Graph:
    """The symbolic run of a network, in an object whose layer Keras does not take for one of the network."""

    keywords: Keywords
    input: Any
    output: Any = None


class TracedModel(keras.Model):
    """A subclassed model with the attributes of a functional one."""

    _graph: _Graph

    def part_metadata(self) -> dict[str, Any]:
        """The metadata of a functional model made of this network's layers."""
        raise NotImplementedError

    def trace(self, channels: int) -> None:
        """Run the network on symbolic images (N, H, W, channels), which connects its layers."""
        keywords = Keywords(self.part_metadata, name="keywords", dtype=self.dtype_policy)
        images = keras.Input((None, None, channels), dtype=self.variable_dtype, name="images")
        self._graph = _Graph(keywords, images)
        self._graph.output = self.call(self.input)
        self._called = True  # asked for by `export`; a call would add a node, which Keras counts in files

    def entrance(self, images: Any) -> Any:
        """The images, in a functional model with the network's keywords."""
        return self._graph.keywords(images) if isinstance(images, keras.KerasTensor) else images

    @property
    def input(self) -> Any:
        """Symbolic images (N, H, W, C) of any size."""
        return self._graph.input

    @property
    def output(self) -> Any:
        """The symbolic output for `input`."""
        return self._graph.output

    @property
    def inputs(self) -> list[Any]:
        return [self.input]

    @property
    def outputs(self) -> list[Any]:
        return [self.output]
