"""VGG with batch normalisation, and with SE, CBAM or ECA after each ReLU, as a TensorFlow 1 graph function.

VGG: https://arxiv.org/abs/1409.1556   SE in plain networks: https://arxiv.org/abs/1709.01507, section 3

    images (N, H, W, 3) -> stage1 ... stage5 -> average pool to 7x7 -> classifier -> logits (N, num_classes)

Variables are named by their scopes: `features_0/kernel`. Read it beside the same file in `torch_impl` and
`keras_impl`.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow.compat.v1 as tf

from .attention import check_graph, check_is_training, dense, graph_input
from .blocks import make_attention, make_head, make_norm, open_network
from .keywords import CHECKS, check_keywords
from .layers import adaptive_average_pool, conv2d

CONFIG_COLLECTION = "vgg_config"  # one JSON text per network of a graph: its scope and its keywords


def vgg(
    images: tf.Tensor,
    is_training: bool = False,
    *,
    scope: str | None = None,
    reuse: bool | None = None,
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
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """VGG with batch normalisation.

    Each convolution is 3x3; batch normalisation, ReLU and attention follow it. A 2x2 max-pool ends a stage.

    Args:
        images: (N, H, W, C) with known C, a tensor or NumPy array; the variables have its dtype, float32 or
            float64.
        is_training: a Python bool. Training uses batch statistics and dropout, and adds the updates of the
            running statistics to `tf.GraphKeys.UPDATE_OPS`.
        scope: variable scope; None for names without a prefix.
        reuse: as in `tf.variable_scope`; two calls under `tf.AUTO_REUSE` share variables.
        depths: convolutions per stage.
        widths: channels per stage.
        norm: after each convolution: batch normalisation ("bn"), a bias and batch normalisation ("bias_bn"),
            or a bias ("bias": batch normalisation folded in).
        attention: "none", "se", "cbam" or "eca".
        reduction, hidden_rule: of the attention's MLP.
        se_bias, cbam_mlp_bias, cbam_order, cbam_kernel_size, cbam_bn, cbam_bn_momentum,
            cbam_spatial_bias, cbam_spatial_input: see `squeeze_excitation` and `cbam`.
        eca_kernel_sizes, eca_padding: one odd size per stage, None for the paper's rule; see `eca`.
        pool_size: rows and columns of the average pool before the classifier.
        head_width: of the two hidden layers of the classifier.
        bn_epsilon, bn_momentum: of every batch normalisation; the momentum weighs the new batch.
        dropout: probability after each hidden layer of the classifier, below 1.
        num_classes: of the last layer; 0 for none, the output is then the last hidden layer.
        head_bias: whether the last layer has a bias.

    Returns:
        logits (N, num_classes), and the end points: `stage1` ..., `pooled` (N, C * 7 * 7), `logits`.

    Raises:
        ValueError: an argument is invalid, `images` has another number of channels, or the scope already
            holds a network.
        RuntimeError: called in eager mode or in `tf.function`.
        TypeError: `is_training` is not a Python bool.

    Example:
        >>> with tf.Graph().as_default():
        ...     x = tf.zeros((1, 30, 32, 3))
        ...     logits, end_points = vgg(x, depths=(1, 1), widths=(8, 16), head_width=32, num_classes=4)
        ...     {name: tuple(x.shape.as_list()) for name, x in end_points.items()}
        {'stage1': (1, 15, 16, 8), 'stage2': (1, 7, 8, 16), 'pooled': (1, 784), 'logits': (1, 4)}
    """
    c = {name: value for name, value in locals().items() if name in CHECKS}
    c = check_keywords(c, "vgg")
    check_graph()
    check_is_training(is_training)
    x = graph_input(images, c["in_channels"], "images")
    if x.dtype not in (tf.float32, tf.float64):
        raise ValueError(f"images of dtype {x.dtype.name}, expected float32 or float64")
    bn, layer = make_norm(c, is_training), 0
    end_points: dict[str, tf.Tensor] = {}

    with open_network(CONFIG_COLLECTION, c, scope, reuse):
        for stage, (depth, width) in enumerate(zip(c["depths"], c["widths"], strict=True)):
            gate = make_attention(stage, c, is_training)
            for _ in range(depth):
                x = conv2d(x, width, 3, bias=c["norm"] != "bn", scope=f"features_{layer}")
                x = tf.nn.relu(bn(x, scope=f"features_{layer + 1}"))
                layer += 2 if c["norm"] == "bias" else 3  # a convolution, its batch norm, the ReLU
                if gate is not None:
                    with tf.variable_scope(f"features_{layer - 1}"):
                        x = gate(x)
            end_points[f"stage{stage + 1}"] = x = tf.nn.max_pool2d(x, 2, 2, "VALID")
            layer += 1
        # flat in the order (C, H, W), so that the weights of the classifier are PyTorch's, transposed
        width = int(x.shape[-1]) * c["pool_size"] ** 2
        end_points["pooled"] = x = tf.reshape(adaptive_average_pool(x, c["pool_size"]), (-1, width))
        for number in (0, 3):
            x = tf.nn.relu(dense(x, c["head_width"], scope=f"classifier_{number}"))
            if is_training and c["dropout"] > 0:
                x = tf.nn.dropout(x, rate=c["dropout"])
        end_points["logits"] = make_head(x, c["num_classes"], c["head_bias"], scope="classifier_6")
    return end_points["logits"], end_points


network = vgg  # the name in `models.py`, the same in the three folders
