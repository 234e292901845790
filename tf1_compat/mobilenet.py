"""MobileNetV1, and with SE, CBAM or ECA after each pointwise convolution, as a TensorFlow 1 graph function.

MobileNetV1: https://arxiv.org/abs/1704.04861, table 1   SE-MobileNet: https://arxiv.org/abs/1709.01507

    images (N, H, W, 3) -> stem -> stage1 ... stage5 -> mean over H, W -> fc -> logits (N, num_classes)

Variables are named by their scopes: `stage4_1/conv1/kernel`. Read it beside the same file in `torch_impl` and
`keras_impl`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow.compat.v1 as tf

from .attention import batch_norm, check_graph, check_is_training, graph_input
from .blocks import make_attention, make_head, make_norm, open_network
from .keywords import CHECKS, WITH_BIAS, check_keywords
from .layers import ACTIVATIONS, conv2d, depthwise_conv2d, pool_globally

CONFIG_COLLECTION = "mobilenet_config"  # one JSON text per network of a graph: its scope and its keywords
PADDINGS = {  # value of `stride_padding` -> padding of the stem's and of the units' strided convolutions
    "pad1": ("pad1", "pad1"),
    "same": ("same", "same"),
    "keras": ("same", "end"),
}


def separable(
    x: tf.Tensor,
    outputs: int,
    stride: int = 1,
    *,
    padding: str = "pad1",
    activation: str = "relu",
    norm: Callable[..., tf.Tensor] = batch_norm,
    bias: bool = False,
    attention: Callable[[tf.Tensor], tf.Tensor] | None = None,
    scope: str,
) -> tf.Tensor:
    """A 3x3 convolution of each channel and a 1x1 convolution of all, arXiv 1704.04861 fig. 3 right.

    Input and output: (N, H, W, C), (N, H / stride, W / stride, outputs).

    Args:
        outputs: channels of the output.
        stride: of the 3x3 convolution.
        padding: of that convolution, see `pad_strided`.
        activation: after each batch normalisation.
        norm: batch normalisation, called with `scope`.
        bias: whether the convolutions have biases.
        attention: maps (N, H, W, C) to the same shape.

    Example:
        >>> with tf.Graph().as_default():
        ...     separable(tf.zeros((2, 8, 8, 32)), 64, 2, scope="unit").shape
        TensorShape([2, 4, 4, 64])
    """
    act = ACTIVATIONS[activation]
    with tf.variable_scope(scope):
        x = depthwise_conv2d(x, 3, stride, padding=padding, bias=bias, scope="conv1")
        x = act(norm(x, scope="bn1"))
        x = act(norm(conv2d(x, outputs, 1, bias=bias, scope="conv2"), scope="bn2"))
        return x if attention is None else attention(x)


def mobilenet(
    images: tf.Tensor,
    is_training: bool = False,
    *,
    scope: str | None = None,
    reuse: bool | None = None,
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
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """MobileNetV1.

    Each stage but the first begins with a unit of stride 2; see `separable`.

    Args:
        images: (N, H, W, C) with known C, a tensor or NumPy array; the variables have its dtype, float32 or
            float64.
        is_training: a Python bool. Training uses batch statistics and dropout, and adds the updates of the
            running statistics to `tf.GraphKeys.UPDATE_OPS`.
        scope: variable scope; None for names without a prefix.
        reuse: as in `tf.variable_scope`; two calls under `tf.AUTO_REUSE` share variables.
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
            cbam_spatial_bias, cbam_spatial_input: see `squeeze_excitation` and `cbam`.
        eca_kernel_sizes, eca_padding: one odd size per stage, None for the paper's rule; see `eca`.
        bn_epsilon, bn_momentum: of every batch normalisation; the momentum weighs the new batch.
        dropout: probability before `fc`, below 1.
        num_classes: of the classifier `fc`; 0 for none, the output is then `pooled`.
        head_bias: whether `fc` has a bias.

    Returns:
        logits (N, num_classes), and the end points: `stem`, `stage1` ..., `pooled` (N, C), `logits`.

    Raises:
        ValueError: an argument is invalid, `images` has another number of channels, or the scope already
            holds a network.
        RuntimeError: called in eager mode or in `tf.function`.
        TypeError: `is_training` is not a Python bool.

    Example:
        >>> with tf.Graph().as_default():
        ...     x = tf.zeros((1, 31, 32, 3))
        ...     logits, end_points = mobilenet(x, depths=(1, 1), widths=(8, 16), stem_width=4, num_classes=5)
        ...     list(end_points), end_points["stage2"].shape
        (['stem', 'stage1', 'stage2', 'pooled', 'logits'], TensorShape([1, 8, 8, 16]))
    """
    c = {name: value for name, value in locals().items() if name in CHECKS}
    c = check_keywords(c, "mobilenet")
    check_graph()
    check_is_training(is_training)
    x = graph_input(images, c["in_channels"], "images")
    if x.dtype not in (tf.float32, tf.float64):
        raise ValueError(f"images of dtype {x.dtype.name}, expected float32 or float64")
    bn, bias = make_norm(c, is_training), c["norm"] in WITH_BIAS
    first, others = PADDINGS[c["stride_padding"]]
    of_units = {"padding": others, "activation": c["activation"], "norm": bn, "bias": bias}
    end_points: dict[str, tf.Tensor] = {}

    with open_network(CONFIG_COLLECTION, c, scope, reuse):
        x = conv2d(x, c["stem_width"], 3, 2, padding=first, bias=bias, scope="conv1")
        end_points["stem"] = x = ACTIVATIONS[c["activation"]](bn(x, scope="bn1"))
        for stage, (depth, width) in enumerate(zip(c["depths"], c["widths"], strict=True)):
            gate = make_attention(stage, c, is_training)
            for index in range(depth):
                step, unit = 2 if stage and not index else 1, f"stage{stage + 1}_{index}"
                x = separable(x, width, step, attention=gate, scope=unit, **of_units)
            end_points[f"stage{stage + 1}"] = x
        end_points["pooled"] = x = pool_globally(x, "avg")
        if is_training and c["dropout"] > 0:
            x = tf.nn.dropout(x, rate=c["dropout"])
        end_points["logits"] = make_head(x, c["num_classes"], c["head_bias"], scope="fc")
    return end_points["logits"], end_points


network = mobilenet  # the name in `models.py`, the same in the three folders
