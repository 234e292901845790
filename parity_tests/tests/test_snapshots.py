"""Results that refactoring must not change: tables, readings of listings, written files.

`python -m parity_tests.tests.test_snapshots` records them anew after a change that is meant.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
import pytest

from parity_tests.judge import synthetic
from parity_tests.judge.synthetic import tiny
from parity_tests.tests.test_families import LISTINGS, ListingReader, shapes_in
from weights_convert import WeightsConvertError, examine, load, loading, save
from weights_convert.__main__ import main
from weights_convert.families import FAMILIES
from weights_convert.formats.base import TensorInfo
from weights_convert.plan import make_plan
from weights_convert.spec import (
    MODELS,
    InceptionSpec,
    InceptionV3Spec,
    MobileNetSpec,
    ShuffleNetSpec,
    is_count,
)

RECORDED = Path(__file__).with_name("snapshots.json")


def digest(value: Any) -> str:
    """A few characters of the sha256 of bytes, or of a value as JSON."""
    data = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True, default=str).encode()
    return hashlib.sha256(data).hexdigest()[:16]


def table(model: str) -> str:
    with redirect_stdout(io.StringIO()) as text:
        assert main(["table", model]) == 0
    return digest(text.getvalue().encode())


def reading(listing: str) -> str:
    """The facts of `inspect` on a file of these names and shapes, and plans to convert it, or the error."""
    reader = ListingReader(Path("model.file"))
    for name, shape in shapes_in(listing).items():
        reader.tensors[name] = TensorInfo(shape, np.dtype(np.int64 if is_count(name) else np.float32))
    patched = mock.patch.object(loading, "open_reader", return_value=reader)
    with patched, mock.patch.object(examine, "oddities", return_value=[]):
        try:
            checkpoint = load("model.file", assume=True)
            facts = examine.facts(checkpoint)
        except WeightsConvertError as error:
            return digest(str(error).encode())
    places = [(name, tensor.name, tensor.info.shape) for name, tensor in checkpoint.tensors.items()]
    plans = []
    for family, suffix in (("torch", ".pth"), ("keras", ".weights.h5"), ("tf1", ".ckpt")):
        plan = make_plan(checkpoint, Path(f"x{suffix}"), family=family)
        plans.append([(move.source_name, move.target_name, move.axes) for move in plan.moves])
    return digest([facts, places, plans])


def contents(path: Path) -> Any:
    """The bytes of a file; for HDF5, whose byte order varies, the names and arrays."""
    if not path.name.endswith(".h5"):
        return digest(path.read_bytes())
    found: list[Any] = []
    with h5py.File(path) as file:
        found.append({name: str(value) for name, value in file.attrs.items()})

        def visit(name: str, item: Any) -> None:
            whole = isinstance(item, h5py.Dataset)
            found.append((name, digest(item[()].tobytes()), str(item.dtype)) if whole else name)

        file.visititems(visit)
    return found


WRITTEN = [(family, ".safetensors") for family in FAMILIES if FAMILIES[family].written]
WRITTEN += [("torch", ".pth"), ("keras", ".weights.h5"), ("tf1", ".ckpt"), ("torch", ".npz")]
_FOR = {  # keywords of a family's networks
    "timm": {"cbam_mlp_bias": False, "cbam_order": "mean_max", "cbam_bn_momentum": 0.1},
    "cadene": {"attention": "se", "stem_pool": "ceil", "stride_in": "conv1"},
    "pytorchcv": {"cbam_bn_momentum": 0.1},
    "eca": {"attention": "eca"},
    "torchvision": {"attention": "none"},
}
_MEGVII = {"shuffle_after": "conv2", "shuffle_view": "groups_last", "concat_order": "shortcut_branch"}
_OTHERS: dict[str, Any] = {  # families of other networks than ResNets
    "pytorchcv_mobilenet": MobileNetSpec(depths=(1, 2), widths=(8, 8), num_classes=5),
    "timm_mobilenet": MobileNetSpec(depths=(1, 2), widths=(8, 8), num_classes=5, activation="relu6"),
    "pytorchcv_shufflenet": ShuffleNetSpec(depths=(1, 2), widths=(24, 48), stem_width=12),
    "megvii_shufflenet": ShuffleNetSpec(
        depths=(4, 1), widths=(24, 48), stem_width=12, head_bias=False, **_MEGVII
    ),
    "cadene_inception": InceptionSpec(width_multiplier=1 / 16, norm="bias_bn"),
    "pytorchcv_inception": InceptionSpec(width_multiplier=1 / 16, norm="bias_bn"),
    "torchvision_inception": InceptionV3Spec(width_multiplier=1 / 16, aux_head=True),
    "pytorchcv_inception_v3": InceptionV3Spec(width_multiplier=1 / 16),
}


def written(family: str, suffix: str) -> str:
    """Every file that is written for one small network."""
    spec = _OTHERS.get(family) or tiny(**{"attention": "cbam"} | _FOR.get(family, {}))
    checkpoint = synthetic.position_coded(spec)
    with tempfile.TemporaryDirectory() as folder:
        save(checkpoint, Path(folder) / f"x{suffix}", family=family)
        return digest([(path.name, contents(path)) for path in sorted(Path(folder).iterdir())])


SNAPSHOTS = {
    **{f"table {model}": (table, model) for model in MODELS},
    **{f"listing {path.stem}": (reading, path.stem) for path in sorted(LISTINGS.glob("*.json"))},
    **{f"written {family} {suffix}": (written, family, suffix) for family, suffix in WRITTEN},
}


def taken() -> Iterator[tuple[str, str]]:
    for name, (take, *arguments) in SNAPSHOTS.items():
        yield name, take(*arguments)  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["table", "listing", "written"])
def test_snapshots_are_as_recorded(kind):
    recorded = json.loads(RECORDED.read_text())
    assert recorded.keys() == SNAPSHOTS.keys()
    names = [name for name in SNAPSHOTS if name.startswith(kind)]
    different = [name for name in names if SNAPSHOTS[name][0](*SNAPSHOTS[name][1:]) != recorded[name]]
    assert different == []


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(dict(taken()), indent=0) + "\n")
