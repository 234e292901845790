"""`Checkpoint`: a file or a model seen as canonical names and arrays, and `load`, which makes one of a file.

container -> family names -> canonical: the reader lists what is there, a layout parses the names, the
spec (from the file's metadata, from `model`, or inferred) says what must be there, and every difference
between the two is named.
"""

from __future__ import annotations

import dataclasses
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from weights_convert.errors import MismatchError, SourceError, SpecError, nearest
from weights_convert.formats import open_reader
from weights_convert.formats.base import Reader, TensorInfo
from weights_convert.layouts import LAYOUTS, Layout, permuted, role_of
from weights_convert.recognise import Inferred, infer, spec_values
from weights_convert.spec import (
    AttentionSpec,
    ResNetSpec,
    Spec,
    make_spec,
    model_name,
    model_spec,
    parameters,
)

MAPPING_VERSION = 1  # of names and axes; recorded in every file that is written
_KINDS: dict[str, type[ResNetSpec] | type[AttentionSpec]] = {"resnet": ResNetSpec, "attention": AttentionSpec}
_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel, torch.compile
COUNTS = "num_batches_tracked"


class Tensor(NamedTuple):
    """One canonical tensor: its canonical shape and dtype, its name in the source, and how to read it."""

    info: TensorInfo
    name: str
    read: Callable[[], np.ndarray]


def _in_memory(array: np.ndarray, name: str) -> Tensor:
    return Tensor(TensorInfo(array.shape, array.dtype), name, lambda: array)


class Checkpoint(Mapping[str, np.ndarray]):
    """A read-only mapping of canonical names to arrays in PyTorch's layout, read when asked for.

    Attributes:
        spec: the architecture, a `ResNetSpec` or `AttentionSpec`.
        assumed: keywords of `spec` that the source did not show and that took their default.
        tensors: name -> `Tensor`, without reading.
        path, format, family: where it comes from; None for a live model.
        metadata: what this project wrote into the file, {} for anyone else's.
        left_out: name -> description of what the source holds besides.
        notes: what a person should know about how the source was read.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        spec: Spec,
        *,
        assumed: Iterable[str] = (),
        reader: Reader | None = None,
        family: str | None = None,
        left_out: Mapping[str, str] | None = None,
        notes: Iterable[str] = (),
    ):
        self.tensors = dict(tensors)
        self.spec = spec
        self.assumed = tuple(assumed)
        self.family = family
        self.left_out = dict(left_out or {})
        self.notes = list(notes)
        self._reader = reader
        self.path = reader.path if reader else None
        self.format = reader.format if reader else None
        self.metadata = reader.metadata if reader else {}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], keywords: Mapping[str, Any] | None = None
    ) -> Checkpoint:
        """A checkpoint of arrays in memory; keywords of its spec that are not given are inferred."""
        keywords = dict(keywords or {})
        arrays = {name: _native(array) for name, array in arrays.items()}
        found = infer({name: array.shape for name, array in arrays.items()})
        if found is None:
            raise MismatchError("the arrays' names are not those of a network or an attention block")
        assumed = tuple(name for name in found.assumed if name not in keywords)
        spec = _changed(found.spec, keywords)
        tensors = {name: _in_memory(array, name) for name, array in arrays.items()}
        check_against_spec("the arrays", spec, tensors, {}, lambda name: name)
        return cls(tensors, spec, assumed=assumed)

    def __getitem__(self, name: str) -> np.ndarray:
        array = self.tensors[name].read().view()
        array.flags.writeable = False
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; arrays that were read stay."""
        if self._reader is not None:
            self._reader.close()

    def close_when_dropped(self) -> None:
        """Have the file closed as soon as nothing refers to this checkpoint any more."""
        if self._reader is not None:
            weakref.finalize(self, self._reader.close)

    @property
    def model(self) -> str | None:
        """The name of the architecture, None for one without a name."""
        return model_name(self.spec)

    def describe(self) -> str:
        """`se_resnet50`, `a resnet (width=8, ...)` or `an se block`: for messages."""
        if isinstance(self.spec, AttentionSpec):
            return f"one {self.spec.attention} block"
        return self.model or "an unnamed resnet"


def _native(array: np.ndarray) -> np.ndarray:
    """The array in this machine's byte order, itself where it is so already."""
    array = np.asarray(array)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _changed(spec: Spec, keywords: Mapping[str, Any]) -> Any:
    """`spec` with other values for some keywords."""
    values = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    if keywords.get("stem", values.get("stem")) != values.get("stem"):
        values.pop("stem_pool")  # its default depends on the stem
    return make_spec(type(spec), values | dict(keywords))


def load(
    path: str | Path,
    *,
    model: str | None = None,
    settings: Mapping[str, Any] | None = None,
    family: str | None = None,
    key: str | None = None,
    scope: str | None = None,
) -> Checkpoint:
    """Open a checkpoint of any container; tensors are read when asked for.

    Args:
        path: the file; for a TF1 checkpoint its prefix or directory.
        model: the architecture's name, where the file's own word or the inference is not to be taken.
        settings: keywords of the spec to set, such as {"stride_in": "conv1"}.
        family: the naming of its tensors, where it is not to be detected.
        key: the entry of a PyTorch file that holds the weights.
        scope: the variable scope of the network in a TF1 checkpoint.

    Raises:
        SourceError: the file cannot be read or is not a checkpoint.
        MismatchError: its tensors are not those of the model; all of them are listed.
        SpecError: `model` or `settings` name what does not exist.
    """
    reader = open_reader(path, key)
    try:
        return _load(reader, model, dict(settings or {}), family, scope)
    except BaseException:
        reader.close()
        raise


def _load(
    reader: Reader, model: str | None, settings: dict[str, Any], family: str | None, scope: str | None
) -> Checkpoint:
    if not reader.tensors:
        raise SourceError(f"{reader.path}: holds no tensors, expected the weights of a network")
    version = _said(reader, "mapping_version", int) or MAPPING_VERSION
    if version > MAPPING_VERSION:
        raise SourceError(
            f"{reader.path}: written by a newer samenet, mapping version {version} (here: {MAPPING_VERSION})"
        )
    notes, left_out = list(reader.notes), dict(reader.left_out)
    layout = _layout(reader, family)
    prefix = _prefix(reader, layout, scope)
    if prefix:
        notes.append(f"looked through the prefix {prefix!r}")
    names: dict[str, str] = {}  # canonical -> in the file
    extra: dict[str, tuple[int, ...]] = {}
    for name, info in reader.tensors.items():
        known = next((what for pattern, what in layout.bookkeeping if pattern.fullmatch(name)), None)
        canonical = layout.parse(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if known:
            left_out[name] = f"{known} {info.shape}"
        elif not name.startswith(prefix):
            left_out[name] = f"outside the prefix {prefix!r}"
        elif canonical is None or canonical in names:
            extra[name] = info.shape
        else:
            names[canonical] = name

    tensors = {canonical: _tensor(reader, name, layout, canonical) for canonical, name in names.items()}
    for name, count in _saved_counts(reader).items():
        if name not in tensors:
            tensors[name] = _in_memory(np.array(count, np.int64), f"{name} (metadata)")
    shapes = {name: tensor.info.shape for name, tensor in tensors.items()}
    if 2 * len(extra) > len(reader.tensors):
        raise _unknown(reader, extra)
    found = _spec(reader, shapes, model, settings)
    if found is None:
        raise _unknown(reader, dict.fromkeys(reader.tensors, ()))
    if found.assumed:
        notes.append(f"not to be seen in the file, defaults taken: {spec_values(*found)} (--set KEY=VALUE)")

    def in_file(canonical: str) -> str:
        return prefix + (layout.rename(canonical, found.spec) or canonical)

    what = f"{reader.path}: its tensors"
    check_against_spec(what, found.spec, tensors, extra, in_file)
    order = [parameter.name for parameter in parameters(found.spec) if parameter.name in tensors]
    return Checkpoint(
        {name: tensors[name] for name in order},
        found.spec,
        assumed=found.assumed,
        reader=reader,
        family=layout.name,
        left_out=left_out,
        notes=notes,
    )


def _tensor(reader: Reader, name: str, layout: Layout, canonical: str) -> Tensor:
    axes = layout.axes_to_canonical(role_of(canonical) or "")
    shape, dtype = reader.tensors[name]

    def read() -> np.ndarray:
        array = reader.read(name)
        return array if axes is None else np.asarray(array.transpose(axes), order="C")

    return Tensor(TensorInfo(permuted(shape, axes), dtype), name, read)


def _layout(reader: Reader, family: str | None) -> Layout:
    """The layout asked for, the one the file's metadata names, or the one that knows most of its names."""
    family = family or _said(reader, "family", str)
    if family is not None:
        if family not in LAYOUTS:
            raise SpecError(
                f"there is no family {family!r}{nearest(family, LAYOUTS)}; known: {', '.join(LAYOUTS)}"
            )
        return LAYOUTS[family]

    def known(layout: Layout) -> int:
        prefix = _prefix(reader, layout, None, strict=False)
        return sum(layout.parse(name.removeprefix(prefix)) is not None for name in reader.tensors)

    return max(LAYOUTS.values(), key=known)


def _prefix(reader: Reader, layout: Layout, scope: str | None, *, strict: bool = True) -> str:
    """What stands before every name: a wrapper's `module.`, or the TF1 scope of the network."""
    names = list(reader.tensors)
    if layout.name == "torch":
        prefix = ""
        while wrapper := next((w for w in _WRAPPERS if all(n.startswith(prefix + w) for n in names)), None):
            prefix += wrapper
        return prefix
    if layout.name != "tf1":
        return ""
    scope = scope if scope is not None else _said(reader, "scope", str)
    if scope is not None:
        prefix = f"{scope.rstrip('/')}/" if scope else ""
        if strict and not any(name.startswith(prefix) for name in names):
            raise SourceError(f"{reader.path}: has no scope {scope!r}; its names are like {names[:1]}")
        return prefix
    for mark in ("conv1/kernel", "fc1/kernel", "conv/kernel"):
        found = {match[1] for name in names if (match := re.fullmatch(rf"(|.*/){mark}", name))}
        outer = sorted(p for p in found if not any(p != q and p.startswith(q) for q in found))
        if len(outer) > 1 and strict:
            raise SourceError(f"{reader.path}: holds several networks, choose one with --scope", outer)
        if outer:
            return re.sub(r"channel/$", "", outer[0])
    return ""


def _saved_counts(reader: Reader) -> dict[str, int]:
    counts = _said(reader, COUNTS, dict) or {}
    for name, count in counts.items():
        if not isinstance(count, int) or not 0 <= count < 2**63:
            raise SourceError(f"{reader.path}: {COUNTS!r} in its metadata has {count!r} for {name!r}")
    return counts


def _said(reader: Reader, key: str, kind: type) -> Any:
    """What a file's metadata say under `key`; None where they say nothing."""
    value = reader.metadata.get(key)
    if value is not None and not isinstance(value, kind):
        raise SourceError(
            f"{reader.path}: {key!r} in its metadata is a {type(value).__name__}, expected {kind.__name__}"
        )
    return value


def _spec(
    reader: Reader, shapes: Mapping[str, tuple[int, ...]], model: str | None, settings: dict[str, Any]
) -> Inferred | None:
    """The spec and what of it was assumed: by `model`, by the file's metadata, or by its shapes."""
    found = infer(shapes)
    if model is not None:
        sizes = {}
        if found and isinstance(found.spec, ResNetSpec):
            sizes = {"num_classes": found.spec.num_classes, "in_channels": found.spec.in_channels}
        return Inferred(model_spec(model, **(sizes | settings)), ())
    saved = _said(reader, "spec", dict)
    if saved is not None:
        kind = _KINDS.get(str(reader.metadata.get("kind")))
        if kind is None:
            raise SourceError(f"{reader.path}: its metadata has kind {reader.metadata.get('kind')!r}")
        fields = {field.name for field in dataclasses.fields(kind)} - set(settings)
        assumed = tuple(name for name in _said(reader, "assumed", list) or () if name in fields)
        return Inferred(make_spec(kind, saved | settings), assumed)
    if found is None:
        return None
    assumed = tuple(name for name in found.assumed if name not in settings)
    return Inferred(_changed(found.spec, settings), assumed)


def _unknown(reader: Reader, extra: Mapping[str, tuple[int, ...]]) -> MismatchError:
    shown = [f"{name} {reader.tensors[name].shape}" for name in list(extra)[:8]]
    return MismatchError(
        f"{reader.path}: the names of its {len(reader.tensors)} tensors are those of no known family "
        f"({', '.join(LAYOUTS)}); for example:",
        shown,
    )


def check_against_spec(
    what: str,
    spec: Spec,
    tensors: Mapping[str, Tensor],
    extra: Mapping[str, tuple[int, ...]],
    in_file: Callable[[str], str],
) -> None:
    """Raise `MismatchError` that lists every missing, extra and misshapen tensor and every wrong dtype."""
    wanted = {parameter.name: parameter for parameter in parameters(spec)}
    missing = [name for name, p in wanted.items() if name not in tensors and p.role != "count"]
    extras = {in_file(name): tensors[name].info.shape for name in tensors if name not in wanted} | dict(extra)
    missing_names = [in_file(name) for name in missing]
    details = [f"missing: {in_file(name)} {wanted[name].shape}" for name in missing]
    details += [f"extra: {name} {shape}{nearest(name, missing_names)}" for name, shape in extras.items()]
    for name, parameter in wanted.items():
        if name not in tensors:
            continue
        shape, dtype = tensors[name].info
        if shape != parameter.shape:
            details.append(f"misshapen: {in_file(name)} {shape}, expected {parameter.shape} (PyTorch's axes)")
        elif not _fits(dtype, parameter.role):
            kind = "an integer" if parameter.role == "count" else "a float"
            details.append(f"wrong dtype: {in_file(name)} is {dtype}, expected {kind} dtype")
    if details:
        name = model_name(spec) or (
            f"the {spec.attention} block" if isinstance(spec, AttentionSpec) else "resnet"
        )
        raise MismatchError(f"{what} are not those of {name}; {len(details)} do not fit:", details)


def _fits(dtype: np.dtype, role: str) -> bool:
    return dtype.kind in "iu" if role == "count" else dtype.kind == "f" or dtype.name == "bfloat16"
