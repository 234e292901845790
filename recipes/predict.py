"""Classify pictures with a checkpoint, in any framework: `predict` and `evaluate`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recipes.classifier import Classify
from recipes.pictures import Data, Pictures, decode, fitted
from weights_convert import load
from weights_convert.cautions import caution
from weights_convert.errors import MismatchError, SourceError
from weights_convert.families.base import IMAGENET

_BATCH = 100


class Input(NamedTuple):
    """How a network's pictures are prepared, (pixel from 0 to `top` - mean) / std, and its classes."""

    size: int
    channels: str
    top: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    seed: int = 0  # of the split of a folder into training and test pictures
    trained: tuple[str, int, int] | None = None  # the data set's name, its training and test pictures

    def prepared(self, pixels: np.ndarray) -> np.ndarray:
        """(N, H, W, C), unsigned bytes, to what the network takes."""
        if self.channels == "BGR":
            pixels = pixels[..., ::-1]
        images = pixels.astype(np.float32) * np.float32(self.top / 255)
        return (images - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)


def input_of(path: str | Path) -> Input:
    """A checkpoint's input, as recorded by its training or known of its family.

    The record is `run.json` in the same folder, or a file beside the checkpoint that ends in .json instead.

    Raises:
        SourceError: the checkpoint or its record cannot be read.
    """
    with load(path) as checkpoint:
        spec, feeds = checkpoint.spec, checkpoint.feeds
    count = getattr(spec, "num_classes", 0)
    if not count:
        raise MismatchError(f"{path}: has no classifier, expected a network that classifies")
    if (facts := _record(Path(path))) is not None:
        found = _recorded(facts, path)
        if len(found.classes) != count:
            raise MismatchError(f"{path}: has {count} classes, but its record names {len(found.classes)}")
        return _fitting(found, spec.input_channels, path)
    if feeds is None:
        caution(f"{path}: nothing says how its pictures are prepared; assumed: {IMAGENET}")
        feeds = IMAGENET
    size = feeds.size or spec.image_size
    found = Input(size, feeds.channels, feeds.top, feeds.mean, feeds.std, _numbered(count))
    return _fitting(found, spec.input_channels, path)


def _recorded(facts: Any, path: str | Path) -> Input:
    """The input that the record of a training states."""
    try:
        given, classes = facts["input"], tuple(map(str, facts["classes"]))
        mean, std = (tuple(map(float, given[name])) for name in ("mean", "std"))
        counts = int(facts["pictures"]["train"]), int(facts["pictures"]["test"])
        seed, trained = int(facts["recipe"]["seed"]), (str(facts["data"]), *counts)
        return Input(int(given["size"][0]), "RGB", 1, mean, std, classes, seed, trained)
    except KeyError as error:
        raise SourceError(f"{path}: its record lacks {error}, expected that of a training") from None
    except (TypeError, ValueError, IndexError) as error:
        raise SourceError(f"{path}: its record is none of a training ({error})") from None


def _fitting(found: Input, channels: int, path: str | Path) -> Input:
    if not len(found.mean) == len(found.std) == channels or channels not in (1, 3):
        raise MismatchError(
            f"{path}: takes images of {channels} channels, but pictures are prepared with "
            f"{len(found.mean)}; its record (run.json beside it) has to state a mean and a std of each"
        )
    return found


def _numbered(count: int) -> tuple[str, ...]:
    """Names of classes that nothing names."""
    return tuple(f"class {number}" for number in range(count))


def _record(path: Path) -> dict[str, Any] | None:
    for record in (path.with_suffix(".json"), path.with_name("run.json")):
        if record.is_file():
            try:
                return json.loads(record.read_bytes())
            except ValueError as error:
                raise SourceError(f"{record}: is no JSON ({error})") from None
    return None


def probabilities(logits: np.ndarray) -> np.ndarray:
    """The softmax of each row."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def predict(paths: Iterable[Path], given: Input, classify: Classify) -> Iterator[tuple[Path, np.ndarray]]:
    """Each picture with the probabilities of its classes.

    Raises:
        SourceError: a picture cannot be decoded.
    """
    for path in paths:
        pixels = pixels_for(given, fitted(decode(path), given.size))
        yield path, probabilities(classify(given.prepared(pixels[None])))[0]


def pixels_for(given: Input, pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3), in grey (H, W, 1) for a network of grey pictures."""
    if len(given.mean) == 1:
        return np.rint(pixels @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)[..., None]
    return pixels


def caution_about_split(data: Data, given: Input) -> None:
    """Warn if a folder was divided otherwise for the training: test pictures may have been trained with."""
    now = (data.name, len(data.train), len(data.test))
    if given.trained is not None and given.trained[0] == data.name and given.trained != now:
        _, train, test = given.trained
        caution(
            f"{data.name}: has {len(data.train):,} training and {len(data.test):,} test pictures, and had "
            f"{train:,} and {test:,} at the training; some test pictures may have been trained with"
        )


class Disagreement(NamedTuple):
    """A picture whose class differs between frameworks.

    Attributes:
        picture: its number.
        labels: framework -> the class it gives.
        margin: the largest difference between the two best logits of a framework: how near a tie is.
    """

    picture: int
    labels: dict[str, int]
    margin: float


def disagreements(logits: Mapping[str, np.ndarray]) -> list[Disagreement]:
    """The pictures that some frameworks classify otherwise than others.

    Args:
        logits: framework -> (N, K), of the same pictures.
    """
    best = {framework: rows.argmax(1) for framework, rows in logits.items()}
    found = []
    for picture in np.flatnonzero(np.ptp(np.stack(list(best.values())), 0)):
        two = [np.partition(rows[picture], -2)[-2:] for rows in logits.values()]
        labels = {framework: int(labels[picture]) for framework, labels in best.items()}
        found.append(Disagreement(int(picture), labels, float(max(np.ptp(pair) for pair in two))))
    return found


def logits_of(pictures: Pictures, given: Input, classify: Classify) -> np.ndarray:
    """The logits of every picture, in order.

    Raises:
        MismatchError: other classes than the network's.
    """
    if given.classes == _numbered(len(pictures.classes)):
        caution("nothing names the network's classes; they are assumed to be those of the pictures, in order")
    elif pictures.classes != given.classes:
        ours, theirs = (", ".join(names[:5]) for names in (given.classes, pictures.classes))
        raise MismatchError(f"the network's classes are {ours} ..., those of the pictures {theirs} ...")
    found = []
    for start in range(0, len(pictures), _BATCH):
        found.append(classify(given.prepared(pictures.images[start : start + _BATCH])))
    return np.concatenate(found)
