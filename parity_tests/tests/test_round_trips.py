"""Round trips between all containers and layouts return every bit, and equal weights give equal files."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from parity_tests.judge import synthetic
from parity_tests.judge.synthetic import ATTENTION_SPECS, position_coded, tiny
from weights_convert import Checkpoint, DestinationError, convert, load, save
from weights_convert.layouts import ROLES
from weights_convert.spec import Spec, parameters

PLACES = {  # every container with its possible layouts
    "pth": (".pth", "torch"),
    "safetensors": (".safetensors", "torch"),
    "safetensors, keras": (".safetensors", "keras"),
    "safetensors, tf1": (".safetensors", "tf1"),
    "npz": (".npz", "torch"),
    "npz, keras": (".npz", "keras"),
    "npz, tf1": (".npz", "tf1"),
    "h5": (".weights.h5", "keras"),
    "ckpt": (".ckpt", "tf1"),
}
REFUSED = [(".pth", "keras"), (".pt", "tf1"), (".weights.h5", "torch"), (".weights.h5", "tf1"),
           (".ckpt", "torch"), (".ckpt", "keras")]  # fmt: skip
NETWORKS = {
    "none": tiny(groups=2, width_per_group=32, stem="deep", downsample_kernel=3, reduce_first=2),
    "se": tiny(attention="se", block="basic", stem="3x3"),
    "cbam": tiny(attention="cbam", stride_in="conv1", cbam_order="mean_max", cbam_spatial_bias=True),
    "eca": tiny(attention="eca", eca_kernel_sizes=(5, 3), bn_epsilon=1e-3, in_channels=1),
    "sk": tiny(attention="sk", sk_split=True, depths=(1, 1)),
    "gn": tiny(norm="gn", width=32, stem_width=32, depths=(1,), bn_epsilon=1e-3),
    "bias_bn": tiny(norm="bias_bn", stem="deep_tiered", groups=2, width_per_group=32),
    "bias": tiny(norm="bias", attention="cbam", hidden_rule="absolute", block="basic"),
}
SPECS: dict[str, Spec] = {**NETWORKS, **{f"block {name}": spec for name, spec in ATTENTION_SPECS.items()}}
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}


def put(source: Checkpoint | Path, place: str, folder: Path) -> Path:
    """Write a checkpoint or convert a file to one of `PLACES`; return the new file."""
    suffix, layout = PLACES[place]
    folder.mkdir(exist_ok=True)
    path = folder / f"weights{suffix}"
    if isinstance(source, Checkpoint):
        return save(source, path, family=layout).destination
    return convert(source, path, to_family=layout).destination


def content(path: Path) -> dict[str, bytes]:
    """Every byte of a file, or of a TF1 checkpoint's files."""
    return {file.name: file.read_bytes() for file in path.parent.glob(f"{path.name}*")}


def assert_same(actual: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    """The same names in the same order, and the same bits."""
    assert list(actual) == list(wanted)
    for name, array in wanted.items():
        found = actual[name]
        assert (found.dtype, found.shape) == (array.dtype.newbyteorder("="), array.shape), name
        assert found.tobytes() == array.astype(array.dtype.newbyteorder("=")).tobytes(), name


def bit_coded(spec: Spec, dtype: str) -> Checkpoint:
    """Position-coded by the bit patterns of subnormal numbers: distinct in every dtype, lost when flushed."""
    arrays, kind = {}, np.dtype(DTYPES[dtype])
    for number, (name, shape, role) in enumerate(parameters(spec)):
        bits = np.arange(np.prod(shape, dtype=int)).reshape(shape) + number + 1
        arrays[name] = bits if role == "count" else bits.astype(f"u{kind.itemsize}").view(kind)
    return synthetic.checkpoint(arrays, spec)


# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["se", "block cbam_input", pytest.param("block eca_5", marks=pytest.mark.quick)]
)
def test_there_and_back_between_all_pairs(tmp_path, name: str):
    wanted = position_coded(SPECS[name])
    firsts = {place: put(wanted, place, tmp_path / place) for place in PLACES}
    for a, b in itertools.permutations(PLACES, 2):
        there = put(firsts[a], b, tmp_path / f"{a} to {b}")
        assert content(there) == content(firsts[b])  # the same file for every origin of the weights
        back = put(there, a, tmp_path / f"{a} to {b} to {a}")
        assert content(back) == content(firsts[a])
        with load(back) as checkpoint:
            assert_same(checkpoint, wanted)
            assert checkpoint.spec == wanted.spec
            assert checkpoint.assumed == ()


@pytest.mark.parametrize("name", SPECS)
def test_a_walk_through_all_places(tmp_path, name: str):
    wanted = position_coded(SPECS[name])
    source: Checkpoint | Path = wanted
    for step, place in enumerate([*PLACES, *PLACES]):
        source = put(source, place, tmp_path / str(step))
        with load(source) as checkpoint:
            assert_same(checkpoint, wanted)
            assert checkpoint.spec == wanted.spec
            assert checkpoint.family == PLACES[place][1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", PLACES)
def test_every_dtype_comes_back(tmp_path, place: str, dtype: str):
    wanted = bit_coded(SPECS["cbam"], dtype)
    if dtype == "bfloat16" and PLACES[place][0] == ".npz":
        with pytest.raises(DestinationError, match=r"is bfloat16, which \.npz cannot hold; use another"):
            put(wanted, place, tmp_path)
        assert list(tmp_path.iterdir()) == []
        return
    first = put(wanted, "safetensors", tmp_path / "first")
    there = put(first, place, tmp_path / "there")
    with load(there) as checkpoint:
        assert_same(checkpoint, wanted)
    assert content(put(there, "safetensors", tmp_path / "back")) == content(first)


@pytest.mark.parametrize(("suffix", "layout"), REFUSED)
def test_other_pairs_are_refused(tmp_path, suffix: str, layout: str):
    with pytest.raises(DestinationError, match=f"the {layout} layout goes into .npz and .safetensors only"):
        save(position_coded(SPECS["block se"]), tmp_path / f"x{suffix}", family=layout)


def test_dtypes_that_were_asked_for(tmp_path):
    coded = position_coded(SPECS["se"])
    exact = {name: coded[name] % 2048 for name in coded}  # in float16 as well
    wanted = synthetic.checkpoint(exact, SPECS["se"])
    path = put(wanted, "pth", tmp_path)
    for step, dtype in enumerate(["float64", "float16", "float32"]):
        path = convert(path, tmp_path / f"{step}.ckpt", dtype=dtype).destination
        with load(path) as checkpoint:
            assert {array.dtype.name for array in checkpoint.values()} == {dtype, "int64"}
    with load(path) as checkpoint:
        assert_same(checkpoint, wanted)


def test_equal_weights_are_equal_files(tmp_path):
    wanted = position_coded(SPECS["cbam"])
    first = {place: content(put(wanted, place, tmp_path / f"{place} 1")) for place in PLACES}
    time.sleep(2.1)  # a zip's clock ticks every two seconds
    for place in PLACES:
        assert content(put(wanted, place, tmp_path / f"{place} 2")) == first[place], place


def test_what_a_checkpoint_gives_cannot_be_changed(tmp_path):
    given = dict.fromkeys(["conv.weight"], np.ones((1, 1, 3), np.float32))
    in_memory = Checkpoint.from_arrays(given)
    with load(put(in_memory, "pth", tmp_path), assume=True) as of_file:
        for checkpoint in (in_memory, of_file):
            with pytest.raises(ValueError, match="read-only"):
                checkpoint["conv.weight"][...] = 2
    given["conv.weight"][...] = 3  # the caller's own array is still the caller's


# --------------------------------------------------------------------------------------------------
# Arrays in every memory layout


def strided(array: np.ndarray) -> np.ndarray:
    """Every second element of a larger array, along every axis."""
    larger = np.ones([2 * n + 1 for n in array.shape], array.dtype)
    view = larger[(..., *(slice(1, None, 2) for _ in array.shape))]
    view[...] = array
    return view


def unaligned(array: np.ndarray) -> np.ndarray:
    raw = np.zeros(array.nbytes + 1, np.uint8)[1:]
    view = raw.view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


MEMORY = {
    "Fortran order": lambda array: np.array(array, order="F"),
    "transposed view": lambda array: array.T.copy().T,
    "reversed view": lambda array: np.flip(np.flip(array).copy()),
    "strided view": strided,
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "big-endian and strided": lambda array: strided(array.astype(array.dtype.newbyteorder(">"))),
    "unaligned": unaligned,
    "read-only": read_only,
    "repeated by stride 0": lambda array: np.broadcast_to(array.reshape(-1)[0], array.shape),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", MEMORY)
def test_memory_layout_does_not_matter(tmp_path, kind: str, dtype: str):
    spec = SPECS["cbam"]
    if dtype == "bfloat16" and "endian" in kind:
        pytest.skip("ml_dtypes has no other byte order")
    coded = bit_coded(spec, dtype)
    given = {name: MEMORY[kind](coded[name].copy()) for name in coded}
    kept = {name: array.copy() for name, array in given.items()}
    source = synthetic.checkpoint(given, spec)
    for place in PLACES:
        if dtype == "bfloat16" and place.startswith("npz"):
            continue
        with load(put(source, place, tmp_path / place)) as checkpoint:
            assert_same(checkpoint, kept)
    assert_same(source, kept)
    for name, array in given.items():  # the caller's arrays are unchanged
        assert array.dtype == kept[name].dtype
        assert np.array_equal(array, kept[name])


# --------------------------------------------------------------------------------------------------
# The axes: a round trip alone does not notice a permutation that is wrong in both directions

SQUARE = tiny(block="basic", depths=(1,), width=3, stem_width=3, in_channels=3, num_classes=3,
              attention="se", reduction=1, stem="3x3")  # fmt: skip


def assert_axes(path: Path) -> None:
    """A file in the tf1 layout holds each tensor of `SQUARE` with TensorFlow's axes: H W I O; in, out."""
    wanted = position_coded(SQUARE)
    with np.load(path) as arrays:
        for conv, weight in [
            ("conv1/kernel", "conv1.weight"),
            ("layer1_0/conv2/kernel", "layer1.0.conv2.weight"),
        ]:
            for h, w, i, o in itertools.product(range(3), repeat=4):
                assert arrays[conv][h, w, i, o] == wanted[weight][o, i, h, w]
        for dense, weight in [
            ("fc/kernel", "fc.weight"),
            ("layer1_0/se/fc1/kernel", "layer1.0.se.fc1.weight"),
        ]:
            for i, o in itertools.product(range(3), repeat=2):
                assert arrays[dense][i, o] == wanted[weight][o, i]


@pytest.mark.quick
def test_square_kernels_are_transposed_rightly(tmp_path):
    wanted = position_coded(SQUARE)
    assert {p.shape for p in parameters(SQUARE) if p.role == "conv2d"} == {(3, 3, 3, 3)}
    path = put(wanted, "npz, tf1", tmp_path)
    assert_axes(path)


@pytest.mark.parametrize(
    ("role", "axes"),
    [("conv2d", axes) for axes in itertools.permutations(range(4)) if axes != ROLES["conv2d"].to_tf]
    + [("dense", (0, 1)), ("conv2d", None), ("dense", None)],
)
def test_any_other_axes_would_be_seen(tmp_path, monkeypatch, role: str, axes: tuple[int, ...] | None):
    good = put(position_coded(SQUARE), "npz, tf1", tmp_path / "good")
    monkeypatch.setitem(ROLES, role, ROLES[role]._replace(to_tf=axes))
    bad = put(position_coded(SQUARE), "npz, tf1", tmp_path / "bad")
    with pytest.raises(AssertionError):
        assert_axes(bad)
    with load(good) as checkpoint, pytest.raises(AssertionError):
        assert_same(checkpoint, position_coded(SQUARE))


def test_a_one_dimensional_kernel_keeps_its_order(tmp_path):
    wanted = position_coded(ATTENTION_SPECS["eca_5"])
    with np.load(put(wanted, "npz, tf1", tmp_path)) as arrays:
        assert arrays["conv/kernel"].shape == (5, 1, 1)
        assert arrays["conv/kernel"][:, 0, 0].tolist() == wanted["conv.weight"][0, 0].tolist()
