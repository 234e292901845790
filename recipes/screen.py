"""The lines and the progress bar of `train`: the network, every step on a terminal, every epoch."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from recipes import monitor
from recipes.batches import steps_per_epoch
from recipes.pictures import Data
from recipes.recipe import Recipe
from recipes.run import network
from weights_convert.spec import count_parameters


class Screen:
    """Prints a training's figures; the progress bar only shows on a terminal."""

    def __init__(self, framework: str, recipe: Recipe, data: Data, out: Path):
        self.console = Console(highlight=False, soft_wrap=True)
        self.recipe, self.out = recipe, out
        self.steps = steps_per_epoch(data.train, recipe)
        spec, _ = network(recipe, data)
        rows, columns, channels = data.train.images.shape[1:]
        self.console.print(
            f"{recipe.model} in {framework}: {count_parameters(spec):,} parameters; {data.name}: "
            f"{len(data.train):,} pictures to train and {len(data.test):,} to test, "
            f"{rows} x {columns} x {channels}, {len(data.train.classes)} classes; "
            f"{recipe.epochs} epochs of {self.steps:,} steps"
        )
        if data.skipped:
            self.console.print(f"skipped {len(data.skipped)} pictures: {', '.join(data.skipped[:5])}")
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("", total=recipe.epochs * self.steps, epoch=1, loss=float("nan"))

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def step(self, progress: monitor.Progress) -> None:
        loss = progress.loss / max(progress.count, 1)
        epoch = (progress.step - 1) // self.steps + 1
        self.bar.update(self.task, completed=progress.step, epoch=epoch, loss=loss)

    def epoch(self, row: dict[str, float]) -> None:
        self.console.print(
            f"epoch {row['epoch']:3}  rate {row['learning_rate']:.5f}  loss {row['train_loss']:.4f}  "
            f"train {row['train_accuracy']:.2%}  test loss {row['test_loss']:.4f}  "
            f"test {row['test_accuracy']:.2%}"
        )

    def end(self) -> None:
        self.console.print(f"{self.out}: last.safetensors, best.safetensors, history.csv, curves.png")
