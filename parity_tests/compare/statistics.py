"""The running statistics after a step in train mode, and Keras's variance without the factor n/(n-1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from parity_tests.compare.noise import limit_at
from parity_tests.compare.report import Point
from parity_tests.judge import tolerances
from parity_tests.watch.repeat import Watched
from weights_convert.errors import SpecError

BIASED = ("note", "fail")


def check_biased_variance(value: str) -> None:
    if value not in BIASED:
        raise SpecError(f"biased_variance={value!r}: expected 'note' or 'fail'")


def statistic_names(watched: Watched, rename: Callable[[str], str]) -> dict[str, str]:
    """The reference's name -> the candidate's name of each statistic."""
    found = {}
    for name in watched.statistics:
        layer, _, leaf = name.rpartition(".")
        found[f"{rename(layer)}.{leaf}" if layer else leaf] = name
    return found


def statistics(
    reference: Watched,
    candidates: Mapping[str, tuple[Watched, Mapping[str, str]]],
    dtype: str,
    biased_variance: str,
) -> tuple[list[Point], list[str]]:
    """The points of both sides in the order of the reference, and a note for each biased candidate.

    Args:
        reference: its run.
        candidates: runs, each with a map from the reference's name of a statistic to its own.
        dtype: of the candidates.
        biased_variance: "note" accepts a running variance that differs by the factor n / (n - 1).
    """
    points: list[Point] = []
    biased: dict[str, list[str]] = {}
    for name, value in reference.statistics.items():
        point = Point(name, value.shape, {}, limit_at(None, dtype))
        for who, (watched, names) in candidates.items():
            if name not in names:
                continue
            own = names[name]
            point.errors[who] = tolerances.relative_error(watched.statistics[own], value)
            unbiased = (
                watched.unbiased.get(own, watched.statistics[own]),
                reference.unbiased.get(name, value),
            )
            known = own in watched.unbiased or name in reference.unbiased
            if known and biased_variance == "note" and who in point.failures():
                corrected = tolerances.relative_error(*unbiased)
                if corrected <= point.limit:
                    point.errors[who] = corrected
                    biased.setdefault(who, []).append(name)
        if point.errors:
            points.append(point)
    return points, [_note(who, names) for who, names in biased.items()]


def _note(who: str, names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"{who}: Keras's running variance is biased by n/(n-1), torch's is not: {', '.join(names[:3])}{more} "
        "compared without that factor; biased_variance='fail' counts it as a difference"
    )
