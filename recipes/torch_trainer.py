"""Trains in PyTorch with Lightning 2 (https://lightning.ai/docs/pytorch/stable/)."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn.functional import cross_entropy

import torch_impl
from recipes.batches import Batch, evaluation_batches, training_batch
from recipes.monitor import Monitor
from recipes.pictures import Pictures
from recipes.recipe import Recipe
from recipes.run import Run
from weights_convert import load_into, state_of

Tensors = tuple[Tensor, Tensor]  # images (N, C, H, W), targets (N, K)


class Classifier(lightning.LightningModule):
    """A network with the recipe's loss and optimiser."""

    def __init__(self, run: Run):
        super().__init__()
        self.recipe, self.steps = run.recipe, run.monitor.steps_per_epoch
        self.model = torch_impl.create_model(self.recipe.model, **run.keywords)
        self.model.to(dtype=getattr(torch, self.recipe.dtype), memory_format=torch.channels_last)
        load_into(self.model, run.weights)

    def training_step(self, batch: Tensors, _: int) -> dict[str, Tensor]:
        images, targets = batch
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.global_step)  # of dropout
        logits = self.model(images)
        loss = cross_entropy(logits, targets)
        self.log("train_loss", loss)
        return {"loss": loss, "correct": _hits(logits, targets).sum()}

    def validation_step(self, batch: Tensors, _: int) -> None:
        images, targets = batch
        logits = self.model(images)
        self.log("test_loss", cross_entropy(logits, targets), batch_size=len(images))
        self.log("test_accuracy", _hits(logits, targets).to(torch.float64).mean(), batch_size=len(images))

    def configure_optimizers(self) -> Any:
        r = self.recipe
        optimizer = torch.optim.SGD(
            self.model.parameters(), lr=1.0, momentum=r.momentum, weight_decay=r.weight_decay
        )
        # a rate of 1, times the recipe's
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: r.rate(step, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _hits(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.argmax(1) == targets.argmax(1)


class TrainingBatches:
    """The batches of an epoch from the monitor's step on, so that a resumed epoch begins in its middle."""

    def __init__(self, pictures: Pictures, recipe: Recipe, monitor: Monitor):
        self.pictures, self.recipe, self.monitor = pictures, recipe, monitor

    def __len__(self) -> int:
        return self.monitor.steps_per_epoch

    def __iter__(self) -> Iterator[Tensors]:
        epoch, start = self.monitor.epoch, self.monitor.step_of_epoch
        for number in range(start, len(self)):
            yield _tensors(training_batch(self.pictures, self.recipe, epoch, number))

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the monitor has the place. Lightning warns on resuming a loader without this method."""
        return {}

    def load_state_dict(self, _: dict[str, Any]) -> None:
        pass


class EvaluationBatches:
    """All test pictures."""

    def __init__(self, pictures: Pictures, recipe: Recipe):
        self.pictures, self.recipe = pictures, recipe

    def __iter__(self) -> Iterator[Tensors]:
        return map(_tensors, evaluation_batches(self.pictures, self.recipe))


def _tensors(batch: Batch) -> Tensors:
    images, targets = map(torch.from_numpy, batch)
    return images.permute(0, 3, 1, 2), targets  # a view: channels_last in memory


class Follow(Callback):
    """Tells a monitor of every step and epoch, and saves the state when it is due."""

    def __init__(self, monitor: Monitor):
        self.monitor = monitor

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.monitor.step_done(outputs["loss"].item(), int(outputs["correct"]), len(batch[1])):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        loss, accuracy = (float(trainer.callback_metrics[name]) for name in ("test_loss", "test_accuracy"))
        self.monitor.epoch_done(loss, accuracy, lambda: state_of(module.model))
        self._save(trainer)

    def _save(self, trainer: Any) -> None:
        self.monitor.save_state(lambda folder: trainer.save_checkpoint(folder / "lightning.ckpt"))


def train(run: Run) -> None:
    """Train until the last epoch of the recipe, from the run's state if it has one."""
    for name in ("lightning.pytorch", "lightning.fabric"):  # their lines on devices and tips
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")  # on workers of loaders, logging intervals
        trainer = lightning.Trainer(
            max_epochs=run.recipe.epochs,
            accelerator="cpu",
            devices=1,
            callbacks=[Follow(run.monitor)],
            logger=TensorBoardLogger(run.folder, name=None, version="tensorboard"),
            enable_checkpointing=False,  # `Follow` saves a state that a kill cannot damage
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
        )
        with _interrupted_as_usual():
            trainer.fit(
                Classifier(run),
                TrainingBatches(run.data.train, run.recipe, run.monitor),
                EvaluationBatches(run.data.test, run.recipe),
                ckpt_path=None if run.state is None else run.state / "lightning.ckpt",
            )


@contextmanager
def _interrupted_as_usual() -> Iterator[None]:
    """Raise the KeyboardInterrupt that Lightning turns into `sys.exit(1)` after ignoring further ones."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise error.__context__ from None
