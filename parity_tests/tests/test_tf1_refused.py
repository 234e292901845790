"""TF1 checkpoints by any of their names, and files that are damaged or lie: each refused in one line."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_tests.tests.test_tf1_checkpoint import (
    ARRAYS,
    FUZZ,
    assert_same_bits,
    coded,
    flip,
    read_all,
    refused,
    write,
)
from weights_convert.errors import SourceError
from weights_convert.formats.base import METADATA_NAME, TensorInfo
from weights_convert.formats.tf1 import proto, table
from weights_convert.formats.tf1.checkpoint import open_tf1, tf1_files
from weights_convert.formats.tf1.crc32c import crc32c, masked
from weights_convert.formats.tf1.find import find_tf1_prefix
from weights_convert.formats.tf1.table import read_table, varint, write_table


@pytest.fixture
def checkpoint(tmp_path):
    return write(tmp_path / "model.ckpt-12345", ARRAYS)


@pytest.mark.parametrize("suffix", ["", ".index", ".data-00000-of-00001"])
def test_opens_by_any_of_its_names(checkpoint, suffix):
    path = Path(f"{checkpoint}{suffix}")
    assert find_tf1_prefix(path) == checkpoint
    with open_tf1(path) as reader:
        assert reader.path == checkpoint
        assert reader.format == "tf1"


@pytest.mark.parametrize(
    "named",
    ["model.ckpt-12345", "/gone/with/the/old/machine/model.ckpt-12345", r"model.ckpt\0551\062345"],
)
def test_opens_a_directory(checkpoint, named):
    state = f'model_checkpoint_path: "{named}"\nall_model_checkpoint_paths: "model.ckpt-1"\n'
    (checkpoint.parent / "checkpoint").write_text(state)
    assert find_tf1_prefix(checkpoint.parent) == checkpoint
    assert_same_bits(read_all(checkpoint.parent), ARRAYS)


@pytest.mark.parametrize("named", ["{}", "../model.ckpt-12345", "..", "/", "."])
def test_a_directory_leads_to_nothing_outside_it(checkpoint, tmp_path, named):
    """Not even to an existing checkpoint: a file in the directory cannot select files elsewhere."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint").write_text(f'model_checkpoint_path: "{named.format(checkpoint)}"\n')
    prefix = find_tf1_prefix(tmp_path / "run")
    assert prefix is None or prefix.parent == tmp_path / "run"
    with pytest.raises(SourceError):
        open_tf1(tmp_path / "run")


def test_a_directory_whose_checkpoint_is_gone_names_what_is_missing(tmp_path):
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-9"\n')
    assert refused(tmp_path, f"{tmp_path / 'model.ckpt-9.index'}: no such file")


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"\xff" * 99,
        b"model_checkpoint_path: model.ckpt",
        b'model_checkpoint_path: "model.ckpt',
        b'model_checkpoint_path: "' + b"\\" * 10_001,
        b'model_checkpoint_path: "\\377"',
        b"\n" * 50_000,
    ],
)
def test_other_files_named_checkpoint(tmp_path, state):
    (tmp_path / "checkpoint").write_bytes(state)
    assert find_tf1_prefix(tmp_path) is None
    assert refused(tmp_path, "not a TF1 checkpoint")


def test_other_files_are_refused(checkpoint, tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"PK")
    checkpoint.write_bytes(b"a file of its own, not the prefix beside it")
    for path in (
        tmp_path,
        tmp_path / "weights.pth",
        tmp_path / "nothing",
        tmp_path / ("x" * 300),
        checkpoint,
    ):
        assert find_tf1_prefix(path) is None
        assert refused(path, str(path), "not a TF1 checkpoint")


# Damage


def seal(block):
    """A block with its trailer."""
    checked = block + b"\0"
    return checked + masked(crc32c(checked)).to_bytes(4, "little")


def table_of(block, offset=0, length=None):
    """A table of one data block, valid except for the contents of the block or its index entry."""
    index = table._Block(restart_interval=1)
    index.add(b"z", varint(offset) + varint(len(block) if length is None else length))
    index = index.finish()
    footer = varint(0) + varint(0) + varint(len(block) + 5) + varint(len(index))
    return seal(block) + seal(index) + footer.ljust(40, b"\0") + table._MAGIC


def test_opening_reads_no_tensor_and_a_flipped_bit_names_its_tensor(checkpoint):
    data, index = tf1_files(checkpoint)
    entry = proto.parse_entry(read_table(index)[b"half"])
    for position in (entry.offset, entry.offset + entry.size - 1):
        flip(data, position, bit=5)
        with open_tf1(checkpoint) as reader:
            with pytest.raises(SourceError, match="'half' is damaged") as caught:
                reader.read("half")
            assert str(caught.value).startswith(f"{data}: ")
            assert_same_bits({"int16": reader.read("int16")}, {"int16": ARRAYS["int16"]})
        flip(data, position, bit=5)
    assert_same_bits(read_all(checkpoint), ARRAYS)


def test_every_single_bit_of_a_small_index(tmp_path):
    arrays = {"a/kernel": coded((2, 3)), "a/bias": coded((3,))}
    prefix = write(tmp_path / "model.ckpt", arrays)
    index = tf1_files(prefix)[1]
    content = index.read_bytes()
    unread = 0
    for position in range(8 * len(content)):
        flip(index, position // 8, position % 8)
        try:
            assert_same_bits(read_all(prefix), arrays)
            unread += 1
        except SourceError as error:
            assert str(error).startswith(f"{index}: ")  # noqa: PT017  (either outcome is right)
        index.write_bytes(content)
    # only bytes that no reader needs may change unnoticed: the metaindex (8 bytes, 5 of trailer), and in the
    # footer its handle and the padding
    assert unread <= 8 * (8 + 5 + 40)


@FUZZ
@given(flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 7)), min_size=1, max_size=4))
def test_flipped_bits_in_the_index(checkpoint, flips):
    index = tf1_files(checkpoint)[1]
    content = index.read_bytes()
    for position, bit in flips:
        flip(index, position % len(content), bit)
    with suppress(SourceError):
        assert_same_bits(read_all(checkpoint), ARRAYS)
    index.write_bytes(content)


@FUZZ
@given(data=st.data())
def test_a_data_block_that_lies_under_a_correct_checksum(checkpoint, data):
    """A malicious index leads to a SourceError or to tensors of the announced shape and dtype."""
    index = tf1_files(checkpoint)[1]
    content = index.read_bytes()
    with index.open("rb") as file:
        end = table._index_handle(file, len(content))[0]
    block = bytearray(content[: end - 13 - 5])  # the part before the metaindex, without its trailer
    for _ in range(data.draw(st.integers(1, 4))):
        block[data.draw(st.integers(0, len(block) - 1))] = data.draw(st.integers(0, 255))
    sealed = seal(bytes(block))
    index.write_bytes(sealed + content[len(sealed) :])
    with suppress(SourceError):
        read_all(checkpoint)
    index.write_bytes(content)


@pytest.mark.parametrize("file", [0, 1], ids=["data", "index"])
def test_truncation(checkpoint, file):
    path = tf1_files(checkpoint)[file]
    content = path.read_bytes()
    for length in {*range(0, len(content), 7), *range(60), *range(len(content) - 60, len(content))}:
        path.write_bytes(content[:length])
        assert refused(checkpoint, str(path))


def test_data_that_shrinks_after_opening(checkpoint):
    with open_tf1(checkpoint) as reader:
        tf1_files(checkpoint)[0].write_bytes(b"")
        with pytest.raises(SourceError, match="only 0 of"):
            reader.read("half")


@pytest.mark.parametrize("file", [0, 1], ids=["data", "index"])
def test_a_missing_file_is_named(checkpoint, file):
    path = tf1_files(checkpoint)[file]
    path.unlink()
    assert refused(tf1_files(checkpoint)[1 - file], f"{path}: no such file")


def test_compressed_blocks_are_refused(checkpoint, monkeypatch):
    monkeypatch.setattr(table, "_UNCOMPRESSED", 1)
    write(checkpoint, ARRAYS)
    monkeypatch.undo()
    assert refused(checkpoint, "compressed index blocks are not supported")


def field(number, value):
    return proto._field(8 * number + (2 if isinstance(value, bytes) else 0), value)


def entry(*dims, dtype=1, size=8, **fields):
    numbers = {"shard": 3, "offset": 4}
    shape = b"".join(field(2, field(1, dim)) for dim in dims)
    extra = b"".join(field(numbers[name], value) for name, value in fields.items())
    return field(1, dtype) + field(2, shape) + extra + field(5, size)


ENTRIES_THAT_LIE = [
    ("w", entry(3), "in 8 bytes"),
    ("w", entry(2**61, 2**61), "impossible shape"),
    ("w", entry(0, 2**60, size=0), "impossible shape"),
    ("w", entry(2**64 - 1), "impossible shape"),  # -1
    ("w", entry(*[1] * 65, size=4), "impossible shape"),
    ("w", field(1, 1) + field(2, field(3, 1)) + field(5, 4), "impossible shape"),  # unknown rank
    ("w", entry(2, shard=1), "data file number 1 of 1"),
    ("w", entry(2, shard=2**64 - 1), "data file number"),
    ("w", entry(2, offset=8), "truncated"),
    ("w", entry(2, offset=2**64 - 1), "truncated"),
    ("w", entry(2**40, size=2**42), "truncated"),
    ("w", entry(2), "damaged (wrong CRC-32C)"),
    ("w", b"\x0a", "does not end"),
    ("w", b"\x0b", "protobuf field of type 3"),
    ("w", b"\x12\x7f", "127 bytes announced"),
    ("w", b"\xff" * 11, "does not end"),
    ("\udcff", entry(2), "utf-8"),
    ("", field(1, 1) + field(2, 2), "byte order 2"),
    ("", field(1, 1) + field(3, field(2, 2)), "reader of version 2"),
    (
        METADATA_NAME,
        proto.dump_entry(proto.Entry(TensorInfo((0,), np.dtype("u1")), 0, 0, 0, 0xA282EAD8)),
        "JSON",
    ),
]


@pytest.mark.parametrize(
    ("name", "value", "mention"), ENTRIES_THAT_LIE, ids=[m for *_, m in ENTRIES_THAT_LIE]
)
def test_entries_that_lie(tmp_path, name, value, mention):
    prefix = write(tmp_path / "model.ckpt", {"w": coded((2,))})
    index = tf1_files(prefix)[1]
    table = {**read_table(index), name.encode(errors="surrogateescape"): value}
    write_table(index, sorted(table.items()))
    assert refused(prefix, mention)


NO_RESTARTS = bytes(4)

TABLES_THAT_LIE = [
    (b"", "0 bytes, but a checkpoint index has at least 48"),
    (table._MAGIC, "8 bytes, but a checkpoint index has at least 48"),
    (b"a text file of more than forty-eight bytes, whatever its name", "magic number"),
    (table_of(bytes(8), offset=2**63), "ends at byte"),
    (table_of(bytes(8), length=2**63), "ends at byte"),
    (table_of(bytes(8), offset=40), "ends at byte"),
    (table_of(bytes(8), length=4), "wrong CRC-32C"),
    (table_of(b""), "a block of 0 bytes"),
    (table_of(NO_RESTARTS, offset=1), "wrong CRC-32C"),
    (table_of((1000).to_bytes(4, "little")), "1000 restart points"),
    (table_of(b"\x05\x01\x00k" + NO_RESTARTS), "shares 5 bytes with one of 0"),
    (table_of(b"\x00\x01\x05k" + NO_RESTARTS), "5 bytes announced, but only 0 left"),
    (table_of(b"\x00\x81" + NO_RESTARTS), "does not end"),
    (table_of(b"\x00\x01\x00b\x00\x01\x00a" + NO_RESTARTS), "not in order"),
]


@pytest.mark.parametrize(("content", "mention"), TABLES_THAT_LIE, ids=[m for _, m in TABLES_THAT_LIE])
def test_tables_that_lie(tmp_path, content, mention):
    (tmp_path / "model.ckpt.index").write_bytes(content)
    assert refused(tmp_path / "model.ckpt", mention)


def test_a_table_that_is_no_checkpoint(tmp_path):
    write_table(tmp_path / "model.ckpt.index", [(b"key", b"value")])
    assert refused(tmp_path / "model.ckpt", "without the header")


def test_prefixes_that_would_fill_the_memory(tmp_path, monkeypatch):
    """4 MB of keys from a file of 29 kB: prefix compression as a decompression bomb."""
    monkeypatch.setattr(table._Block.__init__, "__defaults__", (1 << 30,))
    keys = [b"x" * 1000 + i.to_bytes(4, "big") for i in range(4000)]
    write_table(tmp_path / "model.ckpt.index", [(key, b"") for key in keys])
    assert refused(tmp_path / "model.ckpt", "64 times as long")


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**32, 2**64 - 1])
def test_varints(value):
    encoded = varint(value)
    assert table.read_varint(b"\x80" + encoded, 1) == (value, 1 + len(encoded))
