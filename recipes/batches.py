"""The same augmented batches for every framework.

A batch depends on the seed, the epoch and its number alone: a training that was stopped in the middle of an
epoch goes on without the batches before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from recipes.pictures import Pictures
from recipes.recipe import Recipe

_ORDER, _AUGMENT = 4, 5  # streams of random numbers


class Batch(NamedTuple):
    """Normalised pictures (N, H, W, C) and the distribution over the classes to learn for each (N, K)."""

    images: np.ndarray
    targets: np.ndarray


def steps_per_epoch(pictures: Pictures, recipe: Recipe) -> int:
    """Whole batches of an epoch; one of all pictures if they are fewer than a batch."""
    return max(1, len(pictures) // recipe.batch_size)


def training_batch(pictures: Pictures, recipe: Recipe, epoch: int, number: int) -> Batch:
    """One batch of an epoch."""
    order = np.random.default_rng([recipe.seed, _ORDER, epoch]).permutation(len(pictures))
    chosen = order[number * recipe.batch_size : (number + 1) * recipe.batch_size]
    random = np.random.default_rng([recipe.seed, _AUGMENT, epoch, number])
    return _augmented(pictures.take(chosen), recipe, random)


def _augmented(pictures: Pictures, recipe: Recipe, random: np.random.Generator) -> Batch:
    pixels = pictures.images
    if recipe.augment:
        pixels = cropped(
            pixels, random.integers(0, 2 * pictures.padding + 1, (len(pixels), 2)), pictures.padding
        )
        if pictures.flip:
            mirrored = random.random(len(pixels)) < 0.5
            pixels = np.where(mirrored[:, None, None, None], pixels[:, :, ::-1], pixels)
    images = normalized(pixels, pictures, recipe.dtype)
    targets = smoothed(pictures.labels, len(pictures.classes), recipe.label_smoothing, recipe.dtype)
    if recipe.mixup:
        share = np.asarray(random.beta(recipe.mixup, recipe.mixup), recipe.dtype)
        partner = random.permutation(len(images))
        images = share * images + (1 - share) * images[partner]
        targets = share * targets + (1 - share) * targets[partner]
    return Batch(images, targets)


def evaluation_batches(pictures: Pictures, recipe: Recipe) -> Iterator[Batch]:
    """All pictures in order, without augmentation; the last batch may be smaller."""
    for start in range(0, len(pictures), recipe.batch_size):
        some = pictures.take(np.arange(start, min(start + recipe.batch_size, len(pictures))))
        targets = smoothed(some.labels, len(some.classes), 0.0, recipe.dtype)
        yield Batch(normalized(some.images, some, recipe.dtype), targets)


def cropped(pixels: np.ndarray, corners: np.ndarray, padding: int) -> np.ndarray:
    """Windows of each picture's own size at `corners` (N, 2) of the picture with black around it."""
    n, rows, columns, channels = pixels.shape
    padded = np.zeros((n, rows + 2 * padding, columns + 2 * padding, channels), pixels.dtype)
    padded[:, padding : padding + rows, padding : padding + columns] = pixels
    windows = np.empty_like(pixels)
    for index, (top, left) in enumerate(corners):
        windows[index] = padded[index, top : top + rows, left : left + columns]
    return windows


def normalized(pixels: np.ndarray, pictures: Pictures, dtype: str) -> np.ndarray:
    """(pixel / 255 - mean) / std for each channel, as one multiplication and one addition."""
    std = np.array(pictures.std)
    scale, shift = 1 / (255 * std), -np.array(pictures.mean) / std
    return pixels.astype(dtype) * scale.astype(dtype) + shift.astype(dtype)


def smoothed(labels: np.ndarray, classes: int, smoothing: float, dtype: str) -> np.ndarray:
    """(1 - smoothing) at the label and smoothing / K everywhere."""
    targets = np.full((len(labels), classes), smoothing / classes, dtype)
    targets[np.arange(len(labels)), labels] += 1 - smoothing
    return targets
