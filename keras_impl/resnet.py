"""ResNet v1.5, ResNeXt, SE-ResNet(Xt), SENet-154, CBAM-, ECA- and SK-ResNet in Keras 3.

ResNet: https://arxiv.org/abs/1512.03385 (v1.5: the stride is on the 3x3, `stride_in="conv2"`)
ResNeXt: https://arxiv.org/abs/1611.05431   SE and SENet-154: https://arxiv.org/abs/1709.01507

    images (N, H, W, 3) -> stem -> layer1 ... layer4 -> mean over H, W -> fc -> logits (N, num_classes)

A constructor returns a built model. Class and attribute names are fixed: they form the layout of the weights
file (`layer1/bottleneck_1/conv1`). Read it beside the same file in `torch_impl` and `tf1_compat`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import keras

from .blocks import Bottleneck, make_stage
from .keywords import WITH_BIAS
from .layers import (
    ACTIVATIONS,
    Conv2D,
    anti_aliasing_pool,
    build_chain,
    make_head,
    make_norm,
    pool_globally,
    pool_stem,
)
from .live import Network


@keras.saving.register_keras_serializable("samenet")
class ResNet(Network):
    """A residual network with SE, CBAM, ECA, SK or no attention. Input (N, H, W, C) float, output logits.

    Args:
        block: "bottleneck" or "basic".
        depths: blocks per stage.
        width: nominal width of layer1, doubled in each further stage.
        groups, width_per_group, reduce_first, stride_in: see `Bottleneck`.
        stem: "7x7", "deep" (three 3x3, the last twice as wide), "deep_tiered" (the first of these is
            3 * (stem_width // 4) wide) or "3x3" (stride 1, for small images).
        stem_width: channels of the stem.
        stem_pool: max-pool 3x3 stride 2 padded by 1 ("pad1"), by Caffe's rule ("ceil"), by TensorFlow's
            ("same"), a 3x3 convolution with normalisation and activation in its place ("conv"), or "none";
            None means "none" with the "3x3" stem and "pad1" otherwise.
        strides: of the stages, each 1 or 2; None for 1, 2, 2 ...
        dilations: of the stages' 3x3 convolutions; the first block of a stage begins with that of the
            previous stage. None for 1. Output stride 16: strides (1, 2, 2, 1), dilations (1, 1, 1, 2).
        downsample_kernel: kernel size of the strided or dilated projections.
        downsample_pool: "avg" puts a 2x2 average pool before the strided or dilated projections.
        norm: after each convolution of stem, blocks and projections: batch normalisation ("bn"), a bias and
            batch normalisation ("bias_bn"), a bias
            ("bias": batch normalisation folded in), or group normalisation ("gn": 32 groups).
        activation: of stem and blocks, "relu", "silu", "gelu", "leaky_relu" (slope 0.01) or "relu6".
        anti_aliasing: "none", or a pool in place of the stride of the blocks and of the stem's pool:
            "avg" (2x2 means, for even sizes) or "blur" (arXiv 1904.11486).
        attention: "none", "se", "cbam", "eca" or "sk" (selective kernels in place of the strided 3x3).
        reduction, hidden_rule: of the attention's MLP.
        se_bias, cbam_mlp_bias, cbam_order, cbam_kernel_size, cbam_bn, cbam_bn_momentum,
            cbam_spatial_bias, cbam_spatial_input: see `SqueezeExcitation` and `CBAM`.
        sk_min_hidden, sk_split: see `SelectiveKernel`; `reduction` is its too.
        eca_kernel_sizes, eca_padding: one odd size per stage, None for the paper's rule; see `ECA`.
        relu_before_attention: see `ResidualBlock`.
        bn_epsilon, bn_momentum: of every batch normalisation; the momentum weighs the new batch.
        global_pool: "avg", "max", "avgmax" (half their sum) or "catavgmax" (the one after the other).
        dropout: probability before `fc`, below 1.
        num_classes: of the classifier `fc`; 0 for none, the output is then `pooled`.
        head_bias: whether `fc` has a bias.
        keywords: `name` and `dtype` ("float64", "mixed_float16" ...) as for every Keras model.

    Raises:
        ValueError: an argument is invalid.

    Example:
        >>> import keras_impl
        >>> model = keras_impl.se_resnet20()
        >>> features = model.forward_features(keras.ops.zeros((1, 32, 32, 3)))
        >>> [name for name in features], tuple(features["layer3"].shape)
        (['stem', 'layer1', 'layer2', 'layer3', 'pooled', 'logits'], (1, 8, 8, 64))
    """

    kind, head = "resnet", "fc"

    def __init__(
        self,
        *,
        block: str = "bottleneck",
        depths: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        groups: int = 1,
        width_per_group: int = 64,
        reduce_first: int = 1,
        stem: str = "7x7",
        stem_width: int = 64,
        stem_pool: str | None = None,
        strides: Sequence[int] | None = None,
        dilations: Sequence[int] | None = None,
        stride_in: str = "conv2",
        downsample_kernel: int = 1,
        downsample_pool: str = "none",
        norm: str = "bn",
        activation: str = "relu",
        anti_aliasing: str = "none",
        attention: str = "none",
        reduction: int = 16,
        hidden_rule: str = "floor",
        se_bias: bool = True,
        relu_before_attention: bool = False,
        cbam_mlp_bias: bool = True,
        cbam_order: str = "max_mean",
        cbam_kernel_size: int = 7,
        cbam_bn: bool = True,
        cbam_bn_momentum: float = 0.01,
        cbam_spatial_bias: bool = False,
        cbam_spatial_input: str = "refined",
        eca_kernel_sizes: Sequence[int] | None = None,
        eca_padding: str = "zeros",
        sk_min_hidden: int = 32,
        sk_split: bool = False,
        bn_epsilon: float = 1e-5,
        bn_momentum: float = 0.1,
        global_pool: str = "avg",
        dropout: float = 0.0,
        num_classes: int = 1000,
        head_bias: bool = True,
        in_channels: int = 3,
        name: str | None = None,
        **keywords: Any,
    ):
        c = {k: v for k, v in locals().items() if k not in ("self", "__class__", "name", "keywords")}
        super().__init__(c, name=name, **keywords)
        c = self.config
        names = ("block", "depths", "width", "stem", "stem_width", "norm")
        block, depths, width, stem, stem_width, norm = (c[name] for name in names)
        self.activation, self.global_pool = c["activation"], c["global_pool"]
        dtype = self.dtype_policy
        conv = partial(Conv2D, use_bias=norm in WITH_BIAS, dtype=dtype)

        kernel_size, stride = {"7x7": (7, 2), "deep": (3, 2), "deep_tiered": (3, 2), "3x3": (3, 1)}[stem]
        first = 3 * (stem_width // 4) if stem == "deep_tiered" else stem_width
        self.conv1, self.bn1 = conv(first, kernel_size, stride, name="conv1"), make_norm("bn1", c, dtype)
        self.deep_stem, channels = stem in ("deep", "deep_tiered"), stem_width
        if self.deep_stem:
            channels = 2 * stem_width
            self.conv2, self.bn2 = conv(stem_width, 3, name="conv2"), make_norm("bn2", c, dtype)
            self.conv3, self.bn3 = conv(channels, 3, name="conv3"), make_norm("bn3", c, dtype)
        self.stem_pool = c["stem_pool"] or ("none" if stem == "3x3" else "pad1")
        self.anti_aliasing = c["anti_aliasing"]
        if self.stem_pool == "conv":  # in place of the pool
            stride = 2 if self.anti_aliasing == "none" else 1
            self.pool_conv = conv(channels, 3, stride, name="pool_conv")
            self.pool_bn = make_norm("pool_bn", c, dtype)

        self.stage_names = [f"layer{stage + 1}" for stage in range(len(depths))]
        for stage, name in enumerate(self.stage_names):
            setattr(self, name, make_stage(channels, stage, c, dtype))
            channels = width * 2**stage * (Bottleneck.expansion if block == "bottleneck" else 1)
        self.dropout = keras.layers.Dropout(c["dropout"], dtype=dtype, name="dropout")
        self.num_features = channels * (2 if self.global_pool == "catavgmax" else 1)
        self.fc = self.make_head(c["num_classes"])
        self.complete()

    def make_head(self, num_classes: int) -> keras.layers.Layer:
        return make_head(self.num_features, num_classes, self.config["head_bias"], "fc", self.dtype_policy)

    def build(self, input_shape: tuple) -> None:
        if self.built:
            return
        self.check_input(input_shape)
        shape = build_chain(input_shape, self.conv1, self.bn1)
        if self.deep_stem:
            shape = build_chain(shape, self.conv2, self.bn2, self.conv3, self.bn3)
        if self.stem_pool == "conv":
            shape = build_chain(shape, self.pool_conv, self.pool_bn)
        for name in self.stage_names:
            for block in getattr(self, name):
                block.build(shape)
                shape = block.compute_output_shape(shape)
        self.fc.build((None, self.num_features))

    def act(self, x: Any) -> Any:
        return ACTIVATIONS[self.activation](x)

    def forward_stem(self, x: Any, training: bool | None = None) -> Any:
        x = self.act(self.bn1(self.conv1(self.entrance(x)), training=training))
        if self.deep_stem:
            x = self.act(self.bn2(self.conv2(x), training=training))
            x = self.act(self.bn3(self.conv3(x), training=training))
        if self.stem_pool != "conv":
            return pool_stem(x, self.stem_pool, self.anti_aliasing)
        x = self.pool_conv(x)
        if self.anti_aliasing != "none":
            x = anti_aliasing_pool(x, self.anti_aliasing, 2)
        return self.act(self.pool_bn(x, training=training))

    def forward_features(self, x: Any, training: bool | None = None) -> dict[str, Any]:
        """Every stage's output: `stem`, `layer1` ..., `pooled` (N, C) and `logits` (N, num_classes)."""
        features = {"stem": (x := self.forward_stem(x, training))}
        for name in self.stage_names:
            for block in getattr(self, name):
                x = block(x, training=training)
            features[name] = x
        features["pooled"] = x = pool_globally(x, self.global_pool)
        features["logits"] = self.fc(self.dropout(x, training=training))
        return features

    def call(self, x: Any, training: bool | None = None) -> Any:
        x = self.forward_stem(x, training)  # forward_features would keep every stage's output
        for name in self.stage_names:
            for block in getattr(self, name):
                x = block(x, training=training)
        return self.fc(self.dropout(pool_globally(x, self.global_pool), training=training))


network = ResNet  # the name in `models.py`, the same in the three folders
