"""The containers, one file each. Reading depends on the content, writing on the suffix."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from weights_convert.errors import DestinationError, SourceError
from weights_convert.formats.base import Format, Reader, TensorInfo
from weights_convert.formats.caffe import CaffeReader, recognises_caffe
from weights_convert.formats.given import Given
from weights_convert.formats.hdf5.keras import KerasReader, recognises_keras
from weights_convert.formats.hub.reader import FolderReader, recognises_folder
from weights_convert.formats.hub.writer import folder_files, place_folder
from weights_convert.formats.npz import NpzReader, recognises_npz, write_npz
from weights_convert.formats.others import other_kind
from weights_convert.formats.safetensors import (
    SafetensorsReader,
    recognises_safetensors,
    write_safetensors,
)
from weights_convert.formats.tf1.checkpoint import open_tf1, recognises_tf1, write_tf1
from weights_convert.formats.tf1.place import orphans_of_tf1, place_tf1, tf1_files
from weights_convert.formats.torch.file import open_torch, recognises_torch
from weights_convert.formats.torch.writer import write_torch
from weights_convert.limits import Limits


def _write_keras(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str], np.ndarray],
    metadata: Mapping[str, Any],
) -> None:
    from weights_convert.formats.hdf5.writer import write_keras  # imports h5py, 40 ms

    write_keras(path, tensors, read, metadata)


FORMATS = {
    container.name: container
    for container in (
        Format(
            "torch",
            (".pth", ".pt"),
            "PyTorch zip or stream",
            "torch",
            recognises_torch,
            open_torch,
            write_torch,
            keyed=True,
        ),
        Format(
            "safetensors",
            (".safetensors",),
            "safetensors",
            "torch",
            recognises_safetensors,
            SafetensorsReader,
            write_safetensors,
            any_layout=True,
        ),
        Format(
            "npz",
            (".npz",),
            "NumPy archive",
            "torch",
            recognises_npz,
            NpzReader,
            write_npz,
            any_layout=True,
        ),
        Format(
            "keras",
            (".weights.h5",),
            "Keras 3 HDF5, .keras read",
            "keras",
            recognises_keras,
            KerasReader,
            _write_keras,
        ),
        Format(
            "tf1",
            (".ckpt",),
            "TensorFlow 1 checkpoint",
            "tf1",
            recognises_tf1,
            open_tf1,
            write_tf1,
            tf1_files,
            place_tf1,
            orphans=orphans_of_tf1,
        ),
    )
}


def _open_folder(source: Path | Given, key: str | None = None) -> Reader:
    def open_file(path: Path, limits: Limits) -> Reader:
        return open_reader(Given(path, limits, in_folder=True), key)

    return FolderReader(Given.of(source), open_file)


# beside `FORMATS`: it holds files of those, and is written for timm's networks only
FOLDER = Format(
    "folder",
    ("/",),
    "Hugging Face folder",
    "timm",
    recognises_folder,
    _open_folder,
    files=folder_files,
    place=place_folder,
    keyed=True,
    whole_folder=True,
)


CAFFE = Format("caffe", (".caffemodel",), "Caffe model (only read)", "senet", recognises_caffe, CaffeReader)


def open_reader(source: str | Path | Given, key: str | None = None, limits: Limits | None = None) -> Reader:
    """Open a checkpoint by its content; closing the reader closes the file.

    Args:
        source: a file, a folder, a TF1 checkpoint's prefix, or the directory of one.
        key: the entry of a PyTorch file that holds the weights, if there are several.
        limits: for untrusted files.

    Raises:
        SourceError: the file is missing, cannot be read, or is not a checkpoint.
        LimitError: the file exceeds a limit.
    """
    given = Given.of(source, limits)
    try:
        container = _container_of(given)
        if container.keyed:
            return container.open(given, key)
        if key is not None:
            raise SourceError(
                f"{given.path}: --key selects an entry of a PyTorch file, but this is {container.name}"
            )
        return container.open(given)
    except BaseException:
        given.close()
        raise


def format_for_writing(destination: str | Path) -> Format:
    """The container for a destination's suffix; `DestinationError` for an unknown suffix."""
    path = Path(destination)
    if str(destination).endswith(("/", os.sep)):
        return FOLDER
    for container in FORMATS.values():
        if path.name.endswith(container.suffixes):
            return container
    if path.name.endswith(CAFFE.suffixes):
        raise DestinationError(f"{path}: {CAFFE.suffixes[0]} can only be read; give another suffix")
    with suppress(OSError):  # a name that is too long
        if path.is_dir():
            return FOLDER
    known = ", ".join(suffix for container in FORMATS.values() for suffix in container.suffixes)
    raise DestinationError(f"{path}: unknown suffix, expected one of {known}, or a folder (NAME/)")


def _container_of(given: Given) -> Format:
    """The container of a source; an unknown zip counts as PyTorch's, whose error describes it."""
    for container in (FOLDER, *FORMATS.values(), CAFFE):
        if container.recognises(given):
            return container
    if given.archive is not None:
        return FORMATS["torch"]
    if not given.head:
        raise SourceError(f"{given.path}: the file is empty")
    if what := other_kind(given.head):
        raise SourceError(f"{given.path}: {what}")
    raise SourceError(
        f"{given.path}: not a known checkpoint format (it begins with {given.head[:8]!r}); "
        f"expected one of {', '.join(container.description for container in (*FORMATS.values(), CAFFE))}"
    )
