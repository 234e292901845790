"""Small files of HDF5, TF1 and metadata that claim much: refused quickly, in little memory."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from parity_tests.judge.synthetic import arrays_with
from parity_tests.tests.test_bombs import MEMORY, SECONDS, refusal
from parity_tests.tests.test_torch_file import placed, storage, zip_file
from weights_convert import (
    LimitError,
    Limits,
    SourceError,
    WeightsConvertError,
    load,
)
from weights_convert.errors import nearest
from weights_convert.formats import open_reader
from weights_convert.formats.base import TensorInfo, parse_metadata
from weights_convert.formats.safetensors import write_safetensors
from weights_convert.formats.tf1.crc32c import crc32c, masked
from weights_convert.formats.tf1.table import varint
from weights_convert.identify.candidates import infer
from weights_convert.identify.reading import Listing
from weights_convert.layouts import LAYOUTS


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


# --------------------------------------------------------------------------------------------------
# HDF5


def message(kind: int, data: bytes) -> bytes:
    return struct.pack("<HHB3x", kind, len(data), 0) + data


def header(messages: bytes, count: int) -> bytes:
    return struct.pack("<BxHII4x", 1, count, 1, len(messages)) + messages


def one_group(path: Path, names: bytes, entries: int, inside: bytes, leaves: int = 1, step: int = 0) -> None:
    """HDF5 with one group: `entries` names, `step` bytes apart, for headers `inside` or links."""
    root, heap = 96, 96 + 16 + 24  # followed by names, inside, symbols, tree
    inner = heap + 32 + len(names)
    symbols = inner + len(inside)
    cached, address = (0, inner) if inside else (2, 0)
    table = b"".join(struct.pack("<QQI20x", i * step, address, cached) for i in range(entries))
    tree = symbols + 8 + len(table)
    nowhere = 2**64 - 1
    path.write_bytes(
        b"\x89HDF\r\n\x1a\n" + bytes([0, 0, 0, 0, 0, 8, 8, 0]) + struct.pack("<HHI", 4, 16, 0)
        + struct.pack("<4Q", 0, nowhere, 2**40, nowhere) + struct.pack("<QQII16x", 0, root, 0, 0)
        + header(message(0x11, struct.pack("<QQ", tree, heap)), 1)
        + struct.pack("<4sB3xQQQ", b"HEAP", 0, len(names), 0, heap + 32) + names + inside
        + struct.pack("<4sBxH", b"SNOD", 1, entries) + table
        + struct.pack("<4sBBHQQ", b"TREE", 0, 0, leaves, nowhere, nowhere)
        + struct.pack("<QQ", 0, symbols) * leaves + bytes(8)
    )  # fmt: skip


def names_that_overlap(path: Path) -> None:
    """Each name extends to the end of the heap and has wide characters."""
    one_group(path, "\U0001f600".encode() * 4000 + b"a" * 400_000 + b"\0", 4000, b"", step=4)


def a_header_that_goes_on_with_itself(path: Path) -> None:
    inner = 96 + 16 + 24 + 32 + 2
    size = 24 + 8 + 65_528
    again = message(0x10, struct.pack("<QQ", inner + 16, size)) + message(0, bytes(65_528))
    one_group(path, b"a\0", 1, header(again, 65_535))


def messages_without_number(path: Path) -> None:
    one_group(path, b"a\0", 1000, header(message(0, bytes(56)) * 8_000, 8_000))


def symbols_without_number(path: Path) -> None:
    one_group(path, b"a\0", 0, b"", leaves=65_535)
    data = bytearray(path.read_bytes())
    tree, symbols = data.find(b"TREE"), struct.pack("<Q", data.find(b"SNOD"))
    data[tree + 5] = 1  # its level: each branch is another node with the same leaves
    branches = data.replace(symbols, struct.pack("<Q", len(data)))
    leaves = struct.pack("<4sBBHQQ", b"TREE", 0, 0, 65_535, 0, 0) + (bytes(8) + symbols) * 65_535
    path.write_bytes(branches + leaves)


@pytest.mark.parametrize(
    "make",
    [
        names_that_overlap,
        a_header_that_goes_on_with_itself,
        messages_without_number,
        symbols_without_number,
    ],
)
def test_hdf5_that_describes_little_again_and_again(tmp_path, make):
    make(tmp_path / "x")
    with pytest.raises(LimitError, match=r"bytes or more of groups and headers, limit 4,096,000"):
        open_reader(tmp_path / "x", limits=Limits(max_tensors=1000))


# --------------------------------------------------------------------------------------------------
# TF1's index


def test_a_block_of_an_index_that_is_meant_again_and_again(tmp_path):
    """Two megabytes without a key whose checksum would be computed 100,000 times."""

    def framed(block: bytes) -> bytes:
        return block + b"\0" + struct.pack("<I", masked(crc32c(block + b"\0")))

    empty = bytes(2**21) + struct.pack("<I", 2**19)  # restart points and their number
    handle = varint(0) + varint(len(empty))
    keys = b"".join(b"\0\4" + bytes([len(handle)]) + struct.pack(">I", i) + handle for i in range(100_000))
    index = keys + struct.pack("<II", 0, 1)
    footer = varint(0) + varint(4) + varint(len(empty) + 5) + varint(len(index))
    magic = bytes.fromhex("57fb808b247547db")
    (tmp_path / "x.index").write_bytes(framed(empty) + framed(index) + footer.ljust(40, b"\0") + magic)
    with pytest.raises(SourceError, match="the blocks of the index overlap"):
        open_reader(tmp_path / "x")


# --------------------------------------------------------------------------------------------------
# Names, shapes and metadata


def named(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    infos = {name: TensorInfo(shape, np.dtype(np.float32)) for name, shape in shapes.items()}
    write_safetensors(path, infos, lambda name: np.zeros(shapes[name], np.float32), {})
    return path


def blocks(count: int) -> dict[str, tuple[int, ...]]:
    return {f"layer1.{i}.conv{j}.weight": (2, 2, 1, 1) for i in range(count) for j in (1, 2, 3)}


NINES = "9" * 5000
NAMES_OF_FILES = {
    "many blocks and strays": blocks(100) | {f"layer1.{i}.x": (1,) for i in range(200)},
    "many stages": {f"layer{i + 1}.0.conv1.weight": (1, 1, 1, 1) for i in range(1_000)},
    "a wrapper around a wrapper": {"module." * 60_000 + "x": (1,)},
    "long numbers": {
        "layer1.0.conv1.weight": (1, 1, 1, 1),
        f"layer{NINES}.0.conv2.weight": (1, 1, 1, 1),
        f"layer1.{NINES}.conv2.weight": (1, 1, 1, 1),
        f"layer1/basic_block/conv1/vars/{NINES}": (1,),
    },
    "a stage whose width has 300,000,000 digits": {
        "layer1.0.conv1.weight": (1, 1, 1, 1),
        "layer9999999999.0.conv2.weight": (1, 1, 1, 1),
    },
    "channels by the quintillion": blocks(1)
    | {"layer1.0.se.fc1.weight": (3, 8), "layer1.0.se.fc2.bias": (10**18, 0)},
}


@pytest.mark.parametrize("case", NAMES_OF_FILES)
def test_names_and_shapes_that_take_long(tmp_path, case):
    path = named(tmp_path / "x", NAMES_OF_FILES[case])
    with pytest.raises(WeightsConvertError) as caught:
        load(path)
    assert len(str(caught.value)) < 2_000_000


def test_scopes_are_not_compared_with_one_another(tmp_path):
    with open_reader(named(tmp_path / "x", {f"a{i}/conv1/kernel": () for i in range(18_000)})) as reader:
        start = time.process_time()
        assert len(Listing(reader, None).prefix(LAYOUTS["tf1"])[1]) == 18_000
        assert time.process_time() - start < 4  # 30 s for comparing all pairs


def test_stages_are_counted_before_they_are_looked_at():
    assert infer({f"layer{i + 1}.0.conv1.weight": (1, 1, 1, 1) for i in range(9)}) is None
    assert infer({f"layer{i + 1}.0.conv1.weight": (1, 1, 1, 1) for i in range(8)}) is not None


def test_a_reduction_is_not_sought_among_quintillions():
    shapes = blocks(1) | {"layer1.0.se.fc1.weight": (3, 10**12), "layer1.0.se.fc2.weight": (10**12, 3)}
    found = infer(shapes)
    assert found is not None
    assert found.spec.reduction == 16


def test_hints_are_not_sought_for_ever():
    assert nearest("x" * 100_000, ["x" * 99_999]) == ""
    assert nearest("abc", ["x" * 100_000, "abd"]) == "; did you mean 'abd'?"


def nested(depth: int) -> str:
    return '{"a": ' * depth + "1" + "}" * depth


METADATA = {
    "deep": (nested(102), "101 levels or more of metadata, limit 100"),
    "very deep": ("[" * 100_000, "is not JSON"),
    "long": (json.dumps({"a": "x" * 11_000_000}), "bytes of 'samenet' metadata, limit 10,240,000"),
    "a list as a keyword": ('{"spec": {}, "kind": "resnet", "assumed": [["x"]]}', "do not match"),
    "a wide network": (json.dumps({"spec": {"width": 10**400}, "kind": "resnet"}), "expected an int"),
    "a narrow epsilon": ('{"spec": {"bn_epsilon": 1e999}, "kind": "resnet"}', "expected a finite float"),
    "many stages": (json.dumps({"spec": {"depths": [1] * 9}, "kind": "resnet"}), "expected 1 to 8 stages"),
}


@pytest.mark.parametrize("case", METADATA)
def test_metadata(tmp_path, case):
    said, message = METADATA[case]
    np.savez(tmp_path / "x.npz", **arrays_with({}), samenet=np.array(said))
    with pytest.raises(WeightsConvertError) as caught:
        load(tmp_path / "x.npz")
    assert message in caught.value.message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32-be", "latin-1"])
def test_metadata_that_is_not_utf_8(tmp_path, encoding):
    """Python's JSON reader guesses the encoding; metadata must be UTF-8."""
    text = '{"kind": "\u00e9"}'.encode(encoding)
    with pytest.raises(WeightsConvertError, match="is not JSON"):
        parse_metadata(text, tmp_path / "x.pth")


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("character", [0x110000, 0xFFFFFFFF, 0xD800])
def test_metadata_of_characters_that_do_not_exist(tmp_path, order, character):
    """NumPy creates such strings, but CPython fails on them, at best with a `SystemError`."""
    text = np.frombuffer(f'{{"{"a" * 8}": 1}}'.encode(f"utf-32-{'lb'[order == '>']}e"), f"{order}u4").copy()
    arrays = {"samenet": text.view(f"{order}U{len(text)}").reshape(())}
    np.savez(tmp_path / "good.npz", **arrays_with({}), **arrays)
    with open_reader(tmp_path / "good.npz") as reader:
        assert reader.metadata == {"a" * 8: 1}
    text[5] = character
    arrays = {"samenet": text.view(f"{order}U{len(text)}").reshape(())}
    np.savez(tmp_path / "x.npz", **arrays_with({}), **arrays)
    assert "entry 'samenet.npy' is not a text" in refusal(tmp_path / "x.npz")


# --------------------------------------------------------------------------------------------------
# The limits are options


@pytest.fixture
def state_dict(tmp_path) -> Path:
    np.savez(tmp_path / "good.npz", **arrays_with({}))
    return tmp_path / "good.npz"


LIMITS = [
    ("max_bytes", 1000, "bytes or more from a file of", 10**6),
    ("max_tensors", 5, "6 or more tensors and other entries, limit 5", 100),
]


@pytest.mark.parametrize(("limit", "value", "message", "enough"), LIMITS)
def test_each_limit_is_an_option_of_each_command(state_dict, run, limit, value, message, enough):
    with pytest.raises(LimitError, match=message) as caught:
        load(state_dict, limits=Limits(**{limit: value}))
    option = f"--{limit.replace('_', '-')}"
    assert caught.value.message.endswith(f"if you trust the file, raise {limit} ({option})")
    target, manifest = state_dict.with_name("x.pth"), state_dict.with_name("m.json")
    assert run("convert", state_dict, target, "--json", manifest).code == 0
    commands = [
        ["inspect", state_dict],
        ["convert", state_dict, target, "--overwrite"],
        ["diff", state_dict, target],
        ["check", manifest, state_dict],
    ]
    for command in commands:
        ran = run(*command, option, value)
        assert ran.code == 2
        assert option in ran.err
        assert run(*command, option, enough).code == 0


def test_depth_of_a_pickle_and_of_metadata(tmp_path):
    path = zip_file(
        tmp_path / "x", {"a": [[[[[1]]]]], "w": placed(storage("0", 2), 0, (2,), (1,))}, {"0": bytes(8)}
    )
    with pytest.raises(LimitError, match=r"5 levels or more in a pickle, limit 4; .* raise max_depth"):
        open_reader(path, limits=Limits(max_depth=4))
    open_reader(path, limits=Limits(max_depth=6)).close()
    np.savez(tmp_path / "x.npz", **arrays_with({}), samenet=np.array(nested(7)))
    with pytest.raises(LimitError, match=r"--max-depth"):
        load(tmp_path / "x.npz", limits=Limits(max_depth=6))
    load(tmp_path / "x.npz", assume=True, limits=Limits(max_depth=7)).close()


def test_what_is_believed_without_an_option():
    assert Limits().bytes_of(10 * 2**30) == 20 * 2**30 + 2**29  # a checkpoint of 10 GB
    assert Limits().bytes_of(10**12) == 64 * 2**30  # a sparse file
    assert Limits(max_bytes=2**40).bytes_of(100) == 2**40


@pytest.mark.parametrize("value", ["0", "-1", "1X", "", "1e3", "x" * 99, "9" * 99])
def test_sizes_that_are_none(run, value):
    ran = run("inspect", "x.npz", "--max-bytes", value)
    assert ran.code == 2
    assert "--max-bytes" in ran.err


def test_permutation_files_are_read_as_far_as_they_can_be_one(tmp_path, run, state_dict):
    (tmp_path / "order").write_text("0\n" * 10_000_000)
    ran = run("convert", state_dict, tmp_path / "x.pth", "--reorder-classes", tmp_path / "order")
    assert (ran.code, "expected 5 numbers" in ran.err) == (2, True), ran.err
