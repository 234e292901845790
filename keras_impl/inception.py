"""BN-Inception, and with SE, CBAM or ECA after each module, in Keras 3.

BN-Inception: https://arxiv.org/abs/1502.03167 as in Caffe   SE: https://arxiv.org/abs/1709.01507, fig. 2

    images (N, H, W, 3) -> stem -> inception_3a ... inception_5b -> mean over H, W -> fc -> logits

The modules are rows of `inception_table.py`. A constructor returns a built model. Class and attribute names
are fixed: they form the layout of the weights file (`inception_3a/branch2/unit1/conv`). Read it beside the
same file in `torch_impl` and `tf1_compat`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from .attention import keep_frozen, mean
from .blocks import make_attention
from .inception_table import (
    Branch,
    Conv,
    Fork,
    Pool,
    chain_at,
    check_image,
    convolutions,
    map_size,
    module_at,
    network_of,
    width_of,
)
from .keywords import WITH_BIAS
from .layers import Conv2D, build_chain, make_head, make_norm, max_pool
from .live import Network
from .parts import Part


class Described(Part):
    """Base class of the parts of an Inception network: a place in the table, and the network's keywords.

    Args:
        place: "stem", "inception_3a" or "inception_3a.branch1".
        c: the keywords of `Inception`.
    """

    def __init__(self, place: str, c: Mapping[str, Any], **keywords: Any):
        super().__init__(**keywords)
        self.place, self.c = place, dict(c)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"place": self.place, "c": self.as_they_are(self.c)}


@keras.saving.register_keras_serializable("samenet")
class Unit(Part):
    """A convolution, its normalisation and a ReLU.

    Args:
        step: row of the table; a list in a file.
        c: the keywords of `Inception`.
    """

    def __init__(self, step: Conv | Sequence[Any], c: Mapping[str, Any], **keywords: Any):
        super().__init__(**keywords)
        self.step, self.c = step if isinstance(step, Conv) else Conv(*step), dict(c)
        step = self.step
        bias, dtype = c["norm"] in WITH_BIAS, self.dtype_policy
        self.conv = Conv2D(
            step.width,
            step.kernel,
            step.stride,
            pad_rule=step.padding,
            use_bias=bias,
            name="conv",
            dtype=dtype,
        )
        self.bn = make_norm("bn", c, dtype)
        self.note_settings()

    def build(self, input_shape: tuple) -> None:
        build_chain(input_shape, self.conv, self.bn)
        keep_frozen(self)

    def call(self, x: Any, training: bool | None = None) -> Any:
        return ops.relu(self.bn(self.conv(x), training=training))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return self.conv.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"step": list(self.step), "c": self.as_they_are(self.c)}


@keras.saving.register_keras_serializable("samenet")
class Chain(Described):
    """Units and pools: a branch of a module, or the stem.

    Args:
        place: "stem" or "inception_3a.branch1".
        c: the keywords of `Inception`.
    """

    def __init__(self, place: str, c: Mapping[str, Any], **keywords: Any):
        super().__init__(place, c, **keywords)
        self.steps = chain_at(c, place)
        for conv, _ in convolutions(self.steps):
            setattr(self, conv.name, Unit(conv, c, name=conv.name, dtype=self.dtype_policy))
        self.note_settings()

    def build(self, input_shape: tuple) -> None:
        shape = input_shape
        for conv, _ in convolutions(self.steps):
            shape = build_chain(shape, getattr(self, conv.name))
        keep_frozen(self)

    def call(self, x: Any, training: bool | None = None) -> Any:
        return run(self, self.steps, x, self.c, training)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return output_shape(input_shape, [self.steps])


@keras.saving.register_keras_serializable("samenet")
class InceptionModule(Described):
    """Chains with one input; their outputs are concatenated, and an attention follows.

    Args:
        place: "inception_3a".
        c: the keywords of `Inception`.
        attention: name in the module and layer, such as ("se", SqueezeExcitation()).
    """

    def __init__(
        self,
        place: str,
        c: Mapping[str, Any],
        attention: tuple[str, keras.layers.Layer] | None = None,
        **keywords: Any,
    ):
        super().__init__(place, c, **keywords)
        self.row, dtype = module_at(c, place), self.dtype_policy
        self.branch_names = tuple(f"branch{i}" for i in range(1, len(self.row.branches) + 1))
        for name in self.branch_names:
            setattr(self, name, Chain(f"{place}.{name}", c, name=name, dtype=dtype))
        self.add_attention(attention)
        self.note_settings()

    def build(self, input_shape: tuple) -> None:
        for name in self.branch_names:
            build_chain(input_shape, getattr(self, name))
        self.build_attention(self.compute_output_shape(input_shape))
        keep_frozen(self)

    def call(self, x: Any, training: bool | None = None) -> Any:
        outputs = [getattr(self, name)(x, training=training) for name in self.branch_names]
        return self.attend(ops.concatenate(outputs, -1))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return output_shape(input_shape, self.row.branches)


def run(layer: keras.layers.Layer, steps: Branch, x: Any, c: Mapping[str, Any], training: bool | None) -> Any:
    """The output of a branch whose convolutions are in a layer."""
    for step in steps:
        if isinstance(step, Conv):
            x = getattr(layer, step.name)(x, training=training)
        elif isinstance(step, Fork):
            outputs = [getattr(layer, conv.name)(x, training=training) for conv in step.convs]
            x = ops.concatenate(outputs, -1)
        else:
            x = pool(x, step, c)
    return x


def pool(x: Any, step: Pool, c: Mapping[str, Any]) -> Any:
    """A pool of the table, by the keywords of `Inception`."""
    if step.stride > 1:
        return max_pool(x, step.padding)
    if step.kind == "max":
        return ops.max_pool(x, 3, 1, "same", "channels_last")
    if c["count_padding"]:
        x = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return ops.average_pool(x, 3, 1, "valid" if c["count_padding"] else "same", "channels_last")


def output_shape(shape: tuple, branches: Sequence[Any]) -> tuple:
    """The shape of the concatenated branches' output."""
    sizes = (None if size is None else map_size(branches[0], size) for size in shape[1:3])
    return (shape[0], *sizes, width_of(branches, shape[3]))


@keras.saving.register_keras_serializable("samenet")
class Inception(Network):
    """BN-Inception with SE, CBAM, ECA or no attention. Input (N, H, W, C) float, output logits.

    Args:
        width_multiplier: factor of every width, above 0; rounded down, at least one channel.
        reduction_pool: the max-pools 3x3 with stride 2: by Caffe's rule ("ceil"), padded by 1 ("pad1"), or by
            TensorFlow's ("same"). With "ceil" the maps that a module halves need even sizes.
        last_pool: of the last module, "max" or "avg".
        count_padding: whether average pools count the padding, and so divide by 9 at the edge too.
        norm: after each convolution: batch normalisation ("bn"), a bias and batch normalisation ("bias_bn"),
            or a bias ("bias": batch normalisation folded in).
        attention: "none", "se", "cbam" or "eca", on the concatenation of every module.
        reduction, hidden_rule: of the attention's MLP.
        se_bias, cbam_mlp_bias, cbam_order, cbam_kernel_size, cbam_bn, cbam_bn_momentum,
            cbam_spatial_bias, cbam_spatial_input: see `SqueezeExcitation` and `CBAM`.
        eca_kernel_sizes, eca_padding: one odd size per module, None for the paper's rule; see `ECA`.
        bn_epsilon, bn_momentum: of every batch normalisation; the momentum weighs the new batch.
        dropout: probability before `fc`, below 1.
        num_classes: of the classifier `fc`; 0 for none, the output is then `pooled`.
        head_bias: whether `fc` has a bias.

        keywords: `name` and `dtype` ("float64", "mixed_float16" ...) as for every Keras model.

    Raises:
        ValueError: an argument is invalid.

    Example:
        >>> model = Inception(width_multiplier=0.125, num_classes=4, attention="se")
        >>> features = model.forward_features(ops.zeros((1, 64, 64, 3)))
        >>> tuple(features["stem"].shape), tuple(features["inception_5b"].shape)
        ((1, 8, 8, 24), (1, 2, 2, 128))
    """

    kind, head = "inception", "fc"

    def __init__(
        self,
        *,
        width_multiplier: float = 1.0,
        reduction_pool: str = "ceil",
        last_pool: str = "max",
        count_padding: bool = True,
        norm: str = "bn",
        attention: str = "none",
        reduction: int = 16,
        hidden_rule: str = "floor",
        se_bias: bool = True,
        cbam_mlp_bias: bool = True,
        cbam_order: str = "max_mean",
        cbam_kernel_size: int = 7,
        cbam_bn: bool = True,
        cbam_bn_momentum: float = 0.01,
        cbam_spatial_bias: bool = False,
        cbam_spatial_input: str = "refined",
        eca_kernel_sizes: Sequence[int] | None = None,
        eca_padding: str = "zeros",
        bn_epsilon: float = 1e-5,
        bn_momentum: float = 0.1,
        dropout: float = 0.0,
        num_classes: int = 1000,
        head_bias: bool = True,
        in_channels: int = 3,
        name: str | None = None,
        **keywords: Any,
    ):
        c = {k: v for k, v in locals().items() if k not in ("self", "__class__", "name", "keywords")}
        super().__init__(c, name=name, **keywords)
        c, dtype = self.config, self.dtype_policy
        self.stem = Chain("stem", c, name="stem", dtype=dtype)
        self.module_names = tuple(row.name for row in network_of(c).modules)
        for number, module in enumerate(self.module_names):
            gate = make_attention(number, c, dtype)
            setattr(self, module, InceptionModule(module, c, gate, name=module, dtype=dtype))
        self.dropout = keras.layers.Dropout(c["dropout"], dtype=dtype, name="dropout")
        self.num_features = width_of(network_of(c).modules[-1].branches, 0)
        self.fc = self.make_head(c["num_classes"])
        self.complete()

    def make_head(self, num_classes: int) -> keras.layers.Layer:
        return make_head(self.num_features, num_classes, self.config["head_bias"], "fc", self.dtype_policy)

    def stages(self) -> Iterator[tuple[str, keras.layers.Layer]]:
        """The stem and each module, by name."""
        yield from ((name, getattr(self, name)) for name in ("stem", *self.module_names))

    def build(self, input_shape: tuple) -> None:
        if self.built:
            return
        self.check_input(input_shape)
        build_chain(input_shape, *(layer for _, layer in self.stages()))
        self.fc.build((None, self.num_features))

    def check_input(self, shape: tuple, dtype: Any = "float32") -> None:
        super().check_input(shape, dtype)
        check_image(self.config, *shape[1:3])

    def forward_features(self, x: Any, training: bool | None = None) -> dict[str, Any]:
        """Every stage's output: `stem`, `inception_3a` ..., `pooled` (N, C) and `logits` (N, num_classes)."""
        features, x = {}, self.entrance(x)
        for name, layer in self.stages():
            features[name] = x = layer(x, training=training)
        features["pooled"] = x = mean(x, (1, 2))
        features["logits"] = self.fc(self.dropout(x, training=training))
        return features

    def call(self, x: Any, training: bool | None = None) -> Any:
        x = self.entrance(x)
        for _, layer in self.stages():
            x = layer(x, training=training)
        return self.fc(self.dropout(mean(x, (1, 2)), training=training))


network = Inception  # the name in `models.py`, the same in the three folders
