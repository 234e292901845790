"""Finds the weights in a folder: one file, or shards by their index. Only files in that folder are used."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from weights_convert.errors import SourceError
from weights_convert.formats.base import one_line, parse_metadata
from weights_convert.formats.others import other_folder
from weights_convert.limits import Limits, too_many

CONFIGS = (
    "config.json",
    "preprocessor_config.json",
    "preprocessor.json",
    "task.json",
)  # what a folder says in words
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WEIGHTS = (  # in order of preference; the names of transformers and timm, and of keras-hub
    "model.safetensors",
    "pytorch_model.bin",
    "model.weights.h5",
)
_OF_TASK = "task.weights.h5"  # keras-hub's classifier, beside its backbone
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".npz", ".h5", ".keras")
_SHARD = re.compile(r".*-(?P<number>\d{5})-of-(?P<count>\d{5})\.(?:safetensors|bin)")
_MOST_SHARDS = 100
_MOST_LISTED = 20


class Folder(NamedTuple):
    """The files of a folder.

    Attributes:
        path: the folder.
        weights: the files with tensors.
        shard_of: name of a tensor -> file, by the index; None without one.
        configs: name -> content of the files that describe the network.
        files: all of these files, and the index.
        others: other files of weights.
    """

    path: Path
    weights: list[Path]
    shard_of: dict[str, str] | None
    configs: dict[str, dict[str, Any]]
    files: list[Path]
    others: list[str]


def find_folder(path: Path, limits: Limits) -> Folder | None:
    """The folder at a path or with this index of shards; None for any other path.

    Raises:
        SourceError: a folder without weights, an index that leads nowhere or elsewhere, a single shard.
    """
    if _is(path, "is_dir"):
        folder, index = path, None if _first(path, _WEIGHTS[:1]) else _first(path, _INDICES)
    elif path.name.endswith(".index.json") and _is(path, "is_file"):
        folder, index = path.parent, path.name
    else:
        _refuse_single_shard(path)
        return None
    others: list[str] = []
    shard_of = None
    if index is not None:
        shard_of = _shards(folder, index, limits)
        weights = list(dict.fromkeys(shard_of.values()))
    else:
        weights, others = _single(folder)
    configs = {name: read_json(folder, name, limits) for name in CONFIGS if _is(folder / name, "is_file")}
    files = [inside(folder, name) for name in weights]
    texts = [folder / name for name in (*configs, *([index] if index else []))]
    return Folder(folder, files, shard_of, configs, [*files, *texts], others)


def read_json(folder: Path, name: str, limits: Limits) -> dict[str, Any]:
    """The object in a JSON file of a folder.

    Raises:
        SourceError: it cannot be read, is larger than the limit, or is no object.
    """
    path = inside(folder, name)
    try:
        with path.open("rb") as file:
            data = file.read(limits.text + 1)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > limits.text:
        raise too_many(path, f"bytes or more of {name}", len(data), "max_tensors", limits.text)
    return parse_metadata(data, path, limits, "content")


def inside(folder: Path, name: object) -> Path:
    """A file in the folder by its name.

    A link may lead to another file of the folder, or to the cache of the Hub, which keeps a folder's files
    in `blobs` beside `snapshots`.

    Raises:
        SourceError: a name that is a path or no text, or a file elsewhere.
    """
    if not isinstance(name, str) or Path(name).name != name or name in ("", "..") or {*"\\\0"} & {*name}:
        raise SourceError(f"{folder}: {one_line(repr(name))}, expected the name of a file in this folder")
    path = folder / name
    try:
        real, root = path.resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:  # a circle of links
        raise SourceError(f"{path}: cannot be read ({one_line(error)})") from None
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    if not (real.is_relative_to(root) or real.is_relative_to(blobs)):
        raise SourceError(f"{path}: is a link to a file outside the folder, which is not followed")
    return path


def _is(path: Path, kind: str) -> bool:
    try:
        return bool(getattr(path, kind)())
    except (OSError, ValueError):  # not permitted, a name that is too long
        return False


def _first(folder: Path, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if _is(folder / name, "is_file")), None)


def _single(folder: Path) -> tuple[list[str], list[str]]:
    """The file of weights of a folder without an index, and others that are not used."""
    try:
        names = sorted(entry.name for entry in folder.iterdir() if _is(entry, "is_file"))
    except OSError as error:
        raise SourceError(f"{folder}: cannot be read ({error.strerror})") from None
    found = [name for name in names if name.endswith(_SUFFIXES)]
    chosen = _first(folder, _WEIGHTS) or (found[0] if len(found) == 1 else None)
    if chosen is None and found and all(map(_SHARD.fullmatch, found)):
        raise SourceError(
            f"{folder}: {len(found)} shards without their index; copy {' or '.join(_INDICES)} there too"
        )
    if chosen is None and found:
        raise SourceError(
            f"{folder}: a folder with {len(found)} files of weights; name one of them", found[:_MOST_LISTED]
        )
    if chosen is None:
        raise SourceError(f"{folder}: {_what_folder(names)}")
    _refuse_single_shard(folder / chosen)
    weights = [chosen, *(name for name in found if chosen == _WEIGHTS[-1] and name == _OF_TASK)]
    return weights, [name for name in found if name not in weights]


def _what_folder(names: list[str]) -> str:
    """The error text for a folder without weights."""
    shown = one_line(", ".join(names[:6])) or "nothing"
    return other_folder(names) or (
        f"a folder without weights (it has {shown}), expected a TF1 checkpoint, model.safetensors, "
        "pytorch_model.bin, model.weights.h5 or an index of shards in it"
    )


def _refuse_single_shard(path: Path) -> None:
    match = _SHARD.fullmatch(path.name)
    if match and int(match["count"]) > 1 and _is(path, "is_file"):
        raise SourceError(
            f"{path}: one shard of {int(match['count'])}; give the folder, or the file ending in .index.json "
            "that lists the shards"
        )


def _shards(folder: Path, index: str, limits: Limits) -> dict[str, str]:
    """Name of a tensor -> file, by an index."""
    path = folder / index
    shard_of = read_json(folder, index, limits).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        found = type(shard_of).__name__
        raise SourceError(f"{path}: its 'weight_map' is {found}, expected names of tensors with their files")
    for name, file in shard_of.items():
        if not isinstance(file, str):
            what = f"the file of {one_line(name)!r} is {type(file).__name__}"
            raise SourceError(f"{path}: {what}, expected the name of a file")
    count = Counter(shard_of.values())
    if len(count) > _MOST_SHARDS:
        raise SourceError(f"{path}: lists {len(count)} shards, expected {_MOST_SHARDS} at most")
    missing = [file for file in count if not _is(inside(folder, file), "is_file")]
    if missing:
        raise SourceError(
            f"{path}: {len(missing)} of its {len(count)} shards are missing, such as {one_line(missing[0])!r}"
        )
    return shard_of
