"""VGG with batch normalisation, and with SE, CBAM or ECA after each ReLU, in PyTorch.

VGG: https://arxiv.org/abs/1409.1556   SE in plain networks: https://arxiv.org/abs/1709.01507, section 3

    images (N, 3, H, W) -> stage1 ... stage5 -> average pool to 7x7 -> classifier -> logits (N, num_classes)

Parameter names are torchvision's. Read it beside the same file in `keras_impl` and `tf1_compat`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import make_attention, make_head, make_norm
from .layers import conv2d
from .live import Network, settings
from .recompute import recomputed


class Rectified(nn.Module):
    """A ReLU and the attention after it, under its name: `features.2.se`."""

    def __init__(self, name: str, attention: nn.Module):
        super().__init__()
        self.add_module(name, attention)
        self.attention = name

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.attention)(F.relu(x, inplace=True))


class VGG(Network):
    """VGG with batch normalisation. Input (N, C, H, W) float, output logits (N, num_classes).

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
        >>> import torch
        >>> model = VGG(depths=(1, 1), widths=(8, 16), head_width=32, num_classes=4, attention="se").eval()
        >>> {name: tuple(x.shape) for name, x in model.forward_features(torch.zeros(1, 3, 30, 32)).items()}
        {'stage1': (1, 8, 15, 16), 'stage2': (1, 16, 7, 8), 'pooled': (1, 784), 'logits': (1, 4)}
    """

    kind = "vgg"
    head, entrance = "classifier.6", "features.0"

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
    ):
        super().__init__({k: value for k, value in locals().items() if k not in ("self", "__class__")})
        c = self.config
        channels, norm = c["in_channels"], c["norm"]
        self.features, self.stage_ends, self.feature_info = nn.Sequential(), [], []
        for stage, (depth, width) in enumerate(zip(c["depths"], c["widths"], strict=True)):
            for _ in range(depth):
                self.features.append(conv2d(channels, width, 3, bias=norm != "bn"))
                if norm != "bias":
                    self.features.append(make_norm(c)(width))
                gate = make_attention(width, stage, c)
                self.features.append(nn.ReLU(inplace=True) if gate is None else Rectified(*gate))
                channels = width
            last = f"features.{len(self.features) - 1}"
            self.feature_info.append({"num_chs": width, "reduction": 2**stage, "module": last})
            self.features.append(nn.MaxPool2d(2))
            self.stage_ends.append(len(self.features))
        last = f"features.{len(self.features) - 1}"
        self.feature_info.append(
            {"num_chs": channels, "reduction": 2 ** len(self.stage_ends), "module": last}
        )
        self.pool_size = c["pool_size"]
        self.classifier = nn.Sequential(
            nn.Linear(channels * self.pool_size**2, c["head_width"]),
            nn.ReLU(inplace=True),
            nn.Dropout(c["dropout"]),
            nn.Linear(c["head_width"], c["head_width"]),
            nn.ReLU(inplace=True),
            nn.Dropout(c["dropout"]),
            make_head(c["head_width"], c["num_classes"], c["head_bias"]),
        )
        self.num_features = c["head_width"]
        self._made = settings(self)

    def stages(self) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
        """Each stage by name, as a function of the previous stage's output."""
        start = 0
        for number, end in enumerate(self.stage_ends, 1):
            stage = self.features[start:end]
            yield f"stage{number}", recomputed([stage]) if self.recomputes() else stage.forward
            start = end
        yield "pooled", lambda x: F.adaptive_avg_pool2d(x, self.pool_size).flatten(1)
        yield "logits", self.classifier

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        """Every stage's output: `stage1` ..., `pooled` (N, C * 7 * 7) and `logits` (N, num_classes)."""
        self.check_input(x)
        features = {}
        for name, stage in self.stages():
            features[name] = x = stage(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        for _, stage in self.stages():
            x = stage(x)
        return x


network = VGG  # the name in `models.py`, the same in the three folders
