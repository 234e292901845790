"""The classifier of a network whose other tensors are complete, under a name that other projects use."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from weights_convert.formats.base import Reader
from weights_convert.identify.reading import Reading
from weights_convert.identify.votes import Inferred
from weights_convert.layouts import ROLES
from weights_convert.spec import changed, parameters

# alone, or a layer in it: `head.fc`, `fc.1` of Sequential(Dropout, Linear)
_HEADS = ("fc", "classifier", "head", "heads", "last_linear", "linear", "logits", "output", "predictions")
_HEAD = re.compile(rf"((?:.*[./])?(?:{'|'.join(_HEADS)}))(?:[./](?:fc|linear|classifier|head|\d{{1,3}}))?")


def with_head(
    reader: Reader,
    reading: Reading,
    network: Inferred,
    settings: Mapping[str, Any],
    places: Collection[str] = (),
) -> tuple[Reading, Inferred]:
    """The reading and the network with the only classifier outside; unchanged without one.

    Of several, `reading.heads` lists the modules, for the user to choose; `reading.maybe` lists those that
    fit under a name that is no usual one.

    Args:
        places: the prefixes of the networks in the file; what is below another one's is not this one's.
    """
    spec: Any = network.spec
    if not spec.head or spec.num_classes != 0 or settings.get("num_classes") == 0:
        return reading, network
    others = tuple(place for place in places if place and not reading.prefix.startswith(place))
    fitting = _fitting(reader, reading, spec, others)
    heads = {module: found for module, found in fitting.items() if _HEAD.fullmatch(module)}
    if len(heads) != 1:
        return replace(reading, heads=tuple(heads), maybe=tuple(fitting)), network
    ((module, (names, classes)),) = heads.items()
    outside = {name: shape for name, shape in reading.outside.items() if name not in names.values()}
    named = reading.names | {canonical: (name,) for canonical, name in names.items()}
    whole = changed(spec, _keywords(names, classes))
    return replace(reading, names=named, outside=outside, head=module), network._replace(spec=whole)


def _fitting(
    reader: Reader, reading: Reading, spec: Any, others: tuple[str, ...]
) -> dict[str, tuple[dict[str, str], int]]:
    """Module -> canonical names with names in the file, and classes, of each possible classifier."""
    found = {}
    for name in reading.outside:
        module, separator, leaf = _split(name)
        shape = reader.tensors[name].shape
        if not separator or leaf != _leaf(reading, "weight") or len(shape) != 2 or name.startswith(others):
            continue
        match = _HEAD.fullmatch(module)
        if match is None and module.rpartition(separator)[2].isdigit():  # a layer of several
            continue
        whole = match[1] if match else module
        below = [other for other in reading.outside if other.startswith(f"{whole}{separator}")]
        names = {f"{spec.head}.weight": name}
        for other in below:
            if other != name and _split(other)[::2] == (module, _leaf(reading, "bias")):
                names[f"{spec.head}.bias"] = other
        classes = shape[reading.layout.tensorflow_axes]
        if len(below) == len(names) and classes and _fits(reader, reading, spec, names, classes):
            found[module] = names, classes
    return found


def _fits(reader: Reader, reading: Reading, spec: Any, names: Mapping[str, str], classes: int) -> bool:
    whole = changed(spec, _keywords(names, classes))
    wanted = {p.name: p for p in parameters(whole) if p.name.startswith(f"{spec.head}.")}
    return all(
        reader.tensors[name].shape == reading.layout.stored(wanted[canonical]).shape(wanted[canonical].shape)
        for canonical, name in names.items()
    )


def _keywords(names: Mapping[str, str], classes: int) -> dict[str, Any]:
    return {"num_classes": classes, "head_bias": len(names) > 1}


def _leaf(reading: Reading, leaf: str) -> str:
    role = ROLES["dense" if leaf == "weight" else "bias"]
    return (role.tf or "") if reading.layout.tensorflow_axes else role.torch


def _split(name: str) -> tuple[str, str, str]:
    """Module, separator and leaf."""
    at = max(name.rfind("."), name.rfind("/"))
    return (name[:at], name[at], name[at + 1 :].removesuffix(":0")) if at > 0 else ("", "", name)
