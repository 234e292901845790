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
            keywords: dict[str, Any] = (
                {} if torch.compiler.is_compiling() else {"context_fn": partial(_contexts, block)}
            )
            x = checkpoint(block, x, use_reentrant=False, **keywords)
        return x

    return run


def _contexts(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Contexts of a block's first and second run."""
    return nullcontext(), _with_copied_buffers(block)


@contextmanager
def _with_copied_buffers(block: nn.Module) -> Iterator[None]:
    """In the second run batch norms update copies of their running statistics: a batch counts once."""
    kept = [(part, *named) for part in block.modules() for named in part.named_buffers(recurse=False)]
    for part, name, buffer in kept:
        setattr(part, name, buffer.clone())
    try:
        yield
    finally:
        for part, name, buffer in kept:
            setattr(part, name, buffer)
