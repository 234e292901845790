"""MobileNetV1, and with SE, CBAM or ECA after each pointwise convolution, in Keras 3.

MobileNetV1: https://arxiv.org/abs/1704.04861, table 1   SE-MobileNet: https://arxiv.org/abs/1709.01507

    images (N, H, W, 3) -> stem -> stage1 ... stage5 -> mean over H, W -> fc -> logits (N, num_classes)

A constructor returns a built model. Class and attribute names are fixed: they form the layout of the weights
file (`stage4/separable_1`). Read it beside the same file in `torch_impl` and `tf1_compat`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from .attention import keep_frozen
from .blocks import make_attention
from .keywords import WITH_BIAS
from .layers import (
    ACTIVATIONS,
    Conv2D,
    DepthwiseConv2D,
    build_chain,
    make_head,
    make_norm,
    pool_globally,
)
from .live import Network
from .parts import Block

PADDINGS = {  # value of `stride_padding` -> padding of the stem's and of the units' strided convolutions
    "pad1": ("pad1", "pad1"),
    "same": ("same", "same"),
    "keras": ("same", "end"),
}


@keras.saving.register_keras_serializable("samenet")
class Separable(Block):
    """A 3x3 convolution of each channel and a 1x1 convolution of all, arXiv 1704.04861 fig. 3 right.

    Input and output: (N, H, W, C), (N, H / stride, W / stride, outputs).

    Args:
        outputs: channels of the output.
        stride: of the 3x3 convolution.
        padding: of that convolution, see `pad_strided`.
        activation: after each batch normalisation.
        norm, bn_epsilon, bn_momentum: see `MobileNet`.
        attention: name in the unit and layer, such as ("se", SqueezeExcitation()).

    Example:
        >>> Separable(64, 2)(keras.ops.zeros((2, 8, 8, 32))).shape
        TensorShape([2, 4, 4, 64])
    """

    def __init__(
        self,
        outputs: int,
        stride: int = 1,
        *,
        padding: str = "pad1",
        activation: str = "relu",
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
            activation=activation,
            name=name,
            dtype=dtype,
            **keywords,
        )
        self.conv1 = DepthwiseConv2D(3, stride, pad_rule=padding, **self.of_convolutions, name="conv1")
        self.bn1 = self.norm("bn1")
        self.conv2, self.bn2 = self.conv("conv2", outputs, 1), self.norm("bn2")
        self.add_attention(attention)
        self.note_settings()

    def build(self, input_shape: tuple) -> None:
        shape = build_chain(input_shape, self.conv1, self.bn1, self.conv2, self.bn2)
        self.build_attention(shape)
        keep_frozen(self)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return self.conv2.compute_output_shape(self.conv1.compute_output_shape(input_shape))

    def call(self, x: Any, training: bool | None = None) -> Any:
        x = self.act(self.bn1(self.conv1(x), training=training))
        return self.attend(self.act(self.bn2(self.conv2(x), training=training)))


@keras.saving.register_keras_serializable("samenet")
class MobileNet(Network):
    """MobileNetV1. Input (N, H, W, C) float, output logits (N, num_classes).

    Each stage but the first begins with a unit of stride 2; see `Separable`.

    Args:
        depths: units per stage.
        widths: channels per stage.
        stem_width: channels of the stem, a 3x3 convolution of stride 2.
        stride_padding: of the convolutions of stride 2: 1 on each side ("pad1"), TensorFlow's ("same"), or
            "same" in the stem and 1 at the end in the units ("keras", as keras.applications).
        norm: after each convolution: batch normalisation ("bn"), a bias and batch normalisation ("bias_bn"),
            or a bias ("bias": batch normalisation folded in).
        activation: after each norm, "relu", "silu", "gelu", "leaky_relu" (slope 0.01) or "relu6".
        attention: "none", "se", "cbam" or "eca".
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
        >>> model = MobileNet(depths=(1, 1), widths=(8, 16), stem_width=4, num_classes=5, attention="se")
        >>> features = model.forward_features(keras.ops.zeros((1, 31, 32, 3)))
        >>> list(features), tuple(features["stage2"].shape)
        (['stem', 'stage1', 'stage2', 'pooled', 'logits'], (1, 8, 8, 16))
    """

    kind, head = "mobilenet", "fc"

    def __init__(
        self,
        *,
        depths: Sequence[int] = (1, 2, 2, 6, 2),
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        stem_width: int = 32,
        stride_padding: str = "pad1",
        norm: str = "bn",
        activation: str = "relu",
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
        c, dtype, (first, others) = self.config, self.dtype_policy, PADDINGS[c["stride_padding"]]
        self.activation = c["activation"]
        conv = {"use_bias": c["norm"] in WITH_BIAS, "dtype": dtype, "name": "conv1"}
        self.conv1 = Conv2D(c["stem_width"], 3, 2, pad_rule=first, **conv)
        self.bn1 = make_norm("bn1", c, dtype)
        self.stage_names = [f"stage{stage}" for stage in range(1, 1 + len(c["depths"]))]
        of_units = {name: c[name] for name in ("norm", "bn_epsilon", "bn_momentum", "activation")}
        of_units |= {"padding": others, "dtype": dtype}
        for stage, stage_name in enumerate(self.stage_names):
            units = []
            for index in range(c["depths"][stage]):
                step = 2 if stage and not index else 1
                gate = make_attention(stage, c, dtype)
                unit = f"{stage_name}_{index}"
                units.append(Separable(c["widths"][stage], step, attention=gate, name=unit, **of_units))
            setattr(self, stage_name, units)
        self.dropout = keras.layers.Dropout(c["dropout"], dtype=dtype, name="dropout")
        self.num_features = c["widths"][-1]
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
            shape = build_chain(shape, *getattr(self, name))
        self.fc.build((None, self.num_features))

    def forward_stem(self, x: Any, training: bool | None = None) -> Any:
        x = self.bn1(self.conv1(self.entrance(x)), training=training)
        return ACTIVATIONS[self.activation](x)

    def forward_features(self, x: Any, training: bool | None = None) -> dict[str, Any]:
        """Every stage's output: `stem`, `stage1` ..., `pooled` (N, C) and `logits` (N, num_classes)."""
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


network = MobileNet  # the name in `models.py`, the same in the three folders
