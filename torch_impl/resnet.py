"""ResNet v1.5, ResNeXt, SE-ResNet(Xt), SENet-154, CBAM-ResNet and ECA-ResNet in PyTorch.

ResNet: https://arxiv.org/abs/1512.03385 (v1.5: the stride is on the 3x3, `stride_in="conv2"`)
ResNeXt: https://arxiv.org/abs/1611.05431   SE and SENet-154: https://arxiv.org/abs/1709.01507

    images (N, 3, H, W) -> stem -> layer1 ... layer4 -> mean over H, W -> fc -> logits (N, num_classes)

Parameter names are torchvision's. Read it beside the same file in `keras_impl` and `tf1_compat`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Bottleneck, conv2d, make_head, make_norm, make_stage
from .live import Network, settings


class MaxPoolSame(nn.Module):
    """Max-pool 3x3, stride 2, with TensorFlow's SAME padding, which pads even sizes at the end only."""

    def forward(self, x: Tensor) -> Tensor:
        (top, bottom), (left, right) = ((size % 2, 1) for size in x.shape[2:])
        return F.max_pool2d(F.pad(x, (left, right, top, bottom), value=float("-inf")), 3, 2)


_STEM_POOLS: dict[str, Callable[[], nn.Module]] = {
    "pad1": partial(nn.MaxPool2d, 3, 2, padding=1),
    "ceil": partial(nn.MaxPool2d, 3, 2, ceil_mode=True),
    "same": MaxPoolSame,
    "none": nn.Identity,
}


class ResNet(Network):
    """A residual network with SE, CBAM, ECA or no attention. Input (N, C, H, W) float, output logits.

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
    stem_pools = _STEM_POOLS

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
    ):
        c = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__(c)
        c = self.config
        names = ("block", "depths", "width", "stem", "stem_width", "stem_pool", "norm")
        block, depths, width, stem, stem_width, stem_pool, norm = (c[name] for name in names)
        bn, bias = make_norm(c), norm != "bn"

        kernel_size, stride = {"7x7": (7, 2), "deep": (3, 2), "deep_tiered": (3, 2), "3x3": (3, 1)}[stem]
        first = 3 * (stem_width // 4) if stem == "deep_tiered" else stem_width
        self.conv1, self.bn1 = conv2d(c["in_channels"], first, kernel_size, stride, bias=bias), bn(first)
        self.deep_stem, channels = stem in ("deep", "deep_tiered"), stem_width
        if self.deep_stem:
            channels = 2 * stem_width
            self.conv2, self.bn2 = conv2d(first, stem_width, 3, bias=bias), bn(stem_width)
            self.conv3, self.bn3 = conv2d(stem_width, channels, 3, bias=bias), bn(channels)
        self.maxpool = _STEM_POOLS[stem_pool or ("none" if stem == "3x3" else "pad1")]()

        self.stage_names = [f"layer{stage + 1}" for stage in range(len(depths))]
        for stage, name in enumerate(self.stage_names):
            self.add_module(name, make_stage(channels, stage, c))
            channels = width * 2**stage * (Bottleneck.expansion if block == "bottleneck" else 1)
        self.dropout = nn.Dropout(c["dropout"])
        self.num_features = channels
        self.fc = make_head(channels, c["num_classes"])
        self._made = settings(self)

    def forward_stem(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        if self.deep_stem:
            x = F.relu(self.bn2(self.conv2(x)), inplace=True)
            x = F.relu(self.bn3(self.conv3(x)), inplace=True)
        return self.maxpool(x)

    def stages(self) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
        """Each stage by name, as a function of the previous stage's output."""
        yield "stem", self.forward_stem
        for name in self.stage_names:
            yield name, self.get_submodule(name)
        yield "pooled", lambda x: x.mean((2, 3))
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
