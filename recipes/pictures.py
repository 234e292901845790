"""Pictures with classes as arrays, and how a file becomes one: Pillow decodes, resizes and crops."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from weights_convert.errors import SourceError


@dataclass(frozen=True)
class Pictures:
    """Pictures with classes.

    Attributes:
        images: (N, H, W, C), unsigned bytes.
        labels: (N,), int64, indices into `classes`.
        classes: their names.
        mean, std: of each channel of pixels from 0 to 1, for normalisation.
        padding: pixels that a random crop may move a picture.
        flip: whether a mirrored picture is of the same class.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int
    flip: bool

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Pictures:
        """Some of the pictures."""
        return dataclasses.replace(self, images=self.images[indices], labels=self.labels[indices])


@dataclass(frozen=True)
class Data:
    """Pictures to train with and pictures to test with, which never meet.

    Attributes:
        skipped: files that could not be decoded.
    """

    name: str
    train: Pictures
    test: Pictures
    skipped: tuple[str, ...] = ()


def decode(path: Path) -> np.ndarray:
    """The pixels of a picture, (H, W, 3) in RGB, unsigned bytes; turned as its camera says.

    Raises:
        SourceError: the file is missing, empty, damaged or no picture.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except Image.DecompressionBombWarning as error:
        raise SourceError(f"{path}: is too large a picture ({error})") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SourceError(f"{path}: cannot be decoded as a picture ({error})") from None


def fitted(pixels: np.ndarray, size: int) -> np.ndarray:
    """The central square of a picture after its shorter side became `size` (bilinear with antialiasing)."""
    from PIL import Image

    rows, columns = pixels.shape[:2]
    if (rows, columns) != (size, size):
        scale = size / min(rows, columns)
        sides = (max(size, round(columns * scale)), max(size, round(rows * scale)))
        pixels = np.asarray(Image.fromarray(pixels).resize(sides, Image.Resampling.BILINEAR))
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]
