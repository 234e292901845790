"""Changes of files that pass the checksums: inside an entry, an operation or a block, with new checksums.

Each function takes a file's bytes, a random generator and `change`, which changes plain bytes: atheris's
mutator, or `change_bytes` below. A file that cannot be parsed is changed as plain bytes.
"""

from __future__ import annotations

import io
import itertools
import pickletools
import random
import warnings
import zipfile
from collections.abc import Callable

from fuzz.target import joined, parts
from weights_convert.formats.tf1 import table
from weights_convert.formats.tf1.crc32c import crc32c, masked
from weights_convert.formats.tf1.proto import Entry, dump_entry, parse_entry

Change = Callable[[bytes], bytes]
Inner = Callable[[str, bytes, random.Random, Change], bytes]  # changes an entry, by its name

# Counts, sizes and offsets at which something overflows, at every width.
_NUMBERS = [
    (value % 2 ** (8 * width)).to_bytes(width, order)
    for width in (1, 2, 4, 8)
    for value in (0, 1, -1, -2, 2 ** (8 * width - 1), 2 ** (8 * width - 1) - 1)
    for order in ("little", "big")
]  # fmt: skip


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to three plain changes: flip a bit, insert a number, remove, double or move a part, or truncate."""
    for _ in range(rng.randint(1, 3)):
        if not data:
            return bytes([rng.randrange(256)])
        a, b = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
        b = min(b, a + rng.choice((1, 2, 4, 8, 16, 64)))
        kind = rng.randrange(7)
        if kind == 0:
            place = rng.randrange(len(data))
            data = data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
        elif kind == 1:
            number = rng.choice(_NUMBERS)
            data = data[:a] + number + data[a + len(number) :]
        elif kind == 2:
            data = data[:a] + data[b:]
        elif kind == 3:
            data = data[:b] + data[a:b] + data[b:]
        elif kind == 4:
            place = rng.randrange(len(data) + 1)
            data = data[:place] + data[a:b] + data[place + b - a :]
        elif kind == 5:
            data = data[:a]
        else:
            text = rng.choice((b"-1", b"999999999999", b"1e999", b"[" * 200, b'"', b"null", b"\x00", b"\xff"))
            data = data[:a] + text + data[b:]
    return data


def change_zip(data: bytes, rng: random.Random, change: Change, inner: Inner | None = None) -> bytes:
    """Change one entry of an archive, or its name, and pack it again."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [(info, archive.read(info)) for info in archive.infolist()]
        which = rng.randrange(len(entries))
    except Exception:  # not an archive any more
        return change(data)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number, (info, content) in enumerate(entries):
            name = info.filename
            if number == which and rng.randrange(8) == 0:
                name = rng.choice([entries[0][0].filename, "/etc/x", "../../x", name + "\n", name.upper()])
            elif number == which:
                content = inner(name, content, rng, change) if inner else change(content)
            with warnings.catch_warnings():  # two entries of one name
                warnings.simplefilter("ignore")
                archive.writestr(zipfile.ZipInfo(name), content, rng.choice((info.compress_type, 0, 8)))
    return packed.getvalue()


def _change_torch_entry(name: str, content: bytes, rng: random.Random, change: Change) -> bytes:
    return change_pickle(content, rng, change) if name.endswith(".pkl") else change(content)


def change_torch_zip(data: bytes, rng: random.Random, change: Change) -> bytes:
    return change_zip(data, rng, change, _change_torch_entry)


def change_pickle(data: bytes, rng: random.Random, change: Change) -> bytes:
    """Remove, double, move or change operations; data after the pickle are not changed."""
    begins = [0]
    file = io.BytesIO(data)
    try:
        while file.tell() < len(data):
            begins += [position or 0 for _, _, position in pickletools.genops(file)]
            begins.append(file.tell())
    except Exception:  # data after the last pickle
        begins.append(begins[-1])
    if len(begins) < 3:
        return change(data)
    begins = sorted(set(begins))
    for _ in range(rng.randint(1, 3)):
        operations = [data[a:b] for a, b in itertools.pairwise(begins)]
        rest = data[begins[-1] :]
        place, other = rng.randrange(len(operations)), rng.randrange(len(operations))
        kind = rng.randrange(6)
        if kind == 0:
            del operations[place]
        elif kind == 1:
            operations.insert(place, operations[other])
        elif kind == 2:
            operations[place], operations[other] = operations[other], operations[place]
        elif kind == 3:
            operations[place] = operations[place][:1] + change(operations[place][1:])
        elif kind == 4:
            operations[place] = rng.choice(pickletools.opcodes).code.encode("latin1") + operations[place][1:]
        else:
            operations.insert(
                place, rng.choice((b"0", b"2", b"(", b"t", b"\x85", b"}", b"]", b"a", b"b", b"R"))
            )
        data = b"".join(operations) + rest
        begins = [0]
        for operation in operations:
            begins.append(begins[-1] + len(operation))
        if len(begins) < 3:
            break
    return data


def change_tf1(data: bytes, rng: random.Random, change: Change) -> bytes:
    """Change an entry, a name, a block or the data, and correct all checksums."""
    index, shard = parts(data)
    kind = rng.randrange(5)
    if kind == 0:
        return joined(change(index), shard)
    try:
        pairs = _pairs(index)
    except Exception:  # not a table any more
        return joined(change(index), shard)
    which = rng.randrange(len(pairs))
    key, value = pairs[which]
    if kind == 1:
        shard = change(shard)
    elif kind == 2:
        pairs[which] = (change(key), value)
    elif kind == 3:
        pairs[which] = (key, change(value))
    else:
        return joined(_table([], change(_block(pairs))), shard)
    return joined(_table([(k, _resealed(v, shard)) for k, v in sorted(dict(pairs).items())]), shard)


def _pairs(index: bytes) -> list[tuple[bytes, bytes]]:
    return list(table._table(io.BytesIO(index), len(index)))


def _block(pairs: list[tuple[bytes, bytes]]) -> bytes:
    block = table._Block()
    for key, value in pairs:
        block.add(key, value)
    return block.finish()


def _table(pairs: list[tuple[bytes, bytes]], block: bytes | None = None) -> bytes:
    """A table of one block with these pairs or these bytes."""
    file, index = io.BytesIO(), table._Block(restart_interval=1)
    index.add(b"\xff", _append(file, _block(pairs) if block is None else block))
    handles = _append(file, table._Block().finish()) + _append(file, index.finish())
    file.write(handles.ljust(40, b"\0") + table._MAGIC)
    return file.getvalue()


def _append(file: io.BytesIO, content: bytes) -> bytes:
    handle = table.varint(file.tell()) + table.varint(len(content))
    file.write(content + b"\0" + masked(crc32c(content + b"\0")).to_bytes(4, "little"))
    return handle


def _resealed(value: bytes, shard: bytes) -> bytes:
    """An entry with the checksum of the bytes that it points to."""
    try:
        entry = parse_entry(value)
        if isinstance(entry, Entry) and entry.size < 1 << 20:
            content = shard[entry.offset : entry.offset + entry.size]
            return dump_entry(entry._replace(crc=masked(crc32c(content))))
    except (ValueError, OverflowError):
        pass
    return value


def change_safetensors(data: bytes, rng: random.Random, change: Change) -> bytes:
    """Change the header and store its new length, or change any bytes."""
    length = int.from_bytes(data[:8], "little")
    if rng.randrange(4) == 0 or length > len(data):
        return change(data)
    header = change(data[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _plain(data: bytes, rng: random.Random, change: Change) -> bytes:  # noqa: ARG001
    return change(data)


MUTATIONS = {
    "torch_zip": change_torch_zip,
    "torch_stream": change_pickle,
    "npz": change_zip,
    "keras_h5": _plain,  # the earliest version of the format, which Keras writes, has no checksums
    "keras_zip": change_zip,
    "tf1": change_tf1,
    "safetensors": change_safetensors,
    "caffe": _plain,  # without checksums
    "folder": change_zip,
}


def mutate(reader: str, data: bytes, rng: random.Random, change: Change) -> bytes:
    """One change; every fourth one changes plain bytes anywhere."""
    return change(data) if rng.randrange(4) == 0 else MUTATIONS[reader](data, rng, change)
