"""ShuffleNetV1, and with SE, CBAM or ECA in each unit, in Keras 3.

ShuffleNet: https://arxiv.org/abs/1707.01083, fig. 2 and table 1   SE: https://arxiv.org/abs/1709.01507

    images (N, H, W, 3) -> stem -> stage2 ... stage4 -> mean over H, W -> fc -> logits (N, num_classes)

A constructor returns a built model. Class and attribute names are fixed: they form the layout of the weights
file (`stage3/shuffle_unit_1`). Read it beside the same file in `torch_impl` and `tf1_compat`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from .attention import keep_frozen
from .blocks import make_attention
from .keywords import WITH_BIAS, inner_width
from .layers import (
    Conv2D,
    DepthwiseConv2D,
    average_pool_3x3,
    build_chain,
    make_head,
    make_norm,
    max_pool,
    pool_globally,
    shuffle_channels,
)
from .live import Network
from .parts import Block


@keras.saving.register_keras_serializable("samenet")
class ShuffleUnit(Block):
    """Two 1x1 convolutions in groups, a shuffle, and a 3x3 convolution of each channel.

    Figure 2 of arXiv 1707.01083: with stride 1 the input is added (b), with stride 2 its 3x3 means are
    concatenated (c).

    Input and output: (N, H, W, inputs), (N, H / stride, W / stride, outputs).

    Args:
        inputs, outputs: channels; equal with stride 1.
        stride: of the 3x3 convolution.
        groups: of the last 1x1 convolution, and of the shuffle.
        first_groups: of the first 1x1 convolution; None for `groups`.
        shuffle_after, shuffle_view, concat_order, count_padding, attention_on: see `ShuffleNet`.
        norm, bn_epsilon, bn_momentum: see `ShuffleNet`.
        attention: name in the unit and layer, such as ("se", SqueezeExcitation()).

    Example:
        >>> ShuffleUnit(24, 240, 2, first_groups=1)(ops.zeros((2, 8, 8, 24))).shape
        TensorShape([2, 4, 4, 240])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 1,
        *,
        groups: int = 3,
        first_groups: int | None = None,
        shuffle_after: str = "conv1",
        shuffle_view: str = "groups_first",
        concat_order: str = "branch_shortcut",
        count_padding: bool = True,
        attention_on: str = "branch",
        norm: str = "bn",
        bn_epsilon: float = 1e-5,
        bn_momentum: float = 0.1,
        attention: tuple[str, keras.layers.Layer] | None = None,
        name: str | None = None,
        dtype: Any = None,
        **keywords: Any,
    ):
        super().__init__(
            config=locals(),
            norm=norm,
            bn_epsilon=bn_epsilon,
            bn_momentum=bn_momentum,
            activation="relu",
            name=name,
            dtype=dtype,
            **keywords,
        )
        self.outputs, self.stride, self.groups = outputs, stride, groups
        self.shuffle_after, self.shuffle_view, self.concat_order = shuffle_after, shuffle_view, concat_order
        self.count_padding, self.attention_on = count_padding, attention_on
        inner, first = inner_width(outputs), groups if first_groups is None else first_groups
        self.branch = outputs - inputs if stride > 1 else outputs
        self.conv1, self.bn1 = self.conv("conv1", inner, 1, groups=first), self.norm("bn1")
        self.conv2 = DepthwiseConv2D(3, stride, **self.of_convolutions, name="conv2")
        self.bn2 = self.norm("bn2")
        self.conv3, self.bn3 = self.conv("conv3", self.branch, 1, groups=groups), self.norm("bn3")
        self.add_attention(attention)
        self.note_settings()

    def build(self, input_shape: tuple) -> None:
        layers = (self.conv1, self.bn1, self.conv2, self.bn2, self.conv3, self.bn3)
        shape = build_chain(input_shape, *layers)
        self.build_attention(
            shape if self.attention_on == "branch" else self.compute_output_shape(input_shape)
        )
        keep_frozen(self)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (*self.conv2.compute_output_shape(input_shape)[:3], self.outputs)

    def attend_on(self, x: Any, place: str) -> Any:
        return self.attend(x) if self.attention_on == place else x

    def shuffled(self, x: Any, after: str) -> Any:
        return shuffle_channels(x, self.groups, self.shuffle_view) if self.shuffle_after == after else x

    def call(self, x: Any, training: bool | None = None) -> Any:
        y = self.shuffled(self.act(self.bn1(self.conv1(x), training=training)), "conv1")
        y = self.shuffled(self.bn2(self.conv2(y), training=training), "conv2")
        y = self.attend_on(self.bn3(self.conv3(y), training=training), "branch")
        if self.stride == 1:
            y = y + x
        else:
            parts = [y, average_pool_3x3(x, self.count_padding)]
            y = ops.concatenate(parts if self.concat_order == "branch_shortcut" else parts[::-1], -1)
        return self.attend_on(self.act(y), "output")


@keras.saving.register_keras_serializable("samenet")
class ShuffleNet(Network):
    """ShuffleNetV1. Input (N, H, W, C) float, output logits (N, num_classes).

    Each stage begins with a unit of stride 2; see `ShuffleUnit`. The paper counts the stages from 2.

    Args:
        depths: units per stage.
        widths: channels per stage; the convolutions inside a unit have a quarter of them.
        stem_width: channels of the stem, a 3x3 convolution of stride 2 and a 3x3 max-pool of stride 2.
        groups: of the 1x1 convolutions but the first, and of the shuffle.
        shuffle_after: the convolution whose output is shuffled, "conv1" (the first 1x1) or "conv2" (the 3x3).
        shuffle_view: the shuffle transposes the channels as (groups, channels / groups), "groups_first", or
            as (channels / groups, groups), "groups_last".
        concat_order: in units of stride 2, "branch_shortcut" or "shortcut_branch".
        count_padding: whether the average pools of these units count the padding, and so divide by 9 at the
            edge too.
        norm: after each convolution: batch normalisation ("bn"), a bias and batch normalisation ("bias_bn"),
            or a bias ("bias": batch normalisation folded in).
        attention: "none", "se", "cbam" or "eca".
        attention_on: "branch" (after the unit's last norm, before the addition or concatenation), or "output"
            (after the unit's last ReLU).
        reduction, hidden_rule: of the attention's MLP.
        se_bias, cbam_mlp_bias, cbam_order, cbam_kernel_size, cbam_bn, cbam_bn_momentum,
            cbam_spatial_bias, cbam_spatial_input: see `SqueezeExcitation` and `CBAM`.
        eca_kernel_sizes, eca_padding: one odd size per stage, None for the paper's rule; see `ECA`.
        bn_epsilon, bn_momentum: of every batch normalisation; the momentum weighs the new batch.
        dropout: probability before `fc`, below 1.
        num_classes: of the classifier `fc`; 0 for none, the output is then `pooled`.
        head_bias: whether `fc` has a bias.

    Raises:
        ValueError: an argument is invalid.

    Example:
        >>> model = ShuffleNet(depths=(1, 2), widths=(24, 48), stem_width=6, num_classes=5, attention="se")
        >>> features = model.forward_features(ops.zeros((1, 63, 64, 3)))
        >>> list(features), tuple(features["stage3"].shape)
        (['stem', 'stage2', 'stage3', 'pooled', 'logits'], (1, 4, 4, 48))
    """

    kind, head = "shufflenet", "fc"

    def __init__(
        self,
        *,
        depths: Sequence[int] = (4, 8, 4),
        widths: Sequence[int] = (240, 480, 960),
        stem_width: int = 24,
        groups: int = 3,
        shuffle_after: str = "conv1",
        shuffle_view: str = "groups_first",
        concat_order: str = "branch_shortcut",
        count_padding: bool = True,
        norm: str = "bn",
        attention: str = "none",
        attention_on: str = "branch",
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
        channels = c["stem_width"]
        self.conv1 = Conv2D(channels, 3, 2, use_bias=c["norm"] in WITH_BIAS, dtype=dtype, name="conv1")
        self.bn1 = make_norm("bn1", c, dtype)
        self.stage_names = [f"stage{stage}" for stage in range(2, 2 + len(c["depths"]))]
        names = ("groups", "shuffle_after", "shuffle_view", "concat_order", "count_padding", "attention_on")
        of_units: dict[str, Any] = {name: c[name] for name in (*names, "norm", "bn_epsilon", "bn_momentum")}
        for stage, stage_name in enumerate(self.stage_names):
            units, width = [], c["widths"][stage]
            for index in range(c["depths"][stage]):
                of_units |= {"attention": make_attention(stage, c, dtype), "name": f"{stage_name}_{index}"}
                first = None if stage or index else 1  # the stem has few channels
                stride = 1 if index else 2
                units.append(
                    ShuffleUnit(channels, width, stride, first_groups=first, dtype=dtype, **of_units)
                )
                channels = width
            setattr(self, stage_name, units)
        self.dropout = keras.layers.Dropout(c["dropout"], dtype=dtype, name="dropout")
        self.num_features = channels
        self.fc = self.make_head(c["num_classes"])
        self.complete()

    def make_head(self, num_classes: int) -> keras.layers.Layer:
        return make_head(self.num_features, num_classes, self.config["head_bias"], "fc", self.dtype_policy)

    def build(self, input_shape: tuple) -> None:
        if self.built:
            return
        self.check_input(input_shape)
        shape = build_chain(input_shape, self.conv1, self.bn1)
        for name in self.stage_names:
            shape = build_chain(shape, *getattr(self, name))  # the units' layers need no sizes
        self.fc.build((None, self.num_features))

    def forward_stem(self, x: Any, training: bool | None = None) -> Any:
        x = self.bn1(self.conv1(self.entrance(x)), training=training)
        return max_pool(ops.relu(x), "pad1")

    def forward_features(self, x: Any, training: bool | None = None) -> dict[str, Any]:
        """Every stage's output: `stem`, `stage2` ..., `pooled` (N, C) and `logits` (N, num_classes)."""
        features = {"stem": (x := self.forward_stem(x, training))}
        for name in self.stage_names:
            for unit in getattr(self, name):
                x = unit(x, training=training)
            features[name] = x
        features["pooled"] = x = pool_globally(x, "avg")
        features["logits"] = self.fc(self.dropout(x, training=training))
        return features

    def call(self, x: Any, training: bool | None = None) -> Any:
        x = self.forward_stem(x, training)  # forward_features would keep every stage's output
        for name in self.stage_names:
            for unit in getattr(self, name):
                x = unit(x, training=training)
        return self.fc(self.dropout(pool_globally(x, "avg"), training=training))


network = ShuffleNet  # the name in `models.py`, the same in the three folders
