"""Inception-v3, and with SE, CBAM or ECA after each module, in PyTorch.

Inception-v3: https://arxiv.org/abs/1512.00567   SE: https://arxiv.org/abs/1709.01507, fig. 2

    images (N, 3, H, W) -> stem -> Mixed_5b ... Mixed_7c -> mean over H, W -> fc -> logits
                                      Mixed_6e -> AuxLogits -> logits of the auxiliary head, in training

The modules are rows of `inception_v3_table.py`; layers have torchvision's names. Read it beside the same file
in `keras_impl` and `tf1_compat`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import make_attention, make_head
from .inception import Unit
from .inception_table import Branch, Conv, Fork, convolutions, is_reduction, width_of
from .inception_table import Module as Row
from .inception_v3_table import (
    AUX_INPUT,
    AUX_POOL,
    AUX_STRIDE,
    TRANSFORM,
    aux_of,
    check_image,
    network_of,
)
from .layers import refuse_script
from .live import Network, settings
from .recompute import recomputed


class Outputs(NamedTuple):
    """The output of a network with an auxiliary head in training: the logits of both classifiers."""

    logits: Tensor
    aux_logits: Tensor


def add_units(module: nn.Module, inputs: int, branches: Iterable[Branch], c: Mapping[str, Any]) -> None:
    """Add the convolutions of some branches to a module, each under the name of its row.

    Args:
        module: the network for the stem, else a part of it.
        inputs: channels of the branches' input.
        branches: rows of the table.
        c: the keywords of `InceptionV3`.
    """
    for steps in branches:
        for conv, before in convolutions(steps):
            module.add_module(conv.name, Unit(before or inputs, conv, c))


def run(module: nn.Module, steps: Branch, x: Tensor, count_padding: bool) -> Tensor:
    """The output of a branch whose convolutions are in a module."""
    for step in steps:
        if isinstance(step, Conv):
            x = module.get_submodule(step.name)(x)
        elif isinstance(step, Fork):
            x = torch.cat([module.get_submodule(conv.name)(x) for conv in step.convs], 1)
        elif step.kind == "max":
            x = F.max_pool2d(x, 3, step.stride, 0 if step.padding == "valid" else 1)
        else:
            x = F.avg_pool2d(x, 3, 1, 1, count_include_pad=count_padding)
    return x


class MixedModule(nn.Module):
    """Chains with one input; their outputs are concatenated, and an attention follows.

    Args:
        inputs: channels of the input.
        row: of the table.
        number: of the module, from 0.
        c: the keywords of `InceptionV3`.
    """

    __prepare_scriptable__ = refuse_script

    def __init__(self, inputs: int, row: Row, number: int, c: Mapping[str, Any]):
        super().__init__()
        self.branches, self.count_padding = row.branches, c["count_padding"]
        add_units(self, inputs, self.branches, c)
        self.attention: str | None = None
        if gate := make_attention(width_of(row.branches, inputs), number, c):
            self.attention, layer = gate
            self.add_module(self.attention, layer)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([run(self, steps, x, self.count_padding) for steps in self.branches], 1)
        return x if self.attention is None else self.get_submodule(self.attention)(x)


class AuxHead(nn.Module):
    """The auxiliary classifier: average pool 5x5 with stride 3, 1x1, 5x5, mean over H, W, dense.

    Args:
        inputs: channels of the input.
        c: the keywords of `InceptionV3`.
    """

    __prepare_scriptable__ = refuse_script

    def __init__(self, inputs: int, c: Mapping[str, Any]):
        super().__init__()
        self.steps = aux_of(c)
        add_units(self, inputs, [self.steps], c)
        self.num_features = width_of([self.steps], inputs)
        self.fc = make_head(self.num_features, c["num_classes"], c["head_bias"])

    def forward(self, x: Tensor) -> Tensor:
        x = run(self, self.steps, F.avg_pool2d(x, AUX_POOL, AUX_STRIDE), count_padding=True)
        return self.fc(x.mean((2, 3)))


def transform(x: Tensor) -> Tensor:
    """Images normalised with ImageNet's mean and deviation, normalised with 0.5 and 0.5 instead."""
    colours = enumerate(TRANSFORM)
    return torch.stack([x[:, number] * factor + summand for number, (factor, summand) in colours], 1)


class InceptionV3(Network):
    """Inception-v3 with SE, CBAM, ECA or no attention. Input (N, C, H, W) float, output logits.

    With an auxiliary head its output in training is `Outputs`, the logits of both classifiers; the paper adds
    the auxiliary loss, weighted, to the loss. Images need 75 rows and columns, with the auxiliary head 299.

    Args:
        width_multiplier: factor of every width, above 0; rounded down, at least one channel.
        last_pool: of the last module, "avg" or "max".
        count_padding: whether average pools count the padding, and so divide by 9 at the edge too.
        transform_input: whether images normalised with ImageNet's mean and deviation are first turned into
            (x - 0.5) / 0.5, as the weights of TensorFlow expect them. No file shows it.
        aux_head: whether an auxiliary classifier reads `Mixed_6e` in training.
        norm: after each convolution: batch normalisation ("bn"), a bias and batch normalisation ("bias_bn"),
            or a bias ("bias": batch normalisation folded in).
        attention: "none", "se", "cbam" or "eca", on the concatenation of every module.
        reduction, hidden_rule: of the attention's MLP.
        se_bias, cbam_mlp_bias, cbam_order, cbam_kernel_size, cbam_bn, cbam_bn_momentum,
            cbam_spatial_bias, cbam_spatial_input: see `SqueezeExcitation` and `CBAM`.
        eca_kernel_sizes, eca_padding: one odd size per module, None for the paper's rule; see `ECA`.
        bn_epsilon, bn_momentum: of every batch normalisation; the momentum weighs the new batch.
        dropout: probability before `fc`, below 1.
        num_classes: of the classifiers, `fc` and `AuxLogits.fc`; 0 for none, which return their inputs then.
        head_bias: whether the classifiers have biases.

    Raises:
        ValueError: an argument is invalid.

    Example:
        >>> model = InceptionV3(width_multiplier=0.125, num_classes=4, attention="se").eval()
        >>> features = model.forward_features(torch.zeros(1, 3, 75, 75))
        >>> tuple(features["stem"].shape), tuple(features["Mixed_7c"].shape)
        ((1, 24, 7, 7), (1, 256, 1, 1))
    """

    kind = "inception_v3"
    head, entrance = "fc", "Conv2d_1a_3x3.conv"

    def __init__(
        self,
        *,
        width_multiplier: float = 1.0,
        last_pool: str = "avg",
        count_padding: bool = True,
        transform_input: bool = False,
        aux_head: bool = False,
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
        bn_epsilon: float = 1e-3,
        bn_momentum: float = 0.1,
        dropout: float = 0.5,
        num_classes: int = 1000,
        head_bias: bool = True,
        in_channels: int = 3,
    ):
        super().__init__({k: value for k, value in locals().items() if k not in ("self", "__class__")})
        c = self.config
        table = network_of(c)
        self.AuxLogits: AuxHead | None = None
        self.steps, self.transform_input = table.stem, c["transform_input"]
        add_units(self, c["in_channels"], [self.steps], c)
        channels = width_of([table.stem], c["in_channels"])
        self.feature_info, stride = [], 8
        for number, row in enumerate(table.modules):
            if is_reduction(row):
                self.feature_info.append(
                    {"num_chs": channels, "reduction": stride, "module": table.modules[number - 1].name}
                )
                stride *= 2
            self.add_module(row.name, MixedModule(channels, row, number, c))
            channels = width_of(row.branches, channels)
            if row.name == AUX_INPUT and c["aux_head"]:
                self.AuxLogits = AuxHead(channels, c)
        self.module_names = tuple(row.name for row in table.modules)
        self.feature_info.append({"num_chs": channels, "reduction": stride, "module": self.module_names[-1]})
        self.dropout = nn.Dropout(c["dropout"])
        self.num_features = channels
        self.fc = make_head(channels, c["num_classes"], c["head_bias"])
        self._made = settings(self)

    def check_input(self, x: Tensor, aux_head: bool = False) -> None:
        super().check_input(x)
        if isinstance(x, Tensor) and not (torch.jit.is_tracing() or torch.compiler.is_compiling()):
            check_image(aux_head and self.AuxLogits is not None, *x.shape[2:])

    def classifiers(self) -> dict[str, int]:
        aux = {} if self.AuxLogits is None else {"AuxLogits.fc": self.AuxLogits.num_features}
        return super().classifiers() | aux

    def stem(self, x: Tensor) -> Tensor:
        """The layers before the first module."""
        return run(self, self.steps, transform(x) if self.transform_input else x, count_padding=True)

    def stages(self) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
        """Each stage by name, as a function of the previous stage's output."""
        yield "stem", self.stem
        for name in self.module_names:
            module = self.get_submodule(name)
            yield name, recomputed([module]) if self.recomputes() else module
        yield "pooled", lambda x: x.mean((2, 3))
        yield "logits", lambda x: self.fc(self.dropout(x))

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        """Every stage's output: `stem`, `Mixed_5b` ..., `pooled` (N, C) and `logits` (N, num_classes).

        With an auxiliary head also its `aux_logits` (N, num_classes), in training or not.
        """
        self.check_input(x, aux_head=True)
        features = {}
        for name, stage in self.stages():
            features[name] = x = stage(x)
        if self.AuxLogits is not None:
            features["aux_logits"] = self.AuxLogits(features[AUX_INPUT])
        return features

    def forward(self, x: Tensor) -> Tensor | Outputs:
        if self.training and self.AuxLogits is not None:
            features = self.forward_features(x)
            return Outputs(features["logits"], features["aux_logits"])
        self.check_input(x)
        for _, stage in self.stages():
            x = stage(x)
        return x


network = InceptionV3  # the name in `models.py`, the same in the three folders
