"""Inception-v3, and with SE, CBAM or ECA after each module, as a TensorFlow 1 graph function.

Inception-v3: https://arxiv.org/abs/1512.00567   SE: https://arxiv.org/abs/1709.01507, fig. 2

    images (N, H, W, 3) -> stem -> Mixed_5b ... Mixed_7c -> mean over H, W -> fc -> logits
                                      Mixed_6e -> AuxLogits -> logits of the auxiliary head

The modules are rows of `inception_v3_table.py`. Variables are named by their scopes:
`Mixed_5b/branch5x5_2/conv/kernel`. Read it beside the same file in `torch_impl` and `keras_impl`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow.compat.v1 as tf

from .attention import check_graph, check_is_training, graph_input
from .blocks import make_attention, make_head, make_norm, open_network
from .inception import run
from .inception_v3_table import (
    AUX_INPUT,
    AUX_POOL,
    AUX_STRIDE,
    TRANSFORM,
    aux_of,
    check_image,
    network_of,
)
from .keywords import CHECKS, check_keywords

CONFIG_COLLECTION = "inception_v3_config"  # one JSON text per network of a graph: its scope and its keywords


def aux_head_of(x: tf.Tensor, c: Mapping[str, Any], *, norm: Callable[..., tf.Tensor]) -> tf.Tensor:
    """The auxiliary classifier: average pool 5x5 with stride 3, 1x1, 5x5, mean over H, W, dense."""
    with tf.variable_scope("AuxLogits"):
        x = run(tf.nn.avg_pool2d(x, AUX_POOL, AUX_STRIDE, "VALID"), aux_of(c), c, norm=norm)
        return make_head(tf.reduce_mean(x, [1, 2]), c["num_classes"], c["head_bias"], scope="fc")


def transform(x: tf.Tensor) -> tf.Tensor:
    """Images normalised with ImageNet's mean and deviation, normalised with 0.5 and 0.5 instead."""
    factors, summands = (tf.constant(values, x.dtype) for values in zip(*TRANSFORM, strict=True))
    return x * factors + summands


def inceptionv3(
    images: tf.Tensor,
    is_training: bool = False,
    *,
    scope: str | None = None,
    reuse: bool | None = None,
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
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Inception-v3 with SE, CBAM, ECA or no attention.

    With an auxiliary head its logits are the end point `aux_logits`; the paper adds the auxiliary loss,
    weighted, to the loss. Images need 75 rows and columns, with the auxiliary head 299.

    Args:
        images: (N, H, W, C) with known C, a tensor or NumPy array; the variables have its dtype, float32 or
            float64.
        is_training: a Python bool. Training uses batch statistics and dropout, and adds the updates of the
            running statistics to `tf.GraphKeys.UPDATE_OPS`.
        scope: variable scope; None for names without a prefix.
        reuse: as in `tf.variable_scope`; two calls under `tf.AUTO_REUSE` share variables.
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
            cbam_spatial_bias, cbam_spatial_input: see `squeeze_excitation` and `cbam`.
        eca_kernel_sizes, eca_padding: one odd size per module, None for the paper's rule; see `eca`.
        bn_epsilon, bn_momentum: of every batch normalisation; the momentum weighs the new batch.
        dropout: probability before `fc`, below 1.
        num_classes: of the classifiers, `fc` and `AuxLogits/fc`; 0 for none, which return their inputs then.
        head_bias: whether the classifiers have biases.

    Returns:
        logits (N, num_classes), and the end points: `stem`, `Mixed_5b` ..., `pooled` (N, C), `logits`, and
        `aux_logits` (N, num_classes) of an auxiliary head.

    Raises:
        ValueError: an argument is invalid, `images` has another number of channels or a size that is too
            small, or the scope already holds a network.
        RuntimeError: called in eager mode or in `tf.function`.
        TypeError: `is_training` is not a Python bool.

    Example:
        >>> with tf.Graph().as_default():
        ...     _, end_points = inceptionv3(tf.zeros((1, 75, 75, 3)), width_multiplier=0.125, num_classes=4)
        ...     end_points["stem"].shape.as_list(), end_points["Mixed_7c"].shape.as_list()
        ([1, 7, 7, 24], [1, 1, 1, 256])
    """
    c = {name: value for name, value in locals().items() if name in CHECKS}
    c = check_keywords(c, "inception_v3")
    check_graph()
    check_is_training(is_training)
    x = graph_input(images, c["in_channels"], "images")
    if x.dtype not in (tf.float32, tf.float64):
        raise ValueError(f"images of dtype {x.dtype.name}, expected float32 or float64")
    check_image(c["aux_head"], *x.shape.as_list()[1:3])
    bn, table = make_norm(c, is_training), network_of(c)
    end_points: dict[str, tf.Tensor] = {}

    with open_network(CONFIG_COLLECTION, c, scope, reuse):
        x = transform(x) if c["transform_input"] else x
        end_points["stem"] = x = run(x, table.stem, c, norm=bn)
        for number, (name, branches) in enumerate(table.modules):
            gate = make_attention(number, c, is_training)
            with tf.variable_scope(name):
                x = tf.concat([run(x, steps, c, norm=bn) for steps in branches], -1)
                x = x if gate is None else gate(x)
            end_points[name] = x
        end_points["pooled"] = x = tf.reduce_mean(x, [1, 2])
        if is_training and c["dropout"] > 0:
            x = tf.nn.dropout(x, rate=c["dropout"])
        end_points["logits"] = make_head(x, c["num_classes"], c["head_bias"], scope="fc")
        if c["aux_head"]:
            end_points["aux_logits"] = aux_head_of(end_points[AUX_INPUT], c, norm=bn)
    return end_points["logits"], end_points


network = inceptionv3  # the name in `models.py`, the same in the three folders
