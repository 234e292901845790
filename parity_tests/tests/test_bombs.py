"""Hand-made small files that would fill the memory, loop for hours or crash: each is refused.

Each limit is an option, which the error names.
"""

from __future__ import annotations

import io
import itertools
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from parity_tests.tests.test_torch_file import pickled, placed, storage, zip_file
from weights_convert import (
    DestinationError,
    Limits,
    SourceError,
)
from weights_convert.formats import open_reader
from weights_convert.formats.base import TensorInfo
from weights_convert.formats.hdf5.writer import write_keras
from weights_convert.formats.npz import write_npz

SECONDS, MEMORY = 10, 2**28


@pytest.fixture(autouse=True)
def quick_and_small() -> Iterator[None]:
    tracemalloc.start()
    start = time.process_time()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY
        assert time.process_time() - start < SECONDS
    finally:
        tracemalloc.stop()


def refusal(path: Path, key: str | None = None) -> str:
    with pytest.raises(SourceError) as caught:
        open_reader(path, key)
    assert caught.value.message.startswith(f"{path}: ")
    assert "\n" not in str(caught.value).split("\n  ")[0]
    return caught.value.message.removeprefix(f"{path}: ")


# --------------------------------------------------------------------------------------------------
# Pickles

TUPLES = b"".join(  # 2^12 tuples of -1 and -2, whose hashes are all the same
    b"(" + b"".join(b"J" + struct.pack("<i", number) for number in numbers) + b"tN"
    for numbers in itertools.product((-1, -2), repeat=12)
)
TWICE = b")q\x01" + b"".join(b"0h%ch%c\x86q%c" % (i, i, i + 1) for i in range(1, 60))  # 2**60 tuples
ITEMS = [b"X\x01\x00\x00\x00%cN" % letter for letter in range(100)]  # a key and a value
PAIRS = b"](" + b"\x86".join(ITEMS) + b"\x86e"
METADATA = b"}X\x09\x00\x00\x00_metadata}(" + b"".join(ITEMS) + b"us"
TUPLE = b"(" + b"N" * 10_000 + b"t"
ORDERED_DICT = b"ccollections\nOrderedDict\n"
NAMES = b"".join(b"cm\nn%d\n0" % number for number in range(20_000))
PICKLES = {
    "a key that overflows the stack": (b"})" + b"\x85" * 1_000_000 + b"Ns", "101 levels or more in a pickle"),
    "a member that overflows the stack": (b"()" + b"\x85" * 200 + b"\x91", "101 levels or more"),
    "a deep key out of the memo": (b"})" + b"\x85" * 60 + b"q\x00h\x00" + b"\x85" * 60 + b"Ns", "101 levels"),
    "lists within lists": (b"]" * 50_000 + b"a" * 49_999, "101 levels or more in a pickle"),
    "keys that collide": (b"}(" + TUPLES + b"u", "keys or more in a pickle that are not texts, limit 200"),
    "members that collide": (b"\x8f(" + TUPLES + b"\x90", "keys or more in a pickle that are not texts"),
    "a key whose hash takes hours": (b"}" + TWICE + b"Ns", "keys or more in a pickle that are not texts"),
    "members whose hashes take hours": (b"\x8f(" + TWICE + b"\x90", "keys or more in a pickle that are"),
    "one long tuple for many calls": (
        b"ctorch\nFloatTensor\nq\x01" + TUPLE + b"q\x02" + b"h\x01h\x02R0" * 1_000,
        "130,000 arguments or more of the calls in a pickle, limit 128,000",
    ),
    "one list of pairs for many calls": (
        ORDERED_DICT + b"q\x01" + PAIRS + b"q\x02" + b"h\x01h\x02\x85R0" * 2_000,
        "128,068 arguments or more of the calls in a pickle, limit 128,000",
    ),
    "one dict of metadata for many objects": (
        ORDERED_DICT + b")Rq\x01" + METADATA + b"q\x02" + b"h\x01h\x02b0" * 2_000,
        "128,029 arguments or more of the calls in a pickle, limit 128,000",
    ),
    "sets that fill the memory": (b"\x8f" * 200_000, "128,001 operations or more in a pickle"),
    "classes by the thousand": (NAMES + b"N", "more than 10000 names of classes"),
}


@pytest.mark.parametrize("case", PICKLES)
def test_pickles(tmp_path, case):
    body, message = PICKLES[case]
    path = zip_file(tmp_path / "x", b"\x80\x04" + body + b".", {})
    with pytest.raises(SourceError) as caught:
        open_reader(path, limits=Limits(max_tensors=2_000))
    assert message in caught.value.message


def tensor_and(*items: bytes) -> bytes:
    """The pickle of a state dict with one tensor and these items."""
    tensor = pickled(placed(storage("0", 2), 0, (2,), (1,)))[2:-1]
    return b"\x80\x04}(X\x01\x00\x00\x00w" + tensor + b"".join(items) + b"u."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


DAG = b"]" + b"q\x010](h\x01h\x01e" * 90  # 2^90 lists if counted one by one
HELD = b"](" + b"N" * 100_000 + b"eq\x05" + b"0"
HARMLESS = {
    "an attribute whose name is no text": [text("x"), b"cbuiltins\ngetattr\nN" + DAG + b"\x86R"],
    "a list held by many": [text("a"), HELD + b"N"]
    + [text(f"n{number}") + b"](h\x05e" for number in range(2_000)],
    "a list of pairs with keys that collide": [
        text("x"),
        b"ccollections\nOrderedDict\n](" + TUPLES.replace(b"tN", b"tN\x86") + b"e\x85R",
    ],
}


@pytest.mark.parametrize("case", HARMLESS)
def test_pickles_that_only_look_large(tmp_path, case):
    path = zip_file(tmp_path / "x", tensor_and(*HARMLESS[case]), {"0": bytes(8)})
    try:
        with open_reader(path) as reader:
            assert reader.read("w").tolist() == [0, 0]
    except SourceError as error:
        assert "attribute without a name" in error.message  # noqa: PT017


def test_frames_that_hide_operations(tmp_path):
    """A nested frame: CPython continues after the outer frame and skips the start of a bytes object."""
    hidden = b"]r\xff\xff\xff\x7f0"  # fills the memory by its index in the memo
    head = b"B" + struct.pack("<I", len(hidden))
    inner = b"\x95" + struct.pack("<Q", len(head) + len(hidden)) + head
    outer = b"\x95" + struct.pack("<Q", len(inner)) + inner
    path = zip_file(tmp_path / "x", tensor_and(text("x"), outer + hidden), {"0": bytes(8)})
    with open_reader(path) as reader:
        assert reader.read("w").tolist() == [0, 0]
        assert list(reader.left_out) == ["x"]


def test_one_state_dict_under_many_names(tmp_path):
    """Its tensors are listed once instead of once per name, which would give 4,000,000 entries."""
    tensor = pickled(placed(storage("0", 2), 0, (2,), (1,)))[2:-1]
    inner = (
        b"}(" + b"".join(text(f"t{n}") + (b"h\x10" if n else tensor + b"q\x10") for n in range(2_000)) + b"u"
    )
    many = b"".join(text(f"n{n}") + (b"h\x11" if n else inner + b"q\x11") for n in range(2_000))
    path = zip_file(tmp_path / "x", b"\x80\x04}(" + many + b"u.", {"0": bytes(8)})
    assert "2000 entries hold tensors" in refusal(path)


def test_a_pickle_that_unpacks_to_much_more(tmp_path):
    path = zip_file(
        tmp_path / "x", b"\x80\x04" + b"B" + struct.pack("<I", 50_000_000) + bytes(50_000_000), {}
    )
    assert path.stat().st_size < 100_000
    assert "unpacked bytes of data.pkl, limit 10,240,000" in refusal(path)


def test_a_stream_that_claims_more_than_it_has(tmp_path):
    """Python would allocate the claimed bytes before reading."""
    stream = (
        b"".join(map(pickled, [0x1950A86A20F9469CFC6C, 1001, {}]))
        + b"\x80\x04\x8e"
        + struct.pack("<Q", 2**40)
    )
    (tmp_path / "x").write_bytes(stream)
    assert "expected 1099511627776 bytes in a bytes8, but only 0 remain" in refusal(tmp_path / "x")


# --------------------------------------------------------------------------------------------------
# Zips


def archive(path: Path, entries: dict[str, bytes] | list[tuple[str, bytes]], method: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in dict(entries).items() if isinstance(entries, dict) else entries:
            file.writestr(name, content)
    return path


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def lying(path: Path, entry: str, size: int) -> Path:
    """The archive with a wrong size of an entry in its directory."""
    data = bytearray(path.read_bytes())
    place = data.rfind(entry.encode()) - 46
    data[place + 24 : place + 28] = struct.pack("<I", size)
    path.write_bytes(data)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("suffix", ["npz", "pth", "keras"])
def test_names_that_come_twice(tmp_path, suffix):
    """Some programs use the first entry, others the last."""
    names = {"npz": "a.npy", "pth": "x/data.pkl", "keras": "model.weights.h5"}
    path = archive(tmp_path / f"x.{suffix}", [(names[suffix], npy(np.ones(2)))] * 2)
    assert refusal(path) == f"a zip with two entries '{names[suffix]}', expected one"


def test_pth_of_which_torch_takes_another_part(tmp_path):
    two = archive(tmp_path / "two", {"long/data.pkl": pickled({}), "x/data.pkl": pickled({})})
    assert refusal(two) == "a zip with long/data.pkl and x/data.pkl, expected one file of torch.save"
    cases = archive(tmp_path / "cases", {"x/data.pkl": pickled({}), "x/DATA.pkl": pickled({})})
    assert "differ in upper and lower case only" in refusal(cases)


def test_a_directory_larger_than_that_of_any_checkpoint(tmp_path):
    entry = b"PK\x03\x04" + bytes(22) + struct.pack("<HH", 5, 0) + b"a.npy"
    record = b"PK\x01\x02" + bytes(24) + struct.pack("<HHH", 5, 0, 0) + bytes(12) + b"a.npy"
    directory = record * 250_000
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, len(directory), len(entry), 0)
    (tmp_path / "x.npz").write_bytes(entry + directory + end)
    assert "12,750,000 bytes of a zip's directory, limit 10,240,000" in refusal(tmp_path / "x.npz")


@pytest.mark.parametrize("name", ["/etc/x.npy", "../../x.npy", "C:\\x.npy", "a\nb.npy"])
def test_names_are_never_paths(tmp_path, name):
    (tmp_path / "in").mkdir()
    with open_reader(archive(tmp_path / "in" / "x.npz", {name: npy(np.ones(2))})) as reader:
        (found,) = reader.tensors
        assert reader.read(found).tolist() == [1, 1]
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "x.npz"]


def test_an_array_that_unpacks_to_much_more(tmp_path):
    head = npy(np.zeros(0, np.float32)).replace(b"(0,), }         ", b"(268435456,), } ")
    path = archive(tmp_path / "x.npz", {"a.npy": head + bytes(1000)}, zipfile.ZIP_DEFLATED)
    lying(path, "a.npy", 2**30 + 128)
    assert "1,073,741,824 bytes or more from a file of" in refusal(path)
    assert "raise max_bytes (--max-bytes)" in refusal(path)


@pytest.mark.parametrize("shape", ["(2L,)", "(2,)#\\d", "(0x2 if 1else 0,)"])
def test_headers_that_make_python_warn(tmp_path, shape):
    """They cause neither output nor a warning: they are read or refused."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}\n, }}".ljust(245).encode() + b"\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(8)
    path = archive(tmp_path / "x.npz", {"a.npy": content})
    if "if" in shape:
        assert "malformed" in refusal(path) or "not valid" in refusal(path) or "Cannot parse" in refusal(path)
    else:
        with open_reader(path) as reader:
            assert reader.tensors["a"].shape == (2,)
            assert reader.read("a").tobytes() == bytes(8)


SHAPES = {"(-2, -2)": 4, "(True, 4)": 4, f"(0, {2**62})": 0, f"({2**70}, 0)": 0, f"({'1, ' * 40})": 1}


def test_numbers_longer_than_any_other_container_takes(tmp_path):
    np.savez(tmp_path / "x.npz", w=np.ones(2, np.longdouble), v=np.ones(2))
    with open_reader(tmp_path / "x.npz") as reader:
        assert (list(reader.tensors), list(reader.left_out)) == (["v"], ["w"])
    info = TensorInfo((2,), np.dtype(np.longdouble))
    for write in (write_keras, write_npz):
        with pytest.raises(DestinationError, match=r"which (HDF5|\.npz) cannot hold"):
            write(tmp_path / "y", {"w": info}, lambda _: np.ones(2, np.longdouble), {})


def test_a_header_of_an_array_that_unpacks_to_much_more(tmp_path):
    """NumPy reads the whole header before checking its length."""
    archive = zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED)
    with archive, archive.open("w.npy", "w") as file:
        file.write(b"\x93NUMPY\2\0" + struct.pack("<I", 2**29))
        for _ in range(2**9):
            file.write(bytes(2**20))
    assert "a header of 536870912 bytes" in refusal(tmp_path / "x")


@pytest.mark.parametrize("shape", SHAPES)
def test_arrays_of_impossible_shapes(tmp_path, shape):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(245).encode() + b"\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(4 * SHAPES[shape])
    assert "impossible shape" in refusal(archive(tmp_path / "x.npz", {"a.npy": content}))


def test_an_expansion_and_tensors_that_share_a_storage(tmp_path):
    root = {"a": placed(storage("0", 6), 0, (2**40,), (0,))}
    path = zip_file(tmp_path / "x", root, {"0": bytes(24)})
    assert "4,398,046,511,104 bytes or more from a file of" in refusal(path)
    shared = {f"n{n}": placed(storage("0", 10**6), 0, (10**6,), (1,)) for n in range(200)}
    assert "bytes or more from a file of" in refusal(
        zip_file(tmp_path / "y", shared, {"0": bytes(4 * 10**6)})
    )
    far = {f"n{n}": placed(storage("0", 10**6), 10**6 - 1, (1,), (1,)) for n in range(200)}
    assert "bytes or more from a file of" in refusal(zip_file(tmp_path / "z", far, {"0": bytes(4 * 10**6)}))
