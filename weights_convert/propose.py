"""`weights-convert names FILE`: proposes pairs of names for a file of unknown names, by shapes and order.

The network is the one whose shapes differ least from the file's. Modules of the same shapes are paired in
order, and pairs that differ only in numbers become one pattern. A pair is certain if no other module of the
file or of the network has its shapes, somewhere in the pattern; otherwise only the order supports it. Such
pairs are comments in the file: nothing is used before the user has looked at it.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from weights_convert.errors import MismatchError
from weights_convert.families import FAMILIES
from weights_convert.formats.base import one_line
from weights_convert.identify.attention import reduction
from weights_convert.identify.candidates import infer
from weights_convert.identify.inside import places
from weights_convert.identify.misfits import describe
from weights_convert.identify.reading import Listing
from weights_convert.identify.votes import Shapes
from weights_convert.layouts import Layout, like, skeleton
from weights_convert.spec import MODELS, Spec, changed, is_count, model_spec, parameters

_LAYOUTS = ("torch", "timm", "tf1")  # Linear layers in the attention, 1x1 convolutions, TensorFlow's axes
_VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {  # of the attentions that no row of `MODELS` has
    "none": ({},),
    "se": ({}, {"se_bias": False}, {"hidden_rule": "multiple_of_8"}),
    "eca": ({},),
    "sk": ({},),
    "cbam": ({}, {"cbam_mlp_bias": False}, {"cbam_mlp_bias": False, "cbam_bn": False}),
}
_MOST_DIFFERENCES = 4  # a network differs in at most a quarter of its tensors
_LETTERS = "sbnmklpqrt"  # ours have at most four numbers
_NUMBER = re.compile(r"\d+")

Modules = dict[str, dict[str, tuple[int, ...]]]  # module -> leaf -> shape


class Pair(NamedTuple):
    """A proposed pair of patterns."""

    theirs: str
    ours: str
    certain: bool


class Proposal(NamedTuple):
    """Pairs of names for a network, and the tensors of both sides that are left."""

    spec: Spec
    pairs: list[Pair]
    unmatched: list[str]
    missing: list[str]

    def lines(self) -> Iterator[str]:
        """The text of a file of names."""
        yield f"# {describe(self.spec)}, by the shapes of the tensors"
        for certain, title in ((True, "certain by their shapes"), (False, "by their order only: check them")):
            if pairs := [pair for pair in self.pairs if pair.certain is certain]:
                yield f"# {title}" + ("" if certain else ", then remove '#? '")
                yield from (f"{'' if certain else '#? '}{theirs} = {ours}" for theirs, ours, _ in pairs)
        yield from (f"# not in the network: {one_line(name)}" for name in self.unmatched)
        yield from (f"# not in the file: {name}" for name in self.missing)


def propose(listing: Listing, model: str | None = None) -> Proposal:
    """Pairs of names for the tensors of a file.

    Raises:
        MismatchError: the shapes match no known network.
    """
    shapes = _shapes(listing)
    found = min(
        (
            (_distance(shapes, _expected(spec, layout)), spec, layout)
            for spec, layout in _networks(listing, shapes, model)
        ),
        key=lambda item: item[0],
        default=None,
    )
    if found is None or _MOST_DIFFERENCES * found[0] > len(shapes):
        nearest = f"; the nearest is {describe(found[1])}, {found[0]} shapes differ" if found else ""
        raise MismatchError(
            f"{listing.reader.path}: its shapes match no known network{nearest}; expected --model NAME of a "
            "network that this project has (weights-convert list models)"
        )
    _, spec, layout = found
    shapes = {listing.files[name]: shape for name, shape in shapes.items()}
    return _paired(spec, _modules(shapes), _modules(_expected(spec, layout)))


def _shapes(listing: Listing) -> dict[str, tuple[int, ...]]:
    """Name as read -> shape, without counts; sorted by their numbers if the file sorts its names."""
    names = [name for name in listing.files if not is_count(name)]
    if names == sorted(names):
        names.sort(key=lambda name: [int(p) if p.isdecimal() else p for p in re.split(r"(\d{1,9})", name)])
    return {name: listing.reader.tensors[listing.files[name]].shape for name in names}


def _networks(listing: Listing, shapes: Shapes, model: str | None) -> Iterator[tuple[Spec, Layout]]:
    """The networks that a file of these shapes may hold, with the layouts of its names."""
    rows: list[tuple[Any, Sequence[str]]] = []
    start = next(iter(places(listing, _layout("torch"))), "")
    below = {name.removeprefix(start): shape for name, shape in shapes.items() if name.startswith(start)}
    known = infer({name: shape for name, shape in below.items() if like(name)})
    if model is None and known is not None and known.spec.network:  # a part of the names is known
        rows.append((known.spec, tuple(_VARIANTS)))
    for row in map(model_spec, [model] if model else MODELS):
        rows.append((row, (row.attention,)))
    matrices = {shape for shape in shapes.values() if len(shape) == 2 and shape[0] and shape[1]}
    hidden = reduction({(c, h) for h, c in matrices if h < c and (c, h) in matrices})
    for layout, (row, attentions) in itertools.product(map(_layout, _LAYOUTS), rows):
        sizes = _sizes(shapes, row, layout)
        for attention in attentions:
            for variant in _VARIANTS[attention]:
                yield changed(row, sizes | hidden | {"attention": attention} | variant), layout


def _layout(name: str) -> Layout:
    return FAMILIES[name].layouts(())[0][1]


def _sizes(shapes: Shapes, spec: Any, layout: Layout) -> dict[str, int]:
    """The input channels and the classes that the first kernel and the last matrix of a file show."""
    first, last = (2, 1) if layout.tensorflow_axes else (1, 0)
    kernels = [shape for shape in shapes.values() if len(shape) == 4]
    weight = next(p for p in parameters(changed(spec, {"num_classes": 1})) if p.name == f"{spec.head}.weight")
    heads = [s for s in shapes.values() if len(s) == 2 and s[1 - last] == weight.shape[1]]
    sizes = {"in_channels": kernels[0][first]} if kernels and kernels[0][first] else {}
    return sizes | {"num_classes": heads[-1][last] if heads else 0}


def _expected(spec: Spec, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Name in such files -> shape, without counts."""
    names = layout.names(spec)
    return {
        name: layout.stored(parameter).shape(parameter.shape)
        for parameter in parameters(spec)
        if (name := names[parameter.name]) and not is_count(parameter.name)
    }


def _distance(shapes: Shapes, expected: Shapes) -> int:
    ours, theirs = Counter(expected.values()), Counter(shapes.values())
    return (ours - theirs).total() + (theirs - ours).total()


# --------------------------------------------------------------------------------------------------
# Modules of equal shapes, in order


def _modules(shapes: Shapes) -> Modules:
    modules: Modules = {}
    for name, shape in shapes.items():
        at = max(name.rfind("."), name.rfind("/"))
        if at > 0:
            modules.setdefault(name[:at], {})[name[at + 1 :].removesuffix(":0")] = shape
    return modules


def _paired(spec: Spec, theirs: Modules, ours: Modules) -> Proposal:
    same = {module for module, leaves in theirs.items() if ours.get(module) == leaves}
    groups: dict[Any, tuple[list[str], list[str]]] = {}
    for number, modules in enumerate((theirs, ours)):
        for module, leaves in modules.items():
            if module not in same:
                groups.setdefault(frozenset(leaves.items()), ([], []))[number].append(module)
    pairs = [pair for a, b in groups.values() for pair in zip(a, b, strict=False)]
    matched = {name for pair in pairs for name in pair}
    kinds: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for pair in pairs:
        kinds.setdefault((_kind(pair[0]), _kind(pair[1])), []).append(pair)
    patterns = [pattern for kind in kinds.values() for pattern in _patterns(kind)]
    certain = _certain([of for _, of in patterns], list(groups.values()))
    return Proposal(
        spec,
        [Pair(*pattern, certain=of in certain) for pattern, of in patterns],
        [name for name in theirs if name not in matched | same],
        [name for name in ours if name not in matched | same],
    )


def _certain(patterns: list[list[tuple[str, str]]], groups: list[tuple[list[str], list[str]]]) -> list[Any]:
    """The patterns with a pair whose shapes no other kind of module has, but those of such patterns."""
    certain: list[list[tuple[str, str]]] = []
    while True:
        done = {name for pairs in certain for pair in pairs for name in pair}
        left = [tuple([n for n in names if n not in done] for names in group) for group in groups]
        alone = {
            pair
            for theirs, ours in left
            if len(theirs) == len(ours) and all(len({*map(_kind, names)}) == 1 for names in (theirs, ours))
            for pair in zip(theirs, ours, strict=True)
        }
        more = [pairs for pairs in patterns if pairs not in certain and not alone.isdisjoint(pairs)]
        if not more:
            return certain
        certain += more


def _kind(module: str) -> str:
    """A module without the numbers of its parents: `layer#.#.conv1`."""
    at = max(module.rfind("."), module.rfind("/")) + 1
    return skeleton(module[:at]) + module[at:]


def _patterns(pairs: list[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], list[tuple[str, str]]]]:
    """Patterns for pairs that differ only in numbers, each with its pairs."""
    numbers = [([*map(int, _NUMBER.findall(a))], [*map(int, _NUMBER.findall(b))]) for a, b in pairs]
    if (shifts := _shifts(numbers)) is not None:
        yield _pattern(pairs[0], shifts), pairs
        return
    # one of their numbers selects among ours: a pattern for each of its values
    slots = [slot for slot in range(len(numbers[0][0])) if len({a[slot] for a, _ in numbers}) > 1]
    if not slots:
        yield from ((pair, [pair]) for pair in pairs)
        return
    slot = min(slots, key=lambda slot: (len({a[slot] for a, _ in numbers}), -slot))
    parts: dict[int, list[tuple[str, str]]] = {}
    for pair, (a, _) in zip(pairs, numbers, strict=True):
        parts.setdefault(a[slot], []).append(pair)
    for part in parts.values():
        yield from _patterns(part)


def _shifts(numbers: list[tuple[list[int], list[int]]]) -> dict[int, tuple[int, int]] | None:
    """Slot of our numbers -> slot of theirs, and how many more theirs is; None if some are unexplained."""
    theirs = range(len(numbers[0][0]))
    found: dict[int, tuple[int, int]] = {}
    for ours in range(len(numbers[0][1])):
        if len({b[ours] for _, b in numbers}) == 1:
            continue
        free = [slot for slot in theirs if slot not in dict(found.values())]
        fitting = [
            (slot, numbers[0][0][slot] - numbers[0][1][ours])
            for slot in free
            if len({a[slot] - b[ours] for a, b in numbers}) == 1
        ]
        if not fitting:
            return None
        found[ours] = fitting[0]
    explained = dict(found.values())
    varying = [slot for slot in theirs if len({a[slot] for a, _ in numbers}) > 1]
    return found if all(slot in explained for slot in varying) else None


def _pattern(pair: tuple[str, str], shifts: dict[int, tuple[int, int]]) -> tuple[str, str]:
    """The pair with letters for the numbers that vary."""
    of_ours = dict(zip(shifts, _LETTERS, strict=False))
    of_theirs = {slot: (of_ours[ours], more) for ours, (slot, more) in shifts.items()}

    def places(text: str, letter_of: dict[int, tuple[str, int]]) -> str:
        count = itertools.count()

        def place(match: re.Match[str]) -> str:
            letter, more = letter_of.get(next(count), ("", 0))
            return f"{{{letter}{f'+{more}' if more > 0 else ''}}}" if letter else match[0]

        return _NUMBER.sub(place, text)

    return (
        places(pair[0], of_theirs),
        places(pair[1], {ours: (of_ours[ours], -more) for ours, (_, more) in shifts.items()}),
    )
