"""Follows a training in any framework: its figures, its state for `--resume`, and its checkpoints."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from weights_convert import Checkpoint, atomic, save
from weights_convert.errors import SourceError, WeightsConvertError, WriteError

COLUMNS = (
    "epoch",
    "learning_rate",
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "test_error",
)


class TrainingError(WeightsConvertError):
    """A training that cannot go on; its last checkpoint is intact."""

    exit_code = 1


@dataclass
class Progress:
    """Where a training is: `step` steps are done, the loss of the last one, the sums of the current epoch."""

    step: int = 0
    last_loss: float = 0.0
    loss: float = 0.0
    correct: int = 0
    count: int = 0
    best: float = -1.0
    rows: list[dict[str, float]] = field(default_factory=list)


class Monitor:
    """Notes every step and epoch, and keeps the last complete state on disk.

    A state is a folder `state/STEP` with the framework's own files and `progress.json`. It is written under
    another name and then renamed, and the one before is removed afterwards: a kill at any moment leaves a
    complete state.
    """

    def __init__(
        self,
        folder: Path,
        steps_per_epoch: int,
        *,
        save_every: int | None = None,
        rate: Callable[[int], float],
        on_step: Callable[[Progress], None] = lambda _: None,
        on_epoch: Callable[[dict[str, float]], None] = lambda _: None,
    ):
        self.folder, self.steps_per_epoch, self.rate = folder, steps_per_epoch, rate
        self.save_every = save_every or steps_per_epoch
        self.on_step, self.on_epoch = on_step, on_epoch
        self.progress = Progress()

    @property
    def epoch(self) -> int:
        return self.progress.step // self.steps_per_epoch

    @property
    def step_of_epoch(self) -> int:
        return self.progress.step % self.steps_per_epoch

    def step_done(self, loss: float, correct: int, count: int) -> bool:
        """Note a step; return whether its state is due to be saved.

        Raises:
            TrainingError: the loss is no number any more.
        """
        if not math.isfinite(loss):
            kept = self.last_state()
            where = f"; the state after step {kept.name} is kept" if kept else ""
            raise TrainingError(
                f"step {self.progress.step + 1}: the loss is {loss}{where}; try a lower --learning-rate"
            )
        p = self.progress
        p.last_loss = loss
        p.step, p.loss, p.correct, p.count = (
            p.step + 1,
            p.loss + loss * count,
            p.correct + correct,
            p.count + count,
        )
        self.on_step(p)
        return p.step % self.save_every == 0 and self.step_of_epoch != 0

    def epoch_done(self, test_loss: float, test_accuracy: float, weights: Callable[[], Checkpoint]) -> None:
        """Note an epoch, write the figures, and write `last` and perhaps `best` as checkpoints."""
        p = self.progress
        row = {
            "epoch": self.epoch,
            "learning_rate": self.rate(p.step - 1),
            "train_loss": p.loss / p.count,
            "train_accuracy": p.correct / p.count,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "test_error": 1 - test_accuracy,
        }
        p.rows.append(row)
        p.loss, p.correct, p.count = 0.0, 0, 0
        checkpoint = weights()
        save(checkpoint, self.folder / "last.safetensors", overwrite=True)
        if test_accuracy > p.best:
            p.best = test_accuracy
            save(checkpoint, self.folder / "best.safetensors", overwrite=True)
        self.write_history()
        self.on_epoch(row)

    def write_history(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.progress.rows)
        with atomic.replacing(self.folder / "history.csv") as temporary:
            temporary.write_text(text.getvalue())

    def save_state(self, write: Callable[[Path], Any]) -> None:
        """Save the state: `write` puts the framework's files into a folder.

        Raises:
            WriteError: it could not be written; the state before is intact.
        """
        states = self.folder / "state"
        new, before = states / str(self.progress.step), self.states()
        partial = states / f"{self.progress.step}.partial"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            write(partial)
            (partial / "progress.json").write_text(json.dumps(asdict(self.progress)))
            shutil.rmtree(new, ignore_errors=True)
            partial.rename(new)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a full disk
            shutil.rmtree(partial, ignore_errors=True)
            kept = f"; the state after step {before[-1].name} is kept" if before else ""
            raise WriteError(f"{new}: could not be written ({error}){kept}") from error
        for old in before:
            if old != new:
                shutil.rmtree(old, ignore_errors=True)

    def states(self) -> list[Path]:
        """The complete states, the last one at the end."""
        found = [path for path in (self.folder / "state").glob("*") if path.name.isdigit()]
        return sorted(found, key=lambda path: int(path.name))

    def last_state(self) -> Path | None:
        return self.states()[-1] if self.states() else None

    def resume(self) -> Path | None:
        """Read the progress of the last state and return its folder; None without one."""
        state = self.last_state()
        if state is not None:
            try:
                self.progress = Progress(**json.loads((state / "progress.json").read_bytes()))
            except (OSError, ValueError, TypeError) as error:
                raise SourceError(f"{state}: is no state of a training ({error})") from None
        return state
