"""ShuffleNetV1, and with SE, CBAM or ECA in each unit, in PyTorch.

ShuffleNet: https://arxiv.org/abs/1707.01083, fig. 2 and table 1   SE: https://arxiv.org/abs/1709.01507

    images (N, 3, H, W) -> stem -> stage2 ... stage4 -> mean over H, W -> fc -> logits (N, num_classes)

Read it beside the same file in `keras_impl` and `tf1_compat`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import make_attention, make_head, make_norm
from .keywords import WITH_BIAS, inner_width
from .layers import Activation, conv2d, depthwise_conv2d, pool_globally, refuse_script, shuffle_channels
from .live import Network, settings
from .recompute import recomputed


class ShuffleUnit(nn.Module):
    """Two 1x1 convolutions in groups, a shuffle, and a 3x3 convolution of each channel.

    Figure 2 of arXiv 1707.01083: with stride 1 the input is added (b), with stride 2 its 3x3 means are
    concatenated (c).

    Input and output: (N, inputs, H, W), (N, outputs, H / stride, W / stride).

    Args:
        inputs, outputs: channels; equal with stride 1.
        stride: of the 3x3 convolution.
        groups: of the last 1x1 convolution, and of the shuffle.
        first_groups: of the first 1x1 convolution; None for `groups`.
        shuffle_after, shuffle_view, concat_order, count_padding, attention_on: see `ShuffleNet`.
        norm: channels -> batch normalisation.
        bias: whether the convolutions have biases.
        attention: channels -> name in the unit and module, such as ("se", SqueezeExcitation(240)), or None.

    Example:
        >>> ShuffleUnit(24, 240, 2, first_groups=1)(torch.zeros(2, 24, 8, 8)).shape
        torch.Size([2, 240, 4, 4])
    """

    __prepare_scriptable__ = refuse_script

    def __init__(
        self,
        inputs: int,
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
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        bias: bool = False,
        attention: Callable[[int], tuple[str, nn.Module] | None] = lambda channels: None,  # noqa: ARG005
    ):
        super().__init__()
        self.stride, self.groups = stride, groups
        self.shuffle_after, self.shuffle_view, self.concat_order = shuffle_after, shuffle_view, concat_order
        inner, branch = inner_width(outputs), outputs - inputs if stride > 1 else outputs
        self.conv1 = conv2d(
            inputs, inner, 1, groups=groups if first_groups is None else first_groups, bias=bias
        )
        self.bn1 = norm(inner)
        self.conv2, self.bn2 = depthwise_conv2d(inner, 3, stride, bias=bias), norm(inner)
        self.conv3, self.bn3 = conv2d(inner, branch, 1, groups=groups, bias=bias), norm(branch)
        self.pool: nn.Module = nn.Identity()
        if stride > 1:
            self.pool = nn.AvgPool2d(3, 2, 1, count_include_pad=count_padding)
        gate = attention(branch if attention_on == "branch" else outputs)
        self.attention, self.attention_on = "" if gate is None else gate[0], attention_on
        if gate is not None:
            self.add_module(*gate)

    def attend(self, x: Tensor, place: str) -> Tensor:
        here = self.attention and self.attention_on == place
        return self.get_submodule(self.attention)(x) if here else x

    def shuffled(self, x: Tensor, after: str) -> Tensor:
        return shuffle_channels(x, self.groups, self.shuffle_view) if self.shuffle_after == after else x

    def forward(self, x: Tensor) -> Tensor:
        y = self.shuffled(F.relu(self.bn1(self.conv1(x)), inplace=True), "conv1")
        y = self.shuffled(self.bn2(self.conv2(y)), "conv2")
        y = self.attend(self.bn3(self.conv3(y)), "branch")
        if self.stride == 1:
            y = y + x
        else:
            parts = (y, self.pool(x))
            y = torch.cat(parts if self.concat_order == "branch_shortcut" else parts[::-1], 1)
        return self.attend(F.relu(y, inplace=True), "output")


class ShuffleNet(Network):
    """ShuffleNetV1. Input (N, C, H, W) float, output logits (N, num_classes).

    Each stage begins with a unit of stride 2; see `ShuffleUnit`. The paper counts the stages from 2.

    Args:
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
            cbam_spatial_bias, cbam_spatial_input: see `SqueezeExcitation` and `CBAM`.
        eca_kernel_sizes, eca_padding: one odd size per stage, None for the paper's rule; see `ECA`.
        bn_epsilon, bn_momentum: of every batch normalisation; the momentum weighs the new batch.
        dropout: probability before `fc`, below 1.
        num_classes: of the classifier `fc`; 0 for none, the output is then `pooled`.
        head_bias: whether `fc` has a bias.

    Raises:
        ValueError: an argument is invalid.

    Example:
        >>> model = ShuffleNet(depths=(1, 2), widths=(24, 48), stem_width=6, num_classes=5, attention="se")
        >>> features = model.eval().forward_features(torch.zeros(1, 3, 63, 64))
        >>> list(features), tuple(features["stage3"].shape)
        (['stem', 'stage2', 'stage3', 'pooled', 'logits'], (1, 48, 4, 4))
    """

    kind = "shufflenet"
    head, entrance = "fc", "conv1"

    def __init__(
        self,
        *,
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
    ):
        super().__init__({k: value for k, value in locals().items() if k not in ("self", "__class__")})
        c = self.config
        channels, steps = c["stem_width"], 4
        bn, bias = make_norm(c), c["norm"] in WITH_BIAS
        self.conv1 = conv2d(c["in_channels"], channels, 3, 2, bias=bias)
        self.bn1, self.act1, self.maxpool = bn(channels), Activation("relu"), nn.MaxPool2d(3, 2, 1)
        self.feature_info = [
            {"num_chs": channels, "reduction": 2, "module": "act1"},
            {"num_chs": channels, "reduction": 4, "module": "maxpool"},
        ]
        self.stage_names = [f"stage{stage}" for stage in range(2, 2 + len(c["depths"]))]
        names = ("groups", "shuffle_after", "shuffle_view", "concat_order", "count_padding", "attention_on")
        keywords: dict[str, Any] = {name: c[name] for name in names} | {"norm": bn, "bias": bias}
        for stage, name in enumerate(self.stage_names):
            units, width = nn.Sequential(), c["widths"][stage]
            keywords["attention"] = lambda channels, stage=stage: make_attention(channels, stage, c)
            for index in range(c["depths"][stage]):
                first = None if stage or index else 1  # the stem has few channels
                units.append(ShuffleUnit(channels, width, 1 if index else 2, first_groups=first, **keywords))
                channels = width
            self.add_module(name, units)
            steps *= 2
            self.feature_info.append({"num_chs": width, "reduction": steps, "module": name})
        self.dropout, self.num_features = nn.Dropout(c["dropout"]), channels
        self.fc = make_head(channels, c["num_classes"], c["head_bias"])
        self._made = settings(self)

    def forward_stem(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return self.maxpool(self.act1(self.bn1(self.conv1(x))))

    def stages(self) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
        """Each stage by name, as a function of the previous stage's output."""
        yield "stem", self.forward_stem
        for name in self.stage_names:
            stage: Any = self.get_submodule(name)
            yield name, recomputed(stage) if self.recomputes() else stage
        yield "pooled", lambda x: pool_globally(x, "avg")
        yield "logits", lambda x: self.fc(self.dropout(x))

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        """Every stage's output: `stem`, `stage2` ..., `pooled` (N, C) and `logits` (N, num_classes)."""
        features = {}
        for name, stage in self.stages():
            features[name] = x = stage(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        for _, stage in self.stages():  # forward_features would keep every stage's output in memory
            x = stage(x)
        return x


network = ShuffleNet  # the name in `models.py`, the same in the three folders
