"""Trains in Keras 3 with `compile` and `fit` (https://keras.io/api/models/model_training_apis/)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

import keras_impl
from recipes.batches import evaluation_batches, training_batch
from recipes.monitor import Monitor
from recipes.recipe import Recipe
from recipes.run import Run
from weights_convert import load_into, state_of


class SGD(keras.optimizers.SGD):
    """PyTorch's SGD: g = dL/dw + wd w, b = mu b + g, w = w - lr b.

    Keras's own keeps -lr b, which is another training once the rate changes, and decouples the weight decay.
    """

    def __init__(self, learning_rate: Any, momentum: float, coupled_decay: float):
        super().__init__(learning_rate, momentum=momentum)
        self.coupled_decay = coupled_decay

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        rate = ops.cast(learning_rate, variable.dtype)
        gradient = ops.add(ops.cast(gradient, variable.dtype), ops.multiply(self.coupled_decay, variable))
        if self.momentum:
            b = self.momentums[self._get_variable_index(variable)]
            gradient = ops.add(ops.multiply(self.momentum, b), gradient)
            self.assign(b, gradient)
        self.assign_sub(variable, ops.multiply(rate, gradient))


class Rates(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate of every step, from a table."""

    def __init__(self, rates: list[float], dtype: str):
        self.rates, self.dtype = rates, dtype

    def __call__(self, step: Any) -> Any:
        last = len(self.rates) - 1
        return ops.take(ops.convert_to_tensor(self.rates, self.dtype), ops.minimum(step, last))


class OfBatch(keras.metrics.Metric):
    """A figure of the last batch, where Keras's own metrics are means since the epoch's beginning."""

    def __init__(self, figure: Callable[[Any, Any], Any], name: str):
        super().__init__(name=name)
        self.figure = figure
        self.value = self.add_variable((), "zeros", name="value")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.value.assign(ops.cast(self.figure(y_true, y_pred), self.value.dtype))

    def result(self) -> Any:
        return self.value


def _loss(targets: Any, logits: Any) -> Any:
    return ops.mean(keras.losses.categorical_crossentropy(targets, logits, from_logits=True))


def _correct(targets: Any, logits: Any) -> Any:
    return ops.sum(ops.cast(ops.equal(ops.argmax(targets, -1), ops.argmax(logits, -1)), "float32"))


class TrainingBatches(keras.utils.PyDataset):
    """The batches of an epoch from number `start` on."""

    def __init__(self, run: Run):
        super().__init__()
        self.run, self.epoch, self.start = run, run.monitor.epoch, run.monitor.step_of_epoch

    def __len__(self) -> int:
        return self.run.monitor.steps_per_epoch - self.start

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return training_batch(self.run.data.train, self.run.recipe, self.epoch, self.start + index)

    def on_epoch_begin(self) -> None:  # `fit` calls `on_epoch_end` after its first look at the data, too
        self.epoch = self.run.monitor.epoch


class EvaluationBatches(keras.utils.PyDataset):
    """All test pictures."""

    def __init__(self, run: Run):
        super().__init__()
        self.batches = list(evaluation_batches(run.data.test, run.recipe))

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.batches[index]


class Follow(keras.callbacks.Callback):
    """Tells a monitor of every step and epoch, and saves the state when it is due."""

    def __init__(self, monitor: Monitor, batch_size: int):
        super().__init__()
        self.monitor, self.batch_size = monitor, batch_size

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        logs = logs or {}
        if self.monitor.step_done(logs["batch_loss"], round(logs["batch_correct"]), self.batch_size):
            self._save()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        logs = logs or {}
        self.monitor.epoch_done(logs["val_loss"], logs["val_accuracy"], lambda: state_of(self.model))
        self._save()

    def _save(self) -> None:
        self.monitor.save_state(lambda folder: _write_state(self.model, folder / "keras.npz"))


def _state(model: Any) -> list[Any]:
    """The variables of a compiled network and its optimiser, and of dropout; none of the metrics."""
    of_metrics = {id(variable) for metric in model.metrics for variable in metric.variables}
    own = [variable for variable in model.variables if id(variable) not in of_metrics]
    return own + model.optimizer.variables


def _write_state(model: Any, path: Path) -> None:
    """Write the state with NumPy: HDF5, which `save_weights` uses, ends the process on a full disk."""
    arrays = {f"{n:05}": ops.convert_to_numpy(variable.value) for n, variable in enumerate(_state(model))}
    np.savez(path, **arrays)


def _read_state(model: Any, path: Path) -> None:
    with np.load(path, allow_pickle=False) as file:
        for variable, name in zip(_state(model), file.files, strict=True):
            variable.assign(file[name])


@contextmanager
def _computing_in(dtype: str) -> Iterator[None]:
    """Losses and optimisers compute in Keras's floatx whatever the model's dtype."""
    before = keras.config.floatx()
    keras.config.dtype_policy()  # made of floatx on first use, and kept for all later models
    keras.config.set_floatx(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(before)


def train(run: Run) -> None:
    """Train until the last epoch of the recipe, from the run's state if it has one."""
    recipe = run.recipe
    with _computing_in(recipe.dtype):
        keras.utils.set_random_seed(recipe.seed)  # of dropout
        model = keras_impl.create_model(recipe.model, **run.keywords, dtype=recipe.dtype)
        load_into(model, run.weights)
        _compile(model, run, recipe)
        if run.state is not None:
            _read_state(model, run.state / "keras.npz")
        _fit(model, run)


def _compile(model: Any, run: Run, recipe: Recipe) -> None:
    steps = run.monitor.steps_per_epoch
    rates = [recipe.rate(step, steps) for step in range(steps * recipe.epochs)]
    optimizer = SGD(Rates(rates, recipe.dtype), recipe.momentum, recipe.weight_decay)
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=[
            keras.metrics.CategoricalAccuracy("accuracy"),
            OfBatch(_loss, "batch_loss"),
            OfBatch(_correct, "batch_correct"),
        ],
        jit_compile=False,  # XLA compiles for longer than a small training takes
    )
    optimizer.build(model.trainable_variables)


def _fit(model: Any, run: Run) -> None:
    monitor, epochs = run.monitor, run.recipe.epochs
    callbacks = [
        Follow(monitor, min(run.recipe.batch_size, len(run.data.train))),
        keras.callbacks.TensorBoard(run.folder / "tensorboard"),
    ]
    while monitor.epoch < epochs:  # a second time only after the rest of a resumed epoch
        batches = TrainingBatches(run)
        model.fit(
            batches,
            validation_data=EvaluationBatches(run),
            initial_epoch=batches.epoch,
            epochs=batches.epoch + 1 if batches.start else epochs,
            callbacks=callbacks,
            shuffle=False,
            verbose=0,
        )
