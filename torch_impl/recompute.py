"""Gradient checkpointing: blocks that run again in the backward pass instead of keeping their outputs.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", https://arxiv.org/abs/1604.06174.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(blocks: Iterable[nn.Module]) -> Callable[[Tensor], Tensor]:
    """The blocks one after the other; only the input of each is kept for the gradients."""

    def run(x: Tensor) -> Tensor:
        for block in blocks:
            # torch.compile keeps the statistics right by itself, and compiles no context of this kind
            keywords: dict[str, Any] = {} if torch.compiler.is_compiling() else {"context_fn": partial(_contexts, block)}
            x = checkpoint(block, x, use_reentrant=False, **keywords)
        return x

    return run


def _contexts(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Contexts of a block's first and second run."""
    return nullcontext(), _without_statistics(block)


@contextmanager
def _without_statistics(block: nn.Module) -> Iterator[None]:
    """In the second run the batch norms use the batch as in the first, and leave their running statistics."""
    norms: list[Any] = [part for part in block.modules() if getattr(part, "track_running_stats", False)]
    norms = [norm for norm in norms if norm.training]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
