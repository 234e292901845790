"""MobileNetV1, and with SE, CBAM or ECA after each pointwise convolution, in PyTorch.

MobileNetV1: https://arxiv.org/abs/1704.04861, table 1   SE-MobileNet: https://arxiv.org/abs/1709.01507

    images (N, 3, H, W) -> stem -> stage1 ... stage5 -> mean over H, W -> fc -> logits (N, num_classes)

Read it beside the same file in `keras_impl` and `tf1_compat`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from .blocks import make_attention, make_head, make_norm
from .keywords import WITH_BIAS
from .layers import (
    ACTIVATIONS,
    Activation,
    conv2d,
    depthwise_conv2d,
    pool_globally,
    refuse_script,
    strided_conv2d,
)
from .live import Network, settings
from .recompute import recomputed

PADDINGS = {  # value of `stride_padding` -> padding of the stem's and of the units' strided convolutions
    "pad1": ("pad1", "pad1"),
    "same": ("same", "same"),
    "keras": ("same", "end"),
}


class Separable(nn.Module):
    """A 3x3 convolution of each channel and a 1x1 convolution of all, arXiv 1704.04861 fig. 3 right.

    Input and output: (N, inputs, H, W), (N, outputs, H / stride, W / stride).

    Args:
        inputs, outputs: channels.
        stride: of the 3x3 convolution.
        padding: of that convolution, see `strided_conv2d`.
        activation: after each batch normalisation.
        norm: channels -> batch normalisation.
        bias: whether the convolutions have biases.
        attention: name in the unit and module, such as ("se", SqueezeExcitation(64)).

    Example:
        >>> import torch
        >>> Separable(32, 64, 2)(torch.zeros(2, 32, 8, 8)).shape
        torch.Size([2, 64, 4, 4])
    """

    __prepare_scriptable__ = refuse_script

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 1,
        *,
        padding: str = "pad1",
        activation: str = "relu",
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        bias: bool = False,
        attention: tuple[str, nn.Module] | None = None,
    ):
        super().__init__()
        self.conv1 = depthwise_conv2d(inputs, 3, stride, padding=padding, bias=bias)
        self.bn1 = norm(inputs)
        self.conv2, self.bn2 = conv2d(inputs, outputs, 1, bias=bias), norm(outputs)
        self.activation, self.attention = activation, "" if attention is None else attention[0]
        if attention is not None:
            self.add_module(*attention)

    def act(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv1(x)))
        x = self.act(self.bn2(self.conv2(x)))
        return self.get_submodule(self.attention)(x) if self.attention else x


class MobileNet(Network):
    """MobileNetV1. Input (N, C, H, W) float, output logits (N, num_classes).

    Each stage but the first begins with a unit of stride 2; see `Separable`.

    Args:
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
            cbam_spatial_bias, cbam_spatial_input: see `SqueezeExcitation` and `CBAM`.
        eca_kernel_sizes, eca_padding: one odd size per stage, None for the paper's rule; see `ECA`.
        bn_epsilon, bn_momentum: of every batch normalisation; the momentum weighs the new batch.
        dropout: probability before `fc`, below 1.
        num_classes: of the classifier `fc`; 0 for none, the output is then `pooled`.
        head_bias: whether `fc` has a bias.

    Raises:
        ValueError: an argument is invalid.

    Example:
        >>> import torch
        >>> model = MobileNet(depths=(1, 1), widths=(8, 16), stem_width=4, num_classes=5, attention="se")
        >>> features = model.eval().forward_features(torch.zeros(1, 3, 31, 32))
        >>> list(features), tuple(features["stage2"].shape)
        (['stem', 'stage1', 'stage2', 'pooled', 'logits'], (1, 16, 8, 8))
    """

    kind = "mobilenet"
    head, entrance = "fc", "conv1"

    def __init__(
        self,
        *,
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
    ):
        super().__init__({k: value for k, value in locals().items() if k not in ("self", "__class__")})
        c = self.config
        bn, bias, (first, others) = make_norm(c), c["norm"] in WITH_BIAS, PADDINGS[c["stride_padding"]]
        channels, steps = c["stem_width"], 2
        self.conv1 = strided_conv2d(c["in_channels"], channels, 3, 2, padding=first, bias=bias)
        self.bn1, self.act1 = bn(channels), Activation(c["activation"])
        self.feature_info = [{"num_chs": channels, "reduction": steps, "module": "act1"}]
        self.stage_names = [f"stage{stage}" for stage in range(1, 1 + len(c["depths"]))]
        keywords = {"padding": others, "activation": c["activation"], "norm": bn, "bias": bias}
        for stage, name in enumerate(self.stage_names):
            units, width, stride = nn.Sequential(), c["widths"][stage], 1 if stage == 0 else 2
            for index in range(c["depths"][stage]):
                step = 1 if index else stride
                gate = make_attention(width, stage, c)
                units.append(Separable(channels, width, step, attention=gate, **keywords))
                channels = width
            self.add_module(name, units)
            steps *= stride
            self.feature_info.append({"num_chs": width, "reduction": steps, "module": name})
        self.dropout, self.num_features = nn.Dropout(c["dropout"]), channels
        self.fc = make_head(channels, c["num_classes"], c["head_bias"])
        self._made = settings(self)

    def forward_stem(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return self.act1(self.bn1(self.conv1(x)))

    def stages(self) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
        """Each stage by name, as a function of the previous stage's output."""
        yield "stem", self.forward_stem
        for name in self.stage_names:
            stage: Any = self.get_submodule(name)
            yield name, recomputed(stage) if self.recomputes() else stage
        yield "pooled", lambda x: pool_globally(x, "avg")
        yield "logits", lambda x: self.fc(self.dropout(x))

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        """Every stage's output: `stem`, `stage1` ..., `pooled` (N, C) and `logits` (N, num_classes)."""
        features = {}
        for name, stage in self.stages():
            features[name] = x = stage(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        for _, stage in self.stages():  # forward_features would keep every stage's output in memory
            x = stage(x)
        return x


network = MobileNet  # the name in `models.py`, the same in the three folders
