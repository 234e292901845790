"""Arrays in every memory layout through every writer, read here and by the format's own library."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest

from parity_tests.judge.synthetic import ATTENTION_SPECS, checkpoint, position_coded
from parity_tests.tests.test_round_trips import MEMORY
from weights_convert import MismatchError, save
from weights_convert.formats import FORMATS
from weights_convert.formats.base import TensorInfo
from weights_convert.formats.tf1.place import tf1_files
from weights_convert.memory import sha256

DTYPES = ["float16", "bfloat16", "float32", "float64", "bool", "uint8", "int8", "int16", "int32", "int64"]
SHAPES = [(), (0,), (3, 0, 2), (1,), (7,), (3, 5), (2, 3, 4), (3, 3, 2, 5)]
STATES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"contiguous": lambda array: array, **MEMORY}
STATES["repeated by stride 0"] = lambda array: (
    np.broadcast_to(array.reshape(-1)[0], array.shape) if array.size else array
)


def dtype_of(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def arrays(state: str, container: str) -> dict[str, np.ndarray]:
    """Arrays of every dtype and shape of the container, coded by position, in one memory layout."""
    found = {}
    for name in DTYPES:
        if name == "bfloat16" and (container == "npz" or "endian" in state):
            continue
        for shape in SHAPES:
            coded = np.arange(1, math.prod(shape) + 1).reshape(shape) * (3 if name != "bool" else 1)
            array = np.asarray(coded % 2 == 0 if name == "bool" else coded, dtype_of(name))
            found[f"{name}/{'x'.join(map(str, shape)) or 'scalar'}"] = STATES[state](array.copy())
    return found


def by_torch(path: Path) -> Mapping[str, np.ndarray]:
    torch = pytest.importorskip("torch")
    found = {}
    for name, tensor in torch.load(path, weights_only=True).items():
        raw = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
        array = raw.numpy()
        found[name] = array.view(ml_dtypes.bfloat16) if tensor.dtype == torch.bfloat16 else array
    return found


def by_safetensors(path: Path) -> Mapping[str, np.ndarray]:
    return pytest.importorskip("safetensors.numpy").load_file(path)


def by_numpy(path: Path) -> Mapping[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files if name != "samenet"}


def by_h5py(path: Path) -> Mapping[str, np.ndarray]:
    found = {}

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            array = np.asarray(item[()])
            found[name] = array.view(ml_dtypes.bfloat16) if "dtype" in item.attrs else array

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


def by_tensorflow(path: Path) -> Mapping[str, np.ndarray]:
    reader = pytest.importorskip("tensorflow").train.load_checkpoint(str(path))
    names = set(reader.get_variable_to_shape_map()) - {"samenet"}
    return {name: np.asarray(reader.get_tensor(name)) for name in names}


LIBRARIES = {
    "torch": by_torch,
    "safetensors": by_safetensors,
    "npz": by_numpy,
    "keras": by_h5py,
    "tf1": by_tensorflow,
}


def assert_bits(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        native = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)
        assert (found[name].shape, found[name].dtype) == (array.shape, native.dtype), name
        assert found[name].tobytes() == native.tobytes(), name


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", FORMATS)
def test_every_array_through_every_writer(tmp_path, name: str, state: str):
    container, given = FORMATS[name], arrays(state, name)
    before = {n: (sha256(array), array.strides, array.flags.writeable) for n, array in given.items()}
    infos = {n: TensorInfo(array.shape, array.dtype.newbyteorder("=")) for n, array in given.items()}
    path = tmp_path / f"x{container.suffixes[0]}"
    assert container.write is not None
    container.write(path, infos, given.__getitem__, {"a": 1})
    with container.open(path) as reader:
        assert reader.metadata == {"a": 1}
        assert_bits({n: reader.read(n) for n in reader.tensors}, given)
    assert_bits(LIBRARIES[name](path), given)
    assert before == {n: (sha256(a), a.strides, a.flags.writeable) for n, a in given.items()}


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", FORMATS)
def test_save_leaves_the_arrays_alone(tmp_path, name: str, state: str, dtype: str):
    coded = position_coded(ATTENTION_SPECS["cbam"], dtype_of(dtype))
    given = {n: STATES[state](coded[n].copy()) for n in coded}
    before = {n: (sha256(array), array.dtype, array.strides) for n, array in given.items()}
    path = save(checkpoint(given, coded.spec), tmp_path / f"x{FORMATS[name].suffixes[0]}").destination
    assert before == {n: (sha256(array), array.dtype, array.strides) for n, array in given.items()}
    plain = {n: np.ascontiguousarray(a).reshape(a.shape) for n, a in given.items()}
    other = save(checkpoint(plain, coded.spec), tmp_path / f"y{FORMATS[name].suffixes[0]}").destination
    pairs = zip(*(tf1_files(p) if name == "tf1" else [p] for p in (path, other)), strict=True)
    assert all(a.read_bytes() == b.read_bytes() for a, b in pairs)


@pytest.mark.parametrize("came", [np.zeros((3, 2), np.float32), np.zeros((2, 3)), np.zeros(6, np.float32)])
@pytest.mark.parametrize("name", FORMATS)
def test_a_tensor_with_an_unexpected_shape_or_dtype(tmp_path, name: str, came: np.ndarray):
    """Otherwise the header of a container could describe other data than it holds."""
    container, announced = FORMATS[name], {"layer/x": TensorInfo((2, 3), np.dtype(np.float32))}
    path = tmp_path / f"x{container.suffixes[0]}"
    assert container.write is not None
    with pytest.raises(MismatchError, match=r"tensor 'layer/x' is float.*, expected float32 \(2, 3\)"):
        container.write(path, announced, lambda _: came, {})


@pytest.mark.parametrize("state", ["transposed view", "strided view"])
def test_the_library_corrupts_arrays_that_we_write_correctly(tmp_path, state: str):
    """safetensors 0.8.0 ignores strides and writes the memory from a view's first element on
    (safetensors#825). A reversed view is not tried: it would write memory behind the array."""
    library = pytest.importorskip("safetensors.numpy")
    array = STATES[state](np.arange(12, dtype=np.float32).reshape(3, 4))
    info = {"x": TensorInfo(array.shape, array.dtype)}
    FORMATS["safetensors"].write(tmp_path / "ours.safetensors", info, lambda _: array, {})
    assert np.array_equal(by_safetensors(tmp_path / "ours.safetensors")["x"], array)
    try:
        found = library.load(library.save({"x": array}))["x"]
    except Exception as error:
        pytest.skip(f"the installed safetensors refuses such an array: {error}")
    if np.array_equal(found, array):
        pytest.skip("the installed safetensors writes such an array correctly")
    first = array.ctypes.data - array.base.ctypes.data
    assert np.array_equal(found, np.ndarray(array.shape, array.dtype, array.base, first))
