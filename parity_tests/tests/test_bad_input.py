"""Bad input gives a one-line error: truncated files, other files, wrong tensors, invalid values."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from parity_tests.judge.synthetic import arrays_with
from weights_convert import load

pytestmark = pytest.mark.usefixtures("folder")
CONTAINERS = (".pth", ".safetensors", ".npz", ".weights.h5", ".ckpt")
FILES = ("good.pth", "good.safetensors", "good.npz", "good.weights.h5", "good.ckpt.index",
         "good.ckpt.data-00000-of-00001")  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_truncated_files(run, unchanged, name: str):
    whole = Path(name).read_bytes()
    source = "good.ckpt" if ".ckpt" in name else name
    for size in [*range(1, len(whole), len(whole) // 12), len(whole) - 1]:
        Path(name).write_bytes(whole[:size])
        with unchanged():
            ran = run("convert", source, "x.safetensors")
        assert (ran.code, len(ran.lines)) == (2, 1), size
        assert ran.err.startswith(name.partition(".ckpt")[0]), ran.err


def not_checkpoints() -> dict[str, tuple[Callable[[Path], object], str]]:
    def numpy_file(save: Callable[..., None], **arrays: np.ndarray) -> Callable[[Path], object]:
        def make(path: Path) -> None:
            with path.open("wb") as file:
                save(file, **arrays)

        return make

    def zipped(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("notes.txt", "nothing")

    def hdf5(path: Path) -> None:
        with h5py.File(path, "w") as file:
            file["a/b"] = np.zeros(3)

    def empty_hdf5(path: Path) -> None:
        h5py.File(path, "w").close()

    return {
        "zip": (zipped, "expected a file written by torch.save"),
        "npz of others": (numpy_file(np.savez, a=np.zeros(3)), "no known family"),
        "empty npz": (numpy_file(np.savez), "holds no tensors|expected a file written by"),
        "objects": (numpy_file(np.savez, a=np.array([{}], object)), "holds no tensors"),
        "hdf5": (hdf5, "no known family"),
        "empty hdf5": (empty_hdf5, "holds no tensors"),
        "npy": (numpy_file(np.save, arr=np.zeros(3)), r"one array of NumPy \(\.npy\)"),
        "image": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64)), "not a known checkpoint"),
        "pickle": (lambda p: p.write_bytes(b"\x80\x02]q\x00."), "a pickle; load it where you trust it"),
        "json": (
            lambda p: p.write_text('{"model": {"layer": [1, 2, 3]}}'),
            "a JSON text|safetensors",
        ),
    }


@pytest.mark.parametrize("kind", not_checkpoints())
def test_other_files_are_refused(folder, run, kind: str):
    make, message = not_checkpoints()[kind]
    make(folder / "what.bin")
    for command in (
        ["convert", "what.bin", "x.npz"],
        ["inspect", "what.bin"],
        ["diff", "good.pth", "what.bin"],
    ):
        ran = run(*command)
        assert ran.code == 2
        assert re.search(message, ran.lines[0]), ran.err
    assert not Path("x.npz").exists()


def test_an_array_with_a_wrong_size(run):
    np.savez("a.npz", **arrays_with({}))
    with zipfile.ZipFile("a.npz") as whole, zipfile.ZipFile("cut.npz", "w") as cut:
        for name in whole.namelist():
            content = whole.read(name)
            cut.writestr(name, content.replace(b"(5, 8)", b"(5,80)") if name == "fc.weight.npy" else content)
    ran = run("inspect", "cut.npz")
    assert ran.code == 2
    assert "entry 'fc.weight.npy' has 288 bytes, expected 1728 for (5, 80) float32" in ran.lines[0]


# --------------------------------------------------------------------------------------------------
# Tensors that do not match: all in one list, under their names in the file

FC = np.zeros((5, 8), np.float32)
TENSORS = [  # changes, and the lines below the message
    ({"fc.weight": None}, ["missing: fc.weight (5, 8)"]),
    ({"fc.weight": None, "fc.weigth": FC},
     ["missing: fc.weight (5, 8)", "extra: fc.weigth (5, 8); did you mean 'fc.weight'?"]),
    ({"layer1.0.bn1.gamma": np.zeros(8)}, ["extra: layer1.0.bn1.gamma (8,)"]),
    ({"layer1.0.bn1.running_var": None, "layer1.0.se.fc1.bias": None, "zebra": FC, "fc.weight": FC.T},
     ["missing: layer1.0.bn1.running_var (8,)", "missing: layer1.0.se.fc1.bias (2,)", "extra: zebra (5, 8)",
      "misshapen: fc.weight (8, 5), expected (5, 8)"]),
    ({"layer1.0.se.fc1.weight": np.zeros((8, 2), np.float32)},
     ["misshapen: layer1.0.se.fc1.weight (8, 2), expected (2, 8)"]),
    ({"fc.bias": np.zeros(5, np.int64)}, ["wrong dtype: fc.bias is int64, expected a float dtype"]),
    ({"fc.bias": np.zeros(5, bool)}, ["wrong dtype: fc.bias is bool, expected a float dtype"]),
    ({"bn1.num_batches_tracked": np.array(1.5)},
     ["wrong dtype: bn1.num_batches_tracked is float64, expected an integer dtype"]),
    ({"bn1.num_batches_tracked": np.zeros(1, np.int64)},
     ["misshapen: bn1.num_batches_tracked (1,), expected ()"]),
]  # fmt: skip


@pytest.mark.quick
@pytest.mark.parametrize(("change", "lines"), TENSORS)
def test_every_tensor_that_does_not_fit_is_listed(run, change: dict, lines: list[str]):
    np.savez("bad.npz", **arrays_with(change))
    ran = run("convert", "bad.npz", "x.pth")
    assert ran.code == 2
    advice = "; `weights-convert names bad.npz` proposes names for --names"
    own = any(line.startswith("extra:") for line in lines)
    count = f"mismatches: {len(lines)}{advice * own}"
    assert ran.lines[0] == f"bad.npz: its tensors do not match resnet; {count}"
    assert [line.strip() for line in ran.lines[1:]] == lines
    assert not Path("x.pth").exists()


def test_messages_use_the_names_of_the_file(run):
    with h5py.File("good.weights.h5", "r+") as file:
        del file["layer1/basic_block/se/fc1/vars/1"]
        file["layer1/basic_block/se/fc9/vars/1"] = np.zeros(2)
    ran = run("inspect", "good.weights.h5")
    assert ran.code == 2
    assert [line.strip() for line in ran.lines[1:]] == [
        "missing: layer1/basic_block/se/fc1/vars/1 (2,)",
        "extra: layer1/basic_block/se/fc9/vars/1 (2,); did you mean 'layer1/basic_block/se/fc1/vars/1'?",
    ]


def test_names_in_files_are_printed_without_control_characters(run):
    np.savez("bad.npz", **arrays_with({"fc.weight": None, "fc.\x1b[2Jwei\nght\u202e": FC}))
    ran = run("convert", "bad.npz", "x.pth")
    assert ran.code == 2
    assert len(ran.lines) == 3
    assert "extra: fc.\\x1b[2Jwei\\nght\\u202e (5, 8)" in ran.lines[2]


METADATA = [  # metadata of a file, and the error
    ("{", "its 'samenet' metadata is not JSON"),
    ("[]", "its 'samenet' metadata is list, expected an object"),
    ('{"mapping_version": 2}', "written by a newer samenet, mapping version 2 (here: 1)"),
    ('{"spec": []}', "'spec' in its metadata is a list, expected dict"),
    ('{"spec": {}}', "its metadata has kind None"),
    ('{"spec": {}, "kind": ["resnet"]}', "its metadata has kind"),
    ('{"spec": {"depths": "all"}, "kind": "resnet"}', "depths='all': expected a sequence of ints"),
    ('{"spec": {"depths": [1000000000]}, "kind": "resnet"}', "depths=(1000000000,): expected 1 to 8 stages"),
    ('{"spec": {"stem": {"a": 1}}, "kind": "resnet"}', "stem={'a': 1}: expected one of '7x7'"),
    ('{"spec": {"later": 1}, "kind": "resnet"}', "there is no keyword 'later'"),
    ('{"spec": {}, "kind": "attention", "assumed": 3}', "'assumed' in its metadata is a int, expected list"),
    ('{"family": ["torch"]}', "'family' in its metadata is a list, expected str"),
    ('{"family": "klingon"}', "there is no family 'klingon'"),
    ('{"family": "tf1", "scope": 3}', "'scope' in its metadata is a int, expected str"),
    ('{"num_batches_tracked": {"bn1.num_batches_tracked": 1e3}}', "has 1000.0 for 'bn1.num_batches_tracked'"),
    (
        '{"num_batches_tracked": {"bn1.num_batches_tracked": 18446744073709551616}}',
        "has 18446744073709551616",
    ),
    ('{"num_batches_tracked": [3]}', "is a list, expected dict"),
    ('{"num_batches_tracked": {"zebra": 3}}', "mismatches: 1"),
]


@pytest.mark.parametrize(("text", "message"), METADATA)
def test_invalid_metadata(run, text: str, message: str):
    np.savez("bad.npz", **arrays_with({}), samenet=np.array(text))
    ran = run("inspect", "bad.npz")
    assert ran.code == 2
    assert message in ran.lines[0]


def test_step_counts_may_be_missing(run):
    np.savez("old.npz", **{n: a for n, a in arrays_with({}).items() if not n.endswith("tracked")})
    assert run("convert", "old.npz", "x.pth").code == 0
    assert run("convert", "x.pth", "x.ckpt").code == 0
    assert run("diff", "old.npz", "x.ckpt").code == 0


# --------------------------------------------------------------------------------------------------
# Values: NaN, infinity, overflow in another dtype

NAN, INF = np.full(5, np.nan, np.float32), np.array([1, np.inf, -np.inf, 2, 3], np.float32)


@pytest.mark.parametrize(("values", "count"), [(NAN, 5), (INF, 2)])
def test_nan_and_infinity_warn_and_with_strict_are_errors(run, unchanged, values: np.ndarray, count: int):
    np.savez("bad.npz", **arrays_with({"fc.bias": values}))
    message = f"fc.bias has {count} values that are NaN or infinite"
    for suffix in CONTAINERS:
        ran = run("convert", "bad.npz", f"x{suffix}")
        assert ran.code == 0
        assert f"warning: bad.npz: {message}\n" in ran.err
        with load(f"x{suffix}", assume=True) as checkpoint:
            assert checkpoint["fc.bias"].tobytes() == values.tobytes()
        for options in (["--strict"], ["--strict", "--overwrite"]):
            target = f"{'good' if '--overwrite' in options else 'y'}{suffix}"
            with unchanged():
                ran = run("convert", "bad.npz", target, "--assume", *options)
            assert (ran.code, ran.err) == (2, f"bad.npz: {message} (--strict)\n")
    assert f"odd           fc.bias: {count} values are NaN or infinite" in run("inspect", "bad.npz").out


@pytest.mark.parametrize(
    ("values", "dtype", "largest", "wider"),
    [([1, 2, 3, 4, 7e4], "float16", "70000", "bfloat16 or float32"),
     ([1, np.nan, 3, 4, -7e4], "float16", "70000", "bfloat16 or float32"),
     ([1, 2, 3, 4, 1e300], "float32", r"1e\+300", "float64"),
     ([1, np.inf, 3, 4, 1e300], "bfloat16", r"1e\+300", "float64")],
)  # fmt: skip
def test_overflow_is_refused(run, unchanged, values: list[float], dtype: str, largest: str, wider: str):
    np.savez("wide.npz", **arrays_with({"fc.bias": np.array(values)}))
    with unchanged():
        ran = run("convert", "wide.npz", "good.safetensors", "--overwrite", "--dtype", dtype)
    assert ran.code == 2
    wanted = f"fc.bias would lose values: {largest} is beyond {dtype}; use --dtype {wider}"
    assert re.search(wanted, ran.err)
