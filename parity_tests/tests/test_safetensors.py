"""safetensors files, compared with the library; damaged files give a one-line error."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weights_convert.errors import SourceError
from weights_convert.formats.base import TensorInfo
from weights_convert.formats.safetensors import SafetensorsReader, write_safetensors

ARRAYS = {
    "float64": np.linspace(-1, 1, 6).reshape(2, 3),
    "float32": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "float16": np.arange(5, dtype=np.float16),
    "bfloat16": np.arange(7).astype(ml_dtypes.bfloat16),
    "int64": np.array([-(2**63), 2**63 - 1]),
    "uint8": np.arange(3, dtype=np.uint8),
    "bool": np.array([True, False, True]),
    "scalar": np.array(3.5, np.float32),
    "empty": np.empty((0, 3), np.float32),
    "empty too": np.empty((4, 0), np.int64),
    "größer \u202e\n": np.ones(2, np.int16),
}


def entry(dtype: str, shape: list, start: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def library_reads(path: Path) -> bool:
    try:
        with safetensors.safe_open(path, "numpy"):
            return True
    except (safetensors.SafetensorError, OSError):
        return False


def assert_refused(path: Path, message: str = "damaged") -> None:
    with pytest.raises(SourceError, match=message) as caught:
        SafetensorsReader(path)
    assert caught.value.message.startswith(f"{path}: not a readable safetensors file")
    assert "\n" not in str(caught.value)


@pytest.fixture
def good(tmp_path) -> Path:
    path = tmp_path / "good.safetensors"
    safetensors.numpy.save_file(ARRAYS, path, {"format": "pt", "epoch": "seven"})
    return path


@pytest.mark.quick
def test_reads_files_of_the_library(good):
    with SafetensorsReader(good) as reader:
        assert set(reader.tensors) == set(ARRAYS)
        assert reader.left_out == {"__metadata__.epoch": "text of 5 characters"}
        for name, array in ARRAYS.items():
            found = reader.read(name)
            assert reader.tensors[name] == (found.shape, found.dtype) == (array.shape, array.dtype)
            assert found.tobytes() == array.tobytes()
            assert found.flags.c_contiguous
            assert found.flags.writeable


def test_what_the_library_reads(tmp_path):
    path = tmp_path / "x.safetensors"
    infos = {name: TensorInfo(array.shape, array.dtype) for name, array in ARRAYS.items()}
    write_safetensors(path, infos, ARRAYS.__getitem__, {"a": 1})
    loaded = safetensors.numpy.load_file(path)
    assert {name: array.tobytes() for name, array in loaded.items()} == {
        name: array.tobytes() for name, array in ARRAYS.items()
    }
    with SafetensorsReader(path) as reader:
        assert reader.metadata == {"a": 1}
        assert list(reader.tensors) == list(reader._starts)


@pytest.mark.parametrize(
    "dtype", ["C64", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4"]
)
def test_dtypes_that_numpy_lacks_are_left_out(tmp_path, dtype: str):
    size = {"C64": 32, "F4": 2}.get(dtype, 4)
    header = {"a": entry(dtype, [4], 0, size), "b": entry("F32", [1], size, size + 4)}
    path = write(tmp_path / "x", header, bytes(size) + struct.pack("<f", 2.5))
    assert library_reads(path)
    with SafetensorsReader(path) as reader:
        assert reader.left_out == {"a": f"tensor of dtype {dtype}, which NumPy does not have"}
        assert reader.read("b") == 2.5
    header["a"]["shape"] = [6]  # fewer bytes than it claims
    assert_refused(write(tmp_path / "y", header, bytes(size + 4)))
    assert not library_reads(tmp_path / "y")


def test_truncated_everywhere(good, tmp_path):
    whole = good.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    for size in [*range(0, length, 7), length - 1, *range(length, len(whole))]:
        cut = tmp_path / "cut"
        cut.write_bytes(whole[:size])
        assert_refused(cut)
        assert not library_reads(cut)
    cut.write_bytes(whole + b"\0")
    assert_refused(cut, "bytes of data, but the header describes")


F32 = entry("F32", [2], 0, 8)
HEADERS: dict[str, tuple[Any, str]] = {  # with 16 bytes of data
    "overlap": ({"a": entry("F32", [3], 0, 12), "b": entry("F32", [2], 8, 16)}, "'b' begins at byte 8"),
    "same place": ({"a": entry("F32", [4], 0, 16), "b": entry("F32", [4], 0, 16)}, "'b' begins at byte 0"),
    "hole": ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [2], 8, 16)}, "'b' begins at byte 8"),
    "hole at the start": ({"a": entry("F32", [3], 4, 16)}, "'a' begins at byte 4"),
    "hole at the end": ({"a": F32}, "16 bytes of data, but the header describes 8"),
    "nothing": ({}, "16 bytes of data, but the header describes 0"),
    "beyond the end": ({"a": entry("F32", [5], 0, 20)}, "16 bytes of data, but the header describes 20"),
    "petabytes": ({"a": entry("F32", [2**50], 0, 2**52)}, "the header describes 4503599627370496"),
    "a size that wraps": ({"a": entry("F32", [2**62, 4], 0, 16)}, "impossible shape"),
    "empty and huge": ({"a": entry("F32", [4], 0, 16), "b": entry("F32", [0, 2**62], 16, 16)}, "impossible"),
    "more bytes than numbers": ({"a": entry("F32", [3], 0, 16)}, r"'a' is F32 \[3\], but has 16 bytes"),
    "backwards": ({"a": entry("F32", [4], 16, 0)}, "but has -16 bytes"),
    "a negative offset": ({"a": entry("F32", [4], -16, 0)}, "not counts"),
    "a negative shape": ({"a": entry("F32", [-2, -2], 0, 16)}, "not counts"),
    "a fraction": ({"a": entry("F32", [4.0], 0, 16)}, "not counts"),
    "true": ({"a": entry("F32", [True, 4], 0, 16)}, "not counts"),
    "text for a number": ({"a": entry("F32", ["4"], 0, 16)}, "not counts"),
    "text for a shape": ({"a": entry("F32", "4", 0, 16)}, "impossible shape"),  # type: ignore[arg-type]
    "too many axes": ({"a": entry("F32", [1] * 99 + [4], 0, 16)}, "impossible shape"),
    "unknown dtype": ({"a": entry("F33", [4], 0, 16)}, "unknown dtype 'F33'"),
    "dtype in lower case": ({"a": entry("f32", [4], 0, 16)}, "unknown dtype 'f32'"),
    "a list as dtype": ({"a": entry(["F32"], [4], 0, 16)}, "unknown dtype"),  # type: ignore[arg-type]
    "three offsets": ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8, 16]}}, "two offsets"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [4]}}, "lacks a dtype"),
    "not an entry": ({"a": 3}, "lacks a dtype"),
    "null": ({"a": None}, "lacks a dtype"),
    "metadata of numbers": ({"__metadata__": {"a": 1}, "a": entry("F32", [4], 0, 16)}, "mapping of texts"),
    "metadata as text": ({"__metadata__": "a", "a": entry("F32", [4], 0, 16)}, "mapping of texts"),
    "a list": ([entry("F32", [4], 0, 16)], "does not begin with {"),
    "space first": (b" " + json.dumps({"a": entry("F32", [4], 0, 16)}).encode(), "does not begin with {"),
    "not JSON": (b"{'a': 3}", "property name"),
    "deep": (b'{"a":' + b"[" * 100_000, "recursion"),
    "digits": (b'{"a":' + b"9" * 10_000 + b"}", "digits"),
    "not UTF-8": (b'{"\xff": 3}', "utf-8"),
    "half a character": (rb'{"\ud800": {"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', "surrogate"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADERS)
def test_invalid_headers(tmp_path, kind: str):
    header, message = HEADERS[kind]
    path = write(tmp_path / "x", header, bytes(16))
    assert_refused(path, f"(?i){message}")
    # the library accepts the space, which the format forbids; NumPy refuses the shapes when reading
    if kind not in ("space first", "too many axes", "empty and huge"):
        assert not library_reads(path)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": ENTRY, "a": ENTRY}',
        '{"__metadata__": {}, "__metadata__": {}, "a": ENTRY}',
        '{"a": {"dtype": "I32", "dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}',
        '{"__metadata__": {"samenet": "{}", "samenet": "[]"}, "a": ENTRY}',
    ],
)
def test_names_that_come_twice(tmp_path, text: str):
    """The format forbids them: readers that use the first or the last one would see different files."""
    header = text.replace("ENTRY", json.dumps(entry("F32", [4], 0, 16)))
    assert_refused(write(tmp_path / "x", header.encode(), bytes(16)), "names something twice")


@pytest.mark.parametrize("length", [0, 1, 3, 2**31, 2**63, 2**64 - 1])
def test_invalid_lengths(tmp_path, length: int):
    path = write(tmp_path / "x", {"a": F32}, bytes(8), length=length)
    tracemalloc.start()
    try:
        assert_refused(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert not library_reads(path)


def test_a_header_longer_than_the_library_takes(tmp_path):
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 200_000_000) + b"{")
        file.truncate(200_000_100)  # a sparse file of this length
    assert_refused(path, "a header of 200000000 bytes")
    assert not library_reads(path)


def test_a_padded_header_and_keys_of_later_versions(tmp_path):
    text = json.dumps({"a": entry("F32", [2], 0, 8)}).encode() + b" " * 11
    path = write(tmp_path / "x", text, struct.pack("<2f", 1, 2))
    assert library_reads(path)
    with SafetensorsReader(path) as reader:
        assert reader.read("a").tolist() == [1, 2]


def test_a_file_that_shrinks_while_it_is_open(good):
    with SafetensorsReader(good) as reader:
        last = list(reader.tensors)[-1]
        good.write_bytes(good.read_bytes()[:-1])
        with pytest.raises(SourceError, match="cannot be read"):
            reader.read(last)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SourceError, match="x: there is no such file"):
        SafetensorsReader(tmp_path / "x")


FLIPS = st.lists(st.tuples(st.integers(0, 1500), st.integers(1, 255)), min_size=1, max_size=3)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=FLIPS)
def test_results_equal_those_of_the_library(good, flips: list[tuple[int, int]]):
    """Random changes of the header give the same tensors as the library, or an error."""
    content = bytearray(good.read_bytes())
    end = 8 + int.from_bytes(content[:8], "little")
    for place, mask in flips:
        content[place % end] ^= mask
    path = good.with_name("changed")
    path.write_bytes(content)
    try:
        reader = SafetensorsReader(path)
    except SourceError:
        return
    with reader, safetensors.safe_open(path, "numpy") as judge:
        known = {name for name in judge.keys() if name not in reader.left_out}  # noqa: SIM118
        assert set(reader.tensors) == known
        for name in known:
            assert reader.read(name).tobytes() == judge.get_tensor(name).tobytes()
