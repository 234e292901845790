"""The weights of one live layer of anybody's model, by role and in torch's axes; torch and Keras.

    role        torch                       Keras
    kernel      weight (O, I, ...)          kernel (..., I, O)

The kind of a layer decides its axes, never the rank of an array. Neither framework is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from weights_convert.errors import SpecError

Arrays = dict[str, np.ndarray]
Arrange = Callable[[np.ndarray], np.ndarray]


class Slot(NamedTuple):
    """One tensor of a live layer.

    Attributes:
        attribute: path of attributes, "out_proj.weight".
        read: the stored array as the role's array.
        write: the role's array in the stored shape.
    """

    attribute: str
    read: Arrange
    write: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _as_it_is(array: np.ndarray, _: tuple[int, ...]) -> np.ndarray:
    return array


def _reshaped(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return array.reshape(shape) if array.size == np.prod(shape, dtype=int) else array


def _first(array: np.ndarray) -> np.ndarray:
    """(..., I, O) -> (O, I, ...)."""
    return np.moveaxis(array, (-1, -2), (0, 1))


def _last(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(O, I, ...) -> (..., I, O); a dense layer takes a 1x1 kernel, and the reverse."""
    if len(shape) != array.ndim and array.size == array.shape[0] * array.shape[1]:
        array = array.reshape(*array.shape[:2], *[1] * (len(shape) - 2))
    return np.moveaxis(array, (0, 1), (-1, -2))


def _kernel(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(O, I, ...) in torch; a Linear takes a 1x1 kernel, and the reverse."""
    one = array.size == array.shape[0] * array.shape[1]
    return _reshaped(array, shape) if one and shape[:2] == array.shape[:2] else array


def _plain(**attributes: str) -> dict[str, Slot]:
    return {role: Slot(name, _same, _as_it_is) for role, name in attributes.items()}


_TORCH_KERNEL = {"kernel": Slot("weight", _same, _kernel), **_plain(bias="bias")}
_TRANSPOSED = {"kernel": Slot("weight", lambda a: a.swapaxes(0, 1), lambda a, _: a.swapaxes(0, 1))}
_STATISTICS = {"mean": "running_mean", "variance": "running_var"}
_KERAS_KERNEL = {"kernel": Slot("kernel", _first, _last), **_plain(bias="bias")}
_KERAS_TRANSPOSED = Slot(  # (..., O, I)
    "kernel", lambda a: np.moveaxis(a, (-2, -1), (0, 1)), lambda a, _: np.moveaxis(a, (0, 1), (-2, -1))
)
_DEPTHWISE = Slot(  # (..., C, M) <-> (C M, 1, ...)
    "kernel",
    lambda a: np.moveaxis(a, (-2, -1), (0, 1)).reshape(-1, 1, *a.shape[:-2]),
    lambda a, s: np.moveaxis(a.reshape(s[-2], s[-1], *a.shape[2:]), (0, 1), (-2, -1)),
)
_SLOPES = {"slope": Slot("weight", np.ravel, _reshaped)}
_KERAS_SLOPES = {"slope": Slot("alpha", np.ravel, _reshaped)}
_NORM = _plain(scale="weight", offset="bias")
_KERAS_NORM = _plain(scale="gamma", offset="beta")

# class of a layer or of one of its bases -> its tensors
KINDS: dict[str, dict[str, Slot]] = {
    "torch.nn.modules.conv._ConvTransposeNd": {**_TORCH_KERNEL, **_TRANSPOSED},
    "torch.nn.modules.conv._ConvNd": _TORCH_KERNEL,
    "torch.nn.modules.linear.Linear": _TORCH_KERNEL,
    "torch.nn.modules.batchnorm._NormBase": _NORM | _plain(**_STATISTICS),
    "torch.nn.modules.normalization.LayerNorm": _NORM,
    "torch.nn.modules.normalization.GroupNorm": _NORM,
    "torch.nn.modules.sparse.Embedding": _plain(table="weight"),
    "torch.nn.modules.activation.PReLU": _SLOPES,
    "keras.src.layers.convolutional.base_conv_transpose.BaseConvTranspose": {
        "kernel": _KERAS_TRANSPOSED,
        **_plain(bias="bias"),
    },
    "keras.src.layers.convolutional.base_depthwise_conv.BaseDepthwiseConv": {
        "kernel": _DEPTHWISE,
        **_plain(bias="bias"),
    },
    "keras.src.layers.convolutional.base_conv.BaseConv": _KERAS_KERNEL,
    "keras.src.layers.core.dense.Dense": _KERAS_KERNEL,
    "keras.src.layers.normalization.batch_normalization.BatchNormalization": _KERAS_NORM
    | _plain(mean="moving_mean", variance="moving_variance"),
    "keras.src.layers.normalization.layer_normalization.LayerNormalization": _KERAS_NORM,
    "keras.src.layers.normalization.group_normalization.GroupNormalization": _KERAS_NORM,
    "keras.src.layers.core.embedding.Embedding": _plain(table="embeddings"),
    "keras.src.layers.activations.prelu.PReLU": _KERAS_SLOPES,
}
_OPTIONAL = {"bias": np.zeros, "offset": np.zeros, "scale": np.ones}  # a layer without it has this value


def slots_of(layer: Any) -> Mapping[str, tuple[Any, Slot]]:
    """Role -> the live tensor and its slot.

    Raises:
        SpecError: the kind of layer is unknown, or it has weights that its kind does not list.
    """
    names = [f"{base.__module__}.{base.__name__}" for base in type(layer).__mro__]
    kind = next((KINDS[name] for name in names if name in KINDS), None)
    if kind is None:
        known = ", ".join(dict.fromkeys(name.rpartition(".")[2].strip("_") for name in KINDS))
        raise SpecError(f"{type(layer).__name__} is no known kind of layer; expected one of {known}")
    found = {role: (getattr(layer, slot.attribute, None), slot) for role, slot in kind.items()}
    return {role: (tensor, slot) for role, (tensor, slot) in found.items() if tensor is not None}


def read(layer: Any) -> Arrays:
    """The weights of a layer by role, in torch's axes."""
    return {role: slot.read(array_of(tensor)) for role, (tensor, slot) in slots_of(layer).items()}


def planned(layer: Any, arrays: Mapping[str, np.ndarray]) -> list[tuple[str, Any, np.ndarray]]:
    """Role, live tensor and new array for each tensor of a layer; nothing is written.

    Raises:
        SpecError: a role is missing on one side, or a shape differs.
    """
    slots = slots_of(layer)
    found = []
    for role, array in arrays.items():
        if role not in slots and not (
            role in _OPTIONAL and np.array_equal(array, _OPTIONAL[role](array.shape))
        ):
            raise SpecError(f"the source has a {role} {array.shape}, the target has none")
    for role, (tensor, slot) in slots.items():
        shape = tuple(int(size) for size in tensor.shape)
        if role not in arrays and role not in _OPTIONAL:
            raise SpecError(f"the target has a {role} {shape}, the source has none")
        array = slot.write(arrays[role], shape) if role in arrays else _OPTIONAL[role](shape)
        if array.shape != shape:
            raise SpecError(f"the {role} is {array.shape} in the axes of the target, expected {shape}")
        found.append((role, tensor, np.ascontiguousarray(array, array_of(tensor).dtype)))
    return found


def array_of(tensor: Any) -> np.ndarray:
    """A copy of a live tensor or variable."""
    if hasattr(tensor, "detach"):
        return np.array(tensor.detach().cpu().numpy())
    return np.array(tensor)


def write(tensor: Any, array: np.ndarray) -> None:
    """Set a live tensor or variable to an array of its shape and dtype."""
    if hasattr(tensor, "assign"):
        tensor.assign(array)
    else:
        tensor.data.copy_(tensor.data.new_tensor(array))
