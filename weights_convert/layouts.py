"""Roles, and this project's three layouts: the name and the axes of each tensor in a file.

A layout maps a parameter of a spec to its name in a file, and such names back to canonical ones. The role
of the parameter decides its axes.

    >>> spec = model_spec("eca_resnet50")
    >>> LAYOUTS["keras"].names(spec)["layer1.2.eca.conv.weight"]
    'layer1/bottleneck_2/eca/conv/vars/0'
    >>> LAYOUTS["tf1"].parse("layer1_2/eca/conv/kernel")
    'layer1.2.eca.conv.weight'
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from weights_convert.memory import transposed
from weights_convert.spec import KINDS, Parameter, Spec, model_spec, numbered, parameters  # noqa: F401  (example)
from weights_convert.spec.resnet import BLOCK_CLASSES

Shapes = Mapping[str, tuple[int, ...]]


class Role(NamedTuple):
    """The names of one kind of tensor in each framework, and its transposition from PyTorch to TensorFlow."""

    torch: str  # leaf name
    tf: str | None  # leaf name in Keras and TF1; None: it does not exist there
    keras_index: int | None  # its number among the layer's variables in a Keras file
    to_tf: tuple[int, ...] | None = None  # axes; None: unchanged

    @property
    def to_torch(self) -> tuple[int, ...] | None:
        return _inverse(self.to_tf)


_DENSE = Role("weight", "kernel", 0, (1, 0))
ROLES = {
    "conv2d": Role("weight", "kernel", 0, (2, 3, 1, 0)),  # O I H W -> H W I O; grouped: I is I / groups
    "depthwise": Role("weight", "kernel", 0, (2, 3, 0, 1)),  # C 1 H W -> H W C 1
    "conv1d": Role("weight", "kernel", 0, (2, 1, 0)),
    "dense": _DENSE,
    **dict.fromkeys(
        ("se_dense", "cbam_dense", "sk_dense", "head_dense"), _DENSE
    ),  # of an attention in a network, and of a classifier that is a 1x1 convolution in some files
    "bias": Role("bias", "bias", 1),
    "scale": Role("weight", "gamma", 0),
    "offset": Role("bias", "beta", 1),
    "mean": Role("running_mean", "moving_mean", 2),
    "variance": Role("running_var", "moving_variance", 3),
    "count": Role("num_batches_tracked", None, None),
}

ABSENT = {"scale": 1.0}  # role -> the value of a tensor that a file does not store

_TF_LEAVES = {role.tf: role.torch for role in ROLES.values() if role.tf}  # kernel -> weight, gamma -> weight
KERAS_LEAVES = ("weight", "bias", "running_mean", "running_var")  # by their number in a Keras file


@lru_cache(maxsize=65536)
def skeleton(name: str) -> str:
    """A name without its numbers.

    >>> skeleton("layer1.0.conv2.weight")
    'layer#.#.conv#.weight'
    """
    return re.sub(r"\d+", "#", name)


@lru_cache(maxsize=65536)
def like(name: str) -> Parameter | None:
    """The parameter of a tensor with this canonical name, in any network; None for other names.

    >>> like("layer9.9.downsample.1.weight").role, like("layer1.0.conv1.kernel")
    ('scale', None)
    """
    return next((found for kind in KINDS.values() if (found := kind.like(name))), None)


def from_tensorflow(module: str, leaf: str) -> str | None:
    """The canonical name of a variable with TensorFlow's leaf name in a canonical module, or None."""
    canonical = f"{module}.{_TF_LEAVES.get(leaf)}"
    parameter = like(canonical)
    return canonical if parameter and ROLES[parameter.role].tf == leaf else None


class Stored(NamedTuple):
    """The layout of one tensor in a file.

    Attributes:
        axes: the transposition from PyTorch's axes to the file's, or None.
        is_1x1: whether a dense kernel is stored as a 1x1 convolution.
    """

    axes: tuple[int, ...] | None
    is_1x1: bool

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the file."""
        return permuted((*shape, 1, 1) if self.is_1x1 else shape, self.axes)

    def canonical_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The inverse of `shape`; an impossible shape gives an odd result, which is refused later."""
        shape = permuted(shape, _inverse(self.axes))
        return shape[:2] if self.is_1x1 and len(shape) == 4 and shape[2:] == (1, 1) else shape

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """The array in the file's layout; C-contiguous unless it is large (`memory.transposed`)."""
        array = array[:, :, None, None] if self.is_1x1 else array
        return array if self.axes is None else transposed(array, self.axes)

    def to_canonical(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `to_file`."""
        axes = _inverse(self.axes)
        array = array if axes is None else transposed(array, axes)
        return array.reshape(array.shape[:2]) if self.is_1x1 else array


def _inverse(axes: tuple[int, ...] | None) -> tuple[int, ...] | None:
    return None if axes is None else tuple(axes.index(axis) for axis in range(len(axes)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """One way to name and lay out the tensors of a model: one of this project's own, or of a family.

    Attributes:
        rename: (parameter, spec) -> the name in a file, None if the file cannot hold the tensor.
        parse: name in a file -> canonical name, None for an unknown name.
        tensorflow_axes: whether kernels have TensorFlow's axes.
        mlp_1x1: the attentions whose MLP is stored as 1x1 convolutions.
        bookkeeping: patterns of names that are not weights, with descriptions.
        scoped: whether names may begin with a scope, or in Keras with the path of a layer; otherwise only
            with a wrapper's `module.`.
        part: name in a file -> number of the part of a tensor, for groups stored separately.
        marks: ends of names that show a network and its scope in a file.
        absent: roles that a file may lack entirely, with the values that its network has there (`ABSENT`).
    """

    name: str
    rename: Callable[[Parameter, Spec], str | None]
    parse: Callable[[str], str | None]
    tensorflow_axes: bool = False
    mlp_1x1: tuple[str, ...] = ()
    bookkeeping: tuple[tuple[re.Pattern[str], str], ...] = ()
    scoped: bool = False
    part: Callable[[str], int] = lambda name: 0  # noqa: ARG005
    marks: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    def lacks(self, names: Collection[str], spec: Spec) -> dict[str, Parameter]:
        """The tensors of a network whose roles are missing in a file with these canonical names."""
        found = {parameter.name: parameter for parameter in parameters(spec) if parameter.role in self.absent}
        return {} if any(name in names for name in found) else found

    def knows(self, name: str) -> bool:
        """Whether a name in a file may belong to this layout."""
        return self.parse(name) is not None

    def assign(self, shapes: Shapes) -> dict[str, tuple[str, ...]]:
        """Canonical name -> names in a file whose concatenated tensors are that tensor."""
        found: dict[str, dict[int, str]] = {}
        for name in shapes:
            canonical = self.parse(name)
            if canonical is not None:
                found.setdefault(canonical, {}).setdefault(self.part(name), name)
        return {canonical: tuple(parts[n] for n in sorted(parts)) for canonical, parts in found.items()}

    @lru_cache(maxsize=256)  # noqa: B019  (few layouts, alive as long as the process)
    def names(self, spec: Spec) -> dict[str, str | None]:
        """Canonical name -> name in a file, for every tensor; None if the file cannot hold it."""
        return {parameter.name: self.rename(parameter, spec) for parameter in parameters(spec)}

    def in_file(self, canonical: str, spec: Spec) -> str:
        """The name in a file, for messages; the canonical name if the file cannot hold the tensor."""
        return self.names(spec).get(canonical) or canonical

    def stored(self, parameter: Parameter) -> Stored:
        """The layout in a file of a tensor with this role."""
        is_1x1 = parameter.role in [f"{attention}_dense" for attention in self.mlp_1x1]
        role = ROLES["conv2d" if is_1x1 else parameter.role]
        return Stored(role.to_tf if self.tensorflow_axes else None, is_1x1)


def permuted(shape: tuple[int, ...], axes: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape after a transposition; unchanged if the number of axes is wrong (an error later)."""
    return shape if axes is None or len(axes) != len(shape) else tuple(shape[axis] for axis in axes)


# --------------------------------------------------------------------------------------------------
# torch: layer1.0.conv1.weight, the canonical names themselves


def _torch_rename(parameter: Parameter, spec: Spec) -> str:  # noqa: ARG001
    return parameter.name


def _torch_parse(name: str) -> str | None:
    return name if like(name) else None


# --------------------------------------------------------------------------------------------------
# tf1: layer1_0/conv1/kernel, a number is joined to the preceding name


def _tf1_rename(parameter: Parameter, spec: Spec) -> str | None:  # noqa: ARG001
    leaf = ROLES[parameter.role].tf
    if leaf is None:
        return None
    module = re.sub(r"\.(\d+)(?=\.|$)", r"_\1", parameter.name.rpartition(".")[0])
    return f"{module.replace('.', '/')}/{leaf}"


def tf1_module(scope: str) -> str:
    """The canonical path of a TF1 variable scope.

    >>> tf1_module("layer1_0/downsample_1"), tf1_module("conv2d_7")
    ('layer1.0.downsample.1', 'conv2d_7')
    """
    return numbered().sub(r"\1.\2", scope).replace("/", ".")


def _tf1_parse(name: str) -> str | None:
    scope, _, leaf = name.rpartition("/")
    return from_tensorflow(tf1_module(scope), leaf)


# --------------------------------------------------------------------------------------------------
# keras: layer1/bottleneck_1/conv1/vars/0, members of a list are numbered per class

_LAYER_CLASSES = {  # else a norm
    "conv2d": "conv2d",
    "depthwise": "depthwise_conv2d",
    "conv1d": "conv1d",
    "dense": "dense",
}


def _keras_rename(parameter: Parameter, spec: Spec) -> str | None:
    index = ROLES[parameter.role].keras_index
    if index is None:
        return None
    return f"{_keras_modules(spec)[parameter.name.rpartition('.')[0]]}/vars/{index}"


@lru_cache(maxsize=256)
def _keras_modules(spec: Spec) -> dict[str, str]:
    """Canonical path of a layer -> its path in a Keras file."""
    layers: dict[str, str] = {}  # path -> class
    norm = "group_normalization" if getattr(spec, "norm", "") == "gn" else "batch_normalization"
    for parameter in parameters(spec):
        layers.setdefault(parameter.name.rpartition(".")[0], "")
        if parameter.role != "bias":
            of_class = _LAYER_CLASSES.get(parameter.role, norm)
            layers[parameter.name.rpartition(".")[0]] = of_class
    members: dict[str, str] = {}  # path of a list's member -> its name in the file
    counts: Counter[tuple[str, str]] = Counter()
    found = {}
    for path, of_class in layers.items():
        steps, parts = path.split("."), []
        for number, step in enumerate(steps):
            if not step.isdigit():
                parts.append(step)
                continue
            member, above = ".".join(steps[: number + 1]), ".".join(steps[:number])
            if member not in members:
                name = of_class if member == path else spec.member_class(member)
                count = counts[above, name]
                counts[above, name] += 1
                members[member] = f"{name}_{count}" if count else name
            parts.append(members[member])
        found[path] = "/".join(parts)
    return found


_KERAS_BLOCK = re.compile(rf"^(layer\d+)/(?:{'|'.join(BLOCK_CLASSES.values())})(?:_(\d+))?/")
_KERAS_NAME = re.compile(r"(.+)/vars/(\d{1,9})")
_DOWNSAMPLE = {
    "downsample/conv2d": "downsample.0",
    "downsample/batch_normalization": "downsample.1",
    "downsample/group_normalization": "downsample.1",
}


def _keras_parse(name: str) -> str | None:
    """For networks whose depths only a file shows."""
    match = _KERAS_NAME.fullmatch(name)
    if match is None or int(match[2]) >= len(KERAS_LEAVES):
        return None
    module = _KERAS_BLOCK.sub(lambda found: f"{found[1]}.{found[2] or 0}.", match[1])
    for member, number in _DOWNSAMPLE.items():
        module = module.replace(member, number)
    canonical = f"{module.replace('/', '.')}.{KERAS_LEAVES[int(match[2])]}"
    parameter = like(canonical)
    return canonical if parameter and ROLES[parameter.role].keras_index == int(match[2]) else None


TORCH_BOOKKEEPING = (
    (re.compile(r"n_averaged"), "count of torch.optim.swa_utils.AveragedModel"),
    (re.compile(r"(.*\.)?total_(ops|params)"), "count of the thop profiler"),
)
KERAS_BOOKKEEPING = (
    (re.compile(r"(.*/)?optimizer/vars/\d+|optimizer_weights/.*"), "optimizer state"),
    (re.compile(r"(.*/)?(_?metrics|compile_metrics|loss_tracker|_loss_tracker)/.*"), "metric"),
    (re.compile(r"(.*/)?seed_generator/vars/\d+"), "random seed"),
)
TF1_BOOKKEEPING = (
    (re.compile(r".*/(Momentum|Adam|Adam_1|RMSProp|RMSProp_1|Adagrad|Ftrl|Ftrl_1)"), "optimizer slot"),
    (re.compile(r".*/(ExponentialMovingAverage|biased|local_step)"), "moving average"),
    (re.compile(r"(.*/)?(global_step|beta[12]_power(_1)?)"), "step count"),
)

# the first variable of each kind of network, and of each attention block
_FIRST = tuple((next(spec.tensors()), spec) for kind in KINDS.values() for spec in kind.widest())


def _marks(rename: Callable[[Parameter, Spec], str | None]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(rename(parameter, spec)) for parameter, spec in _FIRST))


LAYOUTS = {
    "torch": Layout(name="torch", rename=_torch_rename, parse=_torch_parse, bookkeeping=TORCH_BOOKKEEPING),
    "keras": Layout(
        name="keras",
        rename=_keras_rename,
        parse=_keras_parse,
        tensorflow_axes=True,
        bookkeeping=KERAS_BOOKKEEPING,
        scoped=True,
        marks=_marks(_keras_rename),
    ),
    "tf1": Layout(
        name="tf1",
        rename=_tf1_rename,
        parse=_tf1_parse,
        tensorflow_axes=True,
        bookkeeping=TF1_BOOKKEEPING,
        scoped=True,
        marks=_marks(_tf1_rename),
    ),
}
