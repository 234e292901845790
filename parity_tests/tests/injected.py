"""Networks of other kinds for injected changes: with every layer that `compare.power` knows.

Inputs are (N, 3, 8, 8).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Norms(nn.Module):
    """Group, instance, layer and RMS normalisation; PReLU, LeakyReLU, ELU, Hardtanh; three convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.group = nn.GroupNorm(2, 8)
        self.prelu = nn.PReLU(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.instance = nn.InstanceNorm2d(8, affine=True)
        self.leaky = nn.LeakyReLU(0.1)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
        self.elu = nn.ELU(0.7)
        self.bn = nn.BatchNorm2d(6)
        self.cap = nn.Hardtanh(-1.5, 1.5)
        self.layer = nn.LayerNorm([6, 16, 16])
        self.rms = nn.RMSNorm(6, eps=1e-3)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.leaky(self.instance(self.depthwise(self.prelu(self.group(self.conv(x))))))
        x = self.layer(self.cap(self.bn(self.elu(self.up(x)))))
        return self.fc(self.rms(x.mean((2, 3))))


class Tokens(nn.Module):
    """A transformer's parts: positions without a layer, an embedding that is also the head, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 2, stride=2)
        self.positions = nn.Parameter(torch.zeros(1, 16, 12))
        self.words = nn.Embedding(20, 12)
        self.norm = nn.LayerNorm(12)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.shared = nn.Linear(12, 12)
        self.scale = 0.5  # a setting of ours

    def forward(self, x: Tensor) -> Tensor:
        words = self.words((x[:, 0, ::2, ::2].flatten(1) * 4).round().long().clamp(0, 19))
        y = self.patches(x).flatten(2).transpose(1, 2) + self.positions + self.scale * words
        z = self.norm(y)
        y = y + self.attention(z, z, z, need_weights=False)[0]
        y = F.gelu(self.shared(F.gelu(self.shared(y))))
        return F.linear(y.mean(1), self.words.weight)


class Recurrent(nn.Module):
    """A recurrent layer over rows, weight normalisation, a softplus."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.GRU(24, 6, batch_first=True)
        self.fc = nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))
        self.soft = nn.Softplus(beta=2.0)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 1, 3).flatten(2)
        return self.soft(self.fc(self.rows(rows)[0][:, -1]))


KINDS: dict[str, Callable[[], nn.Module]] = {"norms": Norms, "tokens": Tokens, "recurrent": Recurrent}


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Set random weights and statistics, without 0 and 1, and eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                fan = tensor[0].numel() if tensor.dim() > 1 else 4
                noise = torch.randn(tensor.shape, generator=generator) / fan**0.5
                around = 1.0 if name.endswith(("var", "norm.weight", "group.weight", "layer.weight")) else 0.0
                tensor.copy_(around + noise.abs() if around else noise)
    return module.eval()
