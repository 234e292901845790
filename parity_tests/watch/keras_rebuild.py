"""A Keras model in another dtype, built again from its config, and whether that is still the same model.

A rebuild loses what the config does not hold: an attribute that was set afterwards, a replaced layer, a
frozen one. So the model is also built again in its own dtype. That is the same program, so it must have the
same settings and weights in every layer, and give the same bits as the model that is asked about.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import keras
import numpy as np

from parity_tests.watch.keras_layers import named_layers, to_numpy
from parity_tests.watch.rounding import check_rounding, same
from weights_convert.errors import SpecError

_OTHER = {"float64": "float32", "float32": "float64"}
_ALWAYS = ("trainable", "autocast")  # of the attributes that every layer has, those that change numbers
_OF_TRAINING = frozenset(  # what `compile`, `fit`, `evaluate` and `predict` leave in a model
    ["name", "optimizer", "history", "stop_training", "stop_evaluating", "stop_predicting"]
) | {"train_function", "test_function", "predict_function", "_epoch_iterator", "_eval_epoch_iterator"}
MOVED = "weight "  # begins the name of a weight that training has moved
Layers = Mapping[str, keras.Layer]
Run = Callable[[keras.Layer, np.ndarray], Mapping[str, np.ndarray]]


def needs_rebuild(model: keras.Layer, layers: Layers, dtype: str) -> bool:
    """Whether anything in a model computes in the other of float32 and float64; half precision stays."""
    return any(layer.compute_dtype == _OTHER[dtype] for layer in (model, *layers.values()))


def rebuilt(model: keras.Layer, dtype: str | None) -> keras.Layer:
    """The same model from its config, with its weights; what is float32 in it becomes float64, or back.

    `dtype` None: in its own.
    """
    try:
        config = model.get_config()
        with _policy(dtype or model.dtype_policy.name):
            other = type(model).from_config(config if dtype is None else _widened(config, dtype))
        other.set_weights(model.get_weights())
        if dtype and model.compute_dtype == _OTHER[dtype] and other.compute_dtype != dtype:
            raise ValueError(f"its constructor does not take {dtype}")
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise SpecError(
            f"the Keras model computes in {model.compute_dtype} and cannot be built again in {dtype} "
            f"({type(error).__name__}: {reason}); build it with dtype={dtype!r}, or compare with "
            f"dtype={model.compute_dtype!r}"
        ) from error
    return other


@contextmanager
def _policy(name: str) -> Iterator[None]:
    """For layers that a constructor makes without saying in which dtype."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _widened(config: Any, dtype: str) -> Any:
    """A config in which every float32 is float64, or the other way; integers and half precision stay."""
    if isinstance(config, Mapping):
        return {
            key: dtype if key == "dtype" and _dtype(value) == _OTHER[dtype] else _widened(value, dtype)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)(_widened(item, dtype) for item in config)
    return config


def _dtype(value: Any) -> Any:
    """The name in a config's dtype: that of a policy is further inside."""
    if isinstance(value, Mapping) and value.get("class_name") == "DTypePolicy":
        return value["config"]["name"]
    return value


def check_copies(model: keras.Layer, run: Run, copies: Mapping[str, keras.Layer], images: np.ndarray) -> None:
    """Hold the copies of a model, one in its "own" dtype and one that is "wide", to the model itself.

    Args:
        model: the model that is asked about.
        run: the outputs of a model, and what training has moved, for images.
        copies: from `rebuilt`.
        images: to run them on.

    Raises:
        SpecError: a copy is another model; the message says where.
    """
    own, wide = copies["own"], copies["wide"]
    if found := lost(model, own):
        raise _another(model, found)
    first, second, third = run(model, images), run(model, images), run(own, images)
    random = not same(first, second)
    if random == same(third, run(own, images)) or not (random or same(first, third)):
        raise _another(model, "something, for its outputs are others")
    if not random and model.compute_dtype == "float32":

        def outputs(model: keras.Layer) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
            return lambda x: {k: v for k, v in run(model, x).items() if not k.startswith(MOVED)}

        check_rounding("the Keras model", outputs(model), outputs(wide), images)


def _another(model: keras.Layer, what: str) -> SpecError:
    own = model.compute_dtype
    as_it_is = f", or compare it as it is with dtype={own!r}" if own in _OTHER else ""
    return SpecError(
        "the Keras model is another one in the dtype that is asked for: built again from its config, it "
        f"loses {what}; build it in that dtype{as_it_is}"
    )


def lost(model: keras.Layer, other: keras.Layer) -> str | None:
    """The first setting or weight in which a copy of a model differs, None if it has all."""
    ours, theirs = [("", model), *named_layers(model)], [("", other), *named_layers(other)]
    if len(ours) != len(theirs):
        return f"layers: it has {len(ours) - 1}, the copy {len(theirs) - 1}"
    for (name, layer), (_, copied) in zip(ours, theirs, strict=True):
        place = name or "the model"
        if type(layer) is not type(copied):
            return f"{place}, which is a {type(layer).__name__} and in the copy a {type(copied).__name__}"
        wanted, found = settings(layer), settings(copied)
        for key in dict.fromkeys((*wanted, *found)):
            if wanted.get(key) != found.get(key):
                values = f"{_short(wanted.get(key))} and in the copy {_short(found.get(key))}"
                return f"{place}.{key}, which is {values}" if name else f"{key}, which is {values}"
        pairs = zip(layer.weights, copied.weights, strict=False)
        if any(not np.array_equal(to_numpy(a), to_numpy(b), equal_nan=True) for a, b in pairs):
            return f"the weights of {place}"
    return None


def settings(layer: keras.Layer) -> dict[str, Any]:
    """What a layer holds beside weights and layers, as plain values that can be compared."""
    found = {name: getattr(layer, name) for name in _ALWAYS} | {"dtype": layer.dtype_policy.name}
    skipped = _attributes_of_keras()
    found |= {key: _plain(value) for key, value in vars(layer).items() if key not in skipped}
    return found


@cache
def _attributes_of_keras() -> frozenset[str]:
    """What every layer and model has; the names keep Keras from counting these among the user's layers."""
    inputs = keras.Input((1,), name="x")
    # Keras 3.13 refuses a model whose output is its input
    model = keras.Model(inputs, keras.layers.Identity(name="identity")(inputs), name="model")
    model.compile("sgd", "mse")
    bare = (keras.Layer(name="layer"), keras.Sequential(name="sequential"), model)
    return _OF_TRAINING.union(*(vars(layer) for layer in bare))


def _plain(value: Any, depth: int = 4) -> Any:
    """A value, opened as far as it takes to compare it with another's."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return value if value == value else "nan"
    if isinstance(value, (np.ndarray, np.generic)) or keras.ops.is_tensor(value):
        array = to_numpy(value)
        return str(array.dtype), array.shape, array.tobytes()
    if isinstance(value, (keras.Layer, keras.Variable)) or depth == 0:
        return type(value).__name__
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth - 1) for item in value]
    if isinstance(value, types.MethodType):
        return _plain(value.__func__, depth)
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return value.__code__, _plain([cells, value.__defaults__], depth - 1)
    module = type(value).__module__.partition(".")[0]
    if module in ("keras", "tensorflow", "jax", "torch") or not hasattr(value, "__dict__"):
        return type(value).__name__
    return type(value).__name__, _plain(vars(value), depth - 1)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
