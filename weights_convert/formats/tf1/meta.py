"""The keywords of our networks in `PREFIX.meta`, the graph that `tf.train.Saver` writes beside a checkpoint.

https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/protobuf/meta_graph.proto
`tf1_compat.resnet` notes its scope and keywords in a collection of the graph, and a Saver keeps collections.
Only that collection is read. The graph itself, which could run anything, is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from weights_convert.errors import SourceError
from weights_convert.formats.base import parse_metadata
from weights_convert.formats.tf1.proto import BYTES, FIXED_LENGTHS, VARINT, last, parse
from weights_convert.formats.tf1.table import WireError, read_varint
from weights_convert.limits import Limits, too_many
from weights_convert.spec import KINDS

# collection of tf1_compat -> kind of network
_COLLECTIONS = {f"{kind.kind}_config".encode(): kind.kind for kind in KINDS.values() if kind.network}
_COLLECTION_DEF = 32 + BYTES  # MetaGraphDef: a map, each entry a message of a key and a value
_KEY, _VALUE = 8 + BYTES, 16 + BYTES
_BYTES_LIST = 16 + BYTES  # CollectionDef
_ITEM = 8 + BYTES  # CollectionDef.BytesList
_VARINT_BYTES = 10


def meta_path(prefix: Path) -> Path:
    return Path(f"{prefix}.meta")


def networks_in_meta(path: Path, limits: Limits) -> dict[str, dict[str, Any]]:
    """Scope -> metadata, for each network in the file; {} if the file does not exist.

    Raises:
        SourceError: the file is damaged, or (`LimitError`) exceeds a limit.
    """
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            notes = [note for entry in _entries(file, path, limits) for note in _notes(entry)]
    except (OSError, WireError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise SourceError(
            f"{path}: cannot be read ({why}); save the checkpoint again, or remove it"
        ) from None
    networks = {}
    for kind, note in notes:
        said = parse_metadata(note, path, limits, "collection of networks")
        scope, keywords = said.get("scope"), said.get("keywords")
        if not isinstance(scope, str) or not isinstance(keywords, dict):
            raise SourceError(f"{path}: names a network without a scope and keywords; remove the file")
        networks[scope] = {"kind": kind, "spec": keywords, "scope": scope}
    return networks


def _entries(file: BinaryIO, path: Path, limits: Limits) -> Iterator[bytes]:
    """The collections of the graph; everything else is skipped without reading."""
    end = file.seek(0, 2)
    at = fields = size = 0
    while at < end:
        fields += 1
        if fields > limits.max_tensors:
            raise too_many(path, "fields or more", fields, "max_tensors", limits.max_tensors)
        file.seek(at)
        head = file.read(2 * _VARINT_BYTES)
        tag, begin = read_varint(head, 0)
        if tag % 8 == VARINT:
            _, begin = read_varint(head, begin)
            length = 0
        elif tag % 8 == BYTES:
            length, begin = read_varint(head, begin)
        elif tag % 8 in FIXED_LENGTHS:
            length = FIXED_LENGTHS[tag % 8]
        else:
            raise WireError(f"a protobuf field of type {tag % 8}")
        if at + begin + length > end:
            raise WireError(f"{at + begin + length - end} bytes are missing")
        if tag == _COLLECTION_DEF and (length <= limits.text):
            size += length
            if size > limits.text:
                raise too_many(path, "bytes of collections or more", size, "max_tensors", limits.text)
            file.seek(at + begin)
            yield file.read(length)
        at += begin + length


def _notes(entry: bytes) -> list[tuple[str, bytes]]:
    """The kind of network and the texts in a collection, if it is one of ours."""
    for name, kind in _COLLECTIONS.items():
        if entry.startswith(bytes([_KEY, len(name)]) + name):
            value = last(parse(entry), _VALUE, b"")
            texts = [t for items in parse(value).get(_BYTES_LIST, []) for t in parse(items).get(_ITEM, [])]
            return [(kind, text) for text in texts]
    return []  # not parsed, because collections of a large graph have thousands of items
