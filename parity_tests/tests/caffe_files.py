"""Writes .caffemodel files: a NetParameter by Google's protobuf library, from the messages of caffe.proto."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_F = descriptor_pb2.FieldDescriptorProto
_MESSAGES: dict[str, list[tuple[str, int, Any, bool, bool]]] = {  # name, number, type, repeated, packed
    "BlobShape": [("dim", 1, _F.TYPE_INT64, True, True)],
    "BlobProto": [
        ("num", 1, _F.TYPE_INT32, False, False),
        ("channels", 2, _F.TYPE_INT32, False, False),
        ("height", 3, _F.TYPE_INT32, False, False),
        ("width", 4, _F.TYPE_INT32, False, False),
        ("data", 5, _F.TYPE_FLOAT, True, True),
        ("diff", 6, _F.TYPE_FLOAT, True, True),
        ("shape", 7, "BlobShape", False, False),
        ("double_data", 8, _F.TYPE_DOUBLE, True, True),
    ],
    "BatchNormParameter": [("eps", 3, _F.TYPE_FLOAT, False, False)],
    "LayerParameter": [
        ("name", 1, _F.TYPE_STRING, False, False),
        ("type", 2, _F.TYPE_STRING, False, False),
        ("bottom", 3, _F.TYPE_STRING, True, False),
        ("top", 4, _F.TYPE_STRING, True, False),
        ("blobs", 7, "BlobProto", True, False),
        ("phase", 10, _F.TYPE_INT32, False, False),
        ("batch_norm_param", 139, "BatchNormParameter", False, False),
    ],
    "V1LayerParameter": [
        ("layer", 1, _F.TYPE_BYTES, False, False),
        ("bottom", 2, _F.TYPE_STRING, True, False),
        ("top", 3, _F.TYPE_STRING, True, False),
        ("name", 4, _F.TYPE_STRING, False, False),
        ("type", 5, _F.TYPE_INT32, False, False),
        ("blobs", 6, "BlobProto", True, False),
    ],
    "NetParameter": [
        ("name", 1, _F.TYPE_STRING, False, False),
        ("layers", 2, "V1LayerParameter", True, False),
        ("input", 3, _F.TYPE_STRING, True, False),
        ("layer", 100, "LayerParameter", True, False),
    ],
}  # fmt: skip


def messages(packed: bool = True) -> dict[str, Any]:
    """The classes of the messages; without `packed` numbers are written one by one."""
    package = f"caffe_{packed}".lower()
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto2")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated, in_one in fields:
            label = _F.LABEL_REPEATED if repeated else _F.LABEL_OPTIONAL
            added = message.field.add(name=field, number=number, label=label)
            if isinstance(kind, str):
                added.type, added.type_name = _F.TYPE_MESSAGE, f".{package}.{kind}"
            else:
                added.type = kind
            if in_one:
                added.options.packed = packed
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
        for name in _MESSAGES
    }


def fill_blob(blob: Any, array: np.ndarray, legacy: bool = False) -> None:
    """Give a BlobProto an array's values; `legacy` writes the shape as four numbers."""
    if legacy:
        shape = (1,) * (4 - array.ndim) + array.shape
        blob.num, blob.channels, blob.height, blob.width = shape
    else:
        blob.shape.dim.extend(array.shape)
    (blob.double_data if array.dtype == np.float64 else blob.data).extend(array.ravel().tolist())


def network(
    layers: Iterable[Mapping[str, Any]], *, packed: bool = True, legacy: bool = False, name: str = "net"
) -> bytes:
    """A NetParameter; a layer has a name, a type, its bottoms and tops, and its blobs as arrays."""
    net = messages(packed)["NetParameter"](name=name)
    for layer in layers:
        added = net.layer.add(name=layer["name"], type=layer["type"])
        added.bottom.extend(layer.get("bottom", ()))
        added.top.extend(layer.get("top", ()))
        if "eps" in layer:
            added.batch_norm_param.eps = layer["eps"]
        for array in layer.get("blobs", ()):
            fill_blob(added.blobs.add(), array, legacy)
    return net.SerializeToString()
