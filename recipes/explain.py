"""A picture of what the attention of a network does with one image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from recipes.classifier import Gates, classifier
from recipes.pictures import decode, fitted
from recipes.predict import Input, pixels_for, probabilities
from weights_convert import atomic, load
from weights_convert.errors import DestinationError, MismatchError, WriteError

# the colours of 0, 0.5 (the gate of a block that has learnt nothing) and 1
COLOURS = np.array([[33, 60, 150], [247, 247, 247], [178, 24, 43]], float)
_LEFT, _STRIP, _RIGHT, _MARGIN = 190, 512, 150, 12  # pixels
_PICTURE, _ROW, _MAP = 224, 22, 96


class Explained(NamedTuple):
    """One picture through a network.

    Attributes:
        pixels: what the network saw, before normalisation (H, W, 3).
        shares: the probability of each class.
        gates: block -> the factor of each channel (C,), or of each place (H, W), from 0 to 1.
        kernels: ECA block -> its kernel (k,).
    """

    pixels: np.ndarray
    shares: np.ndarray
    gates: dict[str, np.ndarray]
    kernels: dict[str, np.ndarray]


def explain(image: Path, weights: str | Path, given: Input, framework: str = "torch") -> Explained:
    """Run one picture through a network in float64, and note the gates of its attention blocks.

    In float64 the three frameworks give the same gates to 1e-12.

    Raises:
        SourceError: the picture or the checkpoint cannot be read.
        MismatchError: the network has no SE, CBAM or ECA block.
    """
    gates: Gates = {}
    classify = classifier(weights, framework, "float64", gates)
    pixels = fitted(decode(image), given.size)
    logits = classify(given.prepared(pixels_for(given, pixels)[None]).astype(np.float64))
    if not gates:
        raise MismatchError(f"{weights}: has no SE, CBAM or ECA block to explain")
    broken = next((name for name, gate in gates.items() if not np.isfinite(gate).all()), None)
    if broken is not None or not np.isfinite(logits).all():
        raise MismatchError(f"{weights}: computes values that are no numbers, in {broken or 'its logits'}")
    with load(weights, assume=True) as checkpoint:
        names = {name: f"{name}.conv.weight" for name in gates if name.endswith("eca")}
        kernels = {block: np.array(checkpoint[name], float).ravel() for block, name in names.items()}
    return Explained(pixels, probabilities(logits)[0], {n: gate[0] for n, gate in gates.items()}, kernels)


def rows(found: Explained) -> list[tuple[str, str, str]]:
    """For each block its name, what it weighs, and its range."""
    shown = []
    for block, gate in found.gates.items():
        what = f"{len(gate)} channels" if gate.ndim == 1 else f"{gate.shape[0]} x {gate.shape[1]} places"
        shown.append((block, what, f"{gate.min():.3f} to {gate.max():.3f}, mean {gate.mean():.3f}"))
    return shown


def coloured(gate: np.ndarray) -> np.ndarray:
    """The colours of factors from 0 to 1, unsigned bytes."""
    place = np.clip(gate, 0, 1)[..., None]
    low, middle, high = COLOURS
    mixed = np.where(
        place < 0.5, low + (middle - low) * 2 * place, middle + (high - middle) * (2 * place - 1)
    )
    return np.rint(mixed).astype(np.uint8)


def check_place(out: Path | None, image: Path) -> None:
    """Raise `DestinationError` if a picture cannot be drawn to `out`."""
    if out is None:
        return
    if out.suffix.lower() != ".png":
        raise DestinationError(f"{out}: expected a name that ends in .png")
    if not out.resolve().parent.is_dir():
        raise DestinationError(f"{out}: its folder does not exist")
    if out.exists() and image.exists() and out.samefile(image):
        raise DestinationError(f"{out}: is the picture to explain; give another name")


def write(found: Explained, classes: Sequence[str], path: Path) -> None:
    """Draw to a PNG file, which is complete or absent.

    Raises:
        WriteError: the file could not be written.
    """
    try:
        with atomic.replacing(path) as temporary:
            draw(found, classes).save(temporary, "PNG")
    except OSError as error:
        raise WriteError(f"{path}: could not be written ({error.strerror or error})") from None


def draw(found: Explained, classes: Sequence[str]) -> Image.Image:
    """The picture, its classes and the gates of every block.

    Channels are columns, from the first on the left; a map of places lies over the picture. The scale is the
    same for every block: blue is 0, white 0.5, red 1.
    """
    heights = [_MAP + 8 if gate.ndim == 2 else _ROW for gate in found.gates.values()]
    top = _PICTURE + 3 * _MARGIN + _ROW
    sheet = Image.new("RGB", (_LEFT + _STRIP + _RIGHT, top + sum(heights) + _MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    sheet.paste(_scaled(found.pixels, _PICTURE, _PICTURE), (_MARGIN, _MARGIN))
    _classes(pen, found.shares, classes)
    scale = coloured(np.linspace(0, 1, 101)[None])
    sheet.paste(_scaled(scale, 202, 14), (_LEFT, top - _ROW - 4))
    for value in (0, 0.5, 1):
        pen.text((_LEFT + 202 * value, top - _ROW + 10), f"{value:g}", fill="black", anchor="mt")
    y = top + _MARGIN
    for (block, gate), (_, _, summary), height in zip(found.gates.items(), rows(found), heights, strict=True):
        pen.text((_MARGIN, y + 2), block, fill="black")
        if gate.ndim == 1:
            sheet.paste(_scaled(coloured(gate[None]), _STRIP, 14), (_LEFT, y))
        else:
            sheet.paste(_over(found.pixels, gate), (_LEFT, y))
            sheet.paste(_scaled(coloured(gate), _MAP, _MAP), (_LEFT + _MAP + 8, y))
        if block in found.kernels:
            _kernel(pen, found.kernels[block], y)
        pen.text((_LEFT + _STRIP + 8, y + 2), summary.partition(",")[0], fill="black")
        y += height
    return sheet


def _scaled(pixels: np.ndarray, width: int, height: int) -> Image.Image:
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX)


def _over(pixels: np.ndarray, gate: np.ndarray) -> Image.Image:
    """The picture, darker where the gate is smaller."""
    picture = np.asarray(_scaled(pixels, _MAP, _MAP), float)
    places = np.arange(_MAP) * len(gate) // _MAP, np.arange(_MAP) * gate.shape[1] // _MAP
    factor = gate[np.ix_(*places)][..., None]
    return Image.fromarray(np.rint(picture * factor).astype(np.uint8))


def _classes(pen: Any, shares: np.ndarray, classes: Sequence[str]) -> None:
    for place, label in enumerate(shares.argsort()[::-1][:5]):
        y = _MARGIN + 10 + place * 28
        pen.text((_LEFT + 70, y), f"{shares[label]:7.2%}  {classes[label]}", fill="black")
        pen.rectangle((_LEFT + 250, y, _LEFT + 250 + 300 * shares[label], y + 12), fill="#2a6fdb")


def _kernel(pen: Any, kernel: np.ndarray, y: int) -> None:
    """The kernel as bars around a line, at the right edge, the largest 8 pixels high."""
    unit, middle = 8 / np.abs(kernel).max(), y + 9
    left = _LEFT + _STRIP + _RIGHT - _MARGIN - 6 * len(kernel)
    for place, value in enumerate(kernel):
        x, end = left + 6 * place, middle - round(float(value) * unit)
        pen.rectangle((x, min(middle, end), x + 4, max(middle, end)), fill="#555555")
