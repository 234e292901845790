"""Weights and images for tests: random but well-conditioned, or coded by position."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np

from weights_convert import Checkpoint
from weights_convert.formats.tf1.place import data_path, index_path
from weights_convert.formats.tf1.proto import dump_header
from weights_convert.formats.tf1.table import read_table, write_table
from weights_convert.spec import AttentionSpec, ResNetSpec, Spec, parameters

# Factor of the last batch norm of every residual branch, ShuffleNet's too (without batch norms: of the last
# kernel). Undamped random weights make activations grow with depth, and the errors of a deep network then
# show only its conditioning (8.5e-10 in float64 for torch alone).
DAMPING = 0.25
# Mean of the offsets of the batch norms, by the kind of network; else 0. In Inception-v3, whose chains are 46
# convolutions long without a shortcut, half of the units off at every layer amplify one ulp to 3e-6 in six
# training steps (four images of 139 x 139); with most units on it stays at 4e-14.
OFFSETS = {"inception_v3": 1.0}


def weights(spec: Spec, seed: int = 0) -> Checkpoint:
    """Random float32 weights with random BN statistics: mean 0 and variance 1 would hide mistakes."""
    random = np.random.default_rng([seed, 1])
    last = "conv" if getattr(spec, "norm", "bn") == "bias" else "bn"
    last += "2" if getattr(spec, "block", "") == "basic" else "3"
    arrays = {}
    for name, shape, role in parameters(spec):
        if role.startswith(("conv", "depthwise")) or role.endswith("dense"):
            array = random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        elif role in ("scale", "variance"):
            array = random.uniform(0.5, 1.5, shape)
        elif role == "count":
            array = np.array(random.integers(1, 1000), np.int64)
        else:
            array = random.normal(OFFSETS.get(spec.kind, 0) if role == "offset" else 0, 0.1, shape)
        if re.fullmatch(rf"(layer|stage)\d+\.\d+\.{last}\.weight", name):
            array *= DAMPING
        arrays[name] = array if role == "count" else array.astype(np.float32)
    return checkpoint(arrays, spec)


def position_coded(spec: Spec, dtype: np.dtype | type = np.float32) -> Checkpoint:
    """Values that encode their position: a transposed square kernel or a swapped pair changes the bits."""
    arrays = {}
    for name, shape, role in parameters(spec):
        start = zlib.crc32(name.encode()) % 1009
        values = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape) + start
        arrays[name] = values if role == "count" else values.astype(dtype)
    return checkpoint(arrays, spec)


def checkpoint(arrays: dict[str, np.ndarray], spec: Spec) -> Checkpoint:
    keywords = {name: getattr(spec, name) for name in spec.__dataclass_fields__}
    return Checkpoint.from_arrays(arrays, keywords)


def arrays_with(change: dict[str, np.ndarray | None]) -> dict[str, np.ndarray]:
    """The position-coded tensors of `SMALL` with changes: replaced, added, or removed for None."""
    arrays = dict(position_coded(SMALL)) | change
    return {name: array for name, array in arrays.items() if array is not None}


def images(size: tuple[int, int] = (64, 64), batch: int = 2, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Random images (N, C, H, W) in float32, with negative values as after normalisation."""
    return np.random.default_rng([seed, 2]).normal(0, 1, (batch, channels, *size)).astype(np.float32)


def tiny(**keywords: object) -> ResNetSpec:
    """A network with every kind of layer that runs in milliseconds."""
    defaults = {"depths": (2, 1), "width": 8, "stem_width": 8, "num_classes": 5, "reduction": 4}
    return ResNetSpec(**(defaults | keywords))  # type: ignore[arg-type]


SMALL = tiny(attention="se", block="basic", depths=(1,), stem="3x3")  # for tests of the command line


def with_shards(prefix: Path, shards: int) -> None:
    """Turn a TF1 checkpoint with one data file into one with several, named as by a sharded Saver."""
    table = read_table(index_path(prefix)) | {b"": dump_header(shards)}
    write_table(index_path(prefix), table.items())
    data_path(prefix, 0, 1).replace(data_path(prefix, 0, shards))
    for shard in range(1, shards):
        data_path(prefix, shard, shards).touch()


ATTENTION_SPECS = {
    "se": AttentionSpec(attention="se", channels=16, reduction=4),
    "se_no_bias": AttentionSpec(attention="se", channels=16, reduction=4, se_bias=False),
    "se_multiple_of_8": AttentionSpec(attention="se", channels=24, reduction=2, hidden_rule="multiple_of_8"),
    "se_absolute": AttentionSpec(attention="se", channels=16, reduction=20, hidden_rule="absolute"),
    "cbam": AttentionSpec(attention="cbam", channels=16, reduction=4),
    "cbam_absolute": AttentionSpec(attention="cbam", channels=16, reduction=7, hidden_rule="absolute"),
    "cbam_mean_max": AttentionSpec(attention="cbam", channels=16, cbam_order="mean_max", cbam_mlp_bias=False),
    "cbam_input": AttentionSpec(
        attention="cbam", channels=16, cbam_bn=False, cbam_spatial_bias=True, cbam_spatial_input="input"
    ),
    "cbam_kernel_3": AttentionSpec(attention="cbam", channels=16, cbam_kernel_size=3, bn_epsilon=1e-3),
    "eca": AttentionSpec(attention="eca", channels=64, eca_kernel_size=3),
    "eca_5": AttentionSpec(attention="eca", channels=32, eca_kernel_size=5),
    "eca_circular": AttentionSpec(attention="eca", channels=32, eca_kernel_size=5, eca_padding="circular"),
}
