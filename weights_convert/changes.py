"""Optional changes of a checkpoint: classes reordered, a new classifier, batch norms folded, maps swapped.

Each returns a new `Checkpoint` of the same file with a note on the change. Tensors are still read on demand,
and the file is not changed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from weights_convert.checkpoint import Checkpoint, Tensor, in_memory
from weights_convert.errors import MismatchError, SourceError
from weights_convert.families.base import Family
from weights_convert.formats.base import TensorInfo
from weights_convert.identify.misfits import do_not_fit, misfits, title
from weights_convert.memory import dtype_of
from weights_convert.spec import TRAINING_ONLY, Spec, changed, is_count, parameters

_LETTERS_PER_CLASS = 100  # most characters per line of a permutation file
_BN = ("weight", "bias", "running_mean", "running_var")


def _derived(
    source: Checkpoint, tensors: Mapping[str, Tensor], keywords: Mapping[str, Any], note: str
) -> Checkpoint:
    """`source` with other tensors and keywords.

    Raises:
        MismatchError: the tensors are not those of the changed network.
    """
    spec = changed(source.spec, keywords)
    if lines := misfits(spec, {name: tensor.info for name, tensor in tensors.items()}):
        raise do_not_fit(f"the changed tensors of {source.describe()}", title(spec), lines)
    order = [parameter.name for parameter in parameters(spec) if parameter.name in tensors]
    return source.derived({name: tensors[name] for name in order}, spec, note)


# --------------------------------------------------------------------------------------------------
# The order of the classes


def read_permutation(path: str | Path, classes: int) -> list[int]:
    """Read a permutation file: line i holds the source's class that becomes class i; both from 0.

    Raises:
        SourceError: the file cannot be read, or is not a permutation of so many classes.
    """
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            text = file.read(_LETTERS_PER_CLASS * classes + 1)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from None
    if len(text) > _LETTERS_PER_CLASS * classes:
        raise SourceError(f"{path}: longer than {len(text) - 1} letters, expected {classes} numbers")
    words = text.split()
    if not all(word.isascii() and word.isdigit() for word in words):
        odd = next(word for word in words if not (word.isascii() and word.isdigit()))
        raise SourceError(f"{path}: {odd[:20]!r} is not a class number; expected one number a line, from 0")
    order = [int(word[:9]) for word in words]
    if sorted(order) != list(range(classes)):
        raise SourceError(
            f"{path}: {len(order)} numbers, expected each of 0 ... {classes - 1} once (the network's classes)"
        )
    return order


def _taken(tensor: Tensor, index: np.ndarray) -> np.ndarray:
    return tensor.read()[index]


def reorder_classes(source: Checkpoint, order: Sequence[int], origin: str) -> Checkpoint:
    """The same network with its classes in another order: class i becomes the source's class order[i]."""
    index = np.asarray(order)
    tensors = dict(source.tensors)
    if not source.spec.heads:
        raise MismatchError(f"{source.describe()} has no classes to reorder: it has no classifier")
    for name in (f"{head}.{leaf}" for head in source.spec.heads for leaf in ("weight", "bias")):
        if name not in tensors:
            raise MismatchError(f"{source.describe()} has no classes to reorder: there is no {name}")
        tensors[name] = tensors[name]._replace(read=partial(_taken, tensors[name], index))
    moved = sum(new != old for new, old in enumerate(order))
    return _derived(source, tensors, {}, f"classes reordered by {origin}: {moved} of {len(order)} move")


# --------------------------------------------------------------------------------------------------
# A new classifier


def new_head(source: Checkpoint, num_classes: int | None) -> Checkpoint:
    """The same network with a new classifier: random values as PyTorch's, always the same ones.

    Args:
        num_classes: None for as many classes as the source has.
    """
    classes = num_classes or getattr(source.spec, "num_classes", None)
    if not source.spec.head or not classes:
        expected = "--num-classes N" if source.spec.head else "a network"
        raise MismatchError(f"{source.path}: {source.describe()} has no classifier, expected {expected}")
    keywords = {"num_classes": classes}
    starts = tuple(f"{head}." for head in source.spec.heads)
    tensors = {name: tensor for name, tensor in source.tensors.items() if not name.startswith(starts)}
    of_weights = [t.info.dtype for name, t in tensors.items() if not is_count(name)]
    generator = np.random.default_rng(0)
    for parameter in parameters(changed(source.spec, keywords)):
        if parameter.name.startswith(starts):
            if parameter.role in ("dense", "head_dense"):
                bound = parameter.shape[1] ** -0.5
            values = generator.uniform(-bound, bound, parameter.shape).astype(of_weights[-1])
            tensors[parameter.name] = in_memory(values, f"{parameter.name} (new)")
    note = f"a new classifier of {classes} classes with random values, to be trained"
    return _derived(source, tensors, keywords, note)


# --------------------------------------------------------------------------------------------------
# Batch norms and biases folded into their convolutions


def _pairs(source: Checkpoint) -> list[tuple[str, str]]:
    """(convolution or SK's dense layer, batch norm) of a network, and of CBAM's spatial gates."""
    kernels = [p for p in parameters(source.spec) if p.role in ("conv2d", "depthwise", "sk_dense")]
    layers = [p.name.rpartition(".")[0] for p in kernels if p.name.endswith(".weight")]
    pairs = [(layer, source.spec.norm_after(layer)) for layer in layers]
    return [(conv, bn) for conv, bn in pairs if f"{bn}.running_var" in source]


def fold_bn(source: Checkpoint, dtype: np.dtype | None = None) -> Checkpoint:
    """The same network for inference, with every batch norm folded into the convolution before it.

    W' = W gamma / sqrt(variance + epsilon) and b' = beta + (b - mean) gamma / sqrt(variance + epsilon),
    computed in float64 and rounded once, to `dtype` or to what the kernel has.
    """
    pairs = _pairs(source)
    if not pairs:
        raise MismatchError(f"{source.describe()} has no batch norm to fold")
    epsilon, tensors = source.spec.bn_epsilon, dict(source.tensors)

    def values(bn: str, leaf: str) -> np.ndarray:
        return source[f"{bn}.{leaf}"].astype(np.float64)

    def scale(bn: str) -> np.ndarray:
        return values(bn, "weight") / np.sqrt(values(bn, "running_var") + epsilon)

    for conv, bn in pairs:
        kernel = source.tensors[f"{conv}.weight"]
        target = dtype or kernel.info.dtype
        bias = source.tensors.get(f"{conv}.bias")

        def folded_kernel(kernel: Tensor = kernel, bn: str = bn, target: np.dtype = target) -> np.ndarray:
            factors = scale(bn).reshape(-1, *[1] * (len(kernel.info.shape) - 1))
            return (kernel.read() * factors).astype(target)

        def folded_bias(bias: Tensor | None = bias, bn: str = bn, target: np.dtype = target) -> np.ndarray:
            old = bias.read().astype(np.float64) if bias is not None else 0.0
            return (values(bn, "bias") + (old - values(bn, "running_mean")) * scale(bn)).astype(target)

        shape = kernel.info.shape
        tensors[f"{conv}.weight"] = Tensor(TensorInfo(shape, target), kernel.name, folded_kernel)
        tensors[f"{conv}.bias"] = Tensor(TensorInfo(shape[:1], target), f"{conv}.bias (folded)", folded_bias)
    keywords: dict[str, Any] = {}
    if getattr(source.spec, "norm", "gn") != "gn":  # a group norm depends on the image
        keywords["norm"] = "bias"
    if source.spec.attention == "cbam" and source.spec.cbam_bn:
        keywords |= {"cbam_bn": False, "cbam_spatial_bias": True}
    # without batch norms the members of a list have other numbers, in the same order
    folded = {bn for _, bn in pairs}
    old = [module for module in _modules(source.spec) if module not in folded]
    places = dict(zip(old, _modules(changed(source.spec, keywords)), strict=True))
    moved = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if module in places:
            moved[f"{places[module]}.{leaf}"] = tensor
    return _derived(source, moved, keywords, f"{len(pairs)} batch norms folded into their convolutions")


def _modules(spec: Spec) -> list[str]:
    """The canonical paths of the layers with tensors, in order."""
    return list(dict.fromkeys(parameter.name.rpartition(".")[0] for parameter in parameters(spec)))


def fold_bias(source: Checkpoint) -> Checkpoint:
    """The same network without the biases of convolutions that a batch norm follows: mean' = mean - b."""
    pairs = [(conv, bn) for conv, bn in _pairs(source) if f"{conv}.bias" in source and bn != "spatial.bn"]
    if getattr(source.spec, "norm", None) != "bias_bn":
        raise MismatchError(f"{source.describe()} has no biases before its batch norms to fold")
    tensors = dict(source.tensors)
    for conv, bn in pairs:
        mean, bias = source.tensors[f"{bn}.running_mean"], tensors.pop(f"{conv}.bias")

        def folded(mean: Tensor = mean, bias: Tensor = bias) -> np.ndarray:
            value = mean.read().astype(np.float64) - bias.read().astype(np.float64)
            return value.astype(mean.info.dtype)

        tensors[f"{bn}.running_mean"] = mean._replace(read=folded)
    return _derived(source, tensors, {"norm": "bn"}, f"{len(pairs)} biases folded into running means")


# --------------------------------------------------------------------------------------------------
# Conversion for another family


def rounded(source: Checkpoint, dtype: str) -> Checkpoint:
    """The checkpoint with its floating-point tensors in another dtype.

    Raises:
        SpecError: there is no such dtype.
    """
    wanted = dtype_of(dtype)

    def cast(tensor: Tensor) -> Tensor:
        if tensor.info.dtype.kind in "iu":
            return tensor
        info = tensor.info._replace(dtype=wanted)
        return tensor._replace(info=info, read=lambda: tensor.read().astype(wanted))

    tensors = {name: cast(tensor) for name, tensor in source.tensors.items()}
    return source.derived(tensors, source.spec, f"rounded to {dtype}")


def as_in_family(source: Checkpoint, family: Family, stated: Collection[str] = ()) -> Checkpoint:
    """The checkpoint for a family's networks; unchanged if they compute the same.

    Another order of CBAM's two maps is handled by swapping the kernel's two input channels. The keywords
    `stated` may differ: the destination states them.

    Raises:
        MismatchError: the family's networks compute something else; the message lists the keywords.
    """
    if family.own is not None:
        return source
    spec = source.spec
    if spec.attention not in family.attentions or spec.kind not in family.kinds:
        raise MismatchError(f"{family.name} has no place for {source.describe()}")
    if why := family.refuses(spec):
        raise MismatchError(f"{family.name} has no place for {source.describe()}: {why}")
    choices = [_differences(source, family.implied(spec, case)) for case in family.choices(spec)]
    wanted = {k: v for k, v in min(choices, key=len).items() if k not in stated}
    if wanted.pop("cbam_order", None):
        source = _swap_maps(source)
    trained = [keyword for keyword in wanted if keyword in TRAINING_ONLY]
    if trained:
        values = ", ".join(f"{k}={getattr(spec, k)!r}, in {family.name} {wanted.pop(k)!r}" for k in trained)
        source = source.derived(source.tensors, source.spec, f"differs in training only: {values}")
    if wanted:
        lines = [f"{k}: {getattr(spec, k)!r} here, {v!r} in {family.name}" for k, v in wanted.items()]
        raise MismatchError(
            f"{family.name}'s networks are not {source.describe()}; {len(lines)} keywords differ:", lines
        )
    return source


def _differences(source: Checkpoint, implied: Mapping[str, Any]) -> dict[str, Any]:
    wanted = changed(source.spec, implied)
    return {k: getattr(wanted, k) for k in implied if getattr(source.spec, k) != getattr(wanted, k)}


def _swapped(tensor: Tensor) -> np.ndarray:
    return tensor.read()[:, ::-1]


def _swap_maps(source: Checkpoint) -> Checkpoint:
    """The same network with CBAM's two maps in the other order."""
    order = "mean_max" if source.spec.cbam_order == "max_mean" else "max_mean"
    tensors: dict[str, Tensor] = dict(source.tensors)
    for name, old in source.tensors.items():
        if name.endswith("spatial.conv.weight"):
            tensors[name] = old._replace(read=partial(_swapped, old))
    note = f"CBAM's maps become {order}: the two input channels of each spatial kernel are swapped"
    return _derived(source, tensors, {"cbam_order": order}, note)
