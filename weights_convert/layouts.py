"""Roles: the name and the axes of each kind of tensor; and this project's three layouts.

A layout maps a canonical name to the name in a file and back. The role decides the axes, never the rank:
ECA's three-dimensional kernel would break a rule based on the rank.

    >>> spec = model_spec("eca_resnet50")
    >>> LAYOUTS["keras"].rename("layer1.2.eca.conv.weight", spec)
    'layer1/bottleneck_2/eca/conv/vars/0'
    >>> LAYOUTS["tf1"].parse("layer1_2/eca/conv/kernel"), role_of("layer1.2.eca.conv.weight")
    ('layer1.2.eca.conv.weight', 'conv1d')
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from weights_convert.memory import transposed
from weights_convert.spec import ResNetSpec, Spec, model_spec  # noqa: F401  (model_spec: in the example)

Shapes = Mapping[str, tuple[int, ...]]


class Role(NamedTuple):
    """The names of one kind of tensor in each framework, and its transposition from PyTorch to TensorFlow."""

    torch: str  # leaf name
    tf: str | None  # leaf name in Keras and TF1; None: it does not exist there
    keras_index: int | None  # its number among the layer's variables in a Keras file
    to_tf: tuple[int, ...] | None = None  # axes; None: unchanged

    @property
    def to_torch(self) -> tuple[int, ...] | None:
        return None if self.to_tf is None else tuple(int(axis) for axis in np.argsort(self.to_tf))


ROLES = {
    "conv2d": Role("weight", "kernel", 0, (2, 3, 1, 0)),  # O I H W -> H W I O; grouped: I is I / groups
    "conv1d": Role("weight", "kernel", 0, (2, 1, 0)),
    "dense": Role("weight", "kernel", 0, (1, 0)),
    "bias": Role("bias", "bias", 1),
    "scale": Role("weight", "gamma", 0),
    "offset": Role("bias", "beta", 1),
    "mean": Role("running_mean", "moving_mean", 2),
    "variance": Role("running_var", "moving_variance", 3),
    "count": Role("num_batches_tracked", None, None),
}

_BN_ROLES = {ROLES[role].torch: role for role in ("scale", "offset", "mean", "variance", "count")}
_MODULE_ROLES = (  # the module's canonical name -> the role of its `weight`
    (re.compile(r"(.*\.)?(bn\d?|downsample\.1)"), "batch_norm"),
    (re.compile(r"(.*\.eca\.)?conv"), "conv1d"),
    (re.compile(r"(.*\.)?(conv\d|spatial\.conv|downsample\.0)"), "conv2d"),
    (re.compile(r"(.*\.)?fc\d?"), "dense"),
)


def role_of(name: str) -> str | None:
    """The role of the tensor with this canonical name, or None for an unknown name.

    >>> role_of("layer1.0.downsample.1.weight"), role_of("layer1.0.cbam.spatial.conv.weight"), role_of("x.y")
    ('scale', 'conv2d', None)
    """
    module, _, leaf = name.rpartition(".")
    for pattern, role in _MODULE_ROLES:
        if pattern.fullmatch(module):
            if role == "batch_norm":
                return _BN_ROLES.get(leaf)
            return {"weight": role, "bias": "bias"}.get(leaf)
    return None


_MLP = re.compile(r".+\.(se|cbam)\.(?:channel\.)?fc[12]\.weight")  # the weights of an attention's MLP


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way to name and lay out the tensors of a model: one of this project's own, or of a family.

    Attributes:
        rename: (canonical name, spec) -> the name in a file, None if the file cannot hold the tensor.
        parse: name in a file -> canonical name, None for an unknown name.
        tensorflow_axes: whether kernels have TensorFlow's axes.
        mlp_1x1: the attentions whose MLP is stored as 1x1 convolutions.
        bookkeeping: patterns of names that are not weights, with descriptions.
        scoped: whether names may begin with a variable scope; otherwise only with a wrapper's `module.`.
        part: name in a file -> number of the part of a tensor, for groups stored separately.
        marks: ends of names that show a network and its scope in a file.
    """

    name: str
    rename: Callable[[str, Spec], str | None]
    parse: Callable[[str], str | None]
    tensorflow_axes: bool = False
    mlp_1x1: tuple[str, ...] = ()
    bookkeeping: tuple[tuple[re.Pattern[str], str], ...] = ()
    scoped: bool = False
    part: Callable[[str], int] = lambda name: 0  # noqa: ARG005
    marks: tuple[str, ...] = ()

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

    def in_file(self, canonical: str, spec: Spec) -> str:
        """The name in a file, for messages; the canonical name if the file cannot hold the tensor."""
        return self.rename(canonical, spec) or canonical

    def _stored(self, canonical: str) -> tuple[bool, Role | None]:
        """Whether a tensor is stored as a 1x1 convolution, and the role that decides its axes."""
        role = role_of(canonical)
        mlp = _MLP.fullmatch(canonical)
        if mlp and mlp[1] in self.mlp_1x1:
            return True, ROLES["conv2d"]
        return False, ROLES[role] if role else None

    def axes_from_canonical(self, canonical: str) -> tuple[int, ...] | None:
        """The transposition from PyTorch's axes to the file's, or None."""
        _, role = self._stored(canonical)
        return role.to_tf if role and self.tensorflow_axes else None

    def shape_in_file(self, canonical: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        expanded, _ = self._stored(canonical)
        return permuted((*shape, 1, 1) if expanded else shape, self.axes_from_canonical(canonical))

    def canonical_shape(self, canonical: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The inverse of `shape_in_file`; an invalid shape gives an odd result, which is refused later."""
        expanded, role = self._stored(canonical)
        shape = permuted(shape, role.to_torch if role and self.tensorflow_axes else None)
        return shape[:2] if expanded and len(shape) == 4 and shape[2:] == (1, 1) else shape

    def to_file(self, canonical: str, array: np.ndarray) -> np.ndarray:
        """The array in the file's layout; C-contiguous unless it is large (`memory.transposed`)."""
        expanded, _ = self._stored(canonical)
        array, axes = array[:, :, None, None] if expanded else array, self.axes_from_canonical(canonical)
        return array if axes is None else transposed(array, axes)

    def to_canonical(self, canonical: str, array: np.ndarray) -> np.ndarray:
        """The inverse of `to_file`."""
        expanded, role = self._stored(canonical)
        axes = role.to_torch if role and self.tensorflow_axes else None
        array = array if axes is None else transposed(array, axes)
        return array.reshape(array.shape[:2]) if expanded else array


def permuted(shape: tuple[int, ...], axes: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape after a transposition; unchanged if the number of axes is wrong (an error later)."""
    return shape if axes is None or len(axes) != len(shape) else tuple(shape[axis] for axis in axes)


# --------------------------------------------------------------------------------------------------
# torch: layer1.0.conv1.weight, the canonical names themselves


def _torch_rename(name: str, spec: Spec) -> str:  # noqa: ARG001
    return name


def _torch_parse(name: str) -> str | None:
    return name if role_of(name) else None


# --------------------------------------------------------------------------------------------------
# tf1: layer1_0/conv1/kernel, a number is joined to the preceding name

TF_LEAVES = {ROLES[role].tf: ROLES[role].torch for role in ROLES if ROLES[role].tf}


def _tf1_rename(name: str, spec: Spec) -> str | None:  # noqa: ARG001
    leaf = ROLES[role_of(name) or "count"].tf
    if leaf is None:
        return None
    module = re.sub(r"\.(\d+)(?=\.|$)", r"_\1", name.rpartition(".")[0])
    return f"{module.replace('.', '/')}/{leaf}"


def _tf1_parse(name: str) -> str | None:
    *path, leaf = name.split("/")
    module = re.sub(r"\b(layer\d+|downsample)_(\d+)\b", r"\1.\2", ".".join(path))
    canonical = f"{module}.{TF_LEAVES.get(leaf)}"
    role = role_of(canonical)
    return canonical if role and ROLES[role].tf == leaf else None


# --------------------------------------------------------------------------------------------------
# keras: layer1/bottleneck_1/conv1/vars/0, members of a list are numbered per class

_BLOCK_CLASSES = {"basic": "basic_block", "bottleneck": "bottleneck"}
_DOWNSAMPLE = {"downsample.0": "downsample/conv2d", "downsample.1": "downsample/batch_normalization"}


def _keras_rename(name: str, spec: Spec) -> str | None:
    index = ROLES[role_of(name) or "count"].keras_index
    if index is None:
        return None
    module = name.rpartition(".")[0]
    for number, member in _DOWNSAMPLE.items():
        module = module.replace(number, member)
    if isinstance(spec, ResNetSpec):
        block = _BLOCK_CLASSES[spec.block]
        module = re.sub(r"^(layer\d+)\.0\.", rf"\1/{block}/", module)
        module = re.sub(r"^(layer\d+)\.(\d+)\.", rf"\1/{block}_\2/", module)
    return f"{module.replace('.', '/')}/vars/{index}"


_KERAS_BLOCK = re.compile(rf"^(layer\d+)/(?:{'|'.join(_BLOCK_CLASSES.values())})(?:_(\d+))?/")
_KERAS_NAME = re.compile(r"(.+)/vars/(\d{1,9})")


def _keras_parse(name: str) -> str | None:
    match = _KERAS_NAME.fullmatch(name)
    if match is None:
        return None
    module = _KERAS_BLOCK.sub(lambda found: f"{found[1]}.{found[2] or 0}.", match[1])
    for number, member in _DOWNSAMPLE.items():
        module = module.replace(member, number)
    module = module.replace("/", ".")
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        role = role_of(f"{module}.{leaf}")
        if role and ROLES[role].keras_index == int(match[2]):
            return f"{module}.{leaf}"
    return None


TORCH_BOOKKEEPING = ((re.compile(r"n_averaged"), "count of torch.optim.swa_utils.AveragedModel"),)
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

LAYOUTS = {
    "torch": Layout(name="torch", rename=_torch_rename, parse=_torch_parse, bookkeeping=TORCH_BOOKKEEPING),
    "keras": Layout(
        name="keras",
        rename=_keras_rename,
        parse=_keras_parse,
        tensorflow_axes=True,
        bookkeeping=KERAS_BOOKKEEPING,
    ),
    "tf1": Layout(
        name="tf1",
        rename=_tf1_rename,
        parse=_tf1_parse,
        tensorflow_axes=True,
        bookkeeping=TF1_BOOKKEEPING,
        scoped=True,
        marks=("conv1/kernel", "channel/fc1/kernel", "fc1/kernel", "conv/kernel"),
    ),
}
