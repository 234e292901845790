"""Rebuilds a Keras model in another dtype from its config, and checks that the copy is the same model.

A rebuild loses changes that the config does not hold: an attribute set later, a replaced or frozen layer.
Therefore the model is also rebuilt in its own dtype. That copy is the same program: it must have the same
settings and weights in every layer, and give the same bits as the original.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import keras
import numpy as np

from parity_tests.watch.keras_custom import accepted_config, with_functions
from parity_tests.watch.keras_layers import named_layers, to_numpy
from parity_tests.watch.rounding import check_rounding, same
from weights_convert.errors import SpecError

_OTHER = {"float64": "float32", "float32": "float64"}
_ALWAYS = ("trainable", "autocast")  # attributes of every layer that change numbers
_OF_TRAINING = frozenset(  # attributes that `compile`, `fit`, `evaluate` and `predict` leave in a model
    ["name", "optimizer", "history", "stop_training", "stop_evaluating", "stop_predicting"]
) | {"train_function", "test_function", "predict_function", "_epoch_iterator", "_eval_epoch_iterator"}
MOVED = "weight "  # prefix of the names of weights that training has changed
Layers = Mapping[str, keras.Layer]
Run = Callable[[keras.Layer, np.ndarray], Mapping[str, np.ndarray]]


def needs_rebuild(model: keras.Layer, layers: Layers, dtype: str) -> bool:
    """Whether a layer computes in float32 instead of float64 or the reverse; half precision is kept."""
    return any(layer.compute_dtype == _OTHER[dtype] for layer in (model, *layers.values()))


def rebuilt(model: keras.Layer, dtype: str | None) -> keras.Layer:
    """Rebuild a model from its config with its weights, float32 as float64 or the reverse.

    `dtype` None keeps its dtypes. A model that builds its weights in its first call has to run once before
    `give_weights`.
    """
    try:
        config, own = with_functions(accepted_config(model), model)
        with _policy(dtype or model.dtype_policy.name), keras.saving.custom_object_scope(own):
            other = type(model).from_config(config if dtype is None else _widened(config, dtype))
        if other.weights or not model.weights:
            other.set_weights(model.get_weights())
        if dtype and model.compute_dtype == _OTHER[dtype] and other.compute_dtype != dtype:
            raise ValueError(f"its constructor does not take {dtype}")
    except Exception as error:
        raise _cannot(model, dtype, error) from error
    return other


def give_weights(model: keras.Layer, other: keras.Layer, dtype: str, run: Callable[[], Any]) -> None:
    """Run a copy that has no weights yet, and set the weights of the original."""
    if len(other.weights) == len(model.weights):
        return
    try:
        run()
        other.set_weights(model.get_weights())
    except Exception as error:
        raise _cannot(model, dtype, error) from error


def _cannot(model: keras.Layer, dtype: str | None, error: Exception) -> SpecError:
    reason = " ".join(str(error).split())[:200]
    return SpecError(
        f"the Keras model computes in {model.compute_dtype} and cannot be rebuilt in {dtype} "
        f"({type(error).__name__}: {reason}); build it with dtype={dtype!r}, or compare with "
        f"dtype={model.compute_dtype!r}"
    )


@contextmanager
def _policy(name: str) -> Iterator[None]:
    """Set the default dtype, for layers that a constructor creates without a dtype."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _widened(config: Any, dtype: str) -> Any:
    """A config with float32 replaced by float64 or the reverse; integers and half precision are kept."""
    if isinstance(config, Mapping):
        return {
            key: dtype if key == "dtype" and _dtype(value) == _OTHER[dtype] else _widened(value, dtype)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)(_widened(item, dtype) for item in config)
    return config


def _dtype(value: Any) -> Any:
    """The name of a dtype in a config, also of a policy."""
    if isinstance(value, Mapping) and value.get("class_name") == "DTypePolicy":
        return value["config"]["name"]
    return value


def check_copies(model: keras.Layer, run: Run, copies: Mapping[str, keras.Layer], images: np.ndarray) -> None:
    """Compare a model with its copies, one in its "own" dtype and one that is "wide".

    Args:
        model: the original.
        run: function from a model and images to the outputs and the weights that training has changed.
        copies: from `rebuilt`.
        images: to run them on.

    Raises:
        SpecError: a copy differs from the original; the message names the difference.
    """
    own, wide = copies["own"], copies["wide"]
    if found := lost(model, own):
        raise _another(model, found)
    first, second, third = run(model, images), run(model, images), run(own, images)
    random = not same(first, second)
    if random == same(third, run(own, images)) or not (random or same(first, third)):
        raise _another(model, "something, because its outputs differ")
    if not random and model.compute_dtype == "float32":

        def outputs(model: keras.Layer) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
            return lambda x: {k: v for k, v in run(model, x).items() if not k.startswith(MOVED)}

        check_rounding("the Keras model", outputs(model), outputs(wide), images)


def _another(model: keras.Layer, what: str) -> SpecError:
    own = model.compute_dtype
    as_it_is = f", or compare it as it is with dtype={own!r}" if own in _OTHER else ""
    return SpecError(
        "the Keras model changes in the requested dtype: rebuilt from its config, it "
        f"loses {what}; build it in that dtype{as_it_is}"
    )


def lost(model: keras.Layer, other: keras.Layer) -> str | None:
    """The first setting or weight that differs in a copy of a model, or None."""
    ours, theirs = [("", model), *named_layers(model)], [("", other), *named_layers(other)]
    if len(ours) != len(theirs):
        return f"layers: it has {len(ours) - 1}, the copy {len(theirs) - 1}"
    for (name, layer), (_, copied) in zip(ours, theirs, strict=True):
        place = name or "the model"
        if type(layer) is not type(copied):
            return f"{place}, a {type(layer).__name__}, in the copy a {type(copied).__name__}"
        wanted, found = settings(layer), settings(copied)
        for key in dict.fromkeys((*wanted, *found)):
            if wanted.get(key) != found.get(key):
                values = f"{_short(wanted.get(key))}, in the copy {_short(found.get(key))}"
                return f"{place}.{key}, {values}" if name else f"{key}, {values}"
        pairs = zip(layer.weights, copied.weights, strict=False)
        if any(not np.array_equal(to_numpy(a), to_numpy(b), equal_nan=True) for a, b in pairs):
            return f"the weights of {place}"
    return None


def settings(layer: keras.Layer) -> dict[str, Any]:
    """The attributes of a layer except weights and layers, as plain values for comparison."""
    found = {name: getattr(layer, name) for name in _ALWAYS} | {"dtype": layer.dtype_policy.name}
    skipped = _attributes_of_keras()
    found |= {key: _plain(value) for key, value in vars(layer).items() if key not in skipped}
    return found


@cache
def _attributes_of_keras() -> frozenset[str]:
    """Attributes of every layer and model; explicit names leave Keras's counters unchanged."""
    inputs = keras.Input((1,), name="x")
    # Keras 3.13 refuses a model whose output is its input
    model = keras.Model(inputs, keras.layers.Identity(name="identity")(inputs), name="model")
    model.compile("sgd", "mse")
    bare = (keras.Layer(name="layer"), keras.Sequential(name="sequential"), model)
    return _OF_TRAINING.union(*(vars(layer) for layer in bare))


def _plain(value: Any, depth: int = 4) -> Any:
    """A value as plain data for comparison."""
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
