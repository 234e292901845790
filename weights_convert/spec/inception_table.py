"""The rows of Inception networks, with the rules that read them, and the table of BN-Inception.

BN-Inception: https://arxiv.org/abs/1502.03167, the SENet authors' prototxt (https://github.com/hujie-frank/SENet)

`torch_impl`, `keras_impl`, `tf1_compat` and `weights_convert/spec` have the same file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple


class Conv(NamedTuple):
    """A convolution, its normalisation and a ReLU.

    Attributes:
        width: channels of the output.
        kernel: rows and columns, or both if they are equal.
        padding: by half the kernel on each side ("pad1") or none ("valid").
        name: of its layers.
    """

    width: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1
    padding: str = "pad1"
    name: str = ""


class Fork(NamedTuple):
    """Convolutions with one input, at the end of a branch, whose outputs are concatenated."""

    convs: tuple[Conv, ...]


class Pool(NamedTuple):
    """A 3x3 pool.

    Attributes:
        kind: "avg", "max", or "last" for the value of `last_pool`.
        padding: a value of `reduction_pool`, "valid" for none, or "rule" for the network's `reduction_pool`.
    """

    kind: str
    stride: int = 1
    padding: str = "pad1"


Branch = tuple["Conv | Fork | Pool", ...]


class Module(NamedTuple):
    """Branches with one input, whose outputs are concatenated."""

    name: str
    branches: tuple[Branch, ...]


class Network(NamedTuple):
    """A chain, and the modules after it."""

    stem: Branch
    modules: tuple[Module, ...]


def _bn_module(
    name: str, one: int, three: tuple[int, int], double: tuple[int, int], pool: str, projection: int
) -> Module:
    """A module of BN-Inception; without a 1x1 branch and a projection it halves the map."""
    stride = 1 if projection else 2
    branches: tuple[Branch, ...] = (
        _numbered(Conv(one)),
        _numbered(Conv(three[0]), Conv(three[1], 3, stride)),
        _numbered(Conv(double[0]), Conv(double[1], 3), Conv(double[1], 3, stride)),
        _numbered(Pool(pool), Conv(projection)) if projection else (Pool(pool, 2, "rule"),),
    )
    return Module(name, branches if one else branches[1:])


def _numbered(*steps: Conv | Pool) -> Branch:
    """A chain whose convolutions are called `unit1`, `unit2` ..."""
    numbers = itertools.count(1)
    return tuple(
        step._replace(name=f"unit{next(numbers)}") if isinstance(step, Conv) else step for step in steps
    )


_BN_INCEPTION = Network(
    stem=_numbered(
        *(Conv(64, 7, 2), Pool("max", 2, "rule"), Conv(64), Conv(192, 3), Pool("max", 2, "rule")),
    ),
    modules=tuple(
        _bn_module(*row)
        for row in (
            # name, 1x1, (reduce, 3x3), (reduce, 3x3 and 3x3), pool, projection
            ("inception_3a", 64, (64, 64), (64, 96), "avg", 32),
            ("inception_3b", 64, (64, 96), (64, 96), "avg", 64),
            ("inception_3c", 0, (128, 160), (64, 96), "max", 0),
            ("inception_4a", 224, (64, 96), (96, 128), "avg", 128),
            ("inception_4b", 192, (96, 128), (96, 128), "avg", 128),
            ("inception_4c", 160, (128, 160), (128, 160), "avg", 128),
            ("inception_4d", 96, (128, 192), (160, 192), "avg", 128),
            ("inception_4e", 0, (128, 192), (192, 256), "max", 0),
            ("inception_5a", 352, (192, 320), (160, 224), "avg", 128),
            ("inception_5b", 352, (192, 320), (192, 224), "last", 128),
        )
    ),
)


def network_of(c: Mapping[str, Any]) -> Network:
    """The table of BN-Inception for a network's keywords."""
    return filled(_BN_INCEPTION, c)


def filled(table: Network, c: Mapping[str, Any]) -> Network:
    """A table with the widths and the pools of a network's keywords."""
    return Network(
        filled_chain(table.stem, c),
        tuple(
            Module(name, tuple(filled_chain(steps, c) for steps in branches))
            for name, branches in table.modules
        ),
    )


def filled_chain(steps: Branch, c: Mapping[str, Any]) -> Branch:
    """A chain with the widths and the pools of a network's keywords."""
    return tuple(_filled(step, c) for step in steps)


def _filled(step: Any, c: Mapping[str, Any]) -> Any:
    if isinstance(step, Conv):
        return step._replace(width=max(1, int(step.width * c["width_multiplier"])))
    if isinstance(step, Fork):
        return Fork(tuple(_filled(conv, c) for conv in step.convs))
    kind = c["last_pool"] if step.kind == "last" else step.kind
    return step._replace(kind=kind, padding=c["reduction_pool"] if step.padding == "rule" else step.padding)


def chain_at(c: Mapping[str, Any], place: str) -> Branch:
    """The chain "stem" or "inception_3a.branch1" of `network_of`."""
    name, _, number = place.partition(".branch")
    return module_at(c, name).branches[int(number) - 1] if number else network_of(c).stem


def module_at(c: Mapping[str, Any], name: str) -> Module:
    """The module "inception_3a" of `network_of`."""
    return next(module for module in network_of(c).modules if module.name == name)


def convolutions(steps: Branch) -> Iterator[tuple[Conv, int | None]]:
    """Each convolution of a chain, with the channels of its input; None for those of the chain's input."""
    inputs = None
    for step in steps:
        if isinstance(step, Conv):
            yield step, inputs
            inputs = step.width
        elif isinstance(step, Fork):
            yield from ((conv, inputs) for conv in step.convs)


def width_of(branches: Iterable[Branch], inputs: int) -> int:
    """The channels of a module's output."""
    return sum(_width(steps, inputs) for steps in branches)


def _width(steps: Branch, width: int) -> int:
    for step in steps:
        if isinstance(step, Conv):
            width = step.width
        elif isinstance(step, Fork):
            width = sum(conv.width for conv in step.convs)
    return width


def is_reduction(module: Module) -> bool:
    """Whether a module halves the map."""
    steps = (step for branch in module.branches for step in branch)
    return any(step.stride > 1 for step in steps if not isinstance(step, Fork))


def module_count() -> int:
    """The number of modules, each with one attention."""
    return len(_BN_INCEPTION.modules)


# --------------------------------------------------------------------------------------------------
# Image sizes whose branches fit together


def check_image(c: Mapping[str, Any], *sizes: Any) -> None:
    """Raise `ValueError` if the branches of a module give maps of different sizes, or a map is empty.

    Args:
        sizes: rows and columns of the images; those that are not known are not checked.
    """
    for size in sizes:
        if isinstance(size, int) and (problem := _problem(c, size)):
            fits = (n for more in range(1, 65) for n in (size + more, size - more) if n > 0)
            nearest = next((n for n in fits if not _problem(c, n)), 224)
            raise ValueError(
                f"images with {size} rows or columns: {problem}; expected {nearest}, or reduction_pool='pad1'"
            )


def _problem(c: Mapping[str, Any], size: int) -> str:
    """The reason why images of this size do not fit, or ""."""
    network = network_of(c)
    size = map_size(network.stem, size)
    for name, branches in network.modules:
        found = {map_size(steps, size) for steps in branches}
        if len(found) > 1 or min(found) < 1:
            return f"{name} would concatenate maps of {' and '.join(map(str, sorted(found)))}"
        (size,) = found
    return ""


def map_size(steps: Branch, size: int) -> int:
    """Rows or columns of a chain's output; below 1 if the map is too small for it."""
    for step in steps:
        if isinstance(step, Fork):
            continue
        kernel = 3 if isinstance(step, Pool) else step.kernel
        if step.padding == "valid" and isinstance(kernel, int):
            size = (size - kernel) // step.stride + 1
        elif step.padding == "ceil":
            size = size // 2
        else:
            size = (size - 1) // step.stride + 1
    return size
