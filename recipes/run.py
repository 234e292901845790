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
from recipes.initial import initial_weights
from recipes.monitor import Monitor, Progress
from recipes.pictures import Data
from recipes.recipe import Recipe
from weights_convert import Checkpoint, atomic, load, model_spec
from weights_convert.errors import DestinationError, MismatchError, SourceError, SpecError
from weights_convert.spec import Spec, changed

TRAINERS = {"torch": "torch_trainer", "keras": "keras_trainer", "tf1": "tf1_trainer"}
_NEEDS = {  # framework -> modules, and what pip calls them
    "torch": {"torch": "torch", "lightning": "lightning", "tensorboard": "tensorboard"},
    "keras": {"keras": "keras", "tensorflow": "tensorflow"},
    "tf1": {"tensorflow": "tensorflow"},
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
        folder: for `last` and `best` (checkpoints for all frameworks), `history.csv`, `run.json`, `state`.
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
    first = initial_weights(spec, recipe.seed, recipe.dtype)
    if weights is not None:
        first = with_weights(first, weights)
    run = Run(recipe, data, folder, first, keywords, monitor, monitor.resume() if resume else None)
    if monitor.epoch < recipe.epochs:
        importlib.import_module("weights_convert.import_order")
        importlib.import_module(f"recipes.{TRAINERS[framework]}").train(run)
    return monitor.progress.rows


def with_weights(first: Checkpoint, path: str | Path) -> Checkpoint:
    """The weights of a file, with the classifier of `first` if the numbers of classes differ.

    Raises:
        MismatchError: the file has another network.
    """
    with load(path) as checkpoint:
        ours, theirs = first.spec.model_kwargs(), checkpoint.spec.model_kwargs()
        head = {name for name in first if name.startswith(f"{first.spec.head}.")}
        kept = head if theirs.get("num_classes") != ours["num_classes"] else set()
        if wrong := [name for name in first if name not in kept and not _same_shape(first, checkpoint, name)]:
            raise MismatchError(
                f"{path}: has {checkpoint.describe()}, expected {first.describe()}; "
                f"{wrong[0]} and {len(wrong) - 1} more differ"
            )
        arrays = {name: (first if name in kept else checkpoint)[name] for name in first}
        arrays = {name: array.astype(first[name].dtype) for name, array in arrays.items()}
        return Checkpoint.from_arrays(
            arrays, checkpoint.spec.model_kwargs() | {"num_classes": ours["num_classes"]}
        )


def _same_shape(one: Checkpoint, other: Checkpoint, name: str) -> bool:
    return name in other and one.tensors[name].info.shape == other.tensors[name].info.shape


def network(recipe: Recipe, data: Data) -> tuple[Spec, dict[str, Any]]:
    """The spec of the recipe's network for these pictures, and the keywords that differ from its name's."""
    keywords = {"num_classes": len(data.train.classes)}
    if data.train.images.shape[-1] != 3:
        keywords["in_channels"] = data.train.images.shape[-1]
    return changed(model_spec(recipe.model), keywords), keywords


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
    missing = [name for module, name in _NEEDS[framework].items() if importlib.util.find_spec(module) is None]
    if missing:
        raise SpecError(f"{framework}: {', '.join(missing)} not installed; pip install {' '.join(missing)}")


def _check_folder(folder: Path, facts: dict[str, Any], resume: bool) -> None:
    record = folder / "run.json"
    if not resume:
        if record.exists():
            raise DestinationError(f"{folder}: holds a training; give --resume, or another --out")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DestinationError(f"{folder}: cannot be made ({error.strerror})") from None
        with atomic.replacing(record) as temporary:
            temporary.write_text(json.dumps(facts, indent=2) + "\n")
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
