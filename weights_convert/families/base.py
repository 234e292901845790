"""A family: the tensor names of one project's checkpoints, and the keywords that its networks imply.

Each family is a data file beside this one. `names` pairs module paths in its files with canonical ones
(`names.py`). Equal names do not mean equal numbers: `implies` and `cases` hold the keywords of the family's
networks.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from weights_convert.families.counted import CountedLayers
from weights_convert.families.names import Names
from weights_convert.layouts import TORCH_BOOKKEEPING, Layout
from weights_convert.spec import Spec

Pattern = tuple[re.Pattern[str], str]  # a name that is not a weight, and its description


@dataclass(frozen=True)
class Preprocessing:
    """Input of a trained network: (pixel - mean) / std, pixels from 0 to `top`.

    Of images that are resized so that a crop of `size` is the part `crop` of the shorter side.
    """

    channels: str = "RGB"
    top: int = 1
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    classes: str = "the sorted synsets"
    size: int | None = None
    crop: float | None = None
    interpolation: str | None = None

    def __str__(self) -> str:
        scale = "" if set(self.std) == {1.0} else f", divided by {self.std}"
        images = ", ".join(
            text
            for text in (
                f"{self.size} x {self.size}" if self.size else "",
                f"{self.crop:g} of the shorter side" if self.crop else "",
                self.interpolation or "",
            )
            if text
        )
        what = f"{self.channels} from 0 to {self.top}, minus {self.mean}{scale}"
        return f"{what}{f'; images: {images}' if images else ''}; classes: {self.classes}"


IMAGENET = Preprocessing()
CAFFE = Preprocessing("BGR", 255, (104.0, 117.0, 123.0), (1.0, 1.0, 1.0), "ILSVRC2017's order (Caffe's)")


@dataclass(frozen=True)
class Case:
    """Keywords that a family's networks imply under a condition.

    Attributes:
        when: the condition: keyword -> value or tuple of possible values.
        implies: keyword -> implied value.
        suffix: of the model's name in that family, if names and shapes alone do not decide.
    """

    when: Mapping[str, Any]
    implies: Mapping[str, Any]
    suffix: str = ""

    def fits(self, spec: Spec) -> bool:
        return _has(spec, self.when)


@dataclass(frozen=True)
class Variant:
    """Other names for networks whose spec has these values; they replace the names of the same tensors."""

    when: Mapping[str, Any]
    names: Mapping[str, str]


def _has(spec: Spec, values: Mapping[str, Any]) -> bool:
    for keyword, value in values.items():
        if getattr(spec, keyword, None) not in (value if isinstance(value, tuple) else (value,)):
            return False
    return True


# Keywords of ResNet v1.5 that no shape shows; a family lists its differences.
V15: dict[str, Any] = {
    "norm": "bn",
    "stem_pool": "pad1",
    "strides": None,
    "dilations": None,
    "activation": "relu",
    "anti_aliasing": "none",
    "global_pool": "avg",
    "stride_in": "conv2",
    "downsample_pool": "none",
    "relu_before_attention": False,
    "bn_epsilon": 1e-5,
    "bn_momentum": 0.1,
    "dropout": 0.0,
}
# CBAM as in its authors' code.
CBAM: dict[str, Any] = {
    "cbam_mlp_bias": True,
    "cbam_order": "max_mean",
    "cbam_bn": True,
    "cbam_bn_momentum": 0.01,
    "cbam_spatial_bias": False,
    "cbam_spatial_input": "refined",
}

# Keywords that networks with torchvision's names vary: by its constructor, or by a changed copy of its code.
VARIES = ("stem_pool", "strides", "dilations", "activation", "global_pool", "stride_in", "bn_epsilon")
# The names of torchvision's ResNet, the basis of most projects.
TORCHVISION: dict[str, str] = {
    "conv1": "conv1",
    "bn1": "bn1",
    "layer{s}.{b}.conv{n}": "layer{s}.{b}.conv{n}",
    "layer{s}.{b}.bn{n}": "layer{s}.{b}.bn{n}",
    "layer{s}.{b}.downsample.0": "layer{s}.{b}.downsample.0",
    "layer{s}.{b}.downsample.1": "layer{s}.{b}.downsample.1",
    "fc": "fc",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """One project's checkpoints, as data.

    Attributes:
        name: on the command line.
        about: origin of the files, for the user.
        names: module path in a file -> canonical module path.
        variants: other names for some networks.
        leaves: other leaf names in a file of TensorFlow -> TensorFlow's, such as "biases" -> "bias".
        absent: as in `Layout`.
        separator, tensorflow: "." and PyTorch's leaf names and axes, or "/" and TensorFlow's.
        attentions: attentions of its networks.
        mlp_1x1: attentions whose MLP is stored as 1x1 convolutions, and "head" for such a classifier.
        implies: keyword -> value in all its networks; a value that shapes contradict is refused.
        cases: implied values of some of its networks.
        alternatives: networks that only the user can distinguish, with `--model FAMILY:NAME` or `--set`.
        creation_order: for names that only count layers (`conv2d_7`): the order within a block, or
            `AS_LISTED`; `names` then has the layers with names of their own.
        models: architectures of `spec.MODELS` with such names.
        feeds: input preprocessing of its networks; None if the project does not specify it.
        feeds_cases: other input preprocessing of networks with these spec values.
        labels: rules that turn names of `spec.MODELS` into the family's names.
        kinds: kinds of spec in its files.
        marks, bookkeeping: as in `Layout`.
        refused: spec values of known networks that this project cannot compute, and the reason.
        varies: keywords that change the output, that networks with these names vary, and that nothing in a
            file shows: they are assumed to be the implied ones.
        caution: another property of its networks that is assumed.
        spelled: the project's name of a network -> its keywords, or None.
        written: whether files can be written in this family.
    """

    name: str
    about: str
    names: Mapping[str, str] = field(default_factory=dict)
    variants: tuple[Variant, ...] = ()
    leaves: Mapping[str, str] = field(default_factory=dict)
    separator: str = "."
    attentions: tuple[str, ...]
    mlp_1x1: tuple[str, ...] = ()
    implies: Mapping[str, Any] = field(default_factory=dict)
    cases: tuple[Case, ...] = ()
    alternatives: tuple[Case, ...] = ()
    absent: tuple[str, ...] = ()
    creation_order: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    feeds: Preprocessing | None = None
    feeds_cases: tuple[tuple[Mapping[str, Any], Preprocessing], ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    kinds: tuple[str, ...] = ("resnet",)
    marks: tuple[str, ...] = ()
    bookkeeping: tuple[Pattern, ...] = ()
    refused: tuple[tuple[Mapping[str, Any], str], ...] = ()
    varies: tuple[str, ...] = ()
    caution: str = ""
    spelled: Callable[[str], Mapping[str, Any] | None] = lambda name: None  # noqa: ARG005
    written: bool = False
    own: Layout | None = None  # a layout of this project, given by rules instead of a table

    def implied(self, spec: Spec, alternative: Case | None = None) -> dict[str, Any]:
        """Keyword -> implied value, for the keywords that apply to this kind of network."""
        values = dict(self.implies)
        for variant in self.variants:
            if _has(spec, variant.when):
                values |= {k: v for k, v in variant.when.items() if not isinstance(v, tuple)}
        for case in (*self.cases, *([alternative] if alternative else [])):
            if case.fits(spec):
                values |= case.implies
        return {keyword: value for keyword, value in values.items() if spec.concerns(keyword)}

    def feeds_of(self, spec: Spec) -> Preprocessing | None:
        """The input preprocessing of a network."""
        return next((feeds for when, feeds in self.feeds_cases if _has(spec, when)), self.feeds)

    def choices(self, spec: Spec) -> list[Case | None]:
        """The alternatives for the user to choose from; [None] if there is no choice."""
        return [case for case in self.alternatives if case.fits(spec)] or [None]

    def refuses(self, spec: Spec) -> str:
        """The reason why a network of this family is unsupported, else ""."""
        return next((why for when, why in self.refused if _has(spec, when)), "")

    def label(self, name: str | None, alternative: Case | None) -> str | None:
        """The family's name of one of `spec.MODELS`."""
        if name is None:
            return None
        for ours, theirs in self.labels.items():
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
                break
        return name + (alternative.suffix if alternative else "")

    def layouts(self, modules: Collection[str]) -> list[tuple[Mapping[str, Any], Layout]]:
        """The possible layouts of a file with these module paths, each with its spec values."""
        if self.own is not None or self.creation_order:
            return [({}, self._layout(()))]
        seen = [variant for variant in self.variants if self._seen(variant, modules)]
        combinations = itertools.product(*[(False, True)] * len(seen))
        chosen = [tuple(self.variants.index(v) for v in itertools.compress(seen, on)) for on in combinations]
        return [(self._values(numbers), self._layout(numbers)) for numbers in chosen]

    def _seen(self, variant: Variant, modules: Collection[str]) -> bool:
        """Whether a file has paths that only this variant has."""
        own = self._names_of(self.variants.index(variant))
        return any(own.knows(module) for module in modules)

    @cache  # noqa: B019  (families are module constants)
    def _names_of(self, number: int) -> Names:
        """The names of one variant only."""
        names = self.variants[number].names
        return Names({f: c for f, c in names.items() if f not in self.names}, self.separator)

    def layout_of(self, spec: Spec) -> Layout:
        """The layout of a network's files."""
        return self._layout(tuple(i for i, variant in enumerate(self.variants) if _has(spec, variant.when)))

    def _values(self, numbers: tuple[int, ...]) -> dict[str, Any]:
        """The spec values of these variants."""
        when = [item for number in numbers for item in self.variants[number].when.items()]
        return {keyword: value for keyword, value in when if not isinstance(value, tuple)}

    @cache  # noqa: B019  (families are module constants)
    def _layout(self, numbers: tuple[int, ...]) -> Layout:
        """The layout with these variants of the names."""
        if self.own is not None:
            return self.own
        if self.creation_order:
            return CountedLayers(
                name=self.name,
                order=self.creation_order,
                models=self.models,
                named=self.names,
                bookkeeping=self.bookkeeping,
                absent=self.absent,
            )
        names = dict(self.names)
        for number in numbers:
            variant = self.variants[number]
            replaced = set(variant.names.values())
            names = {f: c for f, c in names.items() if c not in replaced} | dict(variant.names)
        rules = Names(names, self.separator, self.leaves)
        tensorflow = self.separator == "/"
        return Layout(
            name=self.name,
            rename=rules.rename,
            parse=rules.parse,
            part=rules.part,
            tensorflow_axes=tensorflow,
            mlp_1x1=self.mlp_1x1,
            bookkeeping=self.bookkeeping if tensorflow else TORCH_BOOKKEEPING + self.bookkeeping,
            scoped=bool(self.marks),
            marks=self.marks,
            absent=self.absent,
        )
