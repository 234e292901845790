"""Writes a folder: model.safetensors, config.json and README.md, which get their place in one step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weights_convert.atomic import flush_folder
from weights_convert.formats.base import TensorInfo
from weights_convert.formats.safetensors import write_safetensors

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_CHUNK = 1 << 20


def write_folder(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str], np.ndarray],
    metadata: Mapping[str, Any],
    *,
    config: str,
    card: str,
) -> None:
    """Write the three files; `{sha256}` in the card becomes the one of the weights."""
    path.mkdir()
    write_safetensors(path / WEIGHTS, tensors, read, metadata)
    (path / CONFIG).write_text(config, encoding="utf-8")
    (path / CARD).write_text(card.replace("{sha256}", _sha256(path / WEIGHTS)), encoding="utf-8")


def folder_files(path: Path) -> list[Path]:
    return [path / name for name in (WEIGHTS, CONFIG, CARD)]


def place_folder(source: Path, target: Path, overwrite: bool) -> list[str]:  # noqa: ARG001
    """The atomic step: a rename, which replaces an empty folder only."""
    flush_folder(source)
    try:
        source.rename(target)
    except OSError as error:
        if target.exists():
            raise FileExistsError(target) from error
        raise
    return []


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
