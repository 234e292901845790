"""The mismatches between the tensors of a file and those of a network, a line each."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from weights_convert.errors import MismatchError, nearest
from weights_convert.formats.base import TensorInfo
from weights_convert.layouts import LAYOUTS, Layout
from weights_convert.spec import Spec, parameters, variant_of

_MOST_HINTED, _MOST_LINES = 50, 5_000  # extra tensors with a hint, lines below a message
_STATISTICS = re.compile(r"missing: \S*[./](?:running_mean|running_var|moving_mean|moving_variance) ")


def misfits(
    spec: Spec,
    infos: Mapping[str, TensorInfo],
    extra: Mapping[str, tuple[int, ...]] | None = None,
    layout: Layout = LAYOUTS["torch"],
    prefix: str = "",
    names: Mapping[str, tuple[str, ...]] | None = None,
    hints: bool = True,
) -> list[str]:
    """Every missing, extra and misshapen tensor and every wrong dtype: one line each, by name in the file.

    Args:
        spec: the expected network.
        infos: canonical name -> shape in the file, and dtype.
        extra: name in the file -> shape, for tensors without a canonical name.
        layout, prefix: naming and layout of the file's tensors.
        names: canonical name -> names in this file, of the existing tensors.
        hints: whether to suggest the nearest missing name for an extra one, which takes time.
    """

    def in_file(name: str) -> str:
        there = (names or {}).get(name, ())
        return there[0] if len(there) == 1 else prefix + layout.in_file(name, spec)

    wanted = {p.name: (layout.stored(p).shape(p.shape), p.role) for p in parameters(spec)}
    unstored = layout.lacks(infos, spec)
    missing = [
        name
        for name, (_, role) in wanted.items()
        if name not in infos and role != "count" and name not in unstored
    ]
    extras = {in_file(name): infos[name].shape for name in infos if name not in wanted} | dict(extra or {})
    missing_names = [in_file(name) for name in missing]
    details = [f"missing: {in_file(name)} {wanted[name][0]}" for name in missing]
    for number, (name, shape) in enumerate(extras.items()):
        hint = nearest(name, missing_names) if hints and number < _MOST_HINTED else ""
        details.append(f"extra: {name} {shape}{hint}")
    for name, (expected, role) in wanted.items():
        if name not in infos:
            continue
        shape, dtype = infos[name]
        if shape != expected:
            details.append(f"misshapen: {in_file(name)} {shape}, expected {expected}")
        elif not _fits(dtype, role):
            kind = "an integer" if role == "count" else "a float"
            details.append(f"wrong dtype: {in_file(name)} is {dtype}, expected {kind} dtype")
    return details


def do_not_fit(what: str, whose: str, lines: list[str], names_of: Path | None = None) -> MismatchError:
    """The error for tensors that are not those of a network.

    Args:
        names_of: the file, if unknown names in it may be the user's own.
    """
    message = f"{what} do not match {whose}; mismatches: {len(lines)}"
    if names_of is not None and any(line.startswith("extra:") for line in lines):
        message += f"; {propose(names_of)}"
    if lines and all(map(_STATISTICS.match, lines)):
        message += " (all of them running statistics; for group norms set --set norm=gn)"
    more = [f"and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
    return MismatchError(message, lines[:_MOST_LINES] + more)


def propose(path: Path) -> str:
    """The advice for a file with names of its own."""
    return f"`weights-convert names {shlex.quote(str(path))}` proposes names for --names"


def title(spec: Spec) -> str:
    """The name of a network in messages: `se_resnet50`, `resnet`, `the se block`."""
    return (variant_of(spec)[0] or spec.kind) if spec.network else f"the {spec.attention} block"


def describe(spec: Spec) -> str:
    """Text for messages: `se_resnet50` with its differences from the named model, or `one se block`."""
    if not spec.network:
        return f"one {spec.attention} block"
    name, other = variant_of(spec)
    if name is None:
        return f"an unnamed {spec.kind}"
    return f"{name} with {', '.join(f'{k}={v!r}' for k, v in other.items())}" if other else name


def _fits(dtype: np.dtype, role: str) -> bool:
    return dtype.kind in "iu" if role == "count" else dtype.kind == "f" or dtype.name == "bfloat16"
