"""ResNet v1.5, ResNeXt, SE-ResNet(Xt), SENet-154, CBAM-, ECA- and SK-ResNet in PyTorch.

ResNet: https://arxiv.org/abs/1512.03385 (v1.5: the stride is on the 3x3, `stride_in="conv2"`)
ResNeXt: https://arxiv.org/abs/1611.05431   SE and SENet-154: https://arxiv.org/abs/1709.01507

    images (N, 3, H, W) -> stem -> layer1 ... layer4 -> mean over H, W -> fc -> logits (N, num_classes)

Parameter names are torchvision's. Read it beside the same file in `keras_impl` and `tf1_compat`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from .blocks import Bottleneck, make_head, make_norm, make_stage
from .keywords import WITH_BIAS, stage_steps
from .layers import STEM_POOLS, Activation, anti_aliasing_pool, conv2d, pool_globally
from .live import Network, settings
from .recompute import recomputed


class ResNet(Network):
    """A residual network with SE, CBAM, ECA, SK or no attention. Input (N, C, H, W) float, output logits.

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

    Raises:
        ValueError: an argument is invalid.

    Example:
        >>> import torch, torch_impl
        >>> model = torch_impl.se_resnet20().eval()
        >>> features = model.forward_features(torch.zeros(1, 3, 32, 32))
        >>> list(features), tuple(features["layer3"].shape)
        (['stem', 'layer1', 'layer2', 'layer3', 'pooled', 'logits'], (1, 64, 8, 8))
    """

    kind = "resnet"
    head, entrance = "fc", "conv1"
    stem_pools = STEM_POOLS

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
    ):
        c = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__(c)
        c = self.config
        names = ("block", "depths", "width", "stem", "stem_width", "norm")
        block, depths, width, stem, stem_width, norm = (c[name] for name in names)
        bn, bias, act = make_norm(c), norm in WITH_BIAS, partial(Activation, c["activation"])
        self.global_pool = c["global_pool"]

        kernel_size, stride = {"7x7": (7, 2), "deep": (3, 2), "deep_tiered": (3, 2), "3x3": (3, 1)}[stem]
        first = 3 * (stem_width // 4) if stem == "deep_tiered" else stem_width
        self.conv1, self.bn1 = conv2d(c["in_channels"], first, kernel_size, stride, bias=bias), bn(first)
        self.act1 = act()  # modules, because torchvision's IntermediateLayerGetter runs nothing else
        self.deep_stem, channels = stem in ("deep", "deep_tiered"), stem_width
        if self.deep_stem:
            channels = 2 * stem_width
            self.conv2, self.bn2 = conv2d(first, stem_width, 3, bias=bias), bn(stem_width)
            self.act2 = act()
            self.conv3, self.bn3 = conv2d(stem_width, channels, 3, bias=bias), bn(channels)
            self.act3 = act()
        reduction, last = stride, "act3" if self.deep_stem else "act1"
        self.feature_info = [{"num_chs": channels, "reduction": reduction, "module": last}]
        self._add_stem_pool(channels)
        reduction *= 1 if isinstance(self.maxpool, nn.Identity) and not self.stem_convolves else 2

        self.stage_names = [f"layer{stage + 1}" for stage in range(len(depths))]
        for stage, name in enumerate(self.stage_names):
            self.add_module(name, make_stage(channels, stage, c))
            channels = width * 2**stage * (Bottleneck.expansion if block == "bottleneck" else 1)
            reduction *= stage_steps(stage, c)[0]
            self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": name})
        self.dropout = nn.Dropout(c["dropout"])
        self.num_features = channels * (2 if self.global_pool == "catavgmax" else 1)
        self.fc = make_head(self.num_features, c["num_classes"], c["head_bias"])
        self._made = settings(self)

    def _add_stem_pool(self, channels: int) -> None:
        """Add `maxpool`, or for "conv" a convolution `pool_conv` and its norm `pool_bn` before it."""
        c = self.config
        rule = c["stem_pool"] or ("none" if c["stem"] == "3x3" else "pad1")
        blurs = c["anti_aliasing"] != "none" and rule != "none"
        self.stem_convolves = rule == "conv"
        if rule == "conv":
            self.pool_conv = conv2d(channels, channels, 3, 1 if blurs else 2, bias=c["norm"] in WITH_BIAS)
        self.maxpool: nn.Module = nn.Identity() if rule == "conv" else STEM_POOLS[rule]()
        if blurs:
            self.maxpool = anti_aliasing_pool(c["anti_aliasing"], 2)
            if rule == "pad1" and c["anti_aliasing"] == "blur":
                self.maxpool = nn.Sequential(nn.MaxPool2d(3, 1, 1), self.maxpool)
        if rule == "conv":
            self.pool_bn, self.pool_act = make_norm(c)(channels), Activation(c["activation"])

    def forward_stem(self, x: Tensor) -> Tensor:
        self.check_input(x)
        x = self.act1(self.bn1(self.conv1(x)))
        if self.deep_stem:
            x = self.act2(self.bn2(self.conv2(x)))
            x = self.act3(self.bn3(self.conv3(x)))
        if self.stem_convolves:
            return self.pool_act(self.pool_bn(self.maxpool(self.pool_conv(x))))
        return self.maxpool(x)

    def stages(self) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
        """Each stage by name, as a function of the previous stage's output."""
        yield "stem", self.forward_stem
        for name in self.stage_names:
            stage: Any = self.get_submodule(name)
            yield name, recomputed(stage) if self.recomputes() else stage
        yield "pooled", lambda x: pool_globally(x, self.global_pool)
        yield "logits", lambda x: self.fc(self.dropout(x))

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        """Every stage's output: `stem`, `layer1` ..., `pooled` (N, C) and `logits` (N, num_classes)."""
        features = {}
        for name, stage in self.stages():
            features[name] = x = stage(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        for _, stage in self.stages():  # forward_features would keep every stage's output in memory
            x = stage(x)
        return x


network = ResNet  # the name in `models.py`, the same in the three folders
