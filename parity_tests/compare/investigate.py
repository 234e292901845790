"""Compares one checkpoint in every framework layer by layer: builds, traces and frees the models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any, NamedTuple

import numpy as np

from parity_tests.compare.layers import compare_tracers, torch_noise
from parity_tests.compare.report import Report
from parity_tests.watch.build import keras_model, same_bits, tf1_graph, torch_module
from parity_tests.watch.open import tracer_of
from parity_tests.watch.trace import TF1Model, Tracer
from weights_convert import Checkpoint, load_into, state_of
from weights_convert.spec import Spec

Say = Callable[[str], None]


class Live(NamedTuple):
    """A network of this project: its tracer, and the torch module, Keras model or TF1 session."""

    tracer: Tracer
    model: Any


@contextmanager
def live(
    framework: str, spec: Spec, checkpoint: Checkpoint, dtype: str, *, train: bool = False
) -> Iterator[Live]:
    """Build a network with a checkpoint's weights and a tracer; `train` selects the TF1 graph's mode."""
    if framework == "torch":
        module = torch_module(spec, checkpoint, dtype)
        yield Live(tracer_of(module, dtype), module)
    elif framework == "keras":
        model = keras_model(spec, checkpoint, dtype)
        yield Live(tracer_of(model, dtype), model)
    else:
        import tensorflow.compat.v1 as tf

        graph, images, logits, _ = tf1_graph(spec, dtype, train=train)
        with closing(tf.Session(graph=graph)) as session:  # entering it would make its graph the default
            load_into(session, checkpoint)
            yield Live(tracer_of(TF1Model(session, images, logits), dtype), session)


def investigate(
    title: str,
    checkpoint: Checkpoint,
    images: np.ndarray,
    *,
    frameworks: Sequence[str] = ("torch", "keras", "tf1"),
    dtype: str = "float64",
    gradients: bool = True,
    train_steps: int = 0,
    say: Say = lambda _: None,
) -> Report:
    """Compare layers, gradients and training of a network in every framework with torch's float64.

    Args:
        title: of the report.
        checkpoint: of a network.
        images: (N, C, H, W).
        frameworks: the candidates; torch is a candidate in float32 only.
        dtype: of the candidates.
        gradients: whether to compare gradients.
        train_steps: number of training steps to compare; 0 for none.
        say: called with the current step.
    """
    spec: Any = checkpoint.spec
    say("torch in float64, layer by layer")
    model = torch_module(spec, checkpoint, "float64")
    noise = torch_noise(model, images, dtype)
    reference = tracer_of(model, "float64")
    with ExitStack() as stack:
        candidates = {}
        for framework in frameworks:
            if framework == "torch" and dtype == "float64":
                continue  # the reference itself
            say(f"{framework} in {dtype}, layer by layer")
            candidates[framework] = stack.enter_context(live(framework, spec, checkpoint, dtype))
        if candidates:
            differing = {*same_bits(checkpoint, state_of(model), "float64")}
            for candidate in candidates.values():
                differing.update(same_bits(checkpoint, state_of(candidate.model), dtype))
            report = compare_tracers(
                reference,
                {framework: candidate.tracer for framework, candidate in candidates.items()},
                images,
                noise=noise,
                title=title,
                bit_for_bit={*checkpoint} - differing,
            )
        else:
            report = Report(title, "torch", [], dtype, images=images.shape)
    if gradients and spec.num_classes == 1:
        report.notes.append("one class: the loss is always 0, so there are no gradients to compare")
    elif gradients:
        from parity_tests.compare import gradients as gradient

        say("gradients")
        report.gradients = gradient.gradients(checkpoint, images, frameworks=frameworks, dtype=dtype)
        report.notes += gradient.notes(checkpoint, dtype)
    if train_steps:
        from parity_tests.compare.networks import seeded_labels
        from parity_tests.compare.training import train

        say(f"{train_steps} steps of training")
        labels = seeded_labels(len(images), spec.num_classes)
        report.training = train(
            checkpoint, images, labels, steps=train_steps, frameworks=frameworks, dtype=dtype
        )
    return report
