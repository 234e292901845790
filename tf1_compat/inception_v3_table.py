"""The table of Inception-v3: https://arxiv.org/abs/1512.00567, with the names of torchvision's layers.

`torch_impl`, `keras_impl`, `tf1_compat` and `weights_convert/spec` have the same file.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import cache
from typing import Any

from .inception_table import Branch, Conv, Fork, Module, Network, Pool, filled, filled_chain, map_size

AUX_INPUT = "Mixed_6e"  # the module before the auxiliary head
AUX_POOL, AUX_STRIDE = 5, 3  # of its average pool, without padding
# transform_input: of each colour, factor and summand that turn (x - mean) / std into (x - 0.5) / 0.5
TRANSFORM = tuple(
    (std / 0.5, (mean - 0.5) / 0.5) for mean, std in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))
)


def _named(name: str, *steps: Conv | Fork) -> Branch:
    """A chain: `branch1x1` alone, else `branch5x5_1`, `branch5x5_2`, in a fork `branch3x3_2a` and `_2b`."""
    chain: list[Conv | Fork] = []
    for number, step in enumerate(steps, 1):
        path = f"{name}_{number}" if len(steps) > 1 else name
        if isinstance(step, Conv):
            chain.append(step._replace(name=path))
        else:
            convs = zip("ab", step.convs, strict=True)
            chain.append(Fork(tuple(conv._replace(name=f"{path}{letter}") for letter, conv in convs)))
    return tuple(chain)


def _module_35(name: str, projection: int) -> Module:
    """Figure 5, with a 5x5 for two 3x3; maps of 35 x 35."""
    return Module(
        name,
        (
            _named("branch1x1", Conv(64)),
            _named("branch5x5", Conv(48), Conv(64, 5)),
            _named("branch3x3dbl", Conv(64), Conv(96, 3), Conv(96, 3)),
            (Pool("avg"), *_named("branch_pool", Conv(projection))),
        ),
    )


def _module_17(name: str, width: int) -> Module:
    """Figure 6; maps of 17 x 17."""
    row, column = (1, 7), (7, 1)
    return Module(
        name,
        (
            _named("branch1x1", Conv(192)),
            _named("branch7x7", Conv(width), Conv(width, row), Conv(192, column)),
            _named(
                "branch7x7dbl",
                *(Conv(width), Conv(width, column), Conv(width, row), Conv(width, column), Conv(192, row)),
            ),
            (Pool("avg"), *_named("branch_pool", Conv(192))),
        ),
    )


def _module_8(name: str, pool: str) -> Module:
    """Figure 7; maps of 8 x 8."""
    fork = Fork((Conv(384, (1, 3)), Conv(384, (3, 1))))
    return Module(
        name,
        (
            _named("branch1x1", Conv(320)),
            _named("branch3x3", Conv(384), fork),
            _named("branch3x3dbl", Conv(448), Conv(384, 3), fork),
            (Pool(pool), *_named("branch_pool", Conv(192))),
        ),
    )


_HALVE = Pool("max", 2, "valid")
_INCEPTION_V3 = Network(
    stem=(
        Conv(32, 3, 2, "valid", "Conv2d_1a_3x3"),
        Conv(32, 3, 1, "valid", "Conv2d_2a_3x3"),
        Conv(64, 3, 1, "pad1", "Conv2d_2b_3x3"),
        _HALVE,
        Conv(80, 1, 1, "pad1", "Conv2d_3b_1x1"),
        Conv(192, 3, 1, "valid", "Conv2d_4a_3x3"),
        _HALVE,
    ),
    modules=(
        _module_35("Mixed_5b", 32),
        _module_35("Mixed_5c", 64),
        _module_35("Mixed_5d", 64),
        Module(
            "Mixed_6a",
            (
                _named("branch3x3", Conv(384, 3, 2, "valid")),
                _named("branch3x3dbl", Conv(64), Conv(96, 3), Conv(96, 3, 2, "valid")),
                (_HALVE,),
            ),
        ),
        _module_17("Mixed_6b", 128),
        _module_17("Mixed_6c", 160),
        _module_17("Mixed_6d", 160),
        _module_17("Mixed_6e", 192),
        Module(
            "Mixed_7a",
            (
                _named("branch3x3", Conv(192), Conv(320, 3, 2, "valid")),
                _named(
                    "branch7x7x3",
                    *(Conv(192), Conv(192, (1, 7)), Conv(192, (7, 1)), Conv(192, 3, 2, "valid")),
                ),
                (_HALVE,),
            ),
        ),
        _module_8("Mixed_7b", "avg"),
        _module_8("Mixed_7c", "last"),
    ),
)
_AUX: Branch = (Conv(128, name="conv0"), Conv(768, 5, 1, "valid", "conv1"))
MODULES = tuple(row.name for row in _INCEPTION_V3.modules)


def network_of(c: Mapping[str, Any]) -> Network:
    """The table for a network's keywords."""
    return filled(_INCEPTION_V3, c)


def aux_of(c: Mapping[str, Any]) -> Branch:
    """The convolutions of the auxiliary head, between its average pool and the mean over H, W."""
    return filled_chain(_AUX, c)


def module_at(c: Mapping[str, Any], name: str) -> Module:
    """The module "Mixed_5b" of `network_of`."""
    return network_of(c).modules[MODULES.index(name)]


def check_image(aux_head: bool, *sizes: Any) -> None:
    """Raise `ValueError` if images are too small.

    Args:
        aux_head: whether the auxiliary head runs too.
        sizes: rows and columns of the images; those that are not known are not checked.
    """
    smallest = _smallest(aux_head)
    for size in sizes:
        if isinstance(size, int) and size < smallest:
            beside = " with the auxiliary head, which runs in training and for features" if aux_head else ""
            raise ValueError(f"images with {size} rows or columns: expected at least {smallest}{beside}")


@cache
def _smallest(aux_head: bool) -> int:
    return next(size for size in itertools.count(1) if _fits(size, aux_head))


def _fits(size: int, aux_head: bool) -> bool:
    """Whether no map of the network is empty, for images of this size."""
    size = map_size(_INCEPTION_V3.stem, size)
    for name, branches in _INCEPTION_V3.modules:
        size = map_size(branches[0], size)
        pooled = (size - AUX_POOL) // AUX_STRIDE + 1
        if size < 1 or (aux_head and name == AUX_INPUT and map_size(_AUX, pooled) < 1):
            return False
    return True
