"""Draws the figures of trainings: loss, error and learning rate over the epochs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from weights_convert import atomic
from weights_convert.errors import DestinationError, SourceError, WriteError

_COLUMNS = ("epoch", "learning_rate", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
_COLOURS = ("#2a6fdb", "#d9534f", "#3a9d4a", "#8a5fbf", "#c98a1b", "#555555")


def read(folder: Path) -> list[dict[str, float]]:
    """The figures of every epoch of a training.

    Raises:
        SourceError: the folder holds no training with a finished epoch.
    """
    path = folder / "history.csv"
    try:
        with path.open(newline="") as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
        for row in rows:
            [row[name] for name in _COLUMNS]
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise SourceError(f"{path}: is no history of a training ({error})") from None
    if not rows:
        raise SourceError(f"{path}: has no finished epoch")
    return rows


def names_of(folders: Sequence[Path]) -> dict[str, Path]:
    """The folders by as much of the ends of their paths as tells them apart.

    >>> [*names_of([Path("/a/run"), Path("/b/run")])]
    ['a/run', 'b/run']
    """
    whole = list(dict.fromkeys(folder.resolve() for folder in folders))
    for length in range(1, max(len(folder.parts) for folder in whole) + 1):
        names = ["/".join(folder.parts[-length:]) for folder in whole]
        if len({*names}) == len(whole):
            break
    return dict(zip(names, whole, strict=True))


def draw(runs: dict[str, Sequence[dict[str, float]]], path: Path) -> None:
    """Draw one or several trainings into one picture (.png, .svg or .pdf).

    Args:
        runs: name -> the figures of every epoch, as `read` returns them.

    Raises:
        DestinationError: the name ends otherwise.
        WriteError: the file could not be written.
    """
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise DestinationError(f"{path}: expected a name that ends in .png, .svg or .pdf")
    if not path.resolve().parent.is_dir():
        raise DestinationError(f"{path}: its folder does not exist")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (losses, errors, rates) = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for number, (name, rows) in enumerate(runs.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        epochs = [row["epoch"] for row in rows]
        marker = "." if len(rows) < 60 else ""  # a single epoch shows, too
        for part, line in (("train", ":"), ("test", "-")):
            label = f"{name} {part}".strip()
            style = {"color": colour, "linestyle": line, "marker": marker, "label": label}
            losses.plot(epochs, [row[f"{part}_loss"] for row in rows], **style)
            errors.plot(epochs, [100 * (1 - row[f"{part}_accuracy"]) for row in rows], **style)
        rates.plot(epochs, [row["learning_rate"] for row in rows], color=colour, marker=marker)
    for axis, title in ((losses, "loss"), (errors, "error [%]"), (rates, "learning rate")):
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
    for axis in (errors, rates):
        axis.set_ylim(bottom=0)
    # given, because matplotlib leaves out those that begin with "_"
    losses.legend(losses.lines, [line.get_label() for line in losses.lines], fontsize="small")
    try:
        with atomic.replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=100)
    except OSError as error:
        raise WriteError(f"{path}: could not be written ({error.strerror or error})") from None
    finally:
        pyplot.close(figure)
