"""`load`: a checkpoint of any container and layout as a `Checkpoint`.

container -> family names -> canonical: the reader lists the existing tensors, a layout parses their names,
the spec (from the file's metadata, from `model`, or inferred) lists the expected tensors, and every
difference between the two is reported.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from weights_convert.averages import list_averaged, mention_averages, take_averages
from weights_convert.cautions import caution_about
from weights_convert.checkpoint import (
    MAPPING_VERSION,
    Checkpoint,
    Tensor,
    in_memory,
)
from weights_convert.errors import MismatchError, SourceError, SpecError
from weights_convert.families.configs import Described, described
from weights_convert.formats import open_reader
from weights_convert.formats.base import Reader, TensorInfo, one_line
from weights_convert.formats.given import Given
from weights_convert.formats.masked import MaskedReader
from weights_convert.identify.candidates import Candidate
from weights_convert.identify.choice import (
    declared,
    head_as_read,
    identify,
    part_of,
    several_networks,
)
from weights_convert.identify.misfits import describe, do_not_fit, title
from weights_convert.identify.reading import Listing, Reading
from weights_convert.layouts import ABSENT
from weights_convert.limits import Limits
from weights_convert.mapping import OwnNames
from weights_convert.optimizer.reading import training_state
from weights_convert.source import Source
from weights_convert.spec import (
    COUNTS,
    KINDS,
    TRAINING_ONLY,
    Parameter,
    Spec,
    make_spec,
    parameters,
    spec_values,
)

_MOST_NAMED = 5  # tensors in a caution


def load(
    path: str | Path,
    *,
    model: str | None = None,
    settings: Mapping[str, Any] | None = None,
    family: str | None = None,
    key: str | None = None,
    scope: str | None = None,
    ema: bool = False,
    prefix: str | None = None,
    names: Mapping[str, str] | str | Path | None = None,
    apply_masks: bool = False,
    strict: bool = False,
    assume: bool = False,
    limits: Limits | None = None,
) -> Checkpoint:
    """Open a checkpoint of any container; tensors are read on demand.

    Keywords that change the numbers and that the file does not specify (a stride, an epsilon) have their
    defaults, with a `UserWarning` that names them. `settings` or `model` set them, `assume` accepts the
    defaults.

    Args:
        path: the file; for a TF1 checkpoint its prefix or directory.
        model: the architecture's name, instead of the file's metadata or the inference; or FAMILY:NAME, if a
            family has several that look alike ("pytorchcv:seresnet50b").
        settings: keywords of the spec to set, such as {"stride_in": "conv1"}.
        family: the naming of the tensors; by default detected.
        key: the entry of a PyTorch file that holds the weights.
        scope: the variable scope of the network in a TF1 checkpoint, or its path in a Keras model.
        ema: take the moving averages of a TF1 checkpoint in the place of the variables that have one.
        prefix: the beginning of the network's names, if the file has several networks ("student.").
        names: the user's own names, a dict {theirs: ours} or a file (`mapping.py`).
        apply_masks: multiply pruned weights (`x_orig`) by their masks (`x_mask`).
        strict: refuse tensors outside the network, and whatever would be a warning.
        assume: accept the defaults for keywords that the file does not specify.
        limits: limits for untrusted files: bytes, tensors, depth.

    Raises:
        SourceError: the file cannot be read or is not a checkpoint, or (`LimitError`) exceeds a limit.
        MismatchError: its tensors do not match the model; all mismatches are listed.
        SpecError: `model` or `settings` hold an unknown name or an invalid value.
    """
    checkpoint = opened(
        path,
        model=model,
        settings=settings,
        family=family,
        key=key,
        scope=scope,
        ema=ema,
        prefix=prefix,
        names=names,
        apply_masks=apply_masks,
        strict=strict,
        limits=limits,
    )
    if not assume:
        caution_about(checkpoint, strict=strict)
    return checkpoint


def opened(
    path: str | Path,
    *,
    model: str | None = None,
    settings: Mapping[str, Any] | None = None,
    family: str | None = None,
    key: str | None = None,
    scope: str | None = None,
    ema: bool = False,
    prefix: str | None = None,
    names: Mapping[str, str] | str | Path | OwnNames | None = None,
    apply_masks: bool = False,
    strict: bool = False,
    limits: Limits | None = None,
) -> Checkpoint:
    """`load` without its warnings, for callers that report them in another way."""
    own = names if names is None or isinstance(names, OwnNames) else OwnNames.of(names)
    given = Given(path, limits)
    source = Source(given)  # its state before reading
    reader = open_reader(given, key)
    try:
        if not reader.tensors:
            raise SourceError(f"{reader.path}: holds no tensors, expected the weights of a network")
        reader = MaskedReader(reader) if apply_masks else reader
        scope = _scope(reader, scope)
        if not reader.metadata and scope in reader.networks:
            reader.metadata = reader.networks[scope]
        if ema:
            list_averaged(reader)
        listing = Listing(reader, scope, prefix, own)
        return _load(listing, source, model, dict(settings or {}), family, ema, strict)
    except BaseException:
        reader.close()
        raise


def _load(
    listing: Listing,
    source: Source,
    model: str | None,
    settings: dict[str, Any],
    family: str | None,
    ema: bool,
    strict: bool,
) -> Checkpoint:
    reader = listing.reader
    version = reader.said("mapping_version", int) or MAPPING_VERSION
    if version > MAPPING_VERSION:
        raise SourceError(
            f"{reader.path}: written by a newer samenet, mapping version {version} (here: {MAPPING_VERSION})"
        )
    family = family or reader.said("family", str)
    saved = reader.said("spec", dict)
    config = described(reader.path, reader.configs, saved is None) if reader.configs else None
    unsaid = saved is None and model is None and config is None
    if config is not None and saved is None:
        family = family or config.family
        model = model or (config.model if family == config.family else None)
        settings = {**config.settings, **settings}
    if saved is not None and model is None:
        spec, assumed = _saved_spec(reader, saved, settings)
        if reader.said("part", bool):
            spec = part_of(listing, spec)
        found = declared(listing, spec, assumed, family)
    else:
        found = identify(listing, model=model, settings=settings, family=family)

    if config is not None:
        _check_config(reader, config, found)
    reading = found.reading
    averages = (take_averages if ema else mention_averages)(reader, reading)
    liberties = _liberties(found)
    without_bias = not getattr(found.spec, "head_bias", True)
    if unsaid and not reading.head and without_bias and "head_bias" not in {**found.implied, **settings}:
        liberties.append("its classifier has no bias, head_bias=False is assumed")
    if strict and liberties:
        raise MismatchError(f"{reader.path}: {liberties[0]} (--strict)", _listed(reading.outside))
    known = {parameter.name: parameter for parameter in parameters(found.spec)}
    tensors = {canonical: _tensor(reader, reading, known[canonical]) for canonical in reading.names}
    unstored = reading.layout.lacks(reading.names, found.spec)
    for name, parameter in unstored.items():
        value = np.full(parameter.shape, ABSENT[parameter.role], _dtype_beside(tensors, name))
        tensors[name] = in_memory(value, f"{name} (not in the file)")
    for name, count in _saved_counts(reader).items():
        if name not in known:
            raise do_not_fit(f"{reader.path}: its metadata", title(found.spec), [f"extra: {name} ()"])
        tensors.setdefault(name, in_memory(np.array(count, np.int64), f"{name} (metadata)"))
    order = [parameter.name for parameter in parameters(found.spec) if parameter.name in tensors]
    families = [found.family, *found.same_as]
    return Checkpoint(
        {name: tensors[name] for name in order},
        found.spec,
        assumed=found.assumed if config is None else (),
        reader=reader,
        family=found.family.name,
        same_as=[other.name for other in found.same_as],
        feeds=(config and config.feeds)
        or next((feeds for f in families if (feeds := f.feeds_of(found.spec)) is not None), None),
        left_out={
            **reader.left_out,
            **reading.left_out,
            **{name: f"outside the network {shape}" for name, shape in reading.outside.items()},
        },
        notes=[
            *reader.notes,
            *([config.note] if config else []),
            *_notes(found, listing.start),
            *([f"its {len(unstored)} batch norms have no scale, which is 1"] if unstored else []),
            *averages,
        ],
        cautions=[
            *_contradicted(reader, found.spec),
            *([found.family.caution] if found.family.caution and unsaid else []),
        ],
        liberties=liberties,
        source=source,
        training=partial(training_state, reader, reading, known),
    )


def _contradicted(reader: Reader, spec: Spec) -> list[str]:
    """A line for each value that a file states and the network does not have."""
    return [
        f"the file states {keyword}={value:g}, and {getattr(spec, keyword):g} is used; "
        f"give --set {keyword}={value:g}"
        for keyword, values in reader.stated.items()
        for value in values
        if not math.isclose(value, getattr(spec, keyword, value), rel_tol=1e-6)
    ]


def _dtype_beside(tensors: Mapping[str, Tensor], name: str) -> Any:
    """The dtype of the other tensors of a layer, else float32."""
    module = name.rpartition(".")[0]
    return next((t.info.dtype for n, t in tensors.items() if n.rpartition(".")[0] == module), np.float32)


def _check_config(reader: Reader, config: Described, found: Candidate) -> None:
    """Raise `MismatchError` if the tensors or the metadata of a folder contradict its config.json."""
    said = dict(config.settings)
    if config.num_classes is not None and found.spec.model_kwargs().get("num_classes"):
        said["num_classes"] = config.num_classes
    values = found.spec.model_kwargs()
    for keyword, value in said.items():
        if keyword not in TRAINING_ONLY and values.get(keyword) != value:
            raise MismatchError(
                f"{reader.path}: its config.json says {keyword}={value!r}, but its weights are those of "
                f"{describe(found.spec)} with {keyword}={values.get(keyword)!r}"
            )


def _scope(reader: Reader, scope: str | None) -> str | None:
    """The scope of the network to read: the requested one, or that of the file's only network.

    Raises:
        SourceError: the file holds several networks.
    """
    tensors = list(reader.tensors)
    if scope is not None:
        scope = scope.rstrip("/")
        if reader.format != "keras" or any(name.startswith(f"{scope}/") for name in tensors):
            return scope
    if reader.metadata:  # of the whole file
        return None
    there = [of for of in reader.networks if not of or any(name.startswith(f"{of}/") for name in tensors)]
    if len(there) > 1:
        raise several_networks(reader, there)
    return there[0] if there else None


def _liberties(found: Candidate) -> list[str]:
    """Cautions about tensors outside the network and about a classifier under an unusual name."""
    reading, lines = found.reading, []
    if outside := list(reading.outside):
        count = f"{len(outside)} tensors are" if len(outside) > 1 else "1 tensor is"
        more = ", ..." if len(outside) > _MOST_NAMED else ""
        named = ", ".join(outside[:_MOST_NAMED])
        text = f"{count} outside {title(found.spec)} and left out: {one_line(named)}{more}"
        if reading.maybe:
            module = reading.maybe[0]
            pair = shlex.quote(one_line(f"{module} = {head_as_read(found)}"))
            text += f"; if {one_line(module)!r} is its classifier, say --names {pair}"
        lines.append(text)
    if reading.head:
        bias = "" if getattr(found.spec, "head_bias", True) else ", without a bias (head_bias=False),"
        lines.append(
            f"{reading.head!r}{bias} is assumed to be the classifier {found.spec.head!r}: "
            "no other tensor has its name and shape"
        )
    return lines


def _listed(outside: Mapping[str, tuple[int, ...]]) -> list[str]:
    return [f"outside: {name} {shape}" for name, shape in outside.items()]


def _notes(found: Candidate, start: str) -> list[str]:
    """Remarks for the user on how the file was read."""
    notes, reading = [], found.reading
    if start + reading.prefix:
        notes.append(f"removed the prefix {start + reading.prefix!r}")
    if reading.head:
        notes.append(f"took {reading.head!r} as the classifier {found.spec.head!r}")
    plain = vars(type(found.spec)())
    if unusual := tuple(k for k, value in found.implied.items() if value not in (None, plain[k])):
        notes.append(f"as {found.family.name}'s networks: {spec_values(found.spec, unusual)}")
    if merged := [names for names in reading.names.values() if len(names) > 1]:
        notes.append(f"{len(merged)} grouped convolutions were stored in one part per group, and are merged")
    if getattr(found.spec, "num_classes", None) == 0:
        notes.append("it has no classifier: num_classes=0")
    elif not getattr(found.spec, "head_bias", True):
        notes.append("its classifier has no bias: head_bias=False")
    return notes


def _tensor(reader: Reader, reading: Reading, parameter: Parameter) -> Tensor:
    names, stored = reading.names[parameter.name], reading.layout.stored(parameter)
    shape, dtype = reading.info(reader, parameter.name)

    def read() -> np.ndarray:
        parts = [reader.read(name) for name in names]
        array = parts[0] if len(parts) == 1 else np.concatenate(parts, -1)
        return stored.to_canonical(array)

    label = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"
    return Tensor(TensorInfo(stored.canonical_shape(shape), dtype), label, read)


def _saved_spec(
    reader: Reader, saved: dict[str, Any], settings: Mapping[str, Any]
) -> tuple[Spec, tuple[str, ...]]:
    """The spec in a file's metadata, and its keywords that were assumed when the file was written."""
    kind = KINDS.get(str(reader.metadata.get("kind")))
    if kind is None:
        raise SourceError(f"{reader.path}: its metadata has kind {reader.metadata.get('kind')!r}")
    known = {field.name for field in dataclasses.fields(kind)} - set(settings)
    try:
        make_spec(kind, saved)
    except SpecError as error:
        raise SourceError(f"{reader.path}: its metadata: {error.message}") from None
    spec: Spec = make_spec(kind, saved | dict(settings))
    recorded = [str(name) for name in reader.said("assumed", list) or ()]
    unsaid = [name for name in known if name not in saved and spec.matters_unseen(name)]  # an older version's
    return spec, tuple(name for name in (*recorded, *sorted(unsaid)) if name in known)


def _saved_counts(reader: Reader) -> dict[str, int]:
    counts = reader.said(COUNTS, dict) or {}
    for name, count in counts.items():
        if not isinstance(count, int) or not 0 <= count < 2**63:
            raise SourceError(f"{reader.path}: {COUNTS!r} in its metadata has {count!r} for {name!r}")
    return counts
