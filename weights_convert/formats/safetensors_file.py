"""safetensors files: read by the safetensors library, written tensor by tensor.

Format: https://github.com/huggingface/safetensors#format (8-byte header length, JSON header, raw data).
The library's writer wants the whole dictionary in memory, and 0.8.0's silently writes wrong data for
arrays that are not C-contiguous (safetensors#825); its reader judges the files written here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from weights_convert.errors import DestinationError, SourceError
from weights_convert.formats.base import (
    METADATA_NAME,
    Reader,
    TensorInfo,
    dump_metadata,
    one_line,
    parse_metadata,
    tensor_bytes,
)

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


class SafetensorsReader(Reader):
    """A safetensors file; the library checks the header, its offsets and that they cover the file."""

    format = "safetensors"

    def __init__(self, path: Path):
        super().__init__(path)
        try:
            self._file = safetensors.safe_open(path, framework="numpy")
        except (safetensors.SafetensorError, OSError) as error:
            raise SourceError(
                f"{path}: not a readable safetensors file, it is truncated or damaged ({one_line(error)})"
            ) from None
        for name in self._file.keys():  # noqa: SIM118  (not a mapping)
            view = self._file.get_slice(name)
            shape, dtype = tuple(view.get_shape()), view.get_dtype()
            if dtype in _DTYPES:
                self.tensors[name] = TensorInfo(shape, np.dtype(_DTYPES[dtype]))
            else:
                self.left_out[name] = f"tensor of dtype {dtype}, which NumPy does not have"
        for name, text in (self._file.metadata() or {}).items():
            if name == METADATA_NAME:
                self.metadata = parse_metadata(text, path)
            elif name != "format":
                self.left_out[f"__metadata__.{name}"] = f"text of {len(text)} characters"

    def read(self, name: str) -> np.ndarray:
        return np.array(self._file.get_tensor(name), order="C")

    def close(self) -> None:
        del self._file


def write_safetensors(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str], np.ndarray],
    metadata: Mapping[str, Any],
) -> None:
    """Write a safetensors file, one tensor in memory at a time."""
    for name, info in tensors.items():
        if info.dtype not in _NAMES:
            raise DestinationError(f"{path}: {name} is {info.dtype}, which safetensors cannot hold")
    # widest first, as the library does it: every tensor is then aligned to its item size
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", METADATA_NAME: dump_metadata(metadata)}}
    offset = 0
    for name in order:
        shape, dtype = tensors[name]
        end = offset + tensors[name].nbytes
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            file.write(tensor_bytes(read(name)))
