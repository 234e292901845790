"""`load`: a checkpoint of any container and layout as a `Checkpoint`.

container -> family names -> canonical: the reader lists what is there, a layout parses the names, the
spec (from the file's metadata, from `model`, or inferred) says what must be there, and every difference
between the two is named.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weights_convert.checkpoint import (
    COUNTS,
    MAPPING_VERSION,
    Checkpoint,
    Tensor,
    changed,
    check_against_spec,
    in_memory,
)
from weights_convert.errors import MismatchError, SourceError, SpecError, nearest
from weights_convert.formats import open_reader
from weights_convert.formats.base import Reader, TensorInfo
from weights_convert.layouts import LAYOUTS, Layout, permuted, role_of
from weights_convert.recognise import Inferred, infer, spec_values
from weights_convert.spec import AttentionSpec, ResNetSpec, make_spec, model_spec, parameters

_KINDS: dict[str, type[ResNetSpec] | type[AttentionSpec]] = {"resnet": ResNetSpec, "attention": AttentionSpec}
_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel, torch.compile


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
            tensors[name] = in_memory(np.array(count, np.int64), f"{name} (metadata)")
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
    return Inferred(changed(found.spec, settings), assumed)


def _unknown(reader: Reader, extra: Mapping[str, tuple[int, ...]]) -> MismatchError:
    shown = [f"{name} {reader.tensors[name].shape}" for name in list(extra)[:8]]
    return MismatchError(
        f"{reader.path}: the names of its {len(reader.tensors)} tensors are those of no known family "
        f"({', '.join(LAYOUTS)}); for example:",
        shown,
    )
