"""The facts about a checkpoint and the differences of two, for `__main__` to print and for `--json`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np

from weights_convert.checkpoint import Checkpoint
from weights_convert.errors import WeightsConvertError
from weights_convert.families import FAMILIES
from weights_convert.memory import not_finite
from weights_convert.optimizer.state import NoOptimizer
from weights_convert.spec import count_parameters, variant_of


def facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """The report of `inspect`. Reads every tensor, one at a time, to find NaN and invalid statistics."""
    families = [FAMILIES[name] for name in (checkpoint.family, *checkpoint.same_as) if name is not None]
    name, variant = variant_of(checkpoint.spec)
    dtypes = Counter(tensor.info.dtype.name for tensor in checkpoint.tensors.values())
    return {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "family": checkpoint.family,
        "same_as": list(checkpoint.same_as),
        "about": families[0].about if families else "",
        "model": name,
        "variant": variant,
        "attention": checkpoint.spec.attention,
        "spec": {k: v for k, v in dataclasses.asdict(checkpoint.spec).items() if checkpoint.spec.concerns(k)},
        "assumed": list(checkpoint.assumed),
        "parameters": count_parameters(checkpoint.spec),
        "tensors": len(checkpoint),
        "dtypes": dict(dtypes),
        "bytes": sum(tensor.info.nbytes for tensor in checkpoint.tensors.values()),
        "odd": oddities(checkpoint),
        "optimizer": optimizer(checkpoint),
        "left_out": checkpoint.left_out,
        "notes": checkpoint.notes,
        "cautions": checkpoint.cautions,
        "fed": str(checkpoint.feeds) if checkpoint.feeds else None,
        "feeds": dataclasses.asdict(checkpoint.feeds) if checkpoint.feeds else None,
    }


def optimizer(checkpoint: Checkpoint) -> str | None:
    """The optimiser whose state the file holds, or the reason why it cannot be carried; None without one."""
    try:
        state = checkpoint.training_state()
    except NoOptimizer:
        return None
    except WeightsConvertError as error:
        return f"not carried: {error.message}"
    return f"{state.describe()} (convert --with-optimizer carries it)"


def oddities(checkpoint: Checkpoint) -> list[str]:
    """Tensors with NaN, infinity or invalid batch statistics."""
    found = []
    for name in checkpoint:
        array = checkpoint[name]
        if count := not_finite(array):
            found.append(f"{name}: {count} values are NaN or infinite")
        elif name.endswith("running_var") and (count := int((array <= 0).sum())):
            found.append(f"{name}: {count} variances are zero or negative")
        del array  # before reading the next one
    return found


def diff(a: Checkpoint, b: Checkpoint) -> list[dict[str, Any]]:
    """Every difference between two checkpoints, by canonical tensor; [] if all bits are equal.

    Each is {"tensor", "what", and for differing values "max_abs" and "where"}. Keywords that either of the
    two assumes are not compared.
    """
    found: list[dict[str, Any]] = []
    ours, theirs = dataclasses.asdict(a.spec), dataclasses.asdict(b.spec)
    if type(a.spec) is type(b.spec):
        for keyword in ours:
            if ours[keyword] != theirs[keyword] and keyword not in {*a.assumed, *b.assumed}:
                what = f"{ours[keyword]!r} in the first, {theirs[keyword]!r} in the second"
                found.append({"tensor": f"({keyword})", "what": what})
    for name in [*a, *(name for name in b if name not in a)]:
        if name not in b or name not in a:
            found.append({"tensor": name, "what": f"only in the {'first' if name in a else 'second'}"})
        elif difference := _differ(a, b, name):
            found.append({"tensor": name} | difference)
    return found


def _differ(a: Checkpoint, b: Checkpoint, name: str) -> dict[str, Any]:
    first, second = a.tensors[name].info, b.tensors[name].info
    if first.shape != second.shape:
        return {"what": f"shape {first.shape} in the first, {second.shape} in the second"}
    if first.dtype != second.dtype:
        return {"what": f"dtype {first.dtype} in the first, {second.dtype} in the second"}
    x, y = a[name], b[name]
    bits = f"u{x.dtype.itemsize}"
    if np.array_equal(x.view(bits), y.view(bits)):
        return {}
    if np.array_equal(x, y, equal_nan=x.dtype.kind not in "iu"):
        return {"what": "equal values in other bits (a NaN's payload or the sign of zero)"}
    with np.errstate(invalid="ignore"):
        distance = np.abs(x.astype(np.float64) - y.astype(np.float64))
    distance = np.where(np.isnan(distance) & ~(np.isnan(x) & np.isnan(y)), np.inf, np.nan_to_num(distance))
    where = tuple(int(i) for i in np.unravel_index(int(distance.argmax()), distance.shape))
    count = int((distance > 0).sum())
    what = f"{count} of {x.size} values differ"
    return {"what": what, "max_abs": float(distance.max()), "where": where}
