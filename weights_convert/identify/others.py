"""Networks and files of other kinds that have familiar names: one sentence each, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from weights_convert.formats.base import TensorInfo

_FEWEST = 3  # convolutions of a network in one or three dimensions, or of a quantised one


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
_QUANTISED = "quantised weights (int8); save the network before its quantisation, in float32"
KINDS = (
    _kind(
        r"weight_u",
        "weights with spectral normalisation; torch.nn.utils.remove_spectral_norm(module) makes plain ones",
    ),
    _kind(
        r"(?:weight|bias)_(?:orig|mask)",
        "pruned weights with masks (torch.nn.utils.prune); --apply-masks (in Python apply_masks=True) "
        "applies them",
    ),
    _kind(
        r"zero_point|_packed_params|weight_fake_quant|activation_post_process|kernel_scale|weight_scale",
        _QUANTISED,
    ),
    _kind(
        r"weight_[gv]",
        "weights with weight normalisation; torch.nn.utils.remove_weight_norm(module) makes plain ones",
        spoils=False,
    ),
    _kind(
        r"parametrizations",
        "parametrised weights; torch.nn.utils.parametrize.remove_parametrizations(module, 'weight') makes "
        "plain ones",
        spoils=False,
    ),
    _kind(
        r"lora_[AB]|base_layer",
        "weights with LoRA adapters; model.merge_and_unload() makes plain ones",
    ),
    _kind(
        r"\.ATTRIBUTES",
        "a TF2 object checkpoint; load it into its Keras model, and save_weights('x.weights.h5')",
    ),
    _kind(r"IN|BN", f"IBN-Net, with instance normalisation, {_WITHOUT}"),
    _kind(
        r"prelu\d?|layer\d[./]\d+[./]prelu",
        f"a network with PReLU, such as IResNet of face recognition, {_WITHOUT}",
        spoils=False,
    ),
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
    _kind(
        r"attention[./](?:attention[./])?(?:query|key)|self_attention[./]in_proj_weight|relative_position_bias_table",
        f"a transformer, {_WITHOUT}",
        spoils=False,
    ),
    _kind(r"denseblock\d[./]denselayer\d+", f"DenseNet, {_WITHOUT}", spoils=False),
    _kind(r"stages[./]\d+[./](?:blocks[./])?\d+[./](?:gamma|dwconv)", f"ConvNeXt, {_WITHOUT}", spoils=False),
    _kind(r"attnpool", f"CLIP's ModifiedResNet (attention pooling), {_WITHOUT}"),
)
_RANKS = {3: "one dimension (Conv1d)", 5: "three dimensions (Conv3d)"}
_KERNEL = re.compile(r"(?:.*[./])?(?:weight|kernel)")


def what_is(tensors: Mapping[str, TensorInfo]) -> tuple[str, list[str]] | None:
    """The description of a file of these tensors, if it is one of these kinds, and names that show it."""
    for kind in KINDS:
        if names := [name for name in tensors if kind.names.fullmatch(name)]:
            return kind.what, names
    kernels = {
        n: info for n, info in tensors.items() if _KERNEL.fullmatch(n) and len(info.shape) in (3, 4, 5)
    }
    small = [name for name, info in kernels.items() if info.dtype.kind in "iu" and info.dtype.itemsize == 1]
    if len(small) >= _FEWEST:
        return _QUANTISED, small
    for rank, what in _RANKS.items():
        names = [name for name, info in kernels.items() if len(info.shape) == rank and "eca" not in name]
        if len(names) >= _FEWEST and 2 * len(names) > len(kernels):
            return f"a network in {what}; this project's networks take images, in two dimensions", names
    return None


def spoils(outside: Iterable[str]) -> tuple[str, list[str]] | None:
    """The description of a network that has such tensors beside its own, or None."""
    for kind in KINDS:
        if kind.spoils and (names := [name for name in outside if kind.names.fullmatch(name)]):
            return kind.what, names
    return None
