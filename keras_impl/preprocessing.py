"""Images as they are read from files -> the input that a network was trained with, as a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from .attention import check_choice, check_int


@keras.saving.register_keras_serializable("samenet")
class Preprocessing(keras.layers.Layer):
    """Resize, crop, order the channels and normalise: (pixel - mean) / std, pixels from 0 to `top`.

    Input: (N, H, W, 3) RGB from 0 to 255, integers or floats. Output: floats (N, H, W, 3), with `crop`
    (N, crop, crop, 3).

    Args:
        channels: order of the network's channels, "RGB" or "BGR".
        top: the largest pixel of the network, 1 or 255.
        mean, std: in the network's order of channels and range of pixels.
        resize: length of the shorter side after resizing; None keeps the size.
        crop: rows and columns to keep, from the middle; None keeps all.
        interpolation: of `resize`, "bilinear" or "bicubic", with antialiasing like Pillow's.

    Raises:
        ValueError: an argument is invalid, or the images have another shape or are too small to crop.

    Example:
        >>> layer = Preprocessing(crop=4)
        >>> layer(keras.ops.zeros((1, 6, 5, 3), "uint8")).shape
        TensorShape([1, 4, 4, 3])
    """

    def __init__(
        self,
        channels: str = "RGB",
        top: int = 1,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        *,
        resize: int | None = None,
        crop: int | None = None,
        interpolation: str = "bilinear",
        **keywords: Any,
    ):
        super().__init__(**keywords)
        self.channels = check_choice("channels", channels, ("RGB", "BGR"))
        self.top = check_choice("top", top, (1, 255))
        self.mean, self.std = _three("mean", mean), _three("std", std)
        self.resize = None if resize is None else check_int("resize", resize)
        self.crop = None if crop is None else check_int("crop", crop)
        self.interpolation = check_choice("interpolation", interpolation, ("bilinear", "bicubic"))

    def call(self, images: Any) -> Any:
        if len(images.shape) != 4 or images.shape[-1] != 3:
            raise ValueError(f"images of shape {tuple(images.shape)}, expected (N, H, W, 3)")
        x = ops.cast(images, self.compute_dtype)
        if self.resize is not None:
            size = _resized(x.shape[1:3], self.resize)
            x = ops.image.resize(x, size, self.interpolation, antialias=True, data_format="channels_last")
        if self.crop is not None:
            x = _cropped(x, self.crop)
        if self.channels == "BGR":
            x = ops.flip(x, -1)
        return (x * (self.top / 255) - ops.cast(self.mean, x.dtype)) / ops.cast(self.std, x.dtype)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        size = tuple(input_shape[1:3])
        if self.crop is not None:
            size = (self.crop, self.crop)
        elif self.resize is not None:
            size = (None, None) if None in size else _resized(size, self.resize)
        return (input_shape[0], *size, 3)

    def get_config(self) -> dict[str, Any]:
        names = ("channels", "top", "mean", "std", "resize", "crop", "interpolation")
        return super().get_config() | {name: getattr(self, name) for name in names}


def _resized(size: Sequence[int | None], shorter: int) -> tuple[int, int]:
    """The rows and columns that make the shorter side `shorter` long."""
    height, width = size
    if height is None or width is None:
        raise ValueError(f"images of unknown size in a graph, which resize={shorter} needs")
    return height * shorter // min(height, width), width * shorter // min(height, width)


def _cropped(x: Any, crop: int) -> Any:
    """The middle of images."""
    if any(size is not None and size < crop for size in x.shape[1:3]):
        raise ValueError(f"images of shape {tuple(x.shape)}, too small for crop={crop}")
    top, left = ((size - crop) // 2 for size in ops.shape(x)[1:3])
    return x[:, top : top + crop, left : left + crop]


def _three(name: str, values: Sequence[float]) -> tuple[float, ...]:
    """Three numbers as Python floats."""
    if len(values) != 3:
        raise ValueError(f"{name}={values!r}: expected three numbers, one per channel")
    return tuple(float(value) for value in values)
