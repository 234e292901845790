"""ShuffleNetV1, and with SE, CBAM or ECA in each unit, as a TensorFlow 1 graph function.

ShuffleNet: https://arxiv.org/abs/1707.01083, fig. 2 and table 1   SE: https://arxiv.org/abs/1709.01507

    images (N, H, W, 3) -> stem -> stage2 ... stage4 -> mean over H, W -> fc -> logits (N, num_classes)

Variables are named by their scopes: `stage3_1/conv1/kernel`. Read it beside the same file in `torch_impl` and
`keras_impl`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow.compat.v1 as tf

from .attention import batch_norm, check_graph, check_is_training, graph_input
from .blocks import make_attention, make_head, make_norm, open_network
from .keywords import CHECKS, WITH_BIAS, check_keywords, inner_width
from .layers import (
    average_pool_3x3,
    conv2d,
    depthwise_conv2d,
    max_pool,
    pool_globally,
    shuffle_channels,
)

CONFIG_COLLECTION = "shufflenet_config"  # one JSON text per network of a graph: its scope and its keywords


def shuffle_unit(
    x: tf.Tensor,
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
    norm: Callable[..., tf.Tensor] = batch_norm,
    bias: bool = False,
    attention: Callable[[tf.Tensor], tf.Tensor] | None = None,
    scope: str,
) -> tf.Tensor:
    """Two 1x1 convolutions in groups, a shuffle, and a 3x3 convolution of each channel.

    Figure 2 of arXiv 1707.01083: with stride 1 the input is added (b), with stride 2 its 3x3 means are
    concatenated (c).

    Input and output: (N, H, W, C), (N, H / stride, W / stride, outputs).

    Args:
        outputs: channels of the output.
        stride: of the 3x3 convolution.
        groups: of the last 1x1 convolution, and of the shuffle.
        first_groups: of the first 1x1 convolution; None for `groups`.
        shuffle_after, shuffle_view, concat_order, count_padding, attention_on: see `shufflenet`.
        norm: batch normalisation, called with `scope`.
        bias: whether the convolutions have biases.
        attention: maps (N, H, W, C) to the same shape.

    Example:
        >>> with tf.Graph().as_default():
        ...     shuffle_unit(tf.zeros((2, 8, 8, 24)), 240, 2, first_groups=1, scope="unit").shape
        TensorShape([2, 4, 4, 240])
    """
    inner, branch = inner_width(outputs), outputs - int(x.shape[-1]) if stride > 1 else outputs
    first = groups if first_groups is None else first_groups

    def attend(x: tf.Tensor, place: str) -> tf.Tensor:
        return x if attention is None or attention_on != place else attention(x)

    def shuffled(x: tf.Tensor, after: str) -> tf.Tensor:
        return shuffle_channels(x, groups, shuffle_view) if shuffle_after == after else x

    with tf.variable_scope(scope):
        y = conv2d(x, inner, 1, groups=first, bias=bias, scope="conv1")
        y = shuffled(tf.nn.relu(norm(y, scope="bn1")), "conv1")
        y = shuffled(norm(depthwise_conv2d(y, 3, stride, bias=bias, scope="conv2"), scope="bn2"), "conv2")
        y = norm(conv2d(y, branch, 1, groups=groups, bias=bias, scope="conv3"), scope="bn3")
        y = attend(y, "branch")
        if stride == 1:
            y += x
        else:
            parts = (y, average_pool_3x3(x, count_padding))
            y = tf.concat(parts if concat_order == "branch_shortcut" else parts[::-1], -1)
        return attend(tf.nn.relu(y), "output")


def shufflenet(
    images: tf.Tensor,
    is_training: bool = False,
    *,
    scope: str | None = None,
    reuse: bool | None = None,
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
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """ShuffleNetV1.

    Each stage begins with a unit of stride 2; see `shuffle_unit`. The paper counts the stages from 2.

    Args:
        images: (N, H, W, C) with known C, a tensor or NumPy array; the variables have its dtype, float32 or
            float64.
        is_training: a Python bool. Training uses batch statistics and dropout, and adds the updates of the
            running statistics to `tf.GraphKeys.UPDATE_OPS`.
        scope: variable scope; None for names without a prefix.
        reuse: as in `tf.variable_scope`; two calls under `tf.AUTO_REUSE` share variables.
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
            cbam_spatial_bias, cbam_spatial_input: see `squeeze_excitation` and `cbam`.
        eca_kernel_sizes, eca_padding: one odd size per stage, None for the paper's rule; see `eca`.
        bn_epsilon, bn_momentum: of every batch normalisation; the momentum weighs the new batch.
        dropout: probability before `fc`, below 1.
        num_classes: of the classifier `fc`; 0 for none, the output is then `pooled`.
        head_bias: whether `fc` has a bias.

    Returns:
        logits (N, num_classes), and the end points: `stem`, `stage2` ..., `pooled` (N, C), `logits`.

    Raises:
        ValueError: an argument is invalid, `images` has another number of channels, or the scope already
            holds a network.
        RuntimeError: called in eager mode or in `tf.function`.
        TypeError: `is_training` is not a Python bool.

    Example:
        >>> with tf.Graph().as_default():
        ...     x, sizes = tf.zeros((1, 63, 64, 3)), {"depths": (1, 2), "widths": (24, 48), "stem_width": 6}
        ...     logits, end_points = shufflenet(x, **sizes, num_classes=5)
        ...     list(end_points), end_points["stage3"].shape
        (['stem', 'stage2', 'stage3', 'pooled', 'logits'], TensorShape([1, 4, 4, 48]))
    """
    c = {name: value for name, value in locals().items() if name in CHECKS}
    c = check_keywords(c, "shufflenet")
    check_graph()
    check_is_training(is_training)
    x = graph_input(images, c["in_channels"], "images")
    if x.dtype not in (tf.float32, tf.float64):
        raise ValueError(f"images of dtype {x.dtype.name}, expected float32 or float64")
    bn, bias = make_norm(c, is_training), c["norm"] in WITH_BIAS
    names = ("groups", "shuffle_after", "shuffle_view", "concat_order", "count_padding", "attention_on")
    of_units: dict[str, Any] = {name: c[name] for name in names} | {"norm": bn, "bias": bias}
    end_points: dict[str, tf.Tensor] = {}

    with open_network(CONFIG_COLLECTION, c, scope, reuse):
        x = conv2d(x, c["stem_width"], 3, 2, bias=bias, scope="conv1")
        end_points["stem"] = x = max_pool(tf.nn.relu(bn(x, scope="bn1")), "pad1")
        for stage, (depth, width) in enumerate(zip(c["depths"], c["widths"], strict=True)):
            gate = make_attention(stage, c, is_training)
            for index in range(depth):
                unit, first = f"stage{stage + 2}_{index}", None if stage or index else 1
                stride = 1 if index else 2
                x = shuffle_unit(x, width, stride, first_groups=first, attention=gate, scope=unit, **of_units)
            end_points[f"stage{stage + 2}"] = x
        end_points["pooled"] = x = pool_globally(x, "avg")
        if is_training and c["dropout"] > 0:
            x = tf.nn.dropout(x, rate=c["dropout"])
        end_points["logits"] = make_head(x, c["num_classes"], c["head_bias"], scope="fc")
    return end_points["logits"], end_points


network = shufflenet  # the name in `models.py`, the same in the three folders
