"""Photographs, cropped and normalised as input of ImageNet classifiers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from weights_convert.errors import SourceError
from weights_convert.spec import Spec

OWN = Path(__file__).parent / "images"
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
_MEAN = np.array([0.485, 0.456, 0.406])  # of ImageNet, RGB in [0, 1]
_STD = np.array([0.229, 0.224, 0.225])


def photographs(folder: Path, spec: Spec, size: int | None = None, most: int | None = None) -> np.ndarray:
    """The pictures of a folder, sorted by name, all or the first `most`: (N, C, size, size) float32.

    The shorter side is scaled to size * 256 / 224 and the middle cropped. The default size is 224, or 32 for
    networks with the "3x3" stem. Networks with one input channel get grey pictures, with more than three the
    colours are repeated.

    Raises:
        SourceError: the folder does not exist or holds no pictures, or a picture cannot be read.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder}: there is no such folder of images")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise SourceError(f"{folder}: holds no images, expected {', '.join(sorted(_SUFFIXES))}")
    paths = paths[:most]
    size = size or (spec.image_size)
    return np.stack([_photograph(path, size, spec.input_channels) for path in paths])


def dithered(images: np.ndarray) -> np.ndarray:
    """Photographs with seeded noise of one grey level, for comparisons of gradients.

    White areas give activations that are equal up to rounding, which decides where a max-pool sends the
    gradient: without the noise the gradients of the input of `se_inception_v3` at 139 x 139 differ by 4e-2.
    """
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, images.shape) / 255 / _STD.mean()
    return (images + noise).astype(np.float32)


def _photograph(path: Path, size: int, channels: int) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as file:
            picture = file.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise SourceError(f"{path}: cannot be read as an image ({error})") from None
    scale = size * 256 / 224 / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    pixels = np.asarray(picture.crop((left, top, left + size, top + size)), np.float64) / 255
    normalised = ((pixels - _MEAN) / _STD).transpose(2, 0, 1)
    if channels == 1:
        normalised = normalised.mean(0, keepdims=True)
    repeated = np.resize(normalised, (channels, size, size)) if channels > 3 else normalised[:channels]
    return np.asarray(repeated, np.float32)
