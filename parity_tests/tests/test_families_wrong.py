"""Checkpoints of other projects with one wrong tensor: it is named."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_tests.tests.test_families import READ, ListingReader, shapes_in
from weights_convert import MismatchError, load, loading
from weights_convert.formats.base import TensorInfo
from weights_convert.layouts import skeleton
from weights_convert.spec import is_count


@pytest.fixture
def read_shapes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`load` of a file with these names and shapes."""

    def read(shapes: dict[str, tuple[int, ...]], **options: Any) -> Any:
        reader = ListingReader(Path("model.file"))
        for name, shape in shapes.items():
            dtype = np.dtype(np.int64 if is_count(name) else np.float32)
            reader.tensors[name] = TensorInfo(shape, dtype)
        monkeypatch.setattr(loading, "open_reader", lambda *_: reader)
        return load("model.file", assume=True, **options)

    return read


# --------------------------------------------------------------------------------------------------
# One tensor renamed, removed or reshaped

MUTATED = [
    pytest.param(name, marks=[] if few else [pytest.mark.exhaustive])
    for name, few in [
        ("timm_seresnet18", True),
        ("timm_resnet18d", False),
        ("pytorchcv_cbam_resnet18", True),
        ("keras_applications_resnet50", False),
        ("qubvel_seresnet50", True),
        *((name, False) for name, *_ in READ),
    ]
]


# two tensors that show the same keyword: either may be wrong
TIED = re.compile(r"^(fc|last_linear|output|output\.fc|predictions)[./]bias|^layer3\.0\.se\.conv\.weight")


def one_of_each_kind(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """A tensor from the middle of the file for each kind of name."""
    kinds: dict[str, list[str]] = {}
    for name in shapes:
        if not is_count(name):
            kinds.setdefault(skeleton(name), []).append(name)
    return [names[len(names) // 2] for names in kinds.values()]


HEAD_BIAS = re.compile(r"^(fc|last_linear|output|output\.fc|head\.fc|predictions|dense_\d+)[./]bias(:0)?$")


@pytest.mark.parametrize("listing", MUTATED)
def test_one_wrong_tensor_is_named(read_shapes, listing):
    shapes = shapes_in(listing)
    counted = listing.startswith("qubvel")  # missing tensors have no name there: the canonical name is shown
    for name in one_of_each_kind(shapes):
        others = {other: shape for other, shape in shapes.items() if other != name}
        if HEAD_BIAS.search(name):  # a classifier without a bias exists: assumed with a caution
            assert "head_bias=False is assumed" in " ".join(read_shapes(others).liberties)
            continue
        with pytest.raises(MismatchError) as caught:
            read_shapes(others)
        lines = caught.value.details
        # for a missing tensor with two possible names in a family, the first is shown
        known = name.replace("last_linear", "fc") if listing.startswith("pretrainedmodels") else name
        assert all(line.startswith(("missing: ", "misshapen: ", "extra: ")) for line in lines), name
        assert counted or lines == (f"missing: {known} {shapes[name]}",), (name, lines)

        renamed = f"{name}x"
        with pytest.raises(MismatchError) as caught:
            read_shapes(others | {renamed: shapes[name]})
        extra = [line for line in caught.value.details if line.startswith(f"extra: {renamed} {shapes[name]}")]
        assert len(extra) == 1, name
        assert counted or lines[0] in caught.value.details

        reshaped = (*shapes[name][:-1], shapes[name][-1] + 2)
        with pytest.raises(MismatchError) as caught:
            read_shapes(shapes | {name: reshaped})
        wrong = f"misshapen: {name} {reshaped}, expected {shapes[name]}"
        assert len(caught.value.details) == 1
        assert counted or TIED.search(name) or caught.value.details == (wrong,), (name, caught.value.details)
