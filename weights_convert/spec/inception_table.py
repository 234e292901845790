"""The tables of the Inception networks: the modules as rows of branches, with the rules that read them.

BN-Inception: https://arxiv.org/abs/1502.03167, the SENet authors' prototxt (https://github.com/hujie-frank/SENet)

`torch_impl`, `keras_impl`, `tf1_compat` and `weights_convert/spec` have the same file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple


class Conv(NamedTuple):
    """A convolution, its normalisation and a ReLU; padded by half the kernel on each side.

    Attributes:
        width: channels of the output.
        kernel: rows and columns.
        number: of its layers in the branch: `unit1`.
    """

    width: int
    kernel: int = 1
    stride: int = 1
    number: int = 0


class Pool(NamedTuple):
    """A 3x3 pool: padded by 1 with stride 1, by the rule of `reduction_pool` with stride 2.

    Attributes:
        kind: "avg", "max", or "last" for the value of `last_pool`.
    """

    kind: str
    stride: int = 1


Branch = tuple["Conv | Pool", ...]


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
        (Conv(one),),
        (Conv(three[0]), Conv(three[1], 3, stride)),
        (Conv(double[0]), Conv(double[1], 3), Conv(double[1], 3, stride)),
        (Pool(pool, stride), Conv(projection)) if projection else (Pool(pool, stride),),
    )
    return Module(name, branches if one else branches[1:])


_BN_INCEPTION = Network(
    stem=(Conv(64, 7, 2), Pool("max", 2), Conv(64), Conv(192, 3), Pool("max", 2)),
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
    """The table for a network's keywords, with the widths and the numbers of its convolutions."""
    return Network(
        _branch(_BN_INCEPTION.stem, c),
        tuple(
            Module(name, tuple(_branch(steps, c) for steps in branches))
            for name, branches in _BN_INCEPTION.modules
        ),
    )


def _branch(steps: Branch, c: Mapping[str, Any]) -> Branch:
    found: list[Conv | Pool] = []
    number = 0
    for step in steps:
        if isinstance(step, Conv):
            number += 1
            width = max(1, int(step.width * c["width_multiplier"]))
            found.append(step._replace(width=width, number=number))
        else:
            found.append(step._replace(kind=c["last_pool"] if step.kind == "last" else step.kind))
    return tuple(found)


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


def width_of(branches: Iterable[Branch], inputs: int) -> int:
    """The channels of a module's output."""
    widths = [[conv.width for conv, _ in convolutions(steps)] for steps in branches]
    return sum(of_branch[-1] if of_branch else inputs for of_branch in widths)


def is_reduction(module: Module) -> bool:
    """Whether a module halves the map."""
    return any(step.stride > 1 for steps in module.branches for step in steps)


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
    size = map_size(network.stem, size, c)
    for name, branches in network.modules:
        found = {map_size(steps, size, c) for steps in branches}
        if len(found) > 1 or min(found) < 1:
            return f"{name} would concatenate maps of {' and '.join(map(str, sorted(found)))}"
        (size,) = found
    return ""


def map_size(steps: Branch, size: int, c: Mapping[str, Any]) -> int:
    """Rows or columns of a chain's output."""
    for step in steps:
        if isinstance(step, Conv):
            size = (size - 1) // step.stride + 1
        elif step.stride > 1:
            size = size // 2 if c["reduction_pool"] == "ceil" else (size + 1) // 2
    return size
