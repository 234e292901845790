"""Finds the network in a file and the family of its names, from names and shapes alone.

Every family interprets the file's names. Families whose tensors match by name and shape are candidates.
Candidates with the same tensors and the same spec count as one. If the numbers would differ, the user has to
choose, and the error lists the choices.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weights_convert.errors import MismatchError, SourceError, SpecError, nearest
from weights_convert.families import FAMILIES
from weights_convert.families.base import Case, Family
from weights_convert.formats.base import Reader, one_line
from weights_convert.identify import attention, resnet
from weights_convert.identify.misfits import do_not_fit, title
from weights_convert.identify.reading import Listing, Reading
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
            raise do_not_fit(f"{reader.path}: its tensors", whose, self.refusal + lines)


def identify(
    reader: Reader,
    *,
    model: str | None = None,
    settings: Mapping[str, Any] | None = None,
    family: str | None = None,
    scope: str | None = None,
) -> Candidate:
    """The network in the file.

    Args:
        model: NAME, an architecture of `spec.MODELS`, or FAMILY:NAME, a name used by the family.
        settings: known keywords of the spec.
        family: the naming of the tensors.
        scope: the variable scope of the network in a TF1 checkpoint.

    Raises:
        MismatchError: the tensors match no family, or several families that compute different numbers.
    """
    label = spelled = None
    if model is not None and ":" in model:
        family, _, label = model.partition(":")
        model = None
        spelled = find_family(family).spelled(label)
        if spelled is not None:
            settings = {**spelled, **(settings or {})}
    families = [find_family(family)] if family is not None else list(FAMILIES.values())
    listing = Listing(reader, scope)
    read = [reading for f in families for reading in listing.readings(f)]
    if not read and scope is not None:
        raise _no_scope(reader, scope)
    close = [r for r in read if 2 * len(r.extra) <= len(r.extra) + len(r.names) and r.names]
    pairs = _inferred(reader, close) or _of_rows(listing, families)
    named = model is not None or label is not None
    found = [c for r, i in pairs for c in _candidates(reader, r, i, model, dict(settings or {}), named)]
    if not found:
        raise _unknown(reader, read, family)
    fitting = [c for c in found if not c.misfits]
    if label is not None and spelled is None:
        fitting = [c for c in fitting if c.label == label] or _no_such(reader, family, label, found)
    if not fitting:
        min(found, key=lambda c: len(c.misfits)).check(reader)
    return _one_answer(reader, fitting)


def declared(
    reader: Reader, spec: Spec, assumed: tuple[str, ...], family: str | None, scope: str | None
) -> Candidate:
    """The network named by the file's metadata, with every tensor checked against it.

    Raises:
        MismatchError: the tensors do not match that network.
    """
    families = [find_family(family)] if family else list(FAMILIES.values())
    listing = Listing(reader, scope)
    read = [r for f in families if spec.kind in f.kinds and (r := listing.read_for(f, spec))]
    best = max(read, key=lambda r: len(r.names), default=None)
    if best is not None and reader.said("part", bool):  # a functional model may have layers of its own too
        others = {name: f"another layer's {shape}" for name, shape in best.extra.items()}
        best.left_out, best.extra = best.left_out | others, {}
    if best is None and scope is not None:
        raise _no_scope(reader, scope)
    if best is None or 2 * len(best.extra) > len(reader.tensors):
        raise _unknown(reader, read, family)
    _one_scope(reader, best)
    candidate = Candidate(best, spec, assumed, {}, None, best.misfits(reader, spec))
    candidate.check(reader)
    return candidate


def part_of(reader: Reader, spec: Spec, scope: str | None) -> Spec:
    """The network that a functional Keras model holds, made of the first layers of the network `spec`.

    Raises:
        SourceError: it ends too early to be a network.
    """
    listing = Listing(reader, scope)
    read = [listing.read_for(family, spec) for family in FAMILIES.values() if family.own]
    try:
        return spec.part(max((list(reading.names) for reading in read if reading), key=len, default=[]))
    except SpecError as error:
        raise SourceError(f"{reader.path}: holds {error}") from None


def find_family(name: str) -> Family:
    if name not in FAMILIES:
        raise SpecError(f"there is no family {name!r}{nearest(name, FAMILIES)}; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def _no_scope(reader: Reader, scope: str) -> SourceError:
    first = dict.fromkeys(name.partition("/")[0] for name in reader.tensors)
    known = one_line(", ".join(itertools.islice(first, 6)))
    return SourceError(
        f"{reader.path}: has no scope {scope!r}{nearest(scope, first)}; its names begin with {known}"
    )


# --------------------------------------------------------------------------------------------------
# Candidates


def _inferred(reader: Reader, close: Sequence[Reading]) -> list[tuple[Reading, Inferred]]:
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


def _of_rows(listing: Listing, families: Sequence[Family]) -> list[tuple[Reading, Inferred]]:
    """Each family's reading for the best-matching named network, if it has most of the names."""
    reader = listing.reader
    found = []
    for family in families:
        kinds = {*family.kinds} - {*INFERENCES}
        rows = [model_spec(name) for name, row in MODELS.items() if row.kind.kind in kinds]
        whole = [(listing.read_for(family, spec), spec) for spec in rows]
        read = [(r, _with_sizes(reader, r, spec)) for r, spec in whole if r is not None]
        if read:
            reading, spec = min(read, key=lambda pair: len(pair[0].misfits(reader, pair[1], hints=False)))
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


def _candidates(
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
        sizes = {k: v for k, v in base.model_kwargs().items() if k in ("num_classes", "in_channels")}
        base = model_spec(model, **sizes)
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


def _one_answer(reader: Reader, fitting: list[Candidate]) -> Candidate:
    """The candidate that all others agree with; otherwise an error that lists the choices."""
    first, *others = fitting
    for other in others:
        if (other.spec, other.reading.names) != (first.spec, first.reading.names):
            raise _ambiguous(reader, fitting)
        if other.family is not first.family:
            first.same_as.append(other.family)
    _one_scope(reader, first.reading)
    return first


def _one_scope(reader: Reader, reading: Reading) -> None:
    if reading.scopes:
        raise several_networks(reader, reading.scopes)


def several_networks(reader: Reader, scopes: Sequence[str]) -> SourceError:
    return SourceError(f"{reader.path}: holds several networks, choose one with --scope", list(scopes))


def _ambiguous(reader: Reader, fitting: list[Candidate]) -> MismatchError:
    specs = [c.spec for c in fitting]
    keywords = [k for k in vars(specs[0]) if len({getattr(spec, k, None) for spec in specs}) > 1]
    lines = []
    for candidate in fitting:
        values = " ".join(f"--set {k}={getattr(candidate.spec, k)}" for k in keywords)
        option = f"--model {candidate.family.name}:{candidate.label}" if candidate.label else values
        lines.append(f"{option}  ({values})" if candidate.label else option)
    return MismatchError(
        f"{reader.path}: its names and shapes match {len(fitting)} networks that compute different "
        "numbers; choose one:",
        lines,
    )


def _no_such(reader: Reader, family: str | None, label: str, found: list[Candidate]) -> list[Candidate]:
    labels = list(dict.fromkeys(c.label for c in found if c.label))
    raise MismatchError(
        f"{reader.path}: is not {family}:{label}{nearest(label, labels)}; "
        f"its tensors match {', '.join(f'{family}:{name}' for name in labels) or 'no named model'}"
    )


def _unknown(reader: Reader, readings: list[Reading], family: str | None) -> MismatchError:
    """The error if no layout knows half of the names: it shows the nearest layout and some unknown names."""
    count = len(reader.tensors)
    whose = f"do not match {family}" if family else "match no known family"
    best = max(readings, key=lambda r: sum(map(r.layout.knows, _inside(r))), default=None)
    unknown = list(reader.tensors)
    hint = ""
    if best is not None:
        known = {best.prefix + name for name in _inside(best) if best.layout.knows(name)}
        unknown = [name for name in reader.tensors if name not in known] or unknown
        hint = f"; the nearest is {best.family.name!r}, which knows {len(known)}"
    shown = [f"{name} {reader.tensors[name].shape}" for name in unknown[:8]]
    return MismatchError(
        f"{reader.path}: the names of its {count} tensors {whose}{hint}; for example:", shown
    )


def _inside(reading: Reading) -> list[str]:
    names = itertools.chain(reading.extra, *reading.names.values())
    return [name.removeprefix(reading.prefix) for name in names]
