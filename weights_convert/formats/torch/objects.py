"""Everything that the pickle in a PyTorch file may hold or call; all of it is defined in this file.

A tensor becomes a `TensorRef`: the position of its numbers, not the numbers. Any class, function or object
that is not listed in `FUNCTIONS` becomes an `Opaque`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from weights_convert.formats.base import MAX_NDIM, METADATA_NAME

# torch dtype, prefix of its Storage and legacy Tensor class (None: stored untyped), NumPy dtype
TYPES = (
    ("float32", "Float", np.float32),
    ("float64", "Double", np.float64),
    ("float16", "Half", np.float16),
    ("bfloat16", "BFloat16", ml_dtypes.bfloat16),
    ("int8", "Char", np.int8),
    ("int16", "Short", np.int16),
    ("int32", "Int", np.int32),
    ("int64", "Long", np.int64),
    ("uint8", "Byte", np.uint8),
    ("bool", "Bool", np.bool_),
    ("complex64", "ComplexFloat", np.complex64),
    ("complex128", "ComplexDouble", np.complex128),
    ("uint16", None, np.uint16),
    ("uint32", None, np.uint32),
    ("uint64", None, np.uint64),
    ("float8_e4m3fn", None, ml_dtypes.float8_e4m3fn),
    ("float8_e5m2", None, ml_dtypes.float8_e5m2),
    ("float8_e4m3fnuz", None, ml_dtypes.float8_e4m3fnuz),
    ("float8_e5m2fnuz", None, ml_dtypes.float8_e5m2fnuz),
)
DTYPES = {f"torch.{name}": np.dtype(dtype) for name, _, dtype in TYPES}
STORAGES = {f"torch.{prefix}Storage": np.dtype(dtype) for _, prefix, dtype in TYPES if prefix}
STORAGE_CLASS = {dtype: name.removeprefix("torch.") for name, dtype in STORAGES.items()}
STORAGES |= dict.fromkeys(("torch.storage.UntypedStorage", "torch.UntypedStorage"), np.dtype(np.uint8))
# Quantized storages are never read, but in the stream form their size gives the start of the next storage.
QUANTIZED = {"QInt8": 1, "QUInt8": 1, "QInt32": 4, "QUInt4x2": 1, "QUInt2x4": 1}
ITEM_SIZES = {name: dtype.itemsize for name, dtype in STORAGES.items()}
ITEM_SIZES |= {f"torch.{prefix}Storage": size for prefix, size in QUANTIZED.items()}

MAX_INT = 2**63 - 1  # torch's limit
_ARRAY_CODES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1", "c8", "c16")


class Opaque:
    """Stands in for a class, function or object that is not read; operations on it have no effect."""

    __slots__ = ("path",)

    def __init__(self, path: str):
        self.path = path  # "module.name"


class Function(NamedTuple):
    """A function that the pickle may call by its name."""

    path: str
    call: Callable[..., Any]


class StateDict(dict):
    """Stands in for `OrderedDict`. Attributes are dropped, except metadata of this project's networks.

    torch stores versions of modules in `_metadata`, by their paths; `torch_impl.ResNet` adds its keywords.
    """

    __slots__ = ("metadata",)
    metadata: list[Any]  # untrusted, and of any type

    def __init__(self, pairs: Any = (), *_: Any):
        """From pairs, as in Python 2's pickles; keys must be texts, because other hashes may collide."""
        pairs = pairs.items() if isinstance(pairs, dict) else pairs
        super().__init__((key, value) for key, value in pairs if isinstance(key, str))
        self.metadata = []

    def set_state(self, state: Any) -> None:
        versions = state.get("_metadata") if isinstance(state, dict) else None
        modules = versions.values() if isinstance(versions, dict) else ()
        self.metadata = [
            module[METADATA_NAME]
            for module in modules
            if isinstance(module, dict) and METADATA_NAME in module
        ]


class Storage(NamedTuple):
    """A flat array in the file; `first` is not 0 for views of another storage (before torch 0.4)."""

    key: str
    kind: str  # "torch.FloatStorage"
    numel: int
    first: int = 0

    @property
    def dtype(self) -> np.dtype | None:
        return STORAGES.get(self.kind)

    @property
    def itemsize(self) -> int:
        return ITEM_SIZES[self.kind]


class TensorRef:
    """The position of a tensor in a storage."""

    __slots__ = ("dtype", "offset", "shape", "storage", "strides")
    storage: Storage  # None before the state is set
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # offset and strides count elements, as torch does

    def __init__(self) -> None:
        self.storage = None  # type: ignore[assignment]

    def set_state(self, state: Any) -> None:
        """torch 0.1 pickled an empty tensor and then its position."""
        match state:
            case (Storage() as storage, offset, size, stride):
                self.place(storage, offset, size, stride, storage.dtype)
            case (TensorRef() as data, _, _, _, _) if data.storage:
                self.place(data.storage, data.offset, data.shape, data.strides, data.dtype)
        # Anything else is `requires_grad` and hooks.

    def place(self, storage: Storage, offset: int, size: tuple, stride: tuple, dtype: Any) -> None:
        if dtype is None or len(size) != len(stride) or len(size) > MAX_NDIM:
            raise UnpicklingError(f"a tensor of {len(size)} dimensions with {len(stride)} strides")
        numbers = (offset, *size, *stride)
        if not all(type(number) is int and 0 <= number <= MAX_INT for number in numbers):
            raise UnpicklingError("a tensor whose offset, shape or strides are not counts")
        self.storage, self.dtype, self.offset = storage, dtype, offset
        self.shape, self.strides = tuple(size), tuple(stride)

    @property
    def span(self) -> int:
        """Number of elements from the first to the last one of the tensor, both included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))

    @property
    def start(self) -> int:
        """First byte within the stored entry."""
        return self.storage.first * self.storage.itemsize + self.offset * self.dtype.itemsize


class Latin1(NamedTuple):
    """Bytes that protocol 2 stores as a text. Many calls may share it, and it is decoded when it is read."""

    text: str

    def __len__(self) -> int:
        return len(self.text)


class ArrayType:
    """The dtype of a NumPy array; None before the state is set, or if it holds more than numbers."""

    __slots__ = ("code", "dtype")
    dtype: np.dtype | None

    def __init__(self, code: Any = "", *_: Any):
        self.code, self.dtype = code, None

    def set_state(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if isinstance(self.code, str) and self.code in _ARRAY_CODES and order in ("<", ">", "|", "="):
            self.dtype = np.dtype(f"{order}{self.code}")


class ArrayRef(TensorRef):
    """A NumPy array, whose bytes are in the pickle itself."""

    __slots__ = ("data",)
    data: bytes | Latin1

    def set_state(self, state: Any) -> None:
        match state:
            case (
                _,
                tuple() as shape,
                ArrayType(dtype=np.dtype() as dtype),
                fortran,
                bytes() | Latin1() as data,
            ):
                if len(shape) > MAX_NDIM or not all(type(n) is int and 0 <= n <= MAX_INT for n in shape):
                    raise UnpicklingError("an array whose shape is not a few counts")
                size = math.prod(shape)
                strides = [math.prod(shape[:i] if fortran else shape[i + 1 :]) for i in range(len(shape))]
                self.place(Storage("", "numpy.ndarray", size), 0, shape, tuple(strides), dtype)
                if len(data) != size * dtype.itemsize:
                    self.storage = None  # type: ignore[assignment]
                    raise UnpicklingError(f"{len(data)} bytes for an array of shape {shape}")
                self.data = data

    def read(self) -> np.ndarray:
        """The array in the machine's byte order."""
        data = self.data.text.encode("latin-1") if isinstance(self.data, Latin1) else self.data
        strides = [stride * self.dtype.itemsize for stride in self.strides]
        array = np.ndarray(self.shape, self.dtype, data, strides=strides)
        return array.astype(self.dtype.newbyteorder("="), order="C")


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> ArrayRef:
    """An array of protocol 5."""
    array = ArrayRef()
    array.set_state((1, shape, dtype, order == "F", bytes(data) if isinstance(data, bytearray) else data))
    return array


def _encoded(text: Any = "", encoding: Any = "latin1", *_: Any) -> Latin1 | Opaque:
    return Latin1(text) if isinstance(text, str) and encoding == "latin1" else Opaque("bytes")


def _data(data: Any = None, *_: Any) -> Any:
    """The tensor of a Parameter, or a new one without data."""
    return data if isinstance(data, TensorRef | Opaque) else TensorRef()


def _rebuild(storage: Any, offset: int, size: tuple, stride: tuple, dtype: Any, flags: Any = None) -> Any:
    if not isinstance(storage, Storage):
        raise UnpicklingError("a tensor without a storage")
    if flags:  # a lazy conjugate or negative: the file does not hold the tensor's values
        return Opaque("torch.Tensor (lazily conjugated or negated)")
    if dtype is None or storage.dtype is None:
        return Opaque(f"torch.Tensor of {storage.kind}")
    ref = TensorRef()
    ref.place(storage, offset, size, stride, dtype)
    return ref


def _rebuild_v2(storage: Any, offset: int, size: tuple, stride: tuple, *rest: Any) -> Any:
    # rest: requires_grad, hooks, flags; absent in `_rebuild_tensor`
    dtype = storage.dtype if isinstance(storage, Storage) else None
    return _rebuild(storage, offset, size, stride, dtype, *rest[2:3])


def _rebuild_v3(storage: Any, offset: int, size: tuple, stride: tuple, *rest: Any) -> Any:
    _requires_grad, _hooks, dtype, *flags = rest
    return _rebuild(storage, offset, size, stride, DTYPES.get(getattr(dtype, "path", "")), *flags[:1])


# All functions that a pickle can call, except those that look up a name or call another function.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": StateDict,
    "_codecs.encode": _encoded,
    "builtins.bytes": _encoded,  # no bytes, in protocol 2
    "__builtin__.bytes": _encoded,
    "numpy.dtype": ArrayType,
    **{
        f"numpy.{core}.{function}": call
        for core in ("core", "_core")
        for function, call in (
            ("multiarray._reconstruct", lambda *_: ArrayRef()),
            ("numeric._frombuffer", _from_buffer),
        )
    },
    "torch._utils._rebuild_tensor": _rebuild_v2,
    "torch._utils._rebuild_tensor_v2": _rebuild_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_v3,
    "torch._utils._rebuild_parameter": _data,
    "torch._utils._rebuild_parameter_with_state": _data,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _data,
    "torch.nn.parameter.Parameter": _data,
    "torch.autograd.variable.Variable": _data,
    **{
        f"torch.{device}{prefix}Tensor": _data for _, prefix, _ in TYPES if prefix for device in ("", "cuda.")
    },
}
# Results of some other functions, for the list of skipped contents.
MADE_BY = {
    "numpy.core.multiarray.scalar": "numpy scalar",
    "numpy._core.multiarray.scalar": "numpy scalar",
    "torch._utils._rebuild_qtensor": "quantized torch.Tensor",
    "torch._utils._rebuild_sparse_tensor": "sparse torch.Tensor",
}


def view(whole: Storage, part: Any = None) -> Storage:
    """The older form's `(key, first, numel)`: a storage that is a part of another one."""
    if part is None:
        first, numel = 0, whole.numel
    else:
        _key, first, numel = part
    if not (type(first) is type(numel) is int and 0 <= first <= first + numel <= whole.numel <= MAX_INT):
        raise UnpicklingError("a storage of an impossible size")
    return whole._replace(first=first, numel=numel)
