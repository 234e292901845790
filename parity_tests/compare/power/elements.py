"""Single elements of a tensor that could become 0 unnoticed: dead units.

For the usual layers the effect of a vanishing element on its layer's output is exact: |w_oi| max |x_i| for a
linear layer or a convolution; one run with the whole tensor at 0 if every element has its own channel.
Elsewhere reverse mode estimates the effect, and elements that appear dead are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from parity_tests.compare.power.scopes import Call, Item, Scope

_TRIALS = 8  # runs per compared module to confirm dead elements
_CALIBRATION = 3  # elements per tensor that relate a gradient's norm to the largest change
_CLEAR = 3.0  # estimates beyond this factor need no calibration
_DOUBTFUL = 0.01  # share of the elements; a smaller share needs no calibration
_DEAD = 0.01  # share of the limit; a smaller effect is far below the accuracy of the estimate

_CHANNELS: tuple[tuple[type | tuple[type, ...], str, int], ...] = (  # layer, tensor, axis of the output
    (nn.modules.batchnorm._NormBase, "weight bias running_mean running_var", 1),
    (nn.GroupNorm, "weight bias", 1),
    (nn.PReLU, "weight", 1),
    (nn.modules.conv._ConvNd, "bias", 1),
    ((nn.Linear, nn.LayerNorm), "bias", -1),
    ((nn.LayerNorm, nn.RMSNorm), "weight", -1),
)


def channel_axis(owner: nn.Module, leaf: str, tensor: Tensor, output: Tensor) -> int | None:
    """The axis of the layer's output along which each element has its own index, or None."""
    for kind, leaves, axis in _CHANNELS:
        if isinstance(owner, kind) and leaf in leaves.split() and tensor.dim() == 1:
            return axis if output.dim() > 1 and output.shape[axis] == len(tensor) else None
    return None


def per_index(change: Tensor, axis: int, reduce: Callable[..., Tensor] = torch.amax) -> Tensor:
    """Reduce a change over all axes but one; a running statistic has only one axis."""
    if change.dim() == 1:
        return change
    axis %= change.dim()
    return reduce(change, dim=[i for i in range(change.dim()) if i != axis])


def own_count(scope: Scope, item: Item, owner: nn.Module, calls: Sequence[Call]) -> int | None:
    """The number of elements of a compared layer that could vanish unnoticed; None if not known exactly."""
    effects = _own_effects(scope, item, owner, calls)
    if effects is None or item.tensor is None:
        return None
    return int(((effects <= 1) & (item.tensor.detach() != 0)).sum())


def _own_effects(scope: Scope, item: Item, owner: nn.Module, calls: Sequence[Call]) -> Tensor | None:
    """The effect of each vanishing element, in limits."""
    tensor, leaf = item.tensor, item.name.rpartition(".")[2]
    assert tensor is not None
    bounds = [bound for _, bound in scope.points]
    if (axis := channel_axis(owner, leaf, tensor, scope.base[0])) is not None:
        with item.moved(tensor.detach().clone(), -1.0):
            effects = [per_index(c, axis) / b for c, b in zip(scope.changes(), bounds, strict=True)]
    elif leaf == "weight" and isinstance(owner, (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)):
        inputs = [inputs[0] for inputs, keywords in calls if inputs and not keywords]
        if len(inputs) != len(calls) or len(bounds) != len(calls):
            return None
        magnitude = tensor.detach().abs()
        effects = [magnitude * _entering(owner, x) / b for x, b in zip(inputs, bounds, strict=True)]
    else:
        return None
    return torch.stack([effect.nan_to_num(torch.inf) for effect in effects]).amax(0)


def _entering(owner: nn.Module, x: Tensor) -> Tensor:
    """The largest input that each element of a weight multiplies, in a shape that broadcasts."""
    if isinstance(owner, nn.Embedding):
        used = torch.zeros(owner.num_embeddings, 1, dtype=torch.float64)
        used[x.flatten().long()] = 1.0
        return used
    if isinstance(owner, nn.Linear):
        return x.detach().abs().flatten(0, -2).amax(0) if x.dim() > 1 else x.detach().abs()
    assert isinstance(owner, nn.modules.conv._ConvNd)
    spatial = len(owner.kernel_size)
    if x.dim() == spatial + 1:  # no batch
        x = x[None]
    largest = per_index(x.detach().abs(), 1)  # (C,)
    if owner.transposed:  # (in, out / groups, ...)
        return largest.view(-1, 1, *[1] * spatial)
    by_group = largest.view(owner.groups, 1, -1).expand(-1, owner.out_channels // owner.groups, -1)
    return by_group.reshape(owner.out_channels, -1, *[1] * spatial)  # (out, in / groups, ...)


class Trials:
    """Counts by gradients and tries a few elements of a scope to confirm."""

    def __init__(self, scope: Scope, generator: torch.Generator):
        self._scope, self._generator = scope, generator
        self._left = _TRIALS
        self._outputs = sum(y.numel() for y in scope.base)

    def count(self, item: Item, norms: Tensor) -> int:
        """The number of elements that could vanish unnoticed, from the 2-norms of their effects in limits."""
        assert item.tensor is not None
        present, norms = item.tensor.detach().flatten() != 0, norms.flatten()
        doubtful = present & (norms > 1 / _CLEAR) & (norms < _CLEAR * self._outputs**0.5)
        largest = norms * self._share(item, norms, torch.nonzero(doubtful).flatten())
        unseen = present & (largest <= 1)
        return int(unseen.sum()) - self._noticed(item, torch.nonzero(unseen & (largest < _DEAD)).flatten())

    def _share(self, item: Item, norms: Tensor, doubtful: Tensor) -> float:
        """Largest change / 2-norm, the median of a few elements; 1 if hardly any element is in doubt."""
        if len(doubtful) < _DOUBTFUL * len(norms):
            return 1.0
        chosen = doubtful[torch.randperm(len(doubtful), generator=self._generator)[:_CALIBRATION]]
        ratios = [self._vanished(item, index[None]) / float(norms[index]) for index in chosen]
        return float(torch.tensor(ratios).median())

    def _noticed(self, item: Item, dead: Tensor) -> int:
        """The number of elements without a gradient that are noticed nevertheless: tried in halves.

        Such a change can switch a dead unit on. When no trials are left, the gradient decides.
        """
        groups, found = [dead] if len(dead) else [], 0
        while groups and self._left > 0:
            group, self._left = groups.pop(), self._left - 1
            if self._vanished(item, group) <= 1:
                continue
            if len(group) == 1:
                found += 1
            else:
                groups += [group[: len(group) // 2], group[len(group) // 2 :]]
        return found

    def _vanished(self, item: Item, indices: Tensor) -> float:
        """The effect of these elements vanishing together, in limits."""
        assert item.tensor is not None
        direction = torch.zeros_like(item.tensor)
        direction.view(-1)[indices] = item.tensor.detach().flatten()[indices]
        with item.moved(direction, -1.0):
            return self._scope.times_limit()[0]
