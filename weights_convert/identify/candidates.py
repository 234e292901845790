"""The networks that a file may hold: a family's reading of its names, and the network that shapes show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weights_convert.families.base import Case, Family
from weights_convert.formats.base import Reader
from weights_convert.identify import attention, resnet
from weights_convert.identify.misfits import do_not_fit, title
from weights_convert.identify.reading import Reading
from weights_convert.identify.votes import Inferred, Shapes, first_axes, inferred, most
from weights_convert.spec import KINDS, MODELS, Spec, changed, model_spec, parameters, variant_of

# Kinds with free sizes are inferred from the shapes; networks of the other kinds are the rows of `MODELS`.
INFERENCES: dict[str, Callable[[Shapes], Inferred | None]] = {
    "resnet": resnet.infer,
    "attention": attention.infer,
}


def infer(shapes: Shapes) -> Inferred | None:
    """The network or attention block of a free kind with these canonical names and shapes, or None."""
    return next((found for of_kind in INFERENCES.values() if (found := of_kind(shapes))), None)


@dataclass
class Candidate:
    """A network that the file may hold."""

    reading: Reading
    spec: Spec
    assumed: tuple[str, ...]
    implied: dict[str, Any]
    label: str | None  # its name in the family
    misfits: list[str]
    refusal: list[str] = field(default_factory=list)  # why this network of the family is unsupported
    same_as: list[Family] = field(default_factory=list)  # other families with the same result

    @property
    def family(self) -> Family:
        return self.reading.family

    def check(self, reader: Reader) -> None:
        """Raise `MismatchError` with a list of all mismatches, if any."""
        if self.misfits:
            whose = title(self.spec) if self.family.own else f"{self.family.name}'s {title(self.spec)}"
            lines = self.reading.misfits(reader, self.spec)  # again, with hints
            raise do_not_fit(f"{reader.path}: its tensors", whose, self.refusal + lines, names_of=reader.path)


def inferred_networks(reader: Reader, close: Sequence[Reading]) -> list[tuple[Reading, Inferred]]:
    """Each reading with the network of a free kind inferred from its shapes."""
    known: dict[tuple[str, frozenset[Any]], Inferred | None] = {}  # equal readings give equal results
    found = []
    for reading in close:
        for kind in reading.family.kinds:
            if kind not in INFERENCES:
                continue
            shapes = reading.shapes(reader, KINDS[kind].like)
            key = kind, frozenset(shapes.items())
            if key not in known:
                known[key] = INFERENCES[kind](shapes)
            if (network := known[key]) is not None:
                found.append((reading, network))
                break
    return found


def of_rows(
    families: Sequence[Family], reader: Reader, read: Callable[[Family, Spec], Iterable[Reading]]
) -> list[tuple[Reading, Inferred]]:
    """Each family's reading for the best-matching named network, if it has most of the names."""
    found = []
    for family in families:
        kinds = {*family.kinds} - {*INFERENCES}
        rows = [
            model_spec(name, **part)
            for name, row in MODELS.items()
            if row.kind.kind in kinds
            for part in row.kind.parts
        ]
        whole = [
            (reading, _with_sizes(reader, reading, spec)) for spec in rows for reading in read(family, spec)
        ]
        if whole:
            reading, spec = min(whole, key=lambda pair: len(pair[0].misfits(reader, pair[1], hints=False)))
            if 2 * len(reading.extra) <= len(reading.extra) + len(reading.names):
                found.append((reading, inferred(spec)))
    return found


def _with_sizes(reader: Reader, reading: Reading, spec: Spec) -> Spec:
    """A named network with the classes and input channels of the file."""
    of = {parameter.name: parameter for parameter in parameters(spec)}
    shapes = reading.shapes(reader, of.get)
    sizes = {}
    if classes := first_axes(shapes, (f"{spec.head}.bias", f"{spec.head}.weight")):
        sizes["num_classes"] = most(classes)
    elif not {f"{spec.head}.bias", f"{spec.head}.weight"} & shapes.keys():
        sizes["num_classes"] = 0
    kernel = shapes.get(next(iter(of)), ())
    if len(kernel) == 4 and kernel[1]:
        sizes["in_channels"] = kernel[1]
    return changed(spec, sizes)


def candidates_of(
    reader: Reader,
    reading: Reading,
    found: Inferred,
    model: str | None,
    settings: dict[str, Any],
    named: bool,
) -> list[Candidate]:
    """The networks that match a reading: one, or alternatives for the user to choose.

    Args:
        named: whether the user gave the network's name, so that nothing is assumed.
    """
    family = reading.family
    if found.spec.attention not in family.attentions:
        return []
    base: Any = found.spec
    if model is not None:
        kept = {"num_classes", "in_channels", *model_spec(model).parts[0]}
        base = model_spec(model, **{k: v for k, v in base.model_kwargs().items() if k in kept})
    if base.network:
        base = changed(base, reading.values)
    name = variant_of(base)[0]
    candidates = []
    for alternative in _alternatives(family, base, settings):
        implied = family.implied(base, alternative)
        spec = changed(base, implied | settings)
        unshown = inferred(spec).assumed  # a family implies most of them; our own layouts imply none
        open_ = unshown if family.own is not None else tuple(k for k in unshown if k in family.varies)
        assumed = () if named else tuple(k for k in open_ if k not in settings)
        refusal = [why] if (why := family.refuses(spec)) else []
        lines = refusal + reading.misfits(reader, spec, hints=False)
        label = family.label(name, alternative)
        candidates.append(Candidate(reading, spec, assumed, implied, label, lines, refusal))
    return candidates


def _alternatives(family: Family, spec: Spec, settings: Mapping[str, Any]) -> list[Case | None]:
    """The alternatives that agree with the user's settings; [None] if none is left."""
    choices = family.choices(spec)
    agreeing = [
        case for case in choices
        if case is None or all(settings.get(k, value) == value for k, value in case.implies.items())
    ]  # fmt: skip
    return agreeing or [None]
