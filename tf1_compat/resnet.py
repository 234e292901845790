"""ResNet v1.5, ResNeXt, SE-ResNet(Xt), SENet-154, CBAM-, ECA- and SK-ResNet as TensorFlow 1 graph functions.

ResNet: https://arxiv.org/abs/1512.03385 (v1.5: the stride is on the 3x3, `stride_in="conv2"`)
ResNeXt: https://arxiv.org/abs/1611.05431   SE and SENet-154: https://arxiv.org/abs/1709.01507

    images (N, H, W, 3) -> stem -> layer1 ... layer4 -> mean over H, W -> fc -> logits (N, num_classes)

Variables are named by their scopes: `layer1_0/conv1/kernel`. Read it beside the same file in `torch_impl` and
`keras_impl`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import tensorflow.compat.v1 as tf

from .attention import check_graph, check_is_training, graph_input
from .blocks import make_head, make_norm, make_stage, open_network
from .keywords import CHECKS, WITH_BIAS, check_keywords
from .layers import ACTIVATIONS, anti_aliasing_pool, conv2d, pool_globally, pool_stem

CONFIG_COLLECTION = "resnet_config"  # one JSON text per network of a graph: its scope and its keywords


def resnet(
    images: tf.Tensor,
    is_training: bool = False,
    *,
    scope: str | None = None,
    reuse: bool | None = None,
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
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """A residual network with SE, CBAM, ECA, SK or no attention.

    Args:
        images: (N, H, W, C) with known C, a tensor or NumPy array; the variables have its dtype, float32 or
            float64.
        is_training: a Python bool. Training uses batch statistics and dropout, and adds the updates of the
            running statistics to `tf.GraphKeys.UPDATE_OPS`.
        scope: variable scope; None for names without a prefix.
        reuse: as in `tf.variable_scope`; two calls under `tf.AUTO_REUSE` share variables.
        block: "bottleneck" or "basic".
        depths: blocks per stage.
        width: nominal width of layer1, doubled in each further stage.
        groups, width_per_group, reduce_first, stride_in: see `bottleneck`.
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
            cbam_spatial_bias, cbam_spatial_input: see `squeeze_excitation` and `cbam`.
        sk_min_hidden, sk_split: see `selective_kernel`; `reduction` is its too.
        eca_kernel_sizes, eca_padding: one odd size per stage, None for the paper's rule; see `eca`.
        relu_before_attention: see `attention_and_shortcut`.
        bn_epsilon, bn_momentum: of every batch normalisation; the momentum weighs the new batch.
        global_pool: "avg", "max", "avgmax" (half their sum) or "catavgmax" (the one after the other).
        dropout: probability before `fc`, below 1.
        num_classes: of the classifier `fc`; 0 for none, the output is then `pooled`.
        head_bias: whether `fc` has a bias.

    Returns:
        logits (N, num_classes), and the end points: `stem`, `layer1` ..., `pooled` (N, C), `logits`.

    Raises:
        ValueError: an argument is invalid, `images` has another number of channels, or the scope already
            holds a network.
        RuntimeError: called in eager mode or in `tf.function`.
        TypeError: `is_training` is not a Python bool.

    Example:
        >>> import tf1_compat
        >>> with tf.Graph().as_default():
        ...     logits, end_points = tf1_compat.se_resnet20(tf.zeros((1, 32, 32, 3)), scope="net")
        ...     list(end_points), tf.trainable_variables()[0].name
        (['stem', 'layer1', 'layer2', 'layer3', 'pooled', 'logits'], 'net/conv1/kernel:0')
    """
    c = {name: value for name, value in locals().items() if name in CHECKS}
    c = check_keywords(c, "resnet")
    check_graph()
    names = ("depths", "stem", "stem_width", "norm", "anti_aliasing")
    depths, stem, stem_width, norm, anti_aliasing = (c[name] for name in names)
    check_is_training(is_training)
    images = graph_input(images, c["in_channels"], "images")
    if images.dtype not in (tf.float32, tf.float64):
        raise ValueError(f"images of dtype {images.dtype.name}, expected float32 or float64")
    conv, bn = partial(conv2d, bias=norm in WITH_BIAS), make_norm(c, is_training)
    act = ACTIVATIONS[c["activation"]]
    end_points: dict[str, tf.Tensor] = {}

    with open_network(CONFIG_COLLECTION, c, scope, reuse):
        kernel_size, stride = {"7x7": (7, 2), "deep": (3, 2), "deep_tiered": (3, 2), "3x3": (3, 1)}[stem]
        first = 3 * (stem_width // 4) if stem == "deep_tiered" else stem_width
        x = act(bn(conv(images, first, kernel_size, stride, scope="conv1"), scope="bn1"))
        if stem in ("deep", "deep_tiered"):
            x = act(bn(conv(x, stem_width, 3, scope="conv2"), scope="bn2"))
            x = act(bn(conv(x, 2 * stem_width, 3, scope="conv3"), scope="bn3"))
        rule = c["stem_pool"] or ("none" if stem == "3x3" else "pad1")
        if rule == "conv":  # in place of the pool
            x = conv(x, int(x.shape[-1]), 3, 2 if anti_aliasing == "none" else 1, scope="pool_conv")
            x = x if anti_aliasing == "none" else anti_aliasing_pool(x, anti_aliasing, 2)
            x = act(bn(x, scope="pool_bn"))
        else:
            x = pool_stem(x, rule, anti_aliasing)
        end_points["stem"] = x
        for stage in range(len(depths)):
            end_points[f"layer{stage + 1}"] = x = make_stage(x, stage, c, is_training)
        end_points["pooled"] = x = pool_globally(x, c["global_pool"])
        if is_training and c["dropout"] > 0:
            x = tf.nn.dropout(x, rate=c["dropout"])
        end_points["logits"] = make_head(x, c["num_classes"], c["head_bias"], scope="fc")
    return end_points["logits"], end_points


network = resnet  # the name in `models.py`, the same in the three folders
