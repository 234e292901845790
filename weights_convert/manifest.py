"""Manifests: the record of `convert --json FILE`, and a check of a file against it.

A manifest has the sha256 of the source file and of every tensor written, as little-endian bytes in the
target's layout. `check` compares any file with it, also after a conversion to another container.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from weights_convert.checkpoint import Checkpoint
from weights_convert.errors import SourceError
from weights_convert.identify.choice import find_family
from weights_convert.memory import sha256
from weights_convert.spec import is_count, parameters


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Read a manifest from a file, or from stdin for "-".

    Raises:
        SourceError: the file cannot be read, or is not a manifest.
    """
    try:
        text = sys.stdin.read() if str(path) == "-" else Path(path).read_text("utf-8")
        facts = json.loads(text)
        family, tensors, spec = facts["destination"]["family"], facts["tensors"], facts["spec"]
        names = [(line["canonical"], line["dtype"], line["shape"], line["sha256"]) for line in tensors]
        if isinstance(tensors, list) and all(line["sha256"] is None for line in tensors):
            raise SourceError(f"{path}: the plan of a --dry-run, which has no sha256")
        whole = names and isinstance(family, str) and isinstance(spec, dict) and all(map(_is_line, names))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SourceError(f"{path}: cannot be read as a manifest ({reason})") from None
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise SourceError(f"{path}: not a manifest of `weights-convert convert --json FILE`")
    find_family(family)
    return facts


def _is_line(line: tuple[Any, ...]) -> bool:
    name, dtype, shape, digest = line
    return all(isinstance(text, str) for text in (name, dtype, digest)) and isinstance(shape, list)


def check(manifest: dict[str, Any], checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Every difference between a manifest and a checkpoint; [] if they match.

    Each is {"tensor", "what"}. Keywords that a file does not specify are not compared.
    """
    found = []
    layout = find_family(manifest["destination"]["family"]).layout_of(checkpoint.spec)
    for keyword, value in dataclasses.asdict(checkpoint.spec).items():
        recorded = manifest["spec"].get(keyword, value)
        recorded = tuple(recorded) if isinstance(recorded, list) else recorded
        unsaid = () if "spec" in checkpoint.metadata else checkpoint.assumed
        if recorded != value and keyword not in unsaid:
            what = f"{recorded!r} in the manifest, {value!r} in the file"
            found.append({"tensor": f"({keyword})", "what": what})
    of = {parameter.name: parameter for parameter in parameters(checkpoint.spec)}
    recorded_names = {line["canonical"] for line in manifest["tensors"]}
    for line in manifest["tensors"]:
        name = line["canonical"]
        if name not in checkpoint:
            found.append({"tensor": name, "what": "only in the manifest"})
            continue
        array = layout.stored(of[name]).to_file(checkpoint[name])
        if (list(array.shape), array.dtype.name) != (line["shape"], line["dtype"]):
            what = f"{line['dtype']} {line['shape']} in the manifest, {array.dtype.name} {list(array.shape)}"
            found.append({"tensor": name, "what": what})
        elif sha256(array) != line["sha256"]:
            found.append({"tensor": name, "what": "other values"})
    # step counts are in the metadata of containers that cannot hold them as tensors
    unexpected = [n for n in checkpoint if n not in recorded_names and not is_count(n)]
    return found + [{"tensor": name, "what": "only in the file"} for name in unexpected]
