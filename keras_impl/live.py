"""The current keywords of a network, read from its layers, so that changes after construction count.

A weights file holds no stride and no epsilon. `save` and `save_weights` therefore write the keywords too, and
these keywords must describe the current layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import Any, ClassVar

import keras

from .attention import keep_frozen
from .functional import METADATA, TracedModel, write_metadata
from .keywords import check_classes, check_keywords

_SHOWN_BY = {  # keyword -> pattern of the settings that show it: path of a layer and attribute
    "num_classes": r"(fc|classifier\.6)\.units",
    "head_bias": r"(fc|classifier\.6)\.use_bias",
    "stem_pool": r"stem_pool",
    "dropout": r"(dropout|classifier\.[25])\.rate",
    "bn_epsilon": r".*\.epsilon",
    "bn_momentum": r"(?!.*\.cbam\.).*\.momentum",
    "cbam_bn_momentum": r".*\.cbam\.spatial\.bn\.momentum",
    "cbam_order": r".*\.cbam\.spatial\.order",
    "cbam_spatial_input": r".*\.cbam\.spatial_input",
    "relu_before_attention": r".*\.relu_before_attention",
    "activation": r"((layer|stage)\d+\.\d+\.(sk\.)?)?activation",
    "global_pool": r"global_pool",
    "eca_padding": r".*\.eca\.padding",
}
_SETTINGS = (  # attributes that a layer's call reads
    *("filters", "units", "kernel_size", "strides", "groups", "padding", "dilation_rate", "data_format"),
    *("activation", "use_bias", "axis", "momentum", "epsilon", "center", "scale", "rate", "order", "bn"),
    *("spatial_input", "relu_before_attention", "attention", "downsample_pool", "deep_stem", "stem_pool"),
    *("anti_aliasing", "global_pool", "pools", "stride", "split", "pad_rule"),
)
_ABSENT = "absent"
_QUANTIZED = ".quantization_mode"


def settings(layer: keras.layers.Layer, path: str = "") -> dict[str, Any]:
    """The class of every layer (`layer1.0.bn1`) and its settings (`layer1.0.bn1.epsilon`).

    Layers that do nothing are left out.
    """
    found: dict[str, Any] = {}
    if path and not isinstance(layer, keras.layers.Identity):
        found[path] = type(layer).__name__
    if getattr(layer, "quantization_mode", None) is not None:
        found[f"{path}{_QUANTIZED}"] = layer.quantization_mode
    for name in _SETTINGS:
        value = vars(layer).get(name, _ABSENT)
        if isinstance(value, (bool, int, float, str, tuple, type(None))) and value != _ABSENT:
            found[f"{path}.{name}".lstrip(".")] = value
        elif callable(value) and not isinstance(value, keras.layers.Layer):  # an activation
            found[f"{path}.{name}".lstrip(".")] = getattr(value, "__name__", repr(value))
    for name, inner in _inner(layer):
        found |= settings(inner, f"{path}.{name}".lstrip("."))
    return found


def attributes(layer: keras.layers.Layer) -> dict[str, Any]:
    """The attributes of a layer; on the torch backend a module keeps its layers in `_modules`."""
    return vars(layer) | vars(layer).get("_modules", {})


def _inner(layer: keras.layers.Layer) -> Iterator[tuple[str, keras.layers.Layer]]:
    for name, value in attributes(layer).items():
        if name.startswith("_"):
            continue
        if isinstance(value, keras.layers.Layer):
            yield name, value
        elif isinstance(value, (list, tuple)):
            numbered = enumerate(value)
            yield from ((f"{name}.{i}", item) for i, item in numbered if isinstance(item, keras.layers.Layer))


class Network(TracedModel):
    """Base class of all networks: writes the current keywords to its config and its weights files.

    Attributes:
        kind: the name of this kind of network in the metadata.
        head: the name of its classifier.
        config: the keywords of its construction.
    """

    kind: ClassVar[str]
    head: ClassVar[str]
    num_features: int

    def __init__(self, config: Mapping[str, Any], **keywords: Any):
        super().__init__(**keywords)
        self.config = check_keywords(config, self.kind)
        self._made: dict[str, Any] = {}

    def complete(self) -> None:
        """Build the network, note its settings, and connect its layers. A constructor ends with it."""
        self.build((None, None, None, self.config["in_channels"]))
        keep_frozen(self)
        self._made = settings(self)
        self.trace(self.config["in_channels"])

    def make_head(self, num_classes: int) -> keras.layers.Layer:
        """Return a new classifier."""
        raise NotImplementedError

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a new one with random weights.

        A compiled model must be compiled again, because its optimizer knows the old classifier's variables.

        Args:
            num_classes: of the new classifier; 0 for none, the output is then its input.

        Raises:
            ValueError: `num_classes` is invalid.

        Example:
            >>> import keras_impl
            >>> model = keras_impl.se_resnet20()
            >>> model.reset_classifier(4)
            >>> model.output.shape
            (None, 4)
        """
        num_classes = check_classes("num_classes", num_classes)
        inputs = self._head(self.head, self).input
        for path, maker in self.classifiers().items():
            self._replace_head(path, maker, num_classes)
        self.config["num_classes"] = num_classes
        self._graph.output = self._head(self.head, self)(inputs)
        self.compiled, self.optimizer = False, None
        self.train_function = self.test_function = self.predict_function = None

    def classifiers(self) -> dict[str, Any]:
        """The path of each classifier, and the layer whose `make_head` makes it."""
        return {self.head: self}

    def _head(self, path: str, maker: Any) -> keras.layers.Layer:
        """The current classifier at a path: an attribute of its maker, or the member of a list."""
        above, _, last = path.rpartition(".")
        return getattr(self, above)[int(last)] if last.isdigit() else getattr(maker, last)

    def _replace_head(self, path: str, maker: Any, num_classes: int) -> None:
        old, new = self._head(path, maker), maker.make_head(num_classes)
        above, _, last = path.rpartition(".")
        with ExitStack() as scopes:  # the variables' paths begin with them
            for name in (self.name,) if maker is self else (self.name, above):
                scopes.enter_context(keras.name_scope(name))
            new.build((None, maker.num_features))
        maker._tracker.replace_tracked_value("layers", old, new)  # Keras locks the layers of a built model
        if last.isdigit():
            getattr(self, above)[int(last)] = new
        else:
            setattr(maker, last, new)
        others = {key: value for key, value in self._made.items() if not _below(path, key)}
        self._made = others | {key: value for key, value in settings(self).items() if _below(path, key)}

    def live_keywords(self) -> dict[str, Any]:
        """The current keywords of the network, including changes of its layers after construction.

        Raises:
            ValueError: no keywords describe the current layers.
        """
        now = settings(self)
        if now == self._made:
            return dict(self.config)
        return check_keywords(live_keywords(self._made, now, self.config), self.kind)

    def metadata(self) -> dict[str, Any]:
        """The metadata of a weights file; `ValueError` as `live_keywords`."""
        return {"mapping_version": 1, "kind": self.kind, "spec": self.live_keywords()}

    def part_metadata(self) -> dict[str, Any]:
        return self.metadata() | {"part": True}

    def save_own_variables(self, store: Any) -> None:
        """Also write the keywords, so that `save_weights` files hold them.

        If no keywords describe the network, it is saved without them.
        """
        super().save_own_variables(store)
        with suppress(ValueError):
            write_metadata(store, self.metadata())

    def load_own_variables(self, store: Any) -> None:
        super().load_own_variables({name: store[name] for name in store.keys() if name != METADATA})  # noqa: SIM118

    def entrance(self, images: Any) -> Any:
        self.check_input(images.shape, images.dtype)
        return super().entrance(images)

    def check_input(self, shape: tuple, dtype: Any = "float32") -> None:
        """Raise `ValueError` unless images are floats (N, H, W, C) with the network's C."""
        channels = self.config["in_channels"]
        if len(shape) != 4 or shape[-1] != channels:
            first = len(shape) == 4 and shape[1] == channels
            hint = "; transpose (N, C, H, W) with (0, 2, 3, 1)" if first else ""
            raise ValueError(f"images of shape {tuple(shape)}, expected (N, H, W, {channels}){hint}")
        dtype = keras.backend.standardize_dtype(dtype)
        if not keras.backend.is_float_dtype(dtype):
            raise ValueError(
                f"images of dtype {dtype}, expected floats, preprocessed as for training; "
                "keras_impl.Preprocessing does it"
            )

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        self.check_input(input_shape)
        return (input_shape[0], self.config["num_classes"] or self.num_features)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | self.live_keywords()


def _below(head: str, path: str) -> bool:
    """Whether a setting belongs to the classifier."""
    return path == head or path.startswith(f"{head}.")


def live_keywords(made: dict[str, Any], now: dict[str, Any], keywords: dict[str, Any]) -> dict[str, Any]:
    """The current keywords of a network.

    Args:
        made: its settings after construction.
        now: its current settings.
        keywords: the keywords of its construction.

    Raises:
        ValueError: no keyword describes a changed setting.
    """
    found = dict(keywords)
    changed = [name for name in {**made, **now} if made.get(name, _ABSENT) != now.get(name, _ABSENT)]
    for keyword, pattern in _SHOWN_BY.items():
        shown = [name for name in changed if re.fullmatch(pattern, name)]
        values = [value for name, value in now.items() if re.fullmatch(pattern, name)]
        if shown and len(set(map(repr, values))) == 1:
            is_momentum = keyword.endswith("momentum")  # Keras's momentum is the weight of the old value
            found[keyword] = round(1 - values[0], 12) if is_momentum else values[0]
            changed = [name for name in changed if name not in shown]
    if changed:
        name = changed[0]
        if name.endswith(_QUANTIZED):
            what = f"{name.removesuffix(_QUANTIZED)} is quantized to {now.get(name)}"
            raise ValueError(
                f"{what}; save and convert before quantize(), and export() the quantized network"
            )
        raise ValueError(
            f"{name} is {now.get(name, _ABSENT)!r}, but {made.get(name, _ABSENT)!r} by the network's keywords"
            f"{f' (and {len(changed) - 1} more differ)' if changed[1:] else ''}; "
            "create the network with the keywords you need"
        )
    return found
