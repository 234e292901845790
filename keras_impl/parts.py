"""Base classes of the parts of a network: their attention, and their config as they are now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from .keywords import WITH_BIAS
from .layers import ACTIVATIONS, Conv2D, build_chain, make_norm
from .live import live_keywords, settings

_OF_LAYER = ("self", "__class__", "name", "dtype", "keywords", "attention")  # not in a block's `config`


class Part(keras.layers.Layer):
    """A layer with a place for attention.

    A subclass creates its layers, then calls `add_attention`. If its config depends on their settings, it
    calls `note_settings` at the end.
    """

    attention: str | None = None

    def add_attention(self, attention: tuple[str, keras.layers.Layer] | None) -> None:
        """Add the attention under its name, such as ("se", SqueezeExcitation())."""
        if attention is not None:
            self.attention, layer = attention
            setattr(self, self.attention, layer)

    def attend(self, x: Any) -> Any:
        """The attention's output; CBAM takes `training` from Keras's call context."""
        return x if self.attention is None else getattr(self, self.attention)(x)

    def build_attention(self, shape: tuple) -> None:
        if self.attention is not None:
            build_chain(shape, getattr(self, self.attention))

    def note_settings(self) -> None:
        """Note the settings of its layers, so that later changes are seen."""
        self._made = self._settings()

    def as_they_are(self, keywords: dict[str, Any]) -> dict[str, Any]:
        """The keywords with the changes since `note_settings`."""
        return live_keywords(self._made, self._settings(), keywords)

    def _settings(self) -> dict[str, Any]:
        """The settings of its layers; the attention has its own config."""
        inner, found = f"{self.name}.{self.attention}.", settings(self, self.name)
        return {name: value for name, value in found.items() if not name.startswith(inner)}

    def get_config(self) -> dict[str, Any]:
        attention = {"attention": (self.attention, getattr(self, self.attention))} if self.attention else {}
        return super().get_config() | attention

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        keywords = {name: value for name, value in config.items() if name != "trainable"}
        if "attention" in config:
            keywords["attention"] = keras.saving.deserialize_keras_object(config["attention"])
        part = super().from_config(keywords)
        part.trainable = config.get("trainable", True)
        return part


class Block(Part):
    """A block with a place for attention, whose config holds the current keywords.

    A subclass creates its layers and calls `add_attention` at the end.

    Args:
        config: the keywords of the subclass; the attribute is without the attention.
        norm, bn_epsilon, bn_momentum: see `ResNet`.
        activation: "relu", "silu", "gelu", "leaky_relu" (slope 0.01) or "relu6".
    """

    def __init__(
        self,
        *,
        config: Mapping[str, Any],
        norm: str,
        bn_epsilon: float,
        bn_momentum: float,
        activation: str,
        **keywords: Any,
    ):
        super().__init__(**keywords)
        self.config = {name: value for name, value in config.items() if name not in _OF_LAYER}
        self.norm_keywords = {"norm": norm, "bn_epsilon": bn_epsilon, "bn_momentum": bn_momentum}
        self.activation = activation

    def act(self, x: Any) -> Any:
        return ACTIVATIONS[self.activation](x)

    @property
    def of_convolutions(self) -> dict[str, Any]:
        """The keywords that its convolutions share."""
        return {"use_bias": self.norm_keywords["norm"] in WITH_BIAS, "dtype": self.dtype_policy}

    def conv(
        self, name: str, outputs: int, kernel_size: int, stride: int = 1, groups: int = 1, dilation: int = 1
    ) -> Conv2D:
        keywords = self.of_convolutions | {"dilation_rate": dilation}
        return Conv2D(outputs, kernel_size, stride, groups, **keywords, name=name)

    def norm(self, name: str) -> keras.layers.Layer:
        return make_norm(name, self.norm_keywords, self.dtype_policy)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | self.as_they_are(self.config)
