"""The containers, one file each. Reading depends on the content, writing on the suffix."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weights_convert.errors import DestinationError, SourceError, nearest
from weights_convert.formats.archive import open_zip
from weights_convert.formats.base import Format, Reader, TensorInfo
from weights_convert.formats.keras_hdf5 import open_keras
from weights_convert.formats.npz_file import NpzReader, write_npz
from weights_convert.formats.safetensors_file import SafetensorsReader, write_safetensors
from weights_convert.formats.tf1_checkpoint import find_tf1_prefix, open_tf1, write_tf1
from weights_convert.formats.tf1_place import orphans_of_tf1, place_tf1, tf1_files
from weights_convert.formats.torch_file import (
    looks_like_torch_stream,
    open_torch,
    write_torch,
)
from weights_convert.limits import DEFAULT, Limits


def _write_keras(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str], np.ndarray],
    metadata: Mapping[str, Any],
) -> None:
    from weights_convert.formats.keras_hdf5_writer import write_keras  # imports h5py, 40 ms

    write_keras(path, tensors, read, metadata)


_OF_TF1 = re.compile(r"\.(index|meta|data-[0-9]{5}-of-[0-9]{5})$")

FORMATS = {
    "torch": Format("torch", (".pth", ".pt"), "PyTorch zip or stream", "torch", open_torch, write_torch),
    "safetensors": Format(
        "safetensors", (".safetensors",), "safetensors", "torch", SafetensorsReader, write_safetensors
    ),
    "npz": Format("npz", (".npz",), "NumPy archive", "torch", NpzReader, write_npz),
    "keras": Format(
        "keras", (".weights.h5",), "Keras 3 HDF5, .keras read", "keras", open_keras, _write_keras
    ),
    "tf1": Format(
        "tf1",
        (".ckpt",),
        "TensorFlow 1 checkpoint",
        "tf1",
        open_tf1,
        write_tf1,
        tf1_files,
        place_tf1,
        orphans_of_tf1,
    ),
}


def open_reader(path: str | Path, key: str | None = None, limits: Limits | None = None) -> Reader:
    """Open a checkpoint by its content.

    Args:
        path: a file, a TF1 checkpoint's prefix, or the directory of one.
        key: the entry of a PyTorch file that holds the weights, if there are several.
        limits: limits for untrusted files.

    Raises:
        SourceError: the file is missing, cannot be read, or is not a checkpoint.
        LimitError: the file exceeds a limit.
    """
    path, limits = Path(path), limits or DEFAULT
    name = _format_of(path, limits)
    if name == "torch":
        return open_torch(path, key, limits)
    if key is not None:
        raise SourceError(f"{path}: --key selects an entry of a PyTorch file, but this is {name}")
    return FORMATS[name].open(path, limits)


def format_for_writing(path: Path) -> Format:
    """The container for a destination's suffix; `DestinationError` for an unknown suffix."""
    for container in FORMATS.values():
        if path.name.endswith(container.suffixes):
            return container
    known = ", ".join(suffix for container in FORMATS.values() for suffix in container.suffixes)
    raise DestinationError(f"{path}: unknown suffix, expected one of {known}")


def _format_of(path: Path, limits: Limits) -> str:
    """The name of the container at `path`, from its first bytes."""
    if find_tf1_prefix(path) is not None:
        return "tf1"
    try:
        if path.is_dir():
            raise SourceError(
                f"{path}: a directory without a TF1 checkpoint in it, expected a checkpoint file"
            )
        if path.exists() and not path.is_file():
            raise SourceError(f"{path}: is a device or a pipe, expected a file")
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise SourceError(f"{path}: there is no such file{_neighbour(path)}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise SourceError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from None
    if head.startswith(b"PK"):
        return _zip_format(path, limits)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "keras"
    if looks_like_torch_stream(head):
        return "torch"
    if len(head) > 8 and head[8:9] == b"{":
        return "safetensors"
    if not head:
        raise SourceError(f"{path}: the file is empty")
    raise SourceError(
        f"{path}: not a known checkpoint format (it begins with {head[:8]!r}); "
        f"expected one of {', '.join(container.description for container in FORMATS.values())}"
    )


def _zip_format(path: Path, limits: Limits) -> str:
    """The name of a zip container, from its entries."""
    with path.open("rb") as file:
        names = open_zip(path, file, limits).namelist()
    if "model.weights.h5" in names:
        return "keras"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    return "torch"


def _neighbour(path: Path) -> str:
    """A hint at a file with a similar name in the same folder, for a TF1 checkpoint at its prefix."""
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return ""
    prefixes = [name.removesuffix(".index") for name in names if name.endswith(".index")]
    others = [name for name in names if not _OF_TF1.search(name)]
    return nearest(path.name, sorted(prefixes + others), likeness=0.8)
