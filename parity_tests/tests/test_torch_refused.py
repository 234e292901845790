"""Files that are no checkpoint of torch.save, hostile ones and damaged ones: each refused in one line."""

from __future__ import annotations

import argparse
import functools
import io
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parity_tests.tests.test_torch_entries import W, training_checkpoint
from parity_tests.tests.test_torch_file import (
    FORMS,
    Call,
    assert_same,
    coded,
    error_of,
    layouts,
    pickled,
    placed,
    seen,
    storage,
    stream_file,
    torch,
    zip_file,
)
from parity_tests.tests.test_torch_written import write
from weights_convert.errors import SourceError
from weights_convert.formats.torch.file import (
    looks_like_torch_stream,
    open_torch,
    torch_zip_stem,
)


@pytest.fixture(params=FORMS)
def save(request, tmp_path):
    """`save(object) -> path`, in the zip form and in the stream form."""

    def save(value: object) -> Path:
        path = tmp_path / f"{request.param}.pth"
        torch.save(value, path, _use_new_zipfile_serialization=FORMS[request.param])
        return path

    return save


# --- Other kinds of files


@pytest.mark.filterwarnings("ignore")
def test_refuses_archives_of_code(tmp_path):
    model = torch.nn.Linear(2, 2)
    torch.jit.script(model).save(tmp_path / "script.pt")
    assert "TorchScript" in error_of(tmp_path / "script.pt")
    with torch.package.PackageExporter(str(tmp_path / "package.pt")) as exporter:
        exporter.extern("torch.**")
        exporter.save_pickle("model", "model.pkl", model)
    assert "torch.package" in error_of(tmp_path / "package.pt")


@pytest.mark.parametrize(
    "name", ["x/models/model.json", "x/archive_format", "serialized_exported_program.json", "x/code/a.py"]
)
def test_refuses_zips_by_their_entries(tmp_path, name):
    path = zip_file(tmp_path / "x", {}, {})
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(name, "")
    assert ("TorchScript" if "code" in name else "torch.export archive (.pt2)") in error_of(path)


def test_refuses_other_files(tmp_path):
    with tarfile.open(tmp_path / "tar", "w", format=tarfile.PAX_FORMAT) as file:
        file.addfile(tarfile.TarInfo("storages"))
    with zipfile.ZipFile(tmp_path / "zip", "w") as file:
        file.writestr("weights.npy", b"")
    (tmp_path / "pickle").write_bytes(pickle.dumps({}))
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    assert "the tar form of PyTorch 0.1" in error_of(tmp_path / "tar")
    assert "a zip without <name>/data.pkl" in error_of(tmp_path / "zip")
    assert "expected one written by torch.save" in error_of(tmp_path / "pickle")
    assert "an empty file" in error_of(tmp_path / "empty")
    assert "a directory, expected a file" in error_of(tmp_path / "folder")
    assert "there is no such file" in error_of(tmp_path / "missing")


def test_recognition(tmp_path):
    for protocol in (1, 2, 3, 4, 5):
        torch.save(W, tmp_path / "x", pickle_protocol=protocol, _use_new_zipfile_serialization=False)
        assert looks_like_torch_stream((tmp_path / "x").read_bytes()[:64])
    assert not looks_like_torch_stream(b"")
    assert not looks_like_torch_stream(pickle.dumps({"a": 1}, 2))
    assert torch_zip_stem(["y/x/data.pkl", "x/data/0", "x/data.pkl"]) == "x"
    assert torch_zip_stem(["data.pkl", "weights.npy"]) is None


def test_other_zip_features_end_in_an_error(tmp_path):
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "x", "w", method) as file:
            file.writestr("x/data.pkl", pickled({}))
        message = f"packed by method {method}, expected stored or deflated ones"
        assert message in error_of(tmp_path / "x")
    path = write(tmp_path / "y", {"w": coded(3)})
    data = bytearray(path.read_bytes())
    data[data.find(b"PK\x01\x02") + 8] |= 1  # the flag of encryption in the directory
    path.write_bytes(data)
    assert "encrypted" in error_of(path)


def test_no_framework_is_imported(tmp_path):
    torch.save(training_checkpoint()[0], tmp_path / "x")
    code = (
        "import sys; from pathlib import Path\n"
        "from weights_convert.formats.torch.file import open_torch\n"
        "from weights_convert.formats.torch.writer import write_torch\n"
        "source, target = map(Path, sys.argv[1:])\n"
        "with open_torch(source) as reader: write_torch(target, reader.tensors, reader.read, {})\n"
        "print(sorted({'torch', 'tensorflow', 'keras'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "x", tmp_path / "y"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "[]\n"
    assert list(torch.load(tmp_path / "y")) == list(training_checkpoint()[1])


# --- Hostile files


def test_nothing_in_the_file_runs(save, tmp_path):
    witness = tmp_path / "ran"
    commands = [
        Call(os.system, (f"touch {witness}",)),
        Call(eval, (f"open({str(witness)!r}, 'w')",)),
        Call(functools.partial(open, str(witness)), ("w",)),
        Call(getattr, (Call(__import__, ("os",)), "system")),
        Call(Path.touch, (witness,)),
    ]
    pickle.loads(pickle.dumps(commands[0]))
    assert witness.exists()  # proves that the command works
    witness.unlink()
    root = {"w": torch.ones(2), "evil": commands, **{Call(os.system, (f"touch {witness}",)): 1}}
    path = save(root)
    assert_same(path, {"w": root["w"]})
    assert seen(path).left_out["evil"] == "list of 5"
    name = save(commands[0]).name
    assert f"a pickled {os.system.__module__}.system object" in error_of(tmp_path / name)
    assert not witness.exists()


GLOBAL_W = b"ctorch._utils\n_rebuild_tensor_v2\n"
ARRAY = (  # of two bytes, without its shape
    b"cnumpy._core.multiarray\n_reconstruct\n)R(K\x01%scnumpy\ndtype\nX\x02\x00\x00\x00u1\x85R"
    b"(K\x03X\x01\x00\x00\x00|tb\x89C\x02abtb"
)
HOSTILE = {  # after the protocol, before STOP
    "a function given attributes": GLOBAL_W + b"}X\x01\x00\x00\x00aK\x01sb",
    "a function given defaults": GLOBAL_W + b"N}X\x0c\x00\x00\x00__defaults__)s\x86b",
    "a function replaced": GLOBAL_W + b"N}X\x09\x00\x00\x00_functioncmodule\nname\ns\x86b",
    "a class given attributes": b"ctorch\nFloatTensor\nN}X\x04\x00\x00\x00spanK\x01s\x86b",
    "OrderedDict itself given attributes": b"ccollections\nOrderedDict\n}X\x09\x00\x00\x00_metadata}sb",
    "a mark above the value": b"}(",
    "an odd number of items": b"}(X\x01\x00\x00\x00au",
    "items of a list": b"](K\x00K\x01u",
    "a newer protocol": b"\x80\x06}",
    "a memo index that fills the memory": b"]r\x00\x00\x00\x01",
    "a text longer than the file": b"X\xff\xff\xff\x7fabc",
    "bytes longer than memory": b"\x8e\xff\xff\xff\xff\xff\xff\xff\x0fabc",
    "a bytearray longer than memory": b"\x96\xff\xff\xff\xff\xff\x00\x00\x00abc",
    "an unhashable key": b"}]K\x01s",
    "an empty stack": b"",
    "only a mark": b"(",
    "no such operation": b"\xff",
    "an extension": b"\x82\x01",
    "a buffer out of band": b"\x97",
    "a reference to nothing": b"h\x07",
    "a persistent id of text": b"Pabc\n",
    "a call of a number": b"K\x01)R",
    "a tensor without arguments": GLOBAL_W + b")R",
    "a tensor without a storage": GLOBAL_W + b"(K\x00K\x00))K\x00K\x00tR",
    "a class that is not one": b"K\x01)\x81",
    "an array of too few bytes": ARRAY % b"K\x03\x85",
    "an array of a negative length": ARRAY % b"J\xfe\xff\xff\xff\x85",
    "an array whose length is a text": ARRAY % b"X\x01\x00\x00\x00a\x85",
    "an array of many axes": ARRAY % (b"(" + b"K\x01" * 100_000 + b"t"),
    "an array of 100 axes": ARRAY % (b"(" + b"K\x01" * 100 + b"t"),
}


def test_an_array_of_bytes_that_are_none(tmp_path):
    """A text that latin-1 lacks is decoded only when it is read."""
    encoded = b"c_codecs\nencode\nX\x02\x00\x00\x00\xc4\x80X\x06\x00\x00\x00latin1\x86R"
    body = (b"\x80\x04}X\x01\x00\x00\x00w" + ARRAY.replace(b"C\x02ab", encoded) % b"K\x01\x85") + b"s."
    path = zip_file(tmp_path / "x", body, {})
    with open_torch(path) as reader, pytest.raises(SourceError, match="damaged"):
        reader.read("w")


@pytest.mark.parametrize("case", HOSTILE)
def test_malformed_pickles_end_in_one_error(tmp_path, case):
    body = b"\x80\x04" + HOSTILE[case] + b"."
    assert "damaged" in error_of(zip_file(tmp_path / "x", body, {}))
    write(tmp_path / "y", {"w": coded(2)})  # without temporary files
    assert_same(tmp_path / "y", {"w": coded(2)})


OPAQUE = b"cmodule\nname\n"
HARMLESS = {
    "called": OPAQUE + b")R",
    "called twice": OPAQUE + b")R)R",
    "made new": OPAQUE + b")\x81",
    "made new with keywords": OPAQUE + b")}X\x01\x00\x00\x00aK\x01s\x92",
    "made by name": b"(K\x01imodule\nname\n",
    "made by class": b"(" + OPAQUE + b"K\x01o",
    "given a state": OPAQUE + b")RK\x01b",
    "given two states": OPAQUE + b")\x81}X\x04\x00\x00\x00pathK\x01s}\x86b",
    "a class given a state": OPAQUE + b"}b",
    "given items": OPAQUE + b")R(K\x01K\x02u",
    "given elements": OPAQUE + b")R(K\x01K\x02e",
    "given an element": OPAQUE + b")RK\x02a",
    "given members": OPAQUE + b")R(K\x01\x90",
    "a key": b"}" + OPAQUE + b")RK\x01s",
    "a class as a key": b"}" + OPAQUE + b"K\x01s",
    "holding itself": OPAQUE + b")Rq\x00(h\x00h\x00u",
    "an attribute": b"cbuiltins\ngetattr\n" + OPAQUE + b"X\x05\x00\x00\x00inner\x86R)\x81",
    "a name with an end of line": b"X\x03\x00\x00\x00a\nbX\x02\x00\x00\x00\nc\x93)R",
    "a very long name": b"c" + b"m" * 100_000 + b"\nname\n",
    "rather deep": b"]" * 90 + b"a" * 89,
    "shared very often": b"]" + b"q\x010](h\x01h\x01e" * 90,
}


@pytest.mark.parametrize("case", HARMLESS)
def test_whatever_is_done_to_unknown_objects_is_harmless(tmp_path, case):
    tensor = pickled(placed(storage("0", 2), 0, (2,), (1,)))[2:-1]
    body = b"\x80\x04}(X\x01\x00\x00\x00w" + tensor + b"X\x01\x00\x00\x00x" + HARMLESS[case] + b"u."
    path = zip_file(tmp_path / "x", body, {"0": np.arange(2, dtype=np.float32).tobytes()})
    assert_same(path, {"w": coded(2)})
    (text,) = seen(path).left_out.values()
    assert len(text) <= 80
    assert text.isprintable()


CLAIMS = {  # numel of the storage, offset, size, stride; the file has 6 elements
    "more than the file": (1000, 0, (1000,), (1,)),
    "a storage larger than the file": (1000, 0, (2,), (1,)),
    "more than the storage": (6, 0, (7,), (1,)),
    "more than the storage, not than the file": (4, 0, (5,), (1,)),
    "beyond the end": (6, 5, (2,), (1,)),
    "stride beyond the end": (6, 0, (2, 2), (5, 2)),
    "a huge offset": (6, 2**62, (1,), (1,)),
    "a huge shape": (6, 0, (2**40, 2**40), (1, 1)),
    "a negative size": (6, 0, (-1,), (1,)),
    "a negative stride": (6, 5, (6,), (-1,)),
    "a negative offset": (6, -1, (2,), (1,)),
    "a negative storage": (-6, 0, (0,), (1,)),
    "fewer strides": (6, 0, (2, 3), (1,)),
    "a fraction": (6, 0, (2.0,), (1,)),
    "too large a number": (6, 0, (10**5000,), (1,)),
    "too many dimensions": (6, 0, (1,) * 65, (1,) * 65),
}


@pytest.mark.parametrize("case", CLAIMS)
@pytest.mark.parametrize("form", FORMS)
def test_tensors_beyond_the_file(tmp_path, form, case):
    numel, offset, size, stride = CLAIMS[case]
    numbers = np.arange(6, dtype=np.float32)
    if form == "zip":
        root = {"conv.weight": placed(storage("0", numel), offset, size, stride)}
        message = error_of(zip_file(tmp_path / "x", root, {"0": numbers.tobytes()}))
    else:
        root = {"conv.weight": placed(storage("0", numel, None), offset, size, stride)}
        message = error_of(stream_file(tmp_path / "x", root, {"0": numbers}))
    assert "damaged" in message
    assert "'conv.weight'" in message or "Error: " in message


def test_entries_that_are_not_where_they_should_be(tmp_path):
    path = write(tmp_path / "x", {"w": coded(3)})
    data = bytearray(path.read_bytes())
    data[data.find(b"archive/data/0") - 30] ^= 1  # the first byte of the entry's own header
    path.write_bytes(data)
    with open_torch(path) as reader, pytest.raises(SourceError, match=r"wrong start of the entry.* damaged"):
        reader.read("w")

    path = stream_file(
        tmp_path / "y", {"w": placed(storage("0", 3, None), 0, (3,), (1,))}, {"0": np.zeros(4)}
    )
    assert "a storage of 4 elements, announced as 3" in error_of(path)


def test_missing_storages(tmp_path):
    root = {"conv.weight": placed(storage("0", 6), 0, (6,), (1,))}
    assert "tensor 'conv.weight' of shape (6,) needs 24 bytes" in error_of(zip_file(tmp_path / "x", root, {}))
    root = {"conv.weight": placed(storage("0", 6, None), 0, (6,), (1,))}
    assert "tensor 'conv.weight' of shape (6,) needs 24 bytes" in error_of(
        stream_file(tmp_path / "x", root, {})
    )


def test_a_size_that_compression_cannot_reach(tmp_path):
    root = {"w": placed(storage("0", 2**40), 0, (2**40,), (1,))}
    path = zip_file(tmp_path / "x", root, {"0": bytes(100)})
    with zipfile.ZipFile(path, "a") as file:
        file.getinfo("x/data/0").file_size = 2**42  # stored in the directory
        file.writestr("x/more", b"")
    assert "tensor 'w'" in error_of(path)


# --- Damage


def read_all(path: Path) -> None:
    with open_torch(path) as reader:
        for name in reader.tensors:
            array = reader.read(name)
            assert (array.shape, array.dtype) == reader.tensors[name]


def small_checkpoint() -> dict:
    return {"state_dict": layouts(), "epoch": 3, "args": argparse.Namespace(lr=0.1)}


def test_every_truncation_is_noticed(save, tmp_path):
    data = save(small_checkpoint()).read_bytes()
    path = tmp_path / "short"
    for length in {*range(1, 100), *range(100, len(data), 61), *range(len(data) - 100, len(data))}:
        path.write_bytes(data[:length])
        message = error_of(path)
        assert length < 20 or "truncated or damaged" in message, length


def test_one_wrong_bit_in_a_stored_tensor_is_noticed(tmp_path):
    path = write(tmp_path / "x", {"a": coded(50), "conv.weight": coded(100)})
    data = bytearray(path.read_bytes())
    data[data.find(coded(100).numpy().tobytes()) + 40] ^= 1
    path.write_bytes(data)
    with open_torch(path) as reader:
        reader.read("a")
        with pytest.raises(SourceError, match=r"tensor 'conv.weight'.*checksum.*damaged"):
            reader.read("conv.weight")


def test_a_file_that_shrinks_while_open(save):
    path = save({"w": torch.zeros(100_000)})
    with open_torch(path) as reader:
        os.truncate(path, 50_000)
        with pytest.raises(SourceError, match=r"tensor 'w'.*truncated"):
            reader.read("w")


@functools.cache
def saved(form: str) -> bytes:
    file = io.BytesIO()
    torch.save(small_checkpoint(), file, _use_new_zipfile_serialization=FORMS[form])
    return file.getvalue()


@pytest.mark.parametrize("form", FORMS)
@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=4)
)
def test_flipped_bits(tmp_path, form, flips):
    data = bytearray(saved(form))
    for place, bit in flips:
        data[int(place * len(data))] ^= 1 << bit
    path = tmp_path / "flipped"
    path.write_bytes(data)
    try:
        read_all(path)
    except SourceError as error:
        assert error.message.startswith(f"{path}: ")  # noqa: PT017
        assert "\n" not in error.message  # noqa: PT017
