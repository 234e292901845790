"""BN-Inception, and with SE, CBAM or ECA after each module, as a TensorFlow 1 graph function.

BN-Inception: https://arxiv.org/abs/1502.03167 as in Caffe   SE: https://arxiv.org/abs/1709.01507, fig. 2

    images (N, H, W, 3) -> stem -> inception_3a ... inception_5b -> mean over H, W -> fc -> logits

The modules are rows of `inception_table.py`. Variables are named by their scopes:
`inception_3a/branch2/unit1/conv/kernel`. Read it beside the same file in `torch_impl` and `keras_impl`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow.compat.v1 as tf

from .attention import check_graph, check_is_training, graph_input
from .blocks import make_attention, make_head, make_norm, open_network
from .inception_table import Branch, Conv, Fork, Pool, check_image, network_of
from .keywords import CHECKS, WITH_BIAS, check_keywords
from .layers import conv2d, max_pool

CONFIG_COLLECTION = "inception_config"  # one JSON text per network of a graph: its scope and its keywords


def pool(x: tf.Tensor, step: Pool, c: Mapping[str, Any]) -> tf.Tensor:
    """A pool of the table, by the keywords of `inception`."""
    if step.stride > 1:
        return max_pool(x, step.padding)
    if step.kind == "max":
        return tf.nn.max_pool2d(x, 3, 1, "SAME")
    if c["count_padding"]:
        x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
    return tf.nn.avg_pool2d(x, 3, 1, "VALID" if c["count_padding"] else "SAME")


def unit(x: tf.Tensor, step: Conv, c: Mapping[str, Any], *, norm: Callable[..., tf.Tensor]) -> tf.Tensor:
    """A convolution of the table, its normalisation and a ReLU, in a scope with its name."""
    with tf.variable_scope(step.name):
        bias, padding = c["norm"] in WITH_BIAS, step.padding
        x = conv2d(x, step.width, step.kernel, step.stride, padding=padding, bias=bias, scope="conv")
        return tf.nn.relu(norm(x, scope="bn"))


def run(x: tf.Tensor, steps: Branch, c: Mapping[str, Any], *, norm: Callable[..., tf.Tensor]) -> tf.Tensor:
    """The output of a branch; each convolution has a scope with the name of its row.

    Args:
        x: (N, H, W, C).
        steps: rows of the table.
        c: the keywords of `inception`.
        norm: batch normalisation, called with `scope`.
    """
    for step in steps:
        if isinstance(step, Conv):
            x = unit(x, step, c, norm=norm)
        elif isinstance(step, Fork):
            x = tf.concat([unit(x, conv, c, norm=norm) for conv in step.convs], -1)
        else:
            x = pool(x, step, c)
    return x


def chain(
    x: tf.Tensor, steps: Branch, c: Mapping[str, Any], *, norm: Callable[..., tf.Tensor], scope: str
) -> tf.Tensor:
    """A branch of a module, or the stem, as `run` in a variable scope."""
    with tf.variable_scope(scope):
        return run(x, steps, c, norm=norm)


def inception(
    images: tf.Tensor,
    is_training: bool = False,
    *,
    scope: str | None = None,
    reuse: bool | None = None,
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
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """BN-Inception with SE, CBAM, ECA or no attention.

    Args:
        images: (N, H, W, C) with known C, a tensor or NumPy array; the variables have its dtype, float32 or
            float64.
        is_training: a Python bool. Training uses batch statistics and dropout, and adds the updates of the
            running statistics to `tf.GraphKeys.UPDATE_OPS`.
        scope: variable scope; None for names without a prefix.
        reuse: as in `tf.variable_scope`; two calls under `tf.AUTO_REUSE` share variables.
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
            cbam_spatial_bias, cbam_spatial_input: see `squeeze_excitation` and `cbam`.
        eca_kernel_sizes, eca_padding: one odd size per module, None for the paper's rule; see `eca`.
        bn_epsilon, bn_momentum: of every batch normalisation; the momentum weighs the new batch.
        dropout: probability before `fc`, below 1.
        num_classes: of the classifier `fc`; 0 for none, the output is then `pooled`.
        head_bias: whether `fc` has a bias.

    Returns:
        logits (N, num_classes), and the end points: `stem`, `inception_3a` ..., `pooled` (N, C), `logits`.

    Raises:
        ValueError: an argument is invalid, `images` has another number of channels or a size that does not
            fit, or the scope already holds a network.
        RuntimeError: called in eager mode or in `tf.function`.
        TypeError: `is_training` is not a Python bool.

    Example:
        >>> with tf.Graph().as_default():
        ...     _, end_points = inception(tf.zeros((1, 64, 64, 3)), width_multiplier=0.125, num_classes=4)
        ...     end_points["stem"].shape.as_list(), end_points["inception_5b"].shape.as_list()
        ([1, 8, 8, 24], [1, 2, 2, 128])
    """
    c = {name: value for name, value in locals().items() if name in CHECKS}
    c = check_keywords(c, "inception")
    check_graph()
    check_is_training(is_training)
    x = graph_input(images, c["in_channels"], "images")
    if x.dtype not in (tf.float32, tf.float64):
        raise ValueError(f"images of dtype {x.dtype.name}, expected float32 or float64")
    check_image(c, *x.shape.as_list()[1:3])
    bn, table = make_norm(c, is_training), network_of(c)
    end_points: dict[str, tf.Tensor] = {}

    with open_network(CONFIG_COLLECTION, c, scope, reuse):
        end_points["stem"] = x = chain(x, table.stem, c, norm=bn, scope="stem")
        for number, (name, branches) in enumerate(table.modules):
            gate = make_attention(number, c, is_training)
            with tf.variable_scope(name):
                parts = [
                    chain(x, steps, c, norm=bn, scope=f"branch{place}")
                    for place, steps in enumerate(branches, 1)
                ]
                x = tf.concat(parts, -1)
                x = x if gate is None else gate(x)
            end_points[name] = x
        end_points["pooled"] = x = tf.reduce_mean(x, [1, 2])
        if is_training and c["dropout"] > 0:
            x = tf.nn.dropout(x, rate=c["dropout"])
        end_points["logits"] = make_head(x, c["num_classes"], c["head_bias"], scope="fc")
    return end_points["logits"], end_points


network = inception  # the name in `models.py`, the same in the three folders
