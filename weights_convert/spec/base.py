"""Specs: the keywords of a network as data, its tensors in canonical naming, and their roles.

The canonical form is PyTorch's naming and layout. A role belongs to a parameter, never to a pattern of its
name or to its rank: `features.3.weight` is a convolution in one network and a batch norm in another.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, ClassVar, NamedTuple, Self

from weights_convert.errors import SpecError, nearest
from weights_convert.spec.checks import WITH_BIAS

COUNTS = "num_batches_tracked"  # the leaf of a PyTorch batch norm that other frameworks lack
TRAINING_ONLY = ("bn_momentum", "cbam_bn_momentum", "dropout")  # keywords without effect on inference


class Parameter(NamedTuple):
    """One tensor: its canonical name, its shape in PyTorch's layout, and its role.

    The role (a key of `layouts.ROLES`) decides a tensor's axes in each framework; its rank never does.
    """

    name: str
    shape: tuple[int, ...]
    role: str

    @property
    def trainable(self) -> bool:
        return self.role not in ("mean", "variance", "count")


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """The keywords of an attention block besides its channels; the defaults are the papers' code.

    SE: arXiv 1709.01507. CBAM: 1807.06521. ECA: 1910.03151.
    """

    attention: str = "none"
    reduction: int = 16
    hidden_rule: str = "floor"
    se_bias: bool = True
    cbam_mlp_bias: bool = True
    cbam_order: str = "max_mean"
    cbam_kernel_size: int = 7
    cbam_bn: bool = True
    cbam_bn_momentum: float = 0.01
    cbam_spatial_bias: bool = False
    cbam_spatial_input: str = "refined"
    eca_padding: str = "zeros"
    bn_epsilon: float = 1e-5


class Spec(AttentionOptions):
    """One kind of network, or one attention block.

    Attributes:
        kind: its name in a file's metadata.
        network: the class in `torch_impl` and `keras_impl`, in lower case the function of `tf1_compat`; ""
            for a single attention block.
        head: the classifier's canonical name, or "".
        structure: the keywords that a variant of a named network shares with it.
        parts: keywords of parts that a file of a named network may have or lack, one set per case.
        unseen: keyword that names and shapes do not show -> whether it matters in a spec.
    """

    kind: ClassVar[str]
    network: ClassVar[str] = ""
    head: ClassVar[str] = ""
    structure: ClassVar[tuple[str, ...]] = ()
    parts: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    unseen: ClassVar[Mapping[str, Callable[[Any], bool]]]

    @property
    def heads(self) -> tuple[str, ...]:
        """The canonical names of all classifiers; the first is `head`."""
        return (self.head,) if self.head else ()

    def tensors(self) -> Iterator[Parameter]:
        """Every tensor of the network, in PyTorch's order; see `parameters`."""
        raise NotImplementedError

    @classmethod
    def widest(cls) -> list[Self]:
        """Specs that together have all tensors of this kind of network, of any size."""
        raise NotImplementedError

    @classmethod
    def like(cls, name: str) -> Parameter | None:
        """The parameter of a tensor with this name, for any size of the network."""
        return _by_name(cls.widest).get(name)

    def stages(self) -> dict[str, tuple[str, ...]]:
        """The compared points of a network in order, each with the modules that run for it."""
        raise NotImplementedError

    def member_class(self, path: str) -> str:
        """Keras's name for the class of a list's member (`layer1.0`), if it is not a plain layer."""
        raise KeyError(path)

    def norm_after(self, convolution: str) -> str:
        """The canonical name of the batch norm that follows a convolution."""
        return convolution.replace("conv", "bn")

    def concerns(self, keyword: str) -> bool:
        """Whether a keyword applies to this network, as `cbam_order` applies to networks with CBAM."""
        attention = keyword.partition("_")[0]
        if attention in ("se", "cbam", "eca", "sk"):
            return self.attention == attention
        if keyword in ("reduction", "hidden_rule"):
            return self.attention in (("se", "cbam", "sk") if keyword == "reduction" else ("se", "cbam"))
        return hasattr(self, keyword)

    def matters_unseen(self, keyword: str) -> bool:
        """Whether a keyword changes the numbers but neither names nor shapes."""
        return keyword in self.unseen and self.unseen[keyword](self)

    def check_image(self, rows: int, columns: int) -> None:
        """Raise `SpecError` if images of this size are too small for the network's pools."""

    def part(self, names: Collection[str]) -> Self:
        """The network that ends where these tensors of it end.

        Raises:
            SpecError: they end too early.
        """
        has_head = any(name.startswith(f"{self.head}.") for name in names)
        return self if has_head else changed(self, {"num_classes": 0})

    def model_kwargs(self) -> dict[str, Any]:
        """Every field as a keyword of the network in each framework."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def input_channels(self) -> int:
        """The channels of its inputs."""
        raise NotImplementedError

    @property
    def blocks(self) -> int:
        """The number of blocks, or of modules that take their place."""
        return sum(getattr(self, "depths", ()))

    @property
    def image_size(self) -> int:
        """Rows and columns of the usual training images."""
        return 224

    @property
    def small_image_size(self) -> int:
        """Rows and columns of images for runs that record every layer: at 224 these take gigabytes."""
        return min(64, self.image_size)


def has_cbam(spec: AttentionOptions) -> bool:
    return spec.attention == "cbam"


def has_eca(spec: AttentionOptions) -> bool:
    return spec.attention == "eca"


def has_cbam_bn(spec: AttentionOptions) -> bool:
    return spec.attention == "cbam" and spec.cbam_bn


@cache
def _by_name(widest: Callable[[], list[Any]]) -> dict[str, Parameter]:
    return {parameter.name: parameter for spec in widest() for parameter in parameters(spec)}


@lru_cache(maxsize=256)
def parameters(spec: Spec) -> tuple[Parameter, ...]:
    """Every tensor of the model, in PyTorch's order; files may lack some of them (`is_count`)."""
    return tuple(spec.tensors())


def count_parameters(spec: Spec) -> int:
    """The number of trainable scalars."""
    return sum(math.prod(parameter.shape) for parameter in parameters(spec) if parameter.trainable)


def is_count(name: str) -> bool:
    """Whether a file may lack this canonical tensor, because no output depends on it."""
    return name.rpartition(".")[2] == COUNTS


def make_spec(kind: type[Any], keywords: Mapping[str, Any]) -> Any:
    """`kind(**keywords)`; the error for an unknown keyword suggests the nearest one."""
    names = [field.name for field in dataclasses.fields(kind)]
    for keyword in keywords:
        if keyword not in names:
            raise SpecError(
                f"there is no keyword {keyword!r}{nearest(keyword, names)}; known: {', '.join(names)}"
            )
    return kind(**keywords)


def changed(spec: Spec, keywords: Mapping[str, Any]) -> Any:
    """`spec` with other values for some keywords."""
    values = spec.model_kwargs()
    if keywords.get("stem", values.get("stem")) != values.get("stem"):
        values.pop("stem_pool")  # its default depends on the stem
    if len(keywords.get("depths", values.get("depths", ()))) != len(values.get("depths", ())):
        for per_stage in ("strides", "dilations"):
            values.pop(per_stage, None)
    return make_spec(type(spec), values | dict(keywords))


def spec_values(spec: Spec, keywords: tuple[str, ...]) -> str:
    """`stem_pool='pad1', stride_in='conv2'`: how a note shows keywords."""
    values = spec.model_kwargs()
    return ", ".join(f"{keyword}={values[keyword]!r}" for keyword in keywords)


@contextmanager
def as_spec_error() -> Iterator[None]:
    """Raise the models' errors for invalid keywords as `SpecError`."""
    try:
        yield
    except ValueError as error:
        raise SpecError(str(error)) from None


def set_fields(spec: Spec, checked: Mapping[str, Any]) -> None:
    """Replace the given values, such as NumPy's, by plain Python values."""
    for name, value in checked.items():
        object.__setattr__(spec, name, value)


# --------------------------------------------------------------------------------------------------
# Tensors that every kind of network has


def batch_norm(prefix: str, channels: int) -> Iterator[Parameter]:
    yield Parameter(f"{prefix}.weight", (channels,), "scale")
    yield Parameter(f"{prefix}.bias", (channels,), "offset")
    yield Parameter(f"{prefix}.running_mean", (channels,), "mean")
    yield Parameter(f"{prefix}.running_var", (channels,), "variance")
    yield Parameter(f"{prefix}.{COUNTS}", (), "count")


def dense(
    prefix: str, inputs: int, outputs: int, bias: bool = True, role: str = "dense"
) -> Iterator[Parameter]:
    yield Parameter(f"{prefix}.weight", (outputs, inputs), role)
    if bias:
        yield Parameter(f"{prefix}.bias", (outputs,), "bias")


def conv_norm(
    norm: str,
    conv: str,
    bn: str,
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, int],
    groups: int = 1,
    role: str = "conv2d",
) -> Iterator[Parameter]:
    sizes = (kernel, kernel) if isinstance(kernel, int) else kernel
    yield Parameter(f"{conv}.weight", (outputs, inputs // groups, *sizes), role)
    if norm in WITH_BIAS:
        yield Parameter(f"{conv}.bias", (outputs,), "bias")
    if norm == "gn":
        yield Parameter(f"{bn}.weight", (outputs,), "scale")
        yield Parameter(f"{bn}.bias", (outputs,), "offset")
    elif norm != "bias":
        yield from batch_norm(bn, outputs)
