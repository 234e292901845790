"""VGG with batch normalisation, and with SE, CBAM or ECA after each ReLU, in Keras 3.

VGG: https://arxiv.org/abs/1409.1556   SE in plain networks: https://arxiv.org/abs/1709.01507, section 3

    images (N, H, W, 3) -> stage1 ... stage5 -> average pool to 7x7 -> classifier -> logits (N, num_classes)

A constructor returns a built model. Class and attribute names are fixed: they form the layout of the weights
file (`features/conv2d_1`). Read it beside the same file in `torch_impl` and `tf1_compat`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import keras
from keras import ops

from .attention import dense, keep_frozen
from .blocks import make_attention
from .layers import Conv2D, adaptive_average_pool, make_head, make_norm
from .live import Network
from .parts import Part


@keras.saving.register_keras_serializable("samenet")
class Rectified(Part):
    """A ReLU and the attention after it, under its name: `features[2].se`."""

    def __init__(self, attention: tuple[str, keras.layers.Layer] | None = None, **keywords: Any):
        super().__init__(**keywords)
        self.add_attention(attention)

    def build(self, input_shape: tuple) -> None:
        self.build_attention(input_shape)
        super().build(input_shape)
        keep_frozen(self)

    def call(self, x: Any) -> Any:
        return self.attend(ops.relu(x))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape


@keras.saving.register_keras_serializable("samenet")
class VGG(Network):
    """VGG with batch normalisation. Input (N, H, W, C) float, output logits (N, num_classes).

    Each convolution is 3x3; batch normalisation, ReLU and attention follow it. A 2x2 max-pool ends a stage.

    Args:
        depths: convolutions per stage.
        widths: channels per stage.
        norm: after each convolution: batch normalisation ("bn"), a bias and batch normalisation ("bias_bn"),
            or a bias ("bias": batch normalisation folded in).
        attention: "none", "se", "cbam" or "eca".
        reduction, hidden_rule: of the attention's MLP.
        se_bias, cbam_mlp_bias, cbam_order, cbam_kernel_size, cbam_bn, cbam_bn_momentum,
            cbam_spatial_bias, cbam_spatial_input: see `SqueezeExcitation` and `CBAM`.
        eca_kernel_sizes, eca_padding: one odd size per stage, None for the paper's rule; see `ECA`.
        pool_size: rows and columns of the average pool before the classifier.
        head_width: of the two hidden layers of the classifier.
        bn_epsilon, bn_momentum: of every batch normalisation; the momentum weighs the new batch.
        dropout: probability after each hidden layer of the classifier, below 1.
        num_classes: of the last layer; 0 for none, the output is then the last hidden layer.
        head_bias: whether the last layer has a bias.

    Raises:
        ValueError: an argument is invalid.

    Example:
        >>> model = VGG(depths=(1, 1), widths=(8, 16), head_width=32, num_classes=4, attention="se")
        >>> {name: tuple(x.shape) for name, x in model.forward_features(ops.zeros((1, 30, 32, 3))).items()}
        {'stage1': (1, 15, 16, 8), 'stage2': (1, 7, 8, 16), 'pooled': (1, 784), 'logits': (1, 4)}
    """

    kind, head = "vgg", "classifier.6"

    def __init__(
        self,
        *,
        depths: Sequence[int] = (2, 2, 3, 3, 3),
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        norm: str = "bias_bn",
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
        pool_size: int = 7,
        head_width: int = 4096,
        bn_epsilon: float = 1e-5,
        bn_momentum: float = 0.1,
        dropout: float = 0.5,
        num_classes: int = 1000,
        head_bias: bool = True,
        in_channels: int = 3,
        name: str | None = None,
        **keywords: Any,
    ):
        c = {k: v for k, v in locals().items() if k not in ("self", "__class__", "name", "keywords")}
        super().__init__(c, name=name, **keywords)
        c, dtype = self.config, self.dtype_policy
        conv = partial(Conv2D, use_bias=c["norm"] != "bn", dtype=dtype)
        features: list[keras.layers.Layer] = []
        self.stage_ends = []
        for stage, (depth, width) in enumerate(zip(c["depths"], c["widths"], strict=True)):
            for _ in range(depth):
                features.append(conv(width, 3, name=f"features_{len(features)}"))
                if c["norm"] != "bias":
                    features.append(make_norm(f"features_{len(features)}", c, dtype))
                gate = make_attention(stage, c, dtype)
                features.append(Rectified(gate, name=f"features_{len(features)}", dtype=dtype))
            pool = keras.layers.MaxPooling2D(2, data_format="channels_last", dtype=dtype)
            features.append(pool)
            self.stage_ends.append(len(features))
        self.features = features
        self.pool_size = c["pool_size"]
        width, hidden = c["widths"][-1] * self.pool_size**2, c["head_width"]
        self.num_features = hidden
        drop = partial(keras.layers.Dropout, c["dropout"], dtype=dtype)
        self.classifier = [
            dense(width, hidden, dtype=dtype, name="classifier_0"),
            keras.layers.ReLU(dtype=dtype),
            drop(),
            dense(hidden, hidden, dtype=dtype, name="classifier_3"),
            keras.layers.ReLU(dtype=dtype),
            drop(),
            self.make_head(c["num_classes"]),
        ]
        self.complete()

    def make_head(self, num_classes: int) -> keras.layers.Layer:
        return make_head(
            self.num_features, num_classes, self.config["head_bias"], "classifier_6", self.dtype_policy
        )

    def build(self, input_shape: tuple) -> None:
        if self.built:
            return
        self.check_input(input_shape)
        shape = input_shape
        for layer in self.features:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        shape = (None, shape[-1] * self.pool_size**2)
        for layer in self.classifier:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)

    def stages(self) -> Iterator[tuple[str, list[keras.layers.Layer]]]:
        """The layers of each stage of `features`, by name."""
        for number, (start, end) in enumerate(itertools.pairwise((0, *self.stage_ends)), 1):
            yield f"stage{number}", self.features[start:end]

    def forward_features(self, x: Any, training: bool | None = None) -> dict[str, Any]:
        """Every stage's output: `stage1` ..., `pooled` (N, C * 7 * 7) and `logits` (N, num_classes)."""
        features, x = {}, self.entrance(x)
        for name, layers in self.stages():
            features[name] = x = _chain(layers, x, training)
        # flat in the order (C, H, W), so that the weights of the classifier are PyTorch's, transposed
        width = x.shape[-1] * self.pool_size**2
        features["pooled"] = x = ops.reshape(adaptive_average_pool(x, self.pool_size), (-1, width))
        features["logits"] = _chain(self.classifier, x, training)
        return features

    def call(self, x: Any, training: bool | None = None) -> Any:
        return self.forward_features(x, training)["logits"]


def _chain(layers: Sequence[keras.layers.Layer], x: Any, training: bool | None) -> Any:
    for layer in layers:
        in_modes = isinstance(layer, (Rectified, keras.layers.BatchNormalization, keras.layers.Dropout))
        x = layer(x, training=training) if in_modes else layer(x)
    return x


network = VGG  # the name in `models.py`, the same in the three folders
