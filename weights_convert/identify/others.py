"""Networks and files of other kinds that have familiar names: one sentence each, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

Shapes = Mapping[str, tuple[int, ...]]
_FEWEST = 3  # convolutions of a network in one or three dimensions


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        names: a pattern of names that no network of this project has.
        what: what the file is, and what to do.
        spoils: whether a network is another one if such a tensor is beside its own.
    """

    names: re.Pattern[str]
    what: str
    spoils: bool = True


def _kind(pattern: str, what: str, spoils: bool = True) -> Kind:
    return Kind(re.compile(rf"(?:.*[./])?(?:{pattern})(?:[./].*)?"), what, spoils)


_WITHOUT = "which this project does not have"
KINDS = (
    _kind(
        r"(?:weight|bias)_(?:orig|mask)",
        "pruned weights with masks (torch.nn.utils.prune); --apply-masks (in Python apply_masks=True) "
        "applies them",
    ),
    _kind(
        r"zero_point|_packed_params|weight_fake_quant|activation_post_process|kernel_scale|weight_scale",
        "quantised weights (int8); save the network before its quantisation, in float32",
    ),
    _kind(
        r"\.ATTRIBUTES",
        "a TF2 object checkpoint; load it into its Keras model, and save_weights('x.weights.h5')",
    ),
    _kind(r"IN|BN", f"IBN-Net, with instance normalisation, {_WITHOUT}"),
    _kind(r"res_layer|input_layer[./]0", f"IR-SE of face recognition (res_layer, PReLU), {_WITHOUT}"),
    _kind(
        r"stages[./]\d+[./]\d+[./](?:conv1_1x1|conv2_kxk|conv_kxk|conv_1x1|self_attn)",
        f"timm's ByobNet (seresnet33ts, sebotnet33ts, regnetz, repvgg ...), {_WITHOUT}",
    ),
    _kind(
        r"blocks[./]\d+[./]\d+[./](?:conv_dw|conv_pwl?|se[./]conv_reduce)",
        f"timm's EfficientNet or MobileNetV3, {_WITHOUT}",
    ),
    _kind(r"s[1-4][./]b\d+[./]conv[123][./](?:conv|bn)", f"timm's RegNet, {_WITHOUT}"),
    _kind(r"blocks[./]\d+[./]attn[./](?:qkv|proj)", f"a vision transformer, {_WITHOUT}"),
    _kind(r"attnpool", f"CLIP's ModifiedResNet (attention pooling), {_WITHOUT}"),
)
_RANKS = {3: "one dimension (Conv1d)", 5: "three dimensions (Conv3d)"}
_KERNEL = re.compile(r"(?:.*[./])?(?:conv\d*|downsample[./]0|convolution|conv)[./](?:weight|kernel)")


def what_is(shapes: Shapes) -> tuple[str, list[str]] | None:
    """The description of a file of these tensors, if it is one of these kinds, and names that show it."""
    for kind in KINDS:
        if names := [name for name in shapes if kind.names.fullmatch(name)]:
            return kind.what, names
    kernels = [name for name in shapes if _KERNEL.fullmatch(name)]
    for rank, what in _RANKS.items():
        names = [name for name in kernels if len(shapes[name]) == rank and "eca" not in name]
        if len(names) >= _FEWEST and 2 * len(names) > len(kernels):
            return f"a network in {what}; this project's networks take images, in two dimensions", names
    return None


def spoils(outside: Iterable[str]) -> tuple[str, list[str]] | None:
    """The description of a network that has such tensors beside its own, or None."""
    for kind in KINDS:
        if kind.spoils and (names := [name for name in outside if kind.names.fullmatch(name)]):
            return kind.what, names
    return None
