"""Reads the config.json of a folder: the network's keywords and its preprocessing.

Read from timm's `_hub.py` and `resnet.py`, transformers' `configuration_resnet.py` and keras-hub's
`resnet_backbone.py`. An argument that changes the numbers and that no table here has is refused by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weights_convert.errors import SourceError, nearest
from weights_convert.families import FAMILIES
from weights_convert.families.base import Preprocessing
from weights_convert.formats.base import one_line

Config = Mapping[str, Any]
_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"


@dataclass
class Described:
    """A network and its preprocessing, as described beside its weights.

    Attributes:
        family: the naming of its tensors.
        model: FAMILY:NAME, for `identify`.
        settings: keywords of the spec.
        num_classes: of the trained network.
        feeds: its preprocessing, if described.
        note: for the user.
    """

    family: str
    model: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    num_classes: int | None = None
    feeds: Preprocessing | None = None
    note: str = ""


def described(folder: Path, configs: Mapping[str, Config], required: bool = True) -> Described | None:
    """The description in a folder's JSON files; None without config.json.

    Args:
        required: whether config.json has to be one of timm or transformers; weights with this project's
            metadata describe themselves.

    Raises:
        SourceError: a network that this project does not have, an argument it does not know, a wrong type.
    """
    if _CONFIG not in configs:
        return None
    config = configs[_CONFIG]
    for key, read in _KINDS.items():
        if config.get(key) is not None:
            return read(folder / _CONFIG, config, configs)
    if not required:
        return None
    raise SourceError(
        f"{folder / _CONFIG}: does not describe a network of timm or transformers, expected 'architecture', "
        "'model_type', or keras-hub's 'registered_name'; to read the weights without it, name their file "
        "instead of the folder"
    )


# --------------------------------------------------------------------------------------------------
# timm

SAME: dict[str, str] = {  # argument of timm's ResNet -> keyword with the same values
    "layers": "depths",
    "cardinality": "groups",
    "base_width": "width_per_group",
    "stem_width": "stem_width",
    "block_reduce_first": "reduce_first",
    "down_kernel_size": "downsample_kernel",
    "in_chans": "in_channels",
    "drop_rate": "dropout",
}
VALUES: dict[str, dict[Any, dict[str, Any]]] = {  # argument -> value -> keywords
    "act_layer": {
        "relu": {"activation": "relu"},
        "silu": {"activation": "silu"},
        "swish": {"activation": "silu"},
        "gelu": {"activation": "gelu"},
        "leaky_relu": {"activation": "leaky_relu"},
    },
    "aa_layer": {
        "avg": {"anti_aliasing": "avg"},
        "avgpool": {"anti_aliasing": "avg"},
        "blur": {"anti_aliasing": "blur"},
        "": {"anti_aliasing": "none"},
    },
    "global_pool": {name: {"global_pool": name} for name in ("avg", "max", "avgmax", "catavgmax")},
    "output_stride": {
        32: {},
        16: {"strides": (1, 2, 2, 1), "dilations": (1, 1, 1, 2)},
        8: {"strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4)},
    },
    "stem_type": {"": {"stem": "7x7"}, "deep": {"stem": "deep"}, "deep_tiered": {"stem": "deep_tiered"}},
    "avg_down": {True: {"downsample_pool": "avg"}, False: {"downsample_pool": "none"}},
    "norm_layer": {
        "groupnorm": {"norm": "gn"},
        "batchnorm": {"norm": "bn"},
        "batchnorm2d": {"norm": "bn"},
    },
    "replace_stem_pool": {True: {"stem_pool": "conv"}, False: {}},
}
STATED = {keyword for values in VALUES.values() for keywords in values.values() for keyword in keywords}
_MOST_STAGES = 16
_WITHOUT_EFFECT = ("num_classes", "drop_path_rate", "drop_block_rate", "zero_init_last", "pretrained")


def _timm(path: Path, config: Config, _: Mapping[str, Config]) -> Described:
    architecture = _text(path, config, "architecture")
    family = "cadene" if architecture.startswith("legacy_") else "timm"
    pretrained = _object(path, config, "pretrained_cfg") if "pretrained_cfg" in config else config
    arguments = {"global_pool": config.get("global_pool")} | _object(path, config, "model_args")
    classes = config.get("num_classes", pretrained.get("num_classes"))
    if family == "timm" and FAMILIES["timm"].spelled(architecture) is None:
        raise SourceError(
            f"{path}: its architecture is timm's {one_line(repr(architecture))}, which this project does not "
            "have; expected a resnet*, resnext*, seresnet*, seresnext*, ecaresnet*, skresnet*, senet154 or "
            "legacy_se*"
        )
    return Described(
        family,
        f"timm:{architecture}" if family == "timm" else None,
        _settings(path, arguments),
        _count(path, "num_classes", classes),
        _feeds(path, pretrained, _TIMM_FEEDS, _classes(config, pretrained, classes)),
        f"as timm's {architecture} in {path.name}",
    )


def _settings(path: Path, arguments: Config) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, value in arguments.items():
        if value is None or name in _WITHOUT_EFFECT:
            continue
        if name in SAME:
            settings[SAME[name]] = _number_or_list(path, name, value)
        elif name == "channels":
            settings["width"] = _doubled(path, value)
        elif name == "block_args":
            _attention_only(path, value)
        elif name in VALUES:
            settings |= _choice(path, name, value)
        else:
            raise SourceError(
                f"{path}: the argument {one_line(name)}={one_line(repr(value), 60)} of timm's network is not "
                f"supported{nearest(name, [*VALUES, *SAME])}"
            )
    return settings


def _choice(path: Path, name: str, value: Any) -> dict[str, Any]:
    for known, keywords in VALUES[name].items():
        if type(known) is type(value) and known == value:
            return keywords
    expected = ", ".join(map(repr, VALUES[name]))
    raise SourceError(f"{path}: {name} is {one_line(repr(value), 60)}, expected one of {expected}")


def _number_or_list(path: Path, name: str, value: Any) -> Any:
    values = value if isinstance(value, list) else [value]
    if len(values) > _MOST_STAGES or not all(map(_is_number, values)):
        raise SourceError(f"{path}: {name} is {one_line(repr(value), 60)}, expected a number or one a stage")
    return tuple(value) if isinstance(value, list) else value


def _doubled(path: Path, channels: Any) -> int:
    """The width of networks whose stages double it."""
    first = channels[0] if isinstance(channels, list) and channels else None
    if not isinstance(first, int) or channels != [first * 2**stage for stage in range(len(channels))]:
        shown = one_line(repr(channels), 60)
        raise SourceError(f"{path}: channels is {shown}, expected widths of the stages that double")
    return first


def _attention_only(path: Path, block_args: Any) -> None:
    known = ({"attn_layer": name} for name in ("se", "eca", "cbam"))
    if block_args and block_args not in known:
        shown = one_line(repr(block_args), 60)
        raise SourceError(f"{path}: block_args is {shown}, expected attn_layer 'se', 'eca' or 'cbam' alone")


# --------------------------------------------------------------------------------------------------
# transformers


def _transformers(path: Path, config: Config, configs: Mapping[str, Config]) -> Described:
    kind = _text(path, config, "model_type")
    if kind != "resnet":
        raise SourceError(
            f"{path}: describes transformers' {one_line(repr(kind))}, expected 'resnet' (or timm's "
            "networks in it, 'timm_wrapper')"
        )
    settings: dict[str, Any] = {"activation": "relu"}
    if config.get("hidden_act", "relu") != "relu":
        shown = one_line(repr(config["hidden_act"]), 60)
        raise SourceError(
            f"{path}: hidden_act is {shown}, which transformers uses in a part of it only; expected 'relu'"
        )
    if _flag(path, config, "downsample_in_bottleneck"):
        settings["stride_in"] = "conv1"
    if _flag(path, config, "downsample_in_first_stage"):
        depths = config.get("depths", [3, 4, 6, 3])
        settings["strides"] = (2,) * len(depths) if isinstance(depths, list) else depths
    labels = config.get("id2label")
    feeds = None
    if _PREPROCESSOR in configs:
        classes = f"id2label of {path.name}" if labels else "not said"
        preprocessor = path.with_name(_PREPROCESSOR)
        feeds = _feeds(preprocessor, configs[_PREPROCESSOR], _TRANSFORMERS_FEEDS, classes)
    return Described(
        "transformers",
        settings=settings,
        num_classes=len(labels) if isinstance(labels, dict) and labels else None,
        feeds=feeds,
        note=f"as transformers' ResNet in {path.name}",
    )


# --------------------------------------------------------------------------------------------------
# keras-hub

_BLOCKS = {  # block_type -> keywords
    "basic_block": {"block": "basic", "downsample_pool": "none"},
    "bottleneck_block": {"block": "bottleneck", "downsample_pool": "none"},
    "basic_block_vd": {"block": "basic", "downsample_pool": "avg"},
    "bottleneck_block_vd": {"block": "bottleneck", "downsample_pool": "avg"},
}
_TASK = "task.json"


def _keras_hub(path: Path, config: Config, configs: Mapping[str, Config]) -> Described:
    kind = _text(path, config, "registered_name")
    network = _object(path, config, "config")
    block = network.get("block_type")
    if kind != "keras_hub>ResNetBackbone" or network.get("use_pre_activation"):
        what = f"{kind} with pre-activation (ResNet v2)" if network.get("use_pre_activation") else kind
        raise SourceError(
            f"{path}: describes keras-hub's {one_line(what)}, which this project does not have; expected "
            "ResNetBackbone without pre-activation"
        )
    if not isinstance(block, str) or block not in _BLOCKS:
        shown = one_line(repr(block), 60)
        raise SourceError(f"{path}: block_type is {shown}, expected one of {', '.join(_BLOCKS)}")
    strides = _number_or_list(path, "stackwise_num_strides", network.get("stackwise_num_strides"))
    task_path = path.with_name(_TASK)
    task = _object(task_path, configs.get(_TASK, {}), "config")
    settings: dict[str, Any] = dict(_BLOCKS[block])
    if not isinstance(strides, tuple) or strides != (1, *[2] * (len(strides) - 1)):
        settings["strides"] = strides
    if "pooling" in task:
        settings |= _choice(task_path, "global_pool", task["pooling"])
    note = f"as keras-hub's ResNet in {path.name}"
    if task.get("activation"):
        note += f"; without its {one_line(repr(task['activation']), 40)} after the classifier"
    return Described("keras_hub", settings=settings, note=note)


_KINDS: dict[str, Callable[[Path, Config, Mapping[str, Config]], Described]] = {
    "architecture": _timm,  # also of timm's networks in transformers
    "model_type": _transformers,
    "registered_name": _keras_hub,
}

# --------------------------------------------------------------------------------------------------
# Preprocessing

_TIMM_FEEDS = {"mean": "mean", "std": "std", "crop": "crop_pct", "interpolation": "interpolation"}
_TRANSFORMERS_FEEDS = {
    "mean": "image_mean",
    "std": "image_std",
    "crop": "crop_pct",
    "interpolation": "resample",
}
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # of Pillow
_MOST_CHANNELS = 64


def _feeds(path: Path, config: Config, keys: Mapping[str, str], classes: str) -> Preprocessing | None:
    """The preprocessing with these keys; None without mean and deviation."""
    mean, std = (_numbers(path, config, keys[name]) for name in ("mean", "std"))
    if mean is None or std is None:
        return None
    crop, interpolation = config.get(keys["crop"]), config.get(keys["interpolation"])
    interpolation = _RESAMPLE.get(interpolation) if isinstance(interpolation, int) else interpolation
    if crop is not None and not _is_number(crop):
        raise SourceError(f"{path}: {keys['crop']} is {one_line(repr(crop), 60)}, expected a number")
    if not isinstance(interpolation, str | None):
        shown = one_line(repr(interpolation), 60)
        raise SourceError(f"{path}: {keys['interpolation']} is {shown}, expected a text")
    return Preprocessing(
        mean=mean,
        std=std,
        classes=classes,
        size=_size(config),
        crop=crop,
        interpolation=interpolation and one_line(interpolation, 20),
    )


def _size(config: Config) -> int | None:
    """The image size: timm's `input_size` [channels, rows, columns], transformers' `size`."""
    size = config.get("input_size", config.get("size"))
    if isinstance(size, dict):
        size = [size.get("shortest_edge", size.get("height"))]
    number = size[-1] if isinstance(size, list) and size else size
    return number if isinstance(number, int) and 0 < number < 2**16 else None


def _classes(config: Config, pretrained: Config, classes: Any) -> str:
    for key in ("label_names", "labels"):
        if config.get(key) or pretrained.get(key):
            return f"{key} of {_CONFIG}"
    return "the sorted synsets" if classes == 1000 else "not said"


# --------------------------------------------------------------------------------------------------
# Values of the expected types


def _object(path: Path, config: Config, key: str) -> dict[str, Any]:
    value = config.get(key)
    if not isinstance(value, dict | None):
        raise SourceError(f"{path}: {key!r} is a {type(value).__name__}, expected an object")
    return value or {}


def _text(path: Path, config: Config, key: str) -> str:
    value = config.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= 100:
        raise SourceError(f"{path}: {key!r} is {one_line(repr(value), 60)}, expected a name")
    return value


def _flag(path: Path, config: Config, key: str) -> bool:
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise SourceError(f"{path}: {key!r} is {one_line(repr(value), 60)}, expected true or false")
    return value


def _count(path: Path, key: str, value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise SourceError(f"{path}: {key!r} is {one_line(repr(value), 60)}, expected a number of classes")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6


def _numbers(path: Path, config: Config, key: str) -> tuple[float, ...] | None:
    value = config.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not 0 < len(value) <= _MOST_CHANNELS or not all(map(_is_number, value)):
        raise SourceError(f"{path}: {key!r} is {one_line(repr(value), 60)}, expected one number a channel")
    return tuple(map(float, value))
