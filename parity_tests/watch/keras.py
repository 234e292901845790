"""Tracing a Keras model: replaces `__call__` of all layers during one run."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import keras
import numpy as np

from parity_tests.judge import tolerances
from parity_tests.watch.inputs import Beside
from parity_tests.watch.keras_layers import WHOLE, call_with, named_layers, own_weights, to_numpy
from parity_tests.watch.keras_rebuild import MOVED, check_copies, give_weights, needs_rebuild, rebuilt
from parity_tests.watch.structure import arrays, replaced, tensors
from parity_tests.watch.trace import (
    Call,
    Fingerprint,
    Trace,
    Weights,
    base_name,
    channels_first,
    channels_last,
    fingerprint,
    is_index,
    joined,
    nearest,
    numbered,
    reason_of,
    settings_of,
    stirred,
)
from weights_convert.errors import SpecError

_RANDOM = (  # layers that are random in training, and the attribute to set to 0
    (keras.layers.Dropout, "rate"),
    (keras.layers.AlphaDropout, "rate"),
    (keras.layers.GaussianDropout, "rate"),
    (keras.layers.GaussianNoise, "stddev"),
)
_LEAVES = {"moving_mean": "running_mean", "moving_variance": "running_var"}


class KerasTracer:
    """Traces a Keras model, or a copy rebuilt in `dtype`. Dropout is off in training.

    A model in half precision is traced in half precision.
    """

    framework = "keras"

    def __init__(self, model: keras.Layer, dtype: str):
        if dtype == "float64" and keras.backend.backend() == "jax" and not _jax_has_float64():
            raise SpecError("JAX computes in float32: set JAX_ENABLE_X64=1 before importing it")
        self.dtype, self.beside = dtype, Beside()
        self._live = self.model = model
        self._copies: dict[str, keras.Layer] = {}  # until compared with the live model
        if needs_rebuild(model, dict(named_layers(model)), dtype):
            self.model = rebuilt(model, dtype)
            self._copies = {"own": rebuilt(model, None), "wide": self.model}
        half = {layer.compute_dtype for _, layer in named_layers(self.model)} & {"float16", "bfloat16"}
        self.notes = [f"keras computes in {', '.join(sorted(half))} and is compared in it"] if half else []
        self._prepared = False
        self.same_axes = False  # whether the model takes its input with the axes that torch has
        self._explicit = True  # whether the next run passes training=False; alternates
        self._layers: dict[str, keras.Layer] = {}
        self._before: list[tuple[keras.Variable, np.ndarray]] = []  # the original weights
        self._several: set[str] = set()  # layers with more than one input tensor, which cannot run alone
        self._calls: dict[str, list[tuple[int, ...]]] = {}  # input shapes of each layer's calls

    def trace(self, images: np.ndarray, *, train: bool = False) -> Trace:
        calls = Trace()
        self._trace(images, train, {}, calls)
        self._calls = {}
        for call in calls.values():
            self._calls.setdefault(call.layer, []).append(call.input.shape)
        return calls

    def run_corrected(
        self, images: np.ndarray, outputs: Mapping[str, Sequence[np.ndarray]], *, train: bool = False
    ) -> Trace:
        calls = Trace()
        with suppress(Exception):  # a user's layer may raise anything
            self._trace(images, train, outputs, calls)
        return calls

    def _trace(
        self, images: np.ndarray, train: bool, outputs: Mapping[str, Sequence[np.ndarray]], calls: Trace
    ) -> None:
        if not self._prepared:
            self._prepare(images, train)
        calls.moved = True
        recording = _recording(self._layers, calls, self._several, outputs)
        with recording, _without_dropout(self._layers.values(), train):
            output = self._run(self.model, images, train, explicit=self._explicit)
        self._explicit = not self._explicit
        given = images if is_index(images) else np.array(images, self.dtype)
        calls.finish(given, *arrays(output, keras.ops.is_tensor, _array))

    def _run(self, model: keras.Layer, images: np.ndarray, train: bool, *, explicit: bool = False) -> Any:
        """Run a model; `explicit` passes training=False, like `predict`, otherwise like `model(images)`.

        The two differ if some layer is called with training=True.
        """
        dtype = model.compute_dtype if model.compute_dtype in ("float32", "float64") else self.dtype
        parameter = inspect.signature(model.call).parameters.get("training")
        needed = parameter is not None and parameter.default is inspect.Parameter.empty
        keywords = {"training": train} if train or explicit else {"training": None} if needed else {}
        inputs = [(self.beside.name, images), *self.beside.others]
        given = [
            (name, self._given(array, dtype) if self.same_axes else channels_last(self._given(array, dtype)))
            for name, array in inputs
        ]
        return call_with(model, given, keywords)

    def _prepare(self, images: np.ndarray, train: bool) -> None:
        """Build the model if needed, remember the weights, and compare copies with the original model."""
        if not self._live.built:
            self._run(self._live, images, False)
        for copy in self._copies.values():
            give_weights(self._live, copy, self.dtype, partial(self._run, copy, images, False))
        weights = {id(weight): weight for model in (self._live, self.model) for weight in model.weights}
        self._before = [(weight, to_numpy(weight)) for weight in weights.values()]
        if self._copies:
            check_copies(self._live, lambda model, x: self._outcome(model, x, train), self._copies, images)
            self._copies = {}
        names = [name for name, _ in named_layers(self._live)]  # a copy may number its layers differently
        seen = {
            id(p) for _, w in named_layers(self.model) if isinstance(w, WHOLE) for _, p in named_layers(w)
        }
        for name, (_, layer) in zip(names, named_layers(self.model), strict=True):
            if (
                not isinstance(layer, (keras.layers.Identity, keras.layers.InputLayer))
                and id(layer) not in seen
            ):
                self._layers[name] = layer
            seen.add(id(layer))
        self._prepared = True

    def _outcome(self, model: keras.Layer, images: np.ndarray, train: bool) -> dict[str, np.ndarray]:
        """The outputs of a model and the weights that the run changed; the weights are restored."""
        before = [to_numpy(weight) for weight in model.weights]
        layers = [layer for _, layer in named_layers(model)]
        with _without_dropout(layers, train):
            output = self._run(model, images, train)
        found = dict(arrays(output, keras.ops.is_tensor, _array)[0])
        for i, (weight, value) in enumerate(zip(model.weights, before, strict=True)):
            after = to_numpy(weight)
            if after.tobytes() != value.tobytes():
                found[f"{MOVED}{i}"] = after
                weight.assign(value)
        return found

    def run_alone(
        self, inputs: Mapping[str, np.ndarray], *, train: bool = False
    ) -> dict[str, np.ndarray | str]:
        with _without_dropout(self._layers.values(), train):
            return {name: self._run_layer(name, x, train) for name, x in inputs.items()}

    def _run_layer(self, name: str, x: np.ndarray, train: bool) -> np.ndarray | str:
        number, _, path = name.partition(" ")
        layer = self._layers.get(base := number.partition("#")[0])
        if layer is None or base in self._several:
            return "it has several inputs"
        keywords = {"training": train} if "training" in inspect.signature(layer.call).parameters else {}
        try:
            output = layer(channels_last(self._given(x, self.dtype)), **keywords)
        except Exception as error:  # a user's layer may raise anything
            return reason_of(error)
        return dict(arrays(output, keras.ops.is_tensor, _array)[0]).get(path, "it returns no such tensor")

    def _given(self, x: np.ndarray, dtype: str) -> np.ndarray:
        """An input in `dtype`; indices stay integers."""
        return x if is_index(x) else x.astype(dtype)

    def weighted(self) -> Mapping[str, Weights]:
        own = {name: own_weights(layer) for name, layer in (("", self.model), *self._layers.items())}
        return {
            name: Weights(len(weights), sum(int(np.prod(weight.shape)) for weight in weights))
            for name, weights in own.items()
            if weights
        }

    def settings(self, name: str) -> Mapping[str, float]:
        return settings_of(self._layers.get(base_name(name)))

    def fingerprints(self) -> Mapping[str, Sequence[Fingerprint]]:
        return {
            name: [fingerprint(to_numpy(w)) for w in own_weights(layer) if "float" in str(w.dtype)]
            for name, layer in self._layers.items()
        }

    def stir(self) -> None:
        for weight, value in self._before:
            if value.dtype.kind == "f":
                weight.assign(stirred(value))

    def restore(self) -> None:
        for weight, value in self._before:
            weight.assign(value)

    def randomness(self) -> bytes:
        generators = [layer for layer in self.model._flatten_layers() for layer in layer._seed_generators]
        states = [to_numpy(generator.state).tobytes() for generator in generators]
        shared = keras.src.backend.common.global_state.get_global_attribute("global_seed_generator")
        return b"".join(states + ([to_numpy(shared.state).tobytes()] if shared is not None else []))

    def statistics(self) -> Mapping[str, np.ndarray]:
        before = {id(weight): value for weight, value in self._before}
        found = {}
        for name, layer in (("", self.model), *self._layers.items()):
            for weight in own_weights(layer):
                after, leaf = to_numpy(weight), weight.name
                moved = id(weight) in before and not np.array_equal(after, before[id(weight)], equal_nan=True)
                if leaf in _LEAVES or (moved and after.dtype.kind not in "biu"):
                    found[f"{name}.{_LEAVES.get(leaf, leaf)}".lstrip(".")] = after
        return found

    def unbiased(self) -> Mapping[str, np.ndarray]:
        """For Keras's own batch norm, whose running variance lacks the factor n / (n - 1)."""
        before, found = {id(weight): value for weight, value in self._before}, {}
        for name, layer in self._layers.items():
            stock = type(layer) is keras.layers.BatchNormalization and "call" not in vars(layer)
            shapes = set(self._calls.get(name, ()))
            if not stock or len(shapes) != 1 or id(layer.moving_variance) not in before:
                continue
            after = to_numpy(layer.moving_variance)
            n = int(np.prod(shapes.pop())) // after.size
            if n > 1:
                kept = before[id(layer.moving_variance)] * layer.momentum ** len(self._calls[name])
                found[f"{name}.running_var"] = kept + (after - kept) * (n / (n - 1))
        return found


def _array(tensor: Any) -> np.ndarray:
    return channels_first(to_numpy(tensor))


@contextmanager
def _recording(
    layers: Mapping[str, keras.Layer],
    calls: Trace,
    several: set[str],
    outputs: Mapping[str, Sequence[np.ndarray]],
) -> Iterator[None]:
    """Record the calls of these layers by replacing `keras.Layer.__call__`.

    Add the layers with more than one input tensor to `several`, and replace the outputs that `outputs` names.
    """
    names = {id(layer): name for name, layer in layers.items()}
    seen: dict[str, int] = {}
    original = keras.Layer.__call__

    def call(self: keras.Layer, *args: Any, **keywords: Any) -> Any:
        name = names.get(id(self))
        with _inside(self if name is not None else None) as inside:
            output = original(self, *args, **keywords)
        found = [] if name is None else arrays(output, keras.ops.is_tensor, _array)[0]
        if name is not None and found:  # empty while a layer is being built
            given = tensors((args, keywords), keras.ops.is_tensor)
            if len(given) != 1:
                several.add(name)
            entered, *others = [_array(tensor) for tensor in given] or [np.empty(0)]
            number, corrected = numbered(name, seen), {}
            before = _array(inside[0][0]) if len(inside) == 1 and inside[0][1] is output else None
            for path, array in found:
                calls[joined(number, path)] = Call(entered, array, name, tuple(others), before)
                if wanted := outputs.get(joined(number, path)):
                    corrected[path] = _corrected(array, before, wanted, getattr(self, "activation", None))
            output = replaced(output, corrected) if corrected else output
        return output

    keras.Layer.__call__ = call
    try:
        yield
    finally:
        keras.Layer.__call__ = original


@contextmanager
def _inside(layer: keras.Layer | None) -> Iterator[list[tuple[Any, Any]]]:
    """Record what a layer's activation is given and returns."""
    found: list[tuple[Any, Any]] = []
    own = vars(layer).get("activation") if layer is not None else None
    if layer is None or not callable(own) or own is keras.activations.linear:
        yield found
        return

    def recorded(x: Any) -> Any:
        found.append((x, own(x)))
        return found[-1][1]

    layer.activation = recorded
    try:
        yield found
    finally:
        layer.activation = own


def _corrected(
    array: np.ndarray, before: np.ndarray | None, wanted: Sequence[np.ndarray], activation: Any
) -> Any:
    """The nearest of the `wanted` outputs; its activation if the value before that is nearer."""

    def tensor(array: np.ndarray) -> Any:
        return keras.ops.convert_to_tensor(channels_last(array))

    chosen = nearest(array, wanted)
    if before is not None:
        inner = nearest(before, wanted)
        if tolerances.relative_error(before, inner) < tolerances.relative_error(array, chosen):
            return activation(tensor(inner.astype(array.dtype)))
    return tensor(chosen.astype(array.dtype))


@contextmanager
def _without_dropout(layers: Iterable[keras.Layer], train: bool) -> Iterator[None]:
    """Switch dropout off in training, because random masks differ between frameworks.

    Outside training random layers are a mistake and stay on.
    """
    rates = [
        (layer, name, getattr(layer, name))
        for layer in (layers if train else ())
        for kind, name in _RANDOM
        if isinstance(layer, kind)
    ]
    for layer, name, _ in rates:
        setattr(layer, name, 0)
    try:
        yield
    finally:
        for layer, name, rate in rates:
            setattr(layer, name, rate)


def _jax_has_float64() -> bool:
    import jax

    return bool(jax.config.jax_enable_x64)
