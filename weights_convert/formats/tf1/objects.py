"""The object graph of TensorFlow 2's checkpoints: `tf.train.Checkpoint`, SavedModel, Keras's `export`.

Such a checkpoint names a variable by the attributes that lead to it (`model/layer1/0/conv1/_kernel`). Its
graph of objects, a text among the tensors, has each variable's own name (`res_net/layer1_0/conv1/kernel`), as
used by `tf.train.Saver`. Messages:
https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/protobuf/trackable_object_graph.proto
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from weights_convert.formats.base import one_line
from weights_convert.formats.tf1.crc32c import crc32c, masked
from weights_convert.formats.tf1.proto import BYTES, last, parse, tags_and_values
from weights_convert.formats.tf1.table import WireError, read_varint
from weights_convert.limits import Limits, too_many

GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
OTHERWISE = (
    "a TF2 object checkpoint or SavedModel that holds no whole network of known names; load it with its own "
    "code, and save its weights (model.save_weights('x.weights.h5'))"
)
_NODE, _ATTRIBUTE = 8 + BYTES, 16 + BYTES  # TrackableObjectGraph, TrackableObject
_FULL_NAME, _KEY = 16 + BYTES, 24 + BYTES  # SerializedTensor
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_UNNAMED = re.compile(r"(.*/)?Variable(_\d+)?")  # TensorFlow's name for a variable without one
_COPIES = re.compile(r"(.*/)?(_all_|non_trainable_|trainable_)?variables/\d+")  # lists of Keras's `export`
_NODES_PER_TENSOR = 5  # in `Limits.max_tensors`; a SavedModel has seven objects for each variable
_BOOKKEEPING = (
    (re.compile(r"(.*/)?_?optimizer/.*|.*/\.OPTIMIZER_SLOT/.*"), "optimizer state"),
    (re.compile(r"(.*/)?(keras_api/metrics|_?metrics|_?loss_tracker)/.*"), "metric"),
    (re.compile(r"(.*/)?save_counter"), "step count"),
)


class Names(NamedTuple):
    """Key in the checkpoint -> name of the variable, and keys of other contents -> description."""

    names: dict[str, str]
    left_out: dict[str, str]


def text_in(data: bytes, crc: int) -> bytes:
    """The text in the bytes of a tensor of one text: its length, a checksum, the text.

    Raises:
        WireError: it is damaged.
    """
    length, at = read_varint(data, 0)
    text = data[at + 4 :]
    if len(text) != length or length >= 2**32:
        raise WireError(f"{len(text)} bytes of text, expected {length}")
    if masked(crc32c(length.to_bytes(4, "little") + data[at:])) != crc:
        raise WireError("wrong CRC-32C of the text")
    return text


def names_of(keys: Iterable[str], graph: bytes, path: Path, limits: Limits) -> Names:
    """The names of the variables of a checkpoint by its graph of objects.

    A variable whose name another one has keeps its key; Keras's `export` lists each variable several times.

    Raises:
        LimitError: too many objects.
        WireError, UnicodeDecodeError: the graph is damaged.
    """
    full = _full_names(graph, path, limits)
    found, taken = Names({}, {}), set()
    for key in keys:
        plain = key.removesuffix(_VALUE)
        what = next((what for pattern, what in _BOOKKEEPING if pattern.fullmatch(plain)), None)
        name = full.get(key, key)
        if what is None and name in taken and _COPIES.fullmatch(plain):
            what = f"another copy of {one_line(name)}"
        if what is None:
            found.names[key] = key if name in taken else name
            taken.add(found.names[key])
        else:
            found.left_out[key] = what
    return found


def _full_names(graph: bytes, path: Path, limits: Limits) -> Mapping[str, str]:
    """Key in the checkpoint -> name of the variable."""
    names: dict[str, str] = {}
    most = _NODES_PER_TENSOR * limits.max_tensors
    for count, (tag, node) in enumerate(tags_and_values(graph)):
        if count >= most:
            raise too_many(path, "objects or more", count, "max_tensors", most)
        for attribute in parse(node).get(_ATTRIBUTE, []) if tag == _NODE else []:
            fields = parse(attribute)
            key, name = (last(fields, field, b"").decode() for field in (_KEY, _FULL_NAME))
            if name and not _UNNAMED.fullmatch(name):
                names.setdefault(key, name)
    return names
