"""A family: how one project names the tensors of its checkpoints, and what its networks do with them.

Each family is a file of data beside this one. `names` pairs the module paths in its files with the
canonical ones; a number in braces is carried over, `{b+1}` is one more in the file, and `{part}` numbers the
parts of a tensor that is kept in several:

    >>> rules = Names({"features.stage{s}.unit{b+1}.body.conv{n}.conv": "layer{s}.{b}.conv{n}"}, ".")
    >>> rules.parse("features.stage2.unit1.body.conv3.conv.weight")
    'layer2.0.conv3.weight'
    >>> rules.rename("layer2.0.conv3.weight")
    'features.stage2.unit1.body.conv3.conv.weight'

Equal names are not equal numbers: `implies` and `cases` say what the family's networks compute.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from weights_convert.families.counted import CountedLayers
from weights_convert.layouts import ROLES, TF_LEAVES, TORCH_BOOKKEEPING, Layout, role_of
from weights_convert.spec import ResNetSpec, Spec

Pattern = tuple[re.Pattern[str], str]  # a name that is no weight, and what it is


@dataclass(frozen=True)
class Preprocessing:
    """What a network was trained to be fed: (pixel - mean) / std, pixels from 0 to `top`."""

    channels: str = "RGB"
    top: int = 1
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    classes: str = "the sorted synsets"

    def __str__(self) -> str:
        scale = "" if set(self.std) == {1.0} else f", divided by {self.std}"
        return f"{self.channels} from 0 to {self.top}, minus {self.mean}{scale}; classes: {self.classes}"


IMAGENET = Preprocessing()
CAFFE = Preprocessing("BGR", 255, (104.0, 117.0, 123.0), (1.0, 1.0, 1.0), "ILSVRC2017's order (Caffe's)")


@dataclass(frozen=True)
class Case:
    """What a family's networks do where their spec has these values.

    Attributes:
        when: keyword -> its value, or a tuple of values of which it has one.
        implies: keyword -> the value it then has.
        suffix: of the model's name in that family, where names and shapes alone do not decide.
    """

    when: Mapping[str, Any]
    implies: Mapping[str, Any]
    suffix: str = ""

    def fits(self, spec: Spec) -> bool:
        return _has(spec, self.when)


@dataclass(frozen=True)
class Variant:
    """Other names, for networks whose spec has these values; they replace those of the same tensors."""

    when: Mapping[str, Any]
    names: Mapping[str, str]


def _has(spec: Spec, values: Mapping[str, Any]) -> bool:
    for keyword, value in values.items():
        if getattr(spec, keyword, None) not in (value if isinstance(value, tuple) else (value,)):
            return False
    return True


# What ResNet v1.5 computes and no shape shows; a family says where it differs.
V15: dict[str, Any] = {
    "norm": "bn",
    "stem_pool": "pad1",
    "stride_in": "conv2",
    "downsample_pool": "none",
    "relu_before_attention": False,
    "bn_epsilon": 1e-5,
    "bn_momentum": 0.1,
    "dropout": 0.0,
}
# CBAM as its authors' code has it.
CBAM: dict[str, Any] = {
    "cbam_mlp_bias": True,
    "cbam_order": "max_mean",
    "cbam_bn": True,
    "cbam_bn_momentum": 0.01,
    "cbam_spatial_bias": False,
    "cbam_spatial_input": "refined",
}

# The names of torchvision's ResNet, which most projects start from.
TORCHVISION: dict[str, str] = {
    "conv1": "conv1",
    "bn1": "bn1",
    "layer{s}.{b}.conv{n}": "layer{s}.{b}.conv{n}",
    "layer{s}.{b}.bn{n}": "layer{s}.{b}.bn{n}",
    "layer{s}.{b}.downsample.0": "layer{s}.{b}.downsample.0",
    "layer{s}.{b}.downsample.1": "layer{s}.{b}.downsample.1",
    "fc": "fc",
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One project's checkpoints, as data.

    Attributes:
        name: how the command line calls it.
        about: whose files these are, for people.
        names: module path in a file -> canonical module path.
        variants: names for the networks that have others.
        separator, tensorflow: "." and PyTorch's leaf names and axes, or "/" and TensorFlow's.
        attentions: those that its networks may have.
        mlp_1x1: the attentions whose MLP is kept as 1x1 convolutions.
        implies: keyword -> value in all its networks; a value that shapes contradict is refused.
        cases: what holds for some of its networks only.
        alternatives: what only the user can tell apart, by `--model FAMILY:NAME` or `--set`.
        creation_order: for names that only count layers (`conv2d_7`): the order within a block.
        models: the architectures of `spec.MODELS` that such names may be of.
        feeds: what its networks were trained to be fed; None where the project does not say.
        labels: how the names of `spec.MODELS` are changed into the family's own.
        block: whether the files hold lone attention blocks; None for either.
        marks, bookkeeping: as in `Layout`.
        refused: spec values of networks that are known and compute what this project does not, and why.
        caution: what names and shapes cannot show, for people.
        written: whether files can be written in it.
    """

    name: str
    about: str
    names: Mapping[str, str] = field(default_factory=dict)
    variants: tuple[Variant, ...] = ()
    separator: str = "."
    attentions: tuple[str, ...]
    mlp_1x1: tuple[str, ...] = ()
    implies: Mapping[str, Any] = field(default_factory=dict)
    cases: tuple[Case, ...] = ()
    alternatives: tuple[Case, ...] = ()
    creation_order: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    feeds: Preprocessing | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    block: bool | None = False
    marks: tuple[str, ...] = ()
    bookkeeping: tuple[Pattern, ...] = ()
    refused: tuple[tuple[Mapping[str, Any], str], ...] = ()
    caution: str = ""
    written: bool = False
    own: Layout | None = None  # one of this project's, which a rule gives and not a table

    def implied(self, spec: Spec, alternative: Case | None = None) -> dict[str, Any]:
        """Keyword -> value, for the keywords that say something about a network of this kind."""
        values = dict(self.implies)
        for variant in self.variants:
            if _has(spec, variant.when):
                values |= {k: v for k, v in variant.when.items() if not isinstance(v, tuple)}
        for case in (*self.cases, *([alternative] if alternative else [])):
            if case.fits(spec):
                values |= case.implies
        return {keyword: value for keyword, value in values.items() if concerns(keyword, spec)}

    def choices(self, spec: Spec) -> list[Case | None]:
        """The alternatives among which the user has to choose; [None] where there is nothing to choose."""
        return [case for case in self.alternatives if case.fits(spec)] or [None]

    def refuses(self, spec: Spec) -> str:
        """Why a network of this family cannot be had here; "" where it can."""
        return next((why for when, why in self.refused if _has(spec, when)), "")

    def label(self, name: str | None, alternative: Case | None) -> str | None:
        """The family's own name for one of `spec.MODELS`."""
        if name is None:
            return None
        for ours, theirs in self.labels.items():
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
                break
        return name + (alternative.suffix if alternative else "")

    def layouts(self, modules: Collection[str]) -> list[tuple[Mapping[str, Any], Layout]]:
        """The layouts by which a file with these module paths may be read, and the spec values each means."""
        if self.own is not None:
            return [({}, self.own)]
        if self.creation_order:
            return [
                (
                    {},
                    CountedLayers(
                        name=self.name,
                        order=self.creation_order,
                        models=self.models,
                        bookkeeping=self.bookkeeping,
                    ),
                )
            ]
        seen = [variant for variant in self.variants if self._seen(variant, modules)]
        combinations = itertools.product(*[(False, True)] * len(seen))
        return [self._layout(list(itertools.compress(seen, on))) for on in combinations]

    def _seen(self, variant: Variant, modules: Collection[str]) -> bool:
        """Whether a file has any of the paths that only this variant has."""
        own = Names({f: c for f, c in variant.names.items() if f not in self.names}, self.separator)
        return any(own.knows(module) for module in modules)

    def layout_of(self, spec: Spec) -> Layout:
        """The layout of the files of a network."""
        if self.own is not None or self.creation_order:
            return self.layouts(())[0][1]
        return self._layout([variant for variant in self.variants if _has(spec, variant.when)])[1]

    def _layout(self, on: list[Variant]) -> tuple[Mapping[str, Any], Layout]:
        names, values = dict(self.names), dict[str, Any]()
        for variant in on:
            replaced = set(variant.names.values())
            names = {f: c for f, c in names.items() if c not in replaced} | dict(variant.names)
            values |= {k: v for k, v in variant.when.items() if not isinstance(v, tuple)}
        rules = Names(names, self.separator)
        tensorflow = self.separator == "/"
        return values, Layout(
            name=self.name,
            rename=rules.rename,
            parse=rules.parse,
            part=rules.part,
            tensorflow_axes=tensorflow,
            mlp_1x1=self.mlp_1x1,
            bookkeeping=self.bookkeeping if tensorflow else TORCH_BOOKKEEPING,
            scoped=bool(self.marks),
            marks=self.marks,
        )


def concerns(keyword: str, spec: Spec) -> bool:
    """Whether a keyword says anything about this kind of network: `cbam_order` does about one with CBAM."""
    attention = keyword.partition("_")[0]
    if attention in ("se", "cbam", "eca"):
        return spec.attention == attention
    if keyword in ("reduction", "hidden_rule"):
        return spec.attention in ("se", "cbam")
    if keyword == "relu_before_attention":
        return spec.attention != "none"
    if keyword == "stem_pool":  # networks for small images have none
        return isinstance(spec, ResNetSpec) and spec.stem != "3x3"
    if keyword == "stride_in":
        return isinstance(spec, ResNetSpec) and spec.block == "bottleneck"
    return hasattr(spec, keyword)


# --------------------------------------------------------------------------------------------------
# Names


_PLACE = re.compile(r"\{(\w+)(?:\+1)?\}")  # {b}, or {b+1}: one more in the file


@lru_cache(maxsize=65536)
def skeleton(name: str) -> str:
    """A name with its numbers taken out, by which rules are looked up."""
    return re.sub(r"\d+", "#", name)


class Names:
    """Pairs of module paths, read in either direction; the first that fits counts."""

    def __init__(self, names: Mapping[str, str], separator: str):
        self.separator = separator
        self._from_file = _index((file, canonical) for file, canonical in names.items())
        self._to_file = _index((c, f) for f, c in names.items() if "{part}" not in f)

    def knows(self, module: str) -> bool:
        """Whether a module path of a file is among the names."""
        return _translate(self._from_file, module) is not None

    def parse(self, name: str) -> str | None:
        """The canonical name of a tensor in a file, or None."""
        path, _, leaf = name.removesuffix(":0").rpartition(self.separator)
        module = _translate(self._from_file, path)
        if self.separator == ".":
            canonical = f"{module}.{leaf}"
            return canonical if role_of(canonical) else None
        canonical = f"{module}.{TF_LEAVES.get(leaf)}"
        role = role_of(canonical)
        return canonical if role and ROLES[role].tf == leaf else None

    def part(self, name: str) -> int:
        """Which part of a tensor a name in a file is; 0 where it is the whole."""
        path = name.removesuffix(":0").rpartition(self.separator)[0]
        for pattern, _, _ in self._from_file.get(skeleton(path), ()):
            if match := re.fullmatch(pattern, path):
                return int(match.groupdict().get("part", 0))
        return 0

    def rename(self, canonical: str, spec: Spec | None = None) -> str | None:  # noqa: ARG002
        """The inverse of `parse`."""
        module, _, leaf = canonical.rpartition(".")
        file = _translate(self._to_file, module)
        if self.separator == "/":
            leaf = ROLES[role_of(canonical) or "count"].tf or ""
        return f"{file}{self.separator}{leaf}" if file and leaf else None


# kind of name -> (pattern, names of its numbers in the target, what is added to them)
Rules = dict[str, list[tuple[str, str, dict[str, int]]]]


def _index(pairs: Iterable[tuple[str, str]]) -> Rules:
    """Rules by the skeleton of the names they are for; patterns are compiled when they are first needed."""
    rules: Rules = {}
    for source, target in pairs:
        pattern = "".join(
            f"(?P<{part}>\\d{{1,9}})" if odd else re.escape(part)
            for part, odd in zip(_PLACE.split(source), itertools.cycle((False, True)), strict=False)
        )
        # in the file a number may be one more: what is added on the one side is taken off on the other
        shifts = dict.fromkeys(re.findall(r"\{(\w)\+1\}", target), +1)
        shifts |= dict.fromkeys(re.findall(r"\{(\w)\+1\}", source), -1)
        target = _PLACE.sub(lambda m: f"{{{m[1]}}}", target)
        rules.setdefault(skeleton(_PLACE.sub("0", source)), []).append((pattern, target, shifts))
    return rules


def _translate(rules: Rules, module: str) -> str | None:
    for pattern, target, shifts in rules.get(skeleton(module), ()):
        if match := re.fullmatch(pattern, module):
            numbers = {letter: int(n) + shifts.get(letter, 0) for letter, n in match.groupdict().items()}
            if min(numbers.values(), default=0) >= 0:
                return target.format(**numbers)
    return None
