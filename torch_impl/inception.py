"""BN-Inception, and with SE, CBAM or ECA after each module, in PyTorch.

BN-Inception: https://arxiv.org/abs/1502.03167 as in Caffe   SE: https://arxiv.org/abs/1709.01507, fig. 2

    images (N, 3, H, W) -> stem -> inception_3a ... inception_5b -> mean over H, W -> fc -> logits

The modules are rows of `inception_table.py`. Read it beside the same file in `keras_impl` and `tf1_compat`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import make_attention, make_head, make_norm
from .inception_table import Branch, Conv, Pool, check_image, is_reduction, network_of, width_of
from .inception_table import Module as Row
from .keywords import WITH_BIAS
from .layers import STEM_POOLS, conv2d, refuse_script
from .live import Network, settings
from .recompute import recomputed


class Unit(nn.Module):
    """A convolution, its normalisation and a ReLU.

    Args:
        inputs: channels of the input.
        step: row of the table.
        c: the keywords of `Inception`.
    """

    __prepare_scriptable__ = refuse_script

    def __init__(self, inputs: int, step: Conv, c: Mapping[str, Any]):
        super().__init__()
        bias = c["norm"] in WITH_BIAS
        self.conv = conv2d(inputs, step.width, step.kernel, step.stride, padding=step.padding, bias=bias)
        self.bn = make_norm(c)(step.width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class InceptionModule(nn.Module):
    """Chains with one input; their outputs are concatenated, and an attention follows.

    Args:
        inputs: channels of the input.
        row: of the table.
        number: of the module, from 0.
        c: the keywords of `Inception`.
    """

    __prepare_scriptable__ = refuse_script

    def __init__(self, inputs: int, row: Row, number: int, c: Mapping[str, Any]):
        super().__init__()
        self.branches = [f"branch{place}" for place in range(1, len(row.branches) + 1)]
        for name, steps in zip(self.branches, row.branches, strict=True):
            self.add_module(name, make_chain(inputs, steps, c))
        self.attention: str | None = None
        if gate := make_attention(width_of(row.branches, inputs), number, c):
            self.attention, layer = gate
            self.add_module(self.attention, layer)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.get_submodule(name)(x) for name in self.branches], 1)
        return x if self.attention is None else self.get_submodule(self.attention)(x)


def make_chain(inputs: int, steps: Branch, c: Mapping[str, Any]) -> nn.Sequential:
    """The units and pools of a branch, or of the stem, from the keywords of `Inception`."""
    modules: dict[str, nn.Module] = {}
    for place, step in enumerate(steps, 1):
        if isinstance(step, Conv):
            modules[step.name] = Unit(inputs, step, c)
            inputs = step.width
        elif isinstance(step, Pool):
            modules[f"pool{place}"] = make_pool(step, c)
    return nn.Sequential(OrderedDict(modules))


def make_pool(step: Pool, c: Mapping[str, Any]) -> nn.Module:
    """A pool of the table, by the keywords of `Inception`."""
    if step.stride > 1:
        return STEM_POOLS[step.padding]()
    if step.kind == "max":
        return nn.MaxPool2d(3, 1, 1)
    return nn.AvgPool2d(3, 1, 1, count_include_pad=c["count_padding"])


class Inception(Network):
    """BN-Inception with SE, CBAM, ECA or no attention. Input (N, C, H, W) float, output logits.

    Args:
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
            cbam_spatial_bias, cbam_spatial_input: see `SqueezeExcitation` and `CBAM`.
        eca_kernel_sizes, eca_padding: one odd size per module, None for the paper's rule; see `ECA`.
        bn_epsilon, bn_momentum: of every batch normalisation; the momentum weighs the new batch.
        dropout: probability before `fc`, below 1.
        num_classes: of the classifier `fc`; 0 for none, the output is then `pooled`.
        head_bias: whether `fc` has a bias.

    Raises:
        ValueError: an argument is invalid.

    Example:
        >>> model = Inception(width_multiplier=0.125, num_classes=4, attention="se").eval()
        >>> features = model.forward_features(torch.zeros(1, 3, 64, 64))
        >>> tuple(features["stem"].shape), tuple(features["inception_5b"].shape)
        ((1, 24, 8, 8), (1, 128, 2, 2))
    """

    kind = "inception"
    head, entrance = "fc", "stem.unit1.conv"

    def __init__(
        self,
        *,
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
    ):
        super().__init__({k: value for k, value in locals().items() if k not in ("self", "__class__")})
        c = self.config
        table = network_of(c)
        self.stem = make_chain(c["in_channels"], table.stem, c)
        channels = width_of([table.stem], c["in_channels"])
        self.feature_info, stride = [], 8
        for number, row in enumerate(table.modules):
            if is_reduction(row):
                self.feature_info.append(
                    {"num_chs": channels, "reduction": stride, "module": table.modules[number - 1].name}
                )
                stride *= 2
            self.add_module(row.name, InceptionModule(channels, row, number, c))
            channels = width_of(row.branches, channels)
        self.module_names = tuple(row.name for row in table.modules)
        self.feature_info.append({"num_chs": channels, "reduction": stride, "module": self.module_names[-1]})
        self.dropout = nn.Dropout(c["dropout"])
        self.num_features = channels
        self.fc = make_head(channels, c["num_classes"], c["head_bias"])
        self._made = settings(self)

    def check_input(self, x: Tensor) -> None:
        super().check_input(x)
        if isinstance(x, Tensor) and not (torch.jit.is_tracing() or torch.compiler.is_compiling()):
            check_image(self.config, *x.shape[2:])

    def stages(self) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
        """Each stage by name, as a function of the previous stage's output."""
        for name in ("stem", *self.module_names):
            module = self.get_submodule(name)
            yield name, recomputed([module]) if self.recomputes() else module
        yield "pooled", lambda x: x.mean((2, 3))
        yield "logits", lambda x: self.fc(self.dropout(x))

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        """Every stage's output: `stem`, `inception_3a` ..., `pooled` (N, C) and `logits` (N, num_classes)."""
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


network = Inception  # the name in `models.py`, the same in the three folders
