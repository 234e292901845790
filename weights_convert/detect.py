"""Detects the origin and the network of a checkpoint from names and shapes alone.

Every family interprets the file's names. Families whose tensors match by name and shape are candidates.
Candidates with the same tensors and the same spec count as one. If the numbers would differ, the user has to
choose, and the error lists the choices.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from weights_convert.checkpoint import changed, do_not_fit, misfits, title
from weights_convert.errors import MismatchError, SourceError, SpecError, nearest
from weights_convert.families import FAMILIES
from weights_convert.families.base import Case, Family, skeleton
from weights_convert.formats.base import Reader, TensorInfo, one_line
from weights_convert.layouts import Layout
from weights_convert.recognise import infer
from weights_convert.spec import ResNetSpec, Spec, model_spec, variant_of

# DataParallel, torch.compile, and the attributes under which training code keeps the network
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
_MOST_WRAPPERS = 10  # nested


@dataclass
class Reading:
    """A file's names as interpreted by one layout, before the network is known."""

    family: Family
    layout: Layout
    values: Mapping[str, Any]  # of the spec, by the variant of the names
    prefix: str = ""
    scopes: list[str] = field(default_factory=list)  # of several networks
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)  # canonical -> in the file
    extra: dict[str, tuple[int, ...]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def infos(self, reader: Reader) -> dict[str, TensorInfo]:
        """Canonical name -> shape in the file, and dtype."""
        return {canonical: self._info(reader, canonical) for canonical in self.names}

    def info(self, reader: Reader, canonical: str) -> TensorInfo:
        """Canonical shape, and dtype."""
        shape, dtype = self._info(reader, canonical)
        return TensorInfo(self.layout.canonical_shape(canonical, shape), dtype)

    def _info(self, reader: Reader, canonical: str) -> TensorInfo:
        parts = [reader.tensors[name] for name in self.names[canonical]]
        shape = parts[0].shape
        if len(parts) > 1:  # side by side along the last axis
            shape = (*shape[:-1], sum(part.shape[-1] for part in parts if part.shape))
            if any(part.shape[:-1] != shape[:-1] for part in parts):
                shape = ()
        return TensorInfo(shape, parts[0].dtype)

    def misfits(self, reader: Reader, spec: Spec, hints: bool = True) -> list[str]:
        return misfits(spec, self.infos(reader), self.extra, self.layout, self.prefix, self.names, hints)


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


def detect(
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
    label = None
    if model is not None and ":" in model:
        family, _, label = model.partition(":")
        model = None
    families = [find_family(family)] if family is not None else list(FAMILIES.values())
    readings = [reading for f in families for reading in read(reader, f, scope)]
    if not readings and scope is not None:
        raise _no_scope(reader, scope)
    close = [r for r in readings if 2 * len(r.extra) <= len(r.extra) + len(r.names) and r.names]
    found = [c for r in close for c in _candidates(reader, r, model, dict(settings or {}))]
    if not found:
        raise _unknown(reader, readings, family)
    fitting = [c for c in found if not c.misfits]
    if label is not None:
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
    readings = [r for f in families if (r := read_as(reader, f, f.layout_of(spec), {}, scope))]
    best = max(readings, key=lambda r: len(r.names), default=None)
    if best is None and scope is not None:
        raise _no_scope(reader, scope)
    if best is None or 2 * len(best.extra) > len(reader.tensors):
        raise _unknown(reader, readings, family)
    _one_scope(reader, best)
    candidate = Candidate(best, spec, assumed, {}, None, best.misfits(reader, spec))
    candidate.check(reader)
    return candidate


def find_family(name: str) -> Family:
    if name not in FAMILIES:
        raise SpecError(f"there is no family {name!r}{nearest(name, FAMILIES)}; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def read(reader: Reader, family: Family, scope: str | None) -> list[Reading]:
    """All interpretations of the file's names by a family."""
    _, layout = family.layouts(())[0]
    prefix, _ = _prefix(reader, layout, scope)
    if prefix is None:
        return []
    modules = {re.sub(r"[./][^./]*$", "", name.removeprefix(prefix)) for name in reader.tensors}
    readings = [read_as(reader, family, layout, values, scope) for values, layout in family.layouts(modules)]
    return [reading for reading in readings if reading is not None]


def read_as(
    reader: Reader, family: Family, layout: Layout, values: Mapping[str, Any], scope: str | None
) -> Reading | None:
    """The file's names interpreted by one layout; None if it knows hardly any of them."""
    reading = Reading(family, layout, values)
    prefix, reading.scopes = _prefix(reader, layout, scope)
    if prefix is None:
        return None
    reading.prefix = prefix
    inside: dict[str, tuple[int, ...]] = {}
    for name, info in reader.tensors.items():
        known = next((what for pattern, what in layout.bookkeeping if pattern.fullmatch(name)), None)
        if known:
            reading.left_out[name] = f"{known} {info.shape}"
        elif not name.startswith(prefix):
            reading.left_out[name] = f"outside the prefix {prefix!r}"
        else:
            inside[name.removeprefix(prefix)] = info.shape
    # one of several names that differ only in numbers shows whether the layout knows them
    kinds = Counter(map(skeleton, inside))
    examples = {skeleton(name): name for name in inside}
    if 2 * sum(n for kind, n in kinds.items() if layout.knows(examples[kind])) < len(inside):
        reading.extra = {prefix + name: shape for name, shape in inside.items()}
        return reading if any(layout.knows(name) for name in examples.values()) else None
    assigned = layout.assign(inside)
    reading.names = {c: tuple(prefix + name for name in names) for c, names in assigned.items()}
    used = {name for names in assigned.values() for name in names}
    reading.extra = {prefix + name: shape for name, shape in inside.items() if name not in used}
    return reading


def _no_scope(reader: Reader, scope: str) -> SourceError:
    first = dict.fromkeys(name.partition("/")[0] for name in reader.tensors)
    known = one_line(", ".join(itertools.islice(first, 6)))
    return SourceError(
        f"{reader.path}: has no scope {scope!r}{nearest(scope, first)}; its names begin with {known}"
    )


def _prefix(reader: Reader, layout: Layout, scope: str | None) -> tuple[str | None, list[str]]:
    """The prefix of every name (a wrapper's `module.`, or the TF1 scope), and all scopes of the file.

    The prefix is None if the requested scope does not exist.
    """
    # entries of an optimiser or an average lie outside the wrapper
    names = [n for n in reader.tensors if not any(p.fullmatch(n) for p, _ in layout.bookkeeping)]
    if not layout.scoped:
        prefix = ""
        for _ in range(_MOST_WRAPPERS if names else 0):
            prefix += next((w for w in _WRAPPERS if all(n.startswith(prefix + w) for n in names)), "")
        return ("" if layout.tensorflow_axes else prefix), []
    scope = scope if scope is not None else reader.said("scope", str)
    if scope is not None:
        prefix = f"{scope.rstrip('/')}/" if scope else ""
        return (prefix if any(name.startswith(prefix) for name in names) else None), []
    for mark in layout.marks:
        found = {match[1] for name in names if (match := re.fullmatch(rf"(|.*/){mark}", name))}
        outer: list[str] = []
        for scope in sorted(found):  # a scope sorts before the scopes that begin with it
            if not outer or not scope.startswith(outer[-1]):
                outer.append(scope)
        if outer:
            return outer[0], outer if len(outer) > 1 else []
    return "", []


def _candidates(
    reader: Reader, reading: Reading, model: str | None, settings: dict[str, Any]
) -> list[Candidate]:
    """The networks that match a reading: one, or alternatives for the user to choose."""
    family = reading.family
    found = infer({name: reading.info(reader, name).shape for name in reading.names})
    if found is None or found.spec.attention not in family.attentions:
        return []
    network = isinstance(found.spec, ResNetSpec)
    if family.block is not None and network == family.block:
        return []
    base: Any = found.spec
    if model is not None:
        base = model_spec(
            model, **({"num_classes": base.num_classes, "in_channels": base.in_channels} if network else {})
        )
    if network:
        base = changed(base, reading.values)
    name = variant_of(base)[0]
    candidates = []
    for alternative in _alternatives(family, base, settings):
        implied = family.implied(base, alternative)
        spec = changed(base, implied | settings)
        # a family implies all keywords that no shape shows; our own layouts imply none
        unsaid = model is None and family.own is not None
        assumed = tuple(k for k in found.assumed if k not in settings) if unsaid else ()
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
        raise SourceError(f"{reader.path}: holds several networks, choose one with --scope", reading.scopes)


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
