"""Trains a TensorFlow 1 graph with `MonitoredTrainingSession`, a `Saver` and summaries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow.compat.v1 as tf

import tf1_compat
from recipes.batches import evaluation_batches, training_batch
from recipes.run import Run
from weights_convert import load_into, state_of


class Graph:
    """The network twice on the same variables, for training and for tests, with loss and optimiser."""

    def __init__(self, run: Run):
        recipe, pictures = run.recipe, run.data.train
        rows, columns, channels = pictures.images.shape[1:]
        self.images = tf.placeholder(recipe.dtype, (None, rows, columns, channels), "images")
        self.targets = tf.placeholder(recipe.dtype, (None, len(pictures.classes)), "targets")
        self.rate = tf.placeholder(recipe.dtype, (), "learning_rate")
        tf.set_random_seed(recipe.seed)  # of dropout
        logits, _ = tf1_compat.create_model(recipe.model, self.images, is_training=True, **run.keywords)
        with tf.variable_scope(tf.get_variable_scope(), reuse=True):
            tested, _ = tf1_compat.create_model(recipe.model, self.images, **run.keywords)
        self.loss, self.correct = self._figures(logits)
        self.test_loss, self.test_correct = self._figures(tested)
        self.step = self._train_op(recipe.momentum, recipe.weight_decay)

    def _figures(self, logits: Any) -> tuple[Any, Any]:
        losses = tf.nn.softmax_cross_entropy_with_logits_v2(labels=self.targets, logits=logits)
        hits = tf.equal(tf.argmax(logits, 1), tf.argmax(self.targets, 1))
        return tf.reduce_mean(losses), tf.reduce_sum(tf.cast(hits, tf.int32))

    def _train_op(self, momentum: float, weight_decay: float) -> Any:
        """PyTorch's SGD: TF1's momentum is the same; weight decay is added to the gradient."""
        global_step = tf.train.get_or_create_global_step()
        variables = tf.trainable_variables()
        gradients = [
            gradient + weight_decay * variable
            for gradient, variable in zip(tf.gradients(self.loss, variables), variables, strict=True)
        ]
        # every variable is read before any is written; the running statistics are in UPDATE_OPS
        with tf.control_dependencies([self.loss, *gradients, *tf.get_collection(tf.GraphKeys.UPDATE_OPS)]):
            # a number of Python would become float32
            optimizer = tf.train.MomentumOptimizer(self.rate, tf.constant(momentum, self.rate.dtype))
            return optimizer.apply_gradients(zip(gradients, variables, strict=True), global_step)


class Follow(tf.train.SessionRunHook):
    """Tells the run's monitor of every step and epoch, saves the state when it is due, writes summaries."""

    def __init__(self, run: Run, graph: Graph, saver: Any):
        self.run, self.graph, self.saver = run, graph, saver

    def after_create_session(self, session: Any, coord: Any) -> None:
        self.session = session  # without hooks: for tests and checkpoints
        self.writer = tf.summary.FileWriter(str(self.run.folder / "tensorboard"), session.graph)

    def before_run(self, run_context: Any) -> Any:
        return tf.train.SessionRunArgs([self.graph.loss, self.graph.correct])

    def after_run(self, run_context: Any, run_values: Any) -> None:
        monitor, (loss, correct) = self.run.monitor, run_values.results
        count = min(self.run.recipe.batch_size, len(self.run.data.train))
        due = monitor.step_done(float(loss), int(correct), count)
        self._summary({"train_loss": loss})
        if monitor.step_of_epoch == 0:
            figures = self._test()
            monitor.epoch_done(*figures, lambda: state_of(self.session))
            self._summary(dict(zip(("test_loss", "test_accuracy"), figures, strict=True)))
            due = True
        if due:
            monitor.save_state(self._save)

    def end(self, session: Any) -> None:
        self.writer.close()

    def _save(self, folder: Path) -> None:
        try:
            self.saver.save(self.session, str(folder / "tf1.ckpt"), write_meta_graph=False)
        except tf.errors.OpError as error:  # a full disk
            raise OSError(error.message.partition("\n")[0]) from error

    def _test(self) -> tuple[float, float]:
        loss, correct, total = 0.0, 0, 0
        for batch in evaluation_batches(self.run.data.test, self.run.recipe):
            feed = {self.graph.images: batch.images, self.graph.targets: batch.targets}
            mean, hits = self.session.run([self.graph.test_loss, self.graph.test_correct], feed)
            loss, correct, total = (
                loss + float(mean) * len(batch.images),
                correct + int(hits),
                total + len(batch.images),
            )
        return loss / total, correct / total

    def _summary(self, figures: dict[str, Any]) -> None:
        values = [tf.Summary.Value(tag=name, simple_value=float(value)) for name, value in figures.items()]
        self.writer.add_summary(tf.Summary(value=values), self.run.monitor.progress.step)


def train(run: Run) -> None:
    """Train until the last epoch of the recipe, from the run's state if it has one."""
    recipe, monitor = run.recipe, run.monitor
    with tf.Graph().as_default():
        graph, saver = Graph(run), tf.train.Saver()

        def begin(_scaffold: Any, session: Any) -> None:
            if run.state is None:
                load_into(session, run.weights)
            else:
                saver.restore(session, str(run.state / "tf1.ckpt"))

        scaffold = tf.train.Scaffold(init_fn=begin, saver=saver)
        with tf.train.MonitoredTrainingSession(
            scaffold=scaffold, hooks=[Follow(run, graph, saver)], log_step_count_steps=None
        ) as session:
            while monitor.epoch < recipe.epochs:
                batch = training_batch(run.data.train, recipe, monitor.epoch, monitor.step_of_epoch)
                rate = recipe.rate(monitor.progress.step, monitor.steps_per_epoch)
                feed = {graph.images: batch.images, graph.targets: batch.targets, graph.rate: rate}
                session.run(graph.step, feed)
