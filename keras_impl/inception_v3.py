"""Inception-v3, and with SE, CBAM or ECA after each module, in Keras 3.

Inception-v3: https://arxiv.org/abs/1512.00567   SE: https://arxiv.org/abs/1709.01507, fig. 2

    images (N, H, W, 3) -> stem -> Mixed_5b ... Mixed_7c -> mean over H, W -> fc -> logits
                                      Mixed_6e -> AuxLogits -> logits of the auxiliary head, in training

The modules are rows of `inception_v3_table.py`. A constructor returns a built model. Class and attribute
names are fixed: they form the layout of the weights file (`Mixed_5b/branch5x5_2/conv`). Read it beside the
same file in `torch_impl` and `tf1_compat`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from .attention import keep_frozen, mean
from .blocks import make_attention
from .inception import Described, Unit, output_shape, run
from .inception_table import Branch, convolutions, width_of
from .inception_v3_table import (
    AUX_INPUT,
    AUX_POOL,
    AUX_STRIDE,
    MODULES,
    TRANSFORM,
    aux_of,
    check_image,
    module_at,
    network_of,
)
from .layers import build_chain, make_head
from .live import Network


def add_units(layer: keras.layers.Layer, branches: Iterable[Branch], c: Mapping[str, Any]) -> None:
    """Add the convolutions of some branches to a layer, each under the name of its row.

    Args:
        layer: the network for the stem, else a part of it.
        branches: rows of the table.
        c: the keywords of `InceptionV3`.
    """
    for steps in branches:
        for conv, _ in convolutions(steps):
            setattr(layer, conv.name, Unit(conv, c, name=conv.name, dtype=layer.dtype_policy))


def build_units(layer: keras.layers.Layer, branches: Iterable[Branch], shape: tuple) -> None:
    """Build the convolutions of some branches for an input of this shape."""
    for steps in branches:
        for conv, inputs in convolutions(steps):
            build_chain((*shape[:3], inputs or shape[3]), getattr(layer, conv.name))


@keras.saving.register_keras_serializable("samenet")
class MixedModule(Described):
    """Chains with one input; their outputs are concatenated, and an attention follows.

    Args:
        place: "Mixed_5b".
        c: the keywords of `InceptionV3`.
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
        self.row = module_at(c, place)
        add_units(self, self.row.branches, c)
        self.add_attention(attention)
        self.note_settings()

    def build(self, input_shape: tuple) -> None:
        build_units(self, self.row.branches, input_shape)
        self.build_attention(self.compute_output_shape(input_shape))
        keep_frozen(self)

    def call(self, x: Any, training: bool | None = None) -> Any:
        outputs = [run(self, steps, x, self.c, training) for steps in self.row.branches]
        return self.attend(ops.concatenate(outputs, -1))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return output_shape(input_shape, self.row.branches)


@keras.saving.register_keras_serializable("samenet")
class AuxHead(Described):
    """The auxiliary classifier: average pool 5x5 with stride 3, 1x1, 5x5, mean over H, W, dense.

    Args:
        place: "AuxLogits".
        c: the keywords of `InceptionV3`.
    """

    def __init__(self, place: str, c: Mapping[str, Any], **keywords: Any):
        super().__init__(place, c, **keywords)
        self.steps = aux_of(c)
        add_units(self, [self.steps], c)
        self.num_features = width_of([self.steps], 0)
        self.fc = self.make_head(c["num_classes"])
        self.note_settings()

    def make_head(self, num_classes: int) -> keras.layers.Layer:
        return make_head(self.num_features, num_classes, self.c["head_bias"], "fc", self.dtype_policy)

    def build(self, input_shape: tuple) -> None:
        build_units(self, [self.steps], input_shape)
        self.fc.build((None, self.num_features))
        keep_frozen(self)

    def call(self, x: Any, training: bool | None = None) -> Any:
        x = ops.average_pool(x, AUX_POOL, AUX_STRIDE, "valid", "channels_last")
        x = run(self, self.steps, x, self.c, training)
        return self.fc(mean(x, (1, 2)))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (input_shape[0], self.c["num_classes"] or self.num_features)


def transform(x: Any) -> Any:
    """Images normalised with ImageNet's mean and deviation, normalised with 0.5 and 0.5 instead."""
    factors, summands = (np.array(values) for values in zip(*TRANSFORM, strict=True))
    return x * ops.convert_to_tensor(factors, x.dtype) + ops.convert_to_tensor(summands, x.dtype)


@keras.saving.register_keras_serializable("samenet")
class InceptionV3(Network):
    """Inception-v3 with SE, CBAM, ECA or no attention. Input (N, H, W, C) float, output logits.

    With an auxiliary head its output in training is a tuple: the logits, and those of the auxiliary head.
    `fit` then minimises the compiled loss of the logits plus `aux_weight` times that of the others. Images
    need 75 rows and columns, with the auxiliary head 299.

    Args:
        width_multiplier: factor of every width, above 0; rounded down, at least one channel.
        last_pool: of the last module, "avg" or "max".
        count_padding: whether average pools count the padding, and so divide by 9 at the edge too.
        transform_input: whether images normalised with ImageNet's mean and deviation are first turned into
            (x - 0.5) / 0.5, as the weights of TensorFlow expect them. No file shows it.
        aux_head: whether an auxiliary classifier reads `Mixed_6e` in training.
        norm: after each convolution: batch normalisation ("bn"), a bias and batch normalisation ("bias_bn"),
            or a bias ("bias": batch normalisation folded in).
        attention: "none", "se", "cbam" or "eca", on the concatenation of every module.
        reduction, hidden_rule: of the attention's MLP.
        se_bias, cbam_mlp_bias, cbam_order, cbam_kernel_size, cbam_bn, cbam_bn_momentum,
            cbam_spatial_bias, cbam_spatial_input: see `SqueezeExcitation` and `CBAM`.
        eca_kernel_sizes, eca_padding: one odd size per module, None for the paper's rule; see `ECA`.
        bn_epsilon, bn_momentum: of every batch normalisation; the momentum weighs the new batch.
        dropout: probability before `fc`, below 1.
        num_classes: of the classifiers, `fc` and `AuxLogits.fc`; 0 for none, which return their inputs then.
        head_bias: whether the classifiers have biases.

        keywords: `name` and `dtype` ("float64", "mixed_float16" ...) as for every Keras model.

    Attributes:
        aux_weight: weight of the auxiliary head's loss in `fit`, 0.4 as in torchvision's training.

    Raises:
        ValueError: an argument is invalid.

    Example:
        >>> model = InceptionV3(width_multiplier=0.125, num_classes=4, attention="se")
        >>> features = model.forward_features(ops.zeros((1, 75, 75, 3)))
        >>> tuple(features["stem"].shape), tuple(features["Mixed_7c"].shape)
        ((1, 7, 7, 24), (1, 1, 1, 256))
    """

    kind, head = "inception_v3", "fc"
    aux_weight = 0.4

    def __init__(
        self,
        *,
        width_multiplier: float = 1.0,
        last_pool: str = "avg",
        count_padding: bool = True,
        transform_input: bool = False,
        aux_head: bool = False,
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
        bn_epsilon: float = 1e-3,
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
        table = network_of(c)
        self.steps = table.stem
        add_units(self, [self.steps], c)
        for number, module in enumerate(MODULES):
            gate = make_attention(number, c, dtype)
            setattr(self, module, MixedModule(module, c, gate, name=module, dtype=dtype))
        if c["aux_head"]:
            self.AuxLogits = AuxHead("AuxLogits", c, name="AuxLogits", dtype=dtype)
        self.dropout = keras.layers.Dropout(c["dropout"], dtype=dtype, name="dropout")
        self.num_features = width_of(table.modules[-1].branches, 0)
        self.fc = self.make_head(c["num_classes"])
        self.complete()

    def make_head(self, num_classes: int) -> keras.layers.Layer:
        return make_head(self.num_features, num_classes, self.config["head_bias"], "fc", self.dtype_policy)

    def classifiers(self) -> dict[str, Any]:
        return super().classifiers() | ({"AuxLogits.fc": self.AuxLogits} if self.config["aux_head"] else {})

    def reset_classifier(self, num_classes: int) -> None:
        super().reset_classifier(num_classes)
        if self.config["aux_head"]:
            self.AuxLogits.c["num_classes"] = self.config["num_classes"]
            self.AuxLogits.note_settings()

    def build(self, input_shape: tuple) -> None:
        if self.built:
            return
        self.check_input(input_shape)
        build_units(self, [self.steps], input_shape)
        shape = output_shape(input_shape, [self.steps])
        for name in MODULES:
            shape = build_chain(shape, getattr(self, name))
            if name == AUX_INPUT and self.config["aux_head"]:
                build_chain(shape, self.AuxLogits)
        self.fc.build((None, self.num_features))

    def check_input(self, shape: tuple, dtype: Any = "float32") -> None:
        super().check_input(shape, dtype)
        check_image(False, *shape[1:3])

    def stages(self, x: Any, training: bool | None) -> Iterator[tuple[str, Any]]:
        """The output of the stem and of each module, by name."""
        x = self.entrance(x)
        x = transform(x) if self.config["transform_input"] else x
        x = run(self, self.steps, x, self.config, training)
        yield "stem", x
        for name in MODULES:
            x = getattr(self, name)(x, training=training)
            yield name, x

    def forward_features(self, x: Any, training: bool | None = None) -> dict[str, Any]:
        """Every stage's output: `stem`, `Mixed_5b` ..., `pooled` (N, C) and `logits` (N, num_classes).

        With an auxiliary head also its `aux_logits` (N, num_classes), in training or not.
        """
        check_image(self.config["aux_head"], *x.shape[1:3])
        features = dict(self.stages(x, training))
        features["pooled"] = pooled = mean(features[MODULES[-1]], (1, 2))
        features["logits"] = self.fc(self.dropout(pooled, training=training))
        if self.config["aux_head"]:
            features["aux_logits"] = self.AuxLogits(features[AUX_INPUT], training=training)
        return features

    def call(self, x: Any, training: bool | None = None) -> Any:
        if training and self.config["aux_head"]:
            features = self.forward_features(x, training=True)
            return features["logits"], features["aux_logits"]
        for _, output in self.stages(x, training):
            x = output
        return self.fc(self.dropout(mean(x, (1, 2)), training=training))

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The compiled loss, in training plus `aux_weight` times that of the auxiliary head."""
        logits, *aux = y_pred if isinstance(y_pred, tuple) else (y_pred,)
        loss = super().compute_loss(x, y, logits, sample_weight, training)
        return loss + sum(self.aux_weight * self._compile_loss(y, output, sample_weight) for output in aux)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """The compiled metrics, of the logits."""
        logits = y_pred[0] if isinstance(y_pred, tuple) else y_pred
        return super().compute_metrics(x, y, logits, sample_weight)


network = InceptionV3  # the name in `models.py`, the same in the three folders
