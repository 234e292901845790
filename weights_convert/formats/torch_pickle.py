"""The pickle in a PyTorch file: an unpickler that runs nothing from the file, and a writer of state dicts.

A pickle names functions and classes to import and call. The unpickler looks each name up in `ALLOWED`, which
holds only functions of this file; every other name becomes an `Opaque` stand-in that does nothing. A tensor
becomes a `TensorRef`: the position of its numbers, not the numbers.

`pickle_check` checks the whole pickle before it is loaded.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, BinaryIO, ClassVar, NamedTuple

import ml_dtypes
import numpy as np

from weights_convert.formats.base import MAX_NDIM, METADATA_NAME, TensorInfo
from weights_convert.formats.pickle_check import FRAME_SIZE, check
from weights_convert.limits import DEFAULT, Limits

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
_MOST_NAMES = 10_000  # of classes that are not on the list; 30 in an honest training checkpoint
_LONGEST_NAME = 300


class Opaque:
    """Stands in for an object of a class that is not allowed; operations on it have no effect."""

    __slots__ = ()
    path: ClassVar[str] = "object"  # "module.name"

    def __new__(cls, *_: Any, **__: Any) -> Opaque:
        return super().__new__(cls)

    # `*_` includes `self`, so that these do nothing on the class itself either (a pickled class or function)
    def _ignore(*_: Any, **__: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _ignore

    def __call__(self, *_: Any, **__: Any) -> Opaque:
        return self


@lru_cache(maxsize=4096)
def _opaque(path: str) -> type[Opaque]:
    """A class, because the pickle may create instances of it."""
    return type("Opaque", (Opaque,), {"__slots__": (), "path": path})


class StateDict(dict):
    """Stands in for `OrderedDict`. Attributes are dropped, except metadata of this project's networks.

    torch stores versions of modules in `_metadata`, by their paths; `torch_impl.ResNet` adds its keywords.
    """

    __slots__ = ("said",)
    said: list[Any]  # untrusted, and of any type

    def __init__(self, pairs: Any = ()):
        """From pairs, as in Python 2's pickles; keys must be texts, because other hashes may collide."""
        pairs = pairs.items() if isinstance(pairs, dict) else pairs
        super().__init__((key, value) for key, value in pairs if isinstance(key, str))
        self.said = []

    def __setstate__(self, state: Any = None, *_: Any) -> None:
        metadata = state.get("_metadata") if isinstance(state, dict) else None
        if isinstance(self, StateDict) and isinstance(metadata, dict):
            modules = [value for value in metadata.values() if isinstance(value, dict)]
            self.said = [value[METADATA_NAME] for value in modules if METADATA_NAME in value]


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
    """The position of a tensor in a storage. `TensorRef(data)` is `data`, for a Parameter.

    torch 0.1 pickled an empty tensor and then its position as state, hence `__setstate__`.
    """

    __slots__ = ("dtype", "offset", "shape", "storage", "strides")
    storage: Storage  # None before the state is set
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # offset and strides count elements, as torch does

    def __new__(cls, data: Any = None, *_: Any) -> Any:
        if isinstance(data, TensorRef | Opaque):
            return data
        self = super().__new__(cls)
        self.storage = None  # type: ignore[assignment]
        return self

    def __setstate__(self, state: Any) -> None:
        match state:
            case (Storage() as storage, offset, size, stride):
                self._place(storage, offset, size, stride, storage.dtype)
            case (TensorRef() as data, _, _, _, _) if data.storage:
                self._place(data.storage, data.offset, data.shape, data.strides, data.dtype)
        # Anything else is `requires_grad` and hooks.

    def _place(self, storage: Storage, offset: int, size: tuple, stride: tuple, dtype: Any) -> None:
        numbers = (offset, *size, *stride)
        if not all(type(number) is int and 0 <= number <= MAX_INT for number in numbers):
            raise pickle.UnpicklingError("a tensor whose offset, shape or strides are not counts")
        if dtype is None or len(size) != len(stride) or len(size) > MAX_NDIM:
            raise pickle.UnpicklingError(f"a tensor of {len(size)} dimensions with {len(stride)} strides")
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


class _Allowed:
    """A function that the pickle may call; unlike on a plain function, it cannot set attributes."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function with a state")


def _rebuild(storage: Any, offset: int, size: tuple, stride: tuple, dtype: Any, flags: Any = None) -> Any:
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    if flags:  # a lazy conjugate or negative: the file does not hold the tensor's values
        return _opaque("torch.Tensor (lazily conjugated or negated)")()
    if dtype is None or storage.dtype is None:
        return _opaque(f"torch.Tensor of {storage.kind}")()
    ref = TensorRef()
    ref._place(storage, offset, size, stride, dtype)
    return ref


def _rebuild_v2(storage: Any, offset: int, size: tuple, stride: tuple, *rest: Any) -> Any:
    # rest: requires_grad, hooks, flags; absent in `_rebuild_tensor`
    dtype = storage.dtype if isinstance(storage, Storage) else None
    return _rebuild(storage, offset, size, stride, dtype, *rest[2:3])


def _rebuild_v3(storage: Any, offset: int, size: tuple, stride: tuple, *rest: Any) -> Any:
    _requires_grad, _hooks, dtype, *flags = rest
    return _rebuild(storage, offset, size, stride, DTYPES.get(getattr(dtype, "path", "")), *flags[:1])


def _rebuild_subclass(function: Callable[..., Any], _kind: Any, args: tuple, _state: Any) -> Any:
    return function(*args)


# All names that a pickle can use. None of these objects has attributes that a pickle could set.
ALLOWED: dict[str, Any] = {
    "collections.OrderedDict": StateDict,
    "torch._utils._rebuild_tensor": _Allowed(_rebuild_v2),
    "torch._utils._rebuild_tensor_v2": _Allowed(_rebuild_v2),
    "torch._utils._rebuild_tensor_v3": _Allowed(_rebuild_v3),
    "torch._utils._rebuild_parameter": _Allowed(TensorRef),
    "torch._utils._rebuild_parameter_with_state": _Allowed(TensorRef),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _Allowed(TensorRef),
    "torch._tensor._rebuild_from_type": _Allowed(_rebuild_subclass),
    "torch._tensor._rebuild_from_type_v2": _Allowed(_rebuild_subclass),
    "torch.nn.parameter.Parameter": TensorRef,
    "torch.autograd.variable.Variable": TensorRef,
    **{
        f"torch.{device}{prefix}Tensor": TensorRef
        for _, prefix, _ in TYPES
        if prefix
        for device in ("", "cuda.")
    },
}
_GETATTR = ("builtins.getattr", "__builtin__.getattr")
# Results of some functions, for the list of skipped contents.
MADE_BY = {
    "_codecs.encode": "bytes",
    "numpy.core.multiarray._reconstruct": "numpy.ndarray",
    "numpy._core.multiarray._reconstruct": "numpy.ndarray",
    "numpy.core.multiarray.scalar": "numpy scalar",
    "numpy._core.multiarray.scalar": "numpy scalar",
    "torch._utils._rebuild_qtensor": "quantized torch.Tensor",
    "torch._utils._rebuild_sparse_tensor": "sparse torch.Tensor",
}


def _view(whole: Storage, view: Any = None) -> Storage:
    """The older form's `(key, first, numel)`: a storage that is a part of another one."""
    if view is None:
        first, numel = 0, whole.numel
    else:
        _key, first, numel = view
    if not (type(first) is type(numel) is int and 0 <= first <= first + numel <= whole.numel <= MAX_INT):
        raise pickle.UnpicklingError("a storage of an impossible size")
    return whole._replace(first=first, numel=numel)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding="latin1")  # Python 2's strings are bytes; latin1 decodes any
        self.storages: dict[str, Storage] = {}
        self._names: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        path = f"{module}.{name}"
        if path in _GETATTR:
            return _Allowed(self._attribute)
        return ALLOWED[path] if path in ALLOWED else self._stand_in(MADE_BY.get(path, path))

    def _attribute(self, owner: Any, name: str) -> type[Opaque]:
        """Nested classes are pickled as `getattr(Outer, "Inner")`."""
        if not isinstance(name, str):
            raise pickle.UnpicklingError("an attribute without a name")
        return self._stand_in(f"{getattr(owner, 'path', 'object')}.{name[:_LONGEST_NAME]}")

    def _stand_in(self, path: str) -> type[Opaque]:
        path = path[:_LONGEST_NAME]
        self._names.add(path)
        if len(self._names) > _MOST_NAMES:
            raise pickle.UnpicklingError(f"more than {_MOST_NAMES} names of classes")
        return _opaque(path)

    def persistent_load(self, identity: Any) -> Any:
        match identity:
            case ("module", kind, *_):  # a class and its source code, in whole models of the older form
                return kind
            case ("storage", kind, str() as key, _, int() as numel, *view):
                storage = Storage(key, getattr(kind, "path", "unknown"), numel)
                self.storages.setdefault(key, storage)
                return _view(storage, *view)
        raise pickle.UnpicklingError("a reference to something that is not a storage")


class _Rest:
    """A file with reads limited to its remaining length: Python allocates before it reads."""

    def __init__(self, file: BinaryIO):
        self._file = file
        start = file.tell()
        self._end = file.seek(0, io.SEEK_END)
        file.seek(start)
        self.readline, self.tell = file.readline, file.tell

    def read(self, size: int) -> bytes:
        return self._file.read(min(size, self._end - self._file.tell()))


def load(file: BinaryIO, limits: Limits = DEFAULT) -> tuple[Any, dict[str, Storage]]:
    """Load one pickle, from the file's position to its end, and the storages that it refers to.

    Raises `UnpicklingError` or nearly any other exception for a damaged pickle.
    """
    start = file.tell()
    frames = check(_Rest(file), limits)
    end = file.tell()
    file.seek(start)
    data = file.read(end - start)
    if frames:
        begins = [0, *(frame - start + FRAME_SIZE for frame in frames)]
        data = b"".join(data[a:b] for a, b in zip(begins, [*(f - start for f in frames), None], strict=True))
    unpickler = _Unpickler(io.BytesIO(data))
    return unpickler.load(), unpickler.storages


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _int(value: int) -> bytes:
    if value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    return pickle.LONG1 + b"\x08" + struct.pack("<q", value)


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


_EMPTY_ORDERED_DICT = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE


def _tensor(key: str, info: TensorInfo) -> bytes:
    """`_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)` for a contiguous tensor."""
    storage = _tuple(
        _text("storage"),
        _global("torch", STORAGE_CLASS[info.dtype]),
        _text(key),
        _text("cpu"),
        _int(math.prod(info.shape)),
    )
    strides = [math.prod(max(n, 1) for n in info.shape[axis + 1 :]) for axis in range(len(info.shape))]
    arguments = _tuple(
        storage + pickle.BINPERSID,
        _int(0),
        _tuple(*map(_int, info.shape)),
        _tuple(*map(_int, strides)),
        pickle.NEWFALSE,
        _EMPTY_ORDERED_DICT,
    )
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def dump_state_dict(tensors: Mapping[str, TensorInfo]) -> bytes:
    """The pickle of an `OrderedDict` of contiguous tensors; the i-th one's storage has the key `str(i)`."""
    items = [_text(name) + _tensor(str(i), info) for i, (name, info) in enumerate(tensors.items())]
    body = pickle.MARK + b"".join(items) + pickle.SETITEMS
    return pickle.PROTO + b"\x02" + _EMPTY_ORDERED_DICT + body + pickle.STOP
