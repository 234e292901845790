"""One training: its recipe, pictures, first weights and folder."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.batches import steps_per_epoch
from recipes.curves import draw
from recipes.initial import initial_weights
from recipes.monitor import Monitor, Progress
from recipes.pictures import Data
from recipes.recipe import Recipe
from weights_convert import Checkpoint, atomic, load, model_spec
from weights_convert.cautions import caution_about
from weights_convert.changes import new_head, rounded
from weights_convert.errors import DestinationError, MismatchError, SourceError, SpecError
from weights_convert.spec import Spec, changed, parameters

TRAINERS = {"torch": "torch_trainer", "keras": "keras_trainer", "tf1": "tf1_trainer"}
_NEEDS = {  # framework -> modules, which pip calls the same
    "torch": {"torch", "lightning", "tensorboard", "matplotlib"},
    "keras": {"keras", "tensorflow", "matplotlib"},
    "tf1": {"tensorflow", "matplotlib"},
}


@dataclass
class Run:
    """Everything that a trainer needs.

    Attributes:
        weights: the network's first weights, the same in every framework.
        keywords: of the network, besides its name.
        state: the folder of the state to go on from; None to begin.
    """

    recipe: Recipe
    data: Data
    folder: Path
    weights: Checkpoint
    keywords: dict[str, Any]
    monitor: Monitor
    state: Path | None = None


def train(
    framework: str,
    recipe: Recipe,
    data: Data,
    folder: Path,
    *,
    weights: str | Path | None = None,
    resume: bool = False,
    save_every: int | None = None,
    on_step: Callable[[Progress], None] = lambda _: None,
    on_epoch: Callable[[dict[str, float]], None] = lambda _: None,
) -> list[dict[str, float]]:
    """Train a network in a framework and return the figures of every epoch.

    Args:
        folder: for `last` and `best` (checkpoints for all frameworks), `history.csv`, `curves.png`,
            `run.json`, `state`.
        weights: a checkpoint to begin with, all but the classifier if the classes differ; None for
            `initial_weights` of the recipe's seed.
        resume: go on from the folder's last state. The result is the same as without the interruption.
        save_every: steps between two states; None for an epoch.

    Raises:
        SpecError: an unknown model, or its package is not installed.
        DestinationError: the folder has another training.
        TrainingError: the loss is no number.
        WriteError: a state could not be written.
    """
    check_installed(framework)
    spec, keywords = network(recipe, data)
    facts = describe(framework, recipe, data)
    _check_folder(folder, facts, resume)
    monitor = Monitor(
        folder,
        steps_per_epoch(data.train, recipe),
        save_every=save_every,
        rate=lambda step: recipe.rate(step, steps_per_epoch(data.train, recipe)),
        on_step=on_step,
        on_epoch=on_epoch,
    )
    if weights is None:
        first = initial_weights(spec, recipe.seed, recipe.dtype)
    else:
        first = with_weights(weights, spec, recipe.dtype)
    run = Run(recipe, data, folder, first, keywords, monitor, monitor.resume() if resume else None)
    _record(folder, facts)
    if monitor.epoch < recipe.epochs:
        importlib.import_module("weights_convert.import_order")
        importlib.import_module(f"recipes.{TRAINERS[framework]}").train(run)
    draw({"": monitor.progress.rows}, folder / "curves.png")
    return monitor.progress.rows


def with_weights(path: str | Path, spec: Spec, dtype: str) -> Checkpoint:
    """The weights of a file, with a new classifier if the numbers of classes differ.

    Raises:
        MismatchError: the file has another network.
    """
    classes = spec.model_kwargs()["num_classes"]
    with load(path) as source:
        caution_about(source)
        same = source.spec.model_kwargs().get("num_classes") == classes
        checkpoint = rounded(source if same else new_head(source, classes), dtype)
        if parameters(checkpoint.spec) != parameters(spec):
            raise MismatchError(f"{path}: has {source.describe()}, not the network of the recipe")
        return Checkpoint.from_arrays(dict(checkpoint), checkpoint.spec.model_kwargs())


def network(recipe: Recipe, data: Data) -> tuple[Spec, dict[str, Any]]:
    """The spec of the recipe's network for these pictures, and the keywords that differ from its name's."""
    keywords = {"num_classes": len(data.train.classes)}
    if data.train.images.shape[-1] != 3:
        keywords["in_channels"] = data.train.images.shape[-1]
    spec = changed(model_spec(recipe.model), keywords)
    spec.check_image(*data.train.images.shape[1:3])
    return spec, keywords


def describe(framework: str, recipe: Recipe, data: Data) -> dict[str, Any]:
    """The facts of a training, for `run.json`: whoever uses its weights needs the preprocessing."""
    pictures = data.train
    return {
        "framework": framework,
        "recipe": dataclasses.asdict(recipe),
        "data": data.name,
        "pictures": {"train": len(data.train), "test": len(data.test), "skipped": len(data.skipped)},
        "input": {
            "size": list(pictures.images.shape[1:3]),
            "channels": pictures.images.shape[3],
            "mean": list(pictures.mean),
            "std": list(pictures.std),
        },
        "classes": list(pictures.classes),
    }


def check_installed(framework: str) -> None:
    missing = sorted(name for name in _NEEDS[framework] if importlib.util.find_spec(name) is None)
    if missing:
        raise SpecError(f"{framework}: {', '.join(missing)} not installed; pip install {' '.join(missing)}")


def _record(folder: Path, facts: dict[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(folder / "run.json") as temporary:
            temporary.write_text(json.dumps(facts, indent=2) + "\n")
    except OSError as error:
        raise DestinationError(f"{folder}: cannot be written ({error.strerror})") from None


def _check_folder(folder: Path, facts: dict[str, Any], resume: bool) -> None:
    record = folder / "run.json"
    if not resume:
        if record.exists():
            raise DestinationError(f"{folder}: holds a training; give --resume, or another --out")
        return
    try:
        before = json.loads(record.read_bytes())
    except (OSError, ValueError):
        raise SourceError(f"{folder}: holds no training to resume") from None
    for where in ("framework", "data", "pictures", "input", "classes", "recipe"):
        if before.get(where) == facts[where]:
            continue
        if where == "recipe":
            names = [n for n, value in facts["recipe"].items() if before["recipe"].get(n) != value]
            if names == ["epochs"] and facts["recipe"]["schedule"] != "one-cycle":
                continue  # a training may go on for longer
            had = ", ".join(
                f"{name} {before['recipe'].get(name)!r}, not {facts['recipe'][name]!r}" for name in names
            )
            raise SpecError(f"{folder}: was trained with {had}; resume with the same settings")
        raise SpecError(f"{folder}: was trained with {where} {before.get(where)!r}, not {facts[where]!r}")
