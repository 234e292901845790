"""ResNet v1.5, ResNeXt, SE-ResNet(Xt), SENet-154, CBAM-ResNet and ECA-ResNet in Keras 3.

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
from keras import ops

from .attention import mean
from .blocks import Bottleneck, build_chain, make_head, make_norm, make_stage
from .layers import Conv2D, max_pool
from .live import Network, settings


@keras.saving.register_keras_serializable("samenet")
class ResNet(Network):
    """A residual network with SE, CBAM, ECA or no attention. Input (N, H, W, C) float, output logits.

    Args:
        block: "bottleneck" or "basic".
        depths: blocks per stage.
        width: nominal width of layer1, doubled in each further stage.
        groups, width_per_group, reduce_first, stride_in: see `Bottleneck`.
        stem: "7x7", "deep" (three 3x3, the last twice as wide), "deep_tiered" (the first of these is
            3 * (stem_width // 4) wide) or "3x3" (stride 1, for small images).
        stem_width: channels of the stem.
        stem_pool: max-pool 3x3 stride 2 padded by 1 ("pad1"), by Caffe's rule ("ceil"), by TensorFlow's
            ("same"), or "none"; None means "none" with the "3x3" stem and "pad1" otherwise.
        downsample_kernel: kernel size of the strided projections.
        downsample_pool: "avg" puts a 2x2 average pool before the strided projections.
        norm: after each convolution of stem, blocks and projections: batch normalisation ("bn"), a bias and
            batch normalisation ("bias_bn"), or a bias ("bias": batch normalisation folded in).
        attention: "none", "se", "cbam" or "eca".
        reduction, hidden_rule: of the attention's MLP.
        se_bias, cbam_mlp_bias, cbam_order, cbam_kernel_size, cbam_bn, cbam_bn_momentum,
            cbam_spatial_bias, cbam_spatial_input: see `SqueezeExcitation` and `CBAM`.
        eca_kernel_sizes: odd, one per stage; None for the paper's rule.
        relu_before_attention: see `ResidualBlock`.
        bn_epsilon, bn_momentum: of every batch normalisation; the momentum weighs the new batch.
        dropout: probability before `fc`, below 1.
        num_classes: of the classifier `fc`; 0 for none, the output is then `pooled`.
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

    kind = "resnet"

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
        stride_in: str = "conv2",
        downsample_kernel: int = 1,
        downsample_pool: str = "none",
        norm: str = "bn",
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
        bn_epsilon: float = 1e-5,
        bn_momentum: float = 0.1,
        dropout: float = 0.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        name: str | None = None,
        **keywords: Any,
    ):
        c = {k: v for k, v in locals().items() if k not in ("self", "__class__", "name", "keywords")}
        super().__init__(c, name=name, **keywords)
        c = self.config
        names = ("block", "depths", "width", "stem", "stem_width", "stem_pool", "norm")
        block, depths, width, stem, stem_width, stem_pool, norm = (c[name] for name in names)
        dtype = self.dtype_policy
        conv = partial(Conv2D, use_bias=norm != "bn", dtype=dtype)

        kernel_size, stride = {"7x7": (7, 2), "deep": (3, 2), "deep_tiered": (3, 2), "3x3": (3, 1)}[stem]
        first = 3 * (stem_width // 4) if stem == "deep_tiered" else stem_width
        self.conv1, self.bn1 = conv(first, kernel_size, stride, name="conv1"), make_norm("bn1", c, dtype)
        self.deep_stem, channels = stem in ("deep", "deep_tiered"), stem_width
        if self.deep_stem:
            channels = 2 * stem_width
            self.conv2, self.bn2 = conv(stem_width, 3, name="conv2"), make_norm("bn2", c, dtype)
            self.conv3, self.bn3 = conv(channels, 3, name="conv3"), make_norm("bn3", c, dtype)
        self.stem_pool = stem_pool or ("none" if stem == "3x3" else "pad1")

        self.stage_names = [f"layer{stage + 1}" for stage in range(len(depths))]
        for stage, name in enumerate(self.stage_names):
            setattr(self, name, make_stage(channels, stage, c, dtype))
            channels = width * 2**stage * (Bottleneck.expansion if block == "bottleneck" else 1)
        self.dropout = keras.layers.Dropout(c["dropout"], dtype=dtype, name="dropout")
        self.num_features = channels
        self.fc = make_head(channels, c["num_classes"], "fc", dtype)
        self.build((None, None, None, c["in_channels"]))
        self._made = settings(self)

    def build(self, input_shape: tuple) -> None:
        if self.built:
            return
        self.check_input(input_shape)
        shape = build_chain(input_shape, self.conv1, self.bn1)
        if self.deep_stem:
            shape = build_chain(shape, self.conv2, self.bn2, self.conv3, self.bn3)
        for name in self.stage_names:
            for block in getattr(self, name):
                block.build(shape)
                shape = block.compute_output_shape(shape)
        self.fc.build((None, shape[-1]))

    def forward_stem(self, x: Any, training: bool | None = None) -> Any:
        x = ops.relu(self.bn1(self.conv1(x), training=training))
        if self.deep_stem:
            x = ops.relu(self.bn2(self.conv2(x), training=training))
            x = ops.relu(self.bn3(self.conv3(x), training=training))
        return max_pool(x, self.stem_pool)

    def forward_features(self, x: Any, training: bool | None = None) -> dict[str, Any]:
        """Every stage's output: `stem`, `layer1` ..., `pooled` (N, C) and `logits` (N, num_classes)."""
        features = {"stem": (x := self.forward_stem(x, training))}
        for name in self.stage_names:
            for block in getattr(self, name):
                x = block(x, training=training)
            features[name] = x
        features["pooled"] = x = mean(x, (1, 2))
        features["logits"] = self.fc(self.dropout(x, training=training))
        return features

    def call(self, x: Any, training: bool | None = None) -> Any:
        x = self.forward_stem(x, training)  # forward_features would keep every stage's output
        for name in self.stage_names:
            for block in getattr(self, name):
                x = block(x, training=training)
        return self.fc(self.dropout(mean(x, (1, 2)), training=training))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (input_shape[0], self.config["num_classes"] or self.num_features)


network = ResNet  # the name in `models.py`, the same in the three folders
