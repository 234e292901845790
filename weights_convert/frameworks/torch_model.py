"""PyTorch modules: their state dict is the canonical form."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import ml_dtypes
import numpy as np
import torch

from weights_convert.checkpoint import Checkpoint
from weights_convert.errors import MismatchError
from weights_convert.frameworks import block_config, check_config, common_dtype, config_of, match, selected
from weights_convert.spec import is_count


def unwrapped(module: torch.nn.Module, scope: str | None = None) -> torch.nn.Module:
    """The network inside a wrapper: DDP, torch.compile, `AveragedModel`, a `LightningModule`, a pipeline.

    `scope` is its name there; None if it is the only one, and everything around it is without parameters.
    """
    networks = {path: part for path, part in module.named_modules() if hasattr(type(part), "live_keywords")}
    if scope in networks:
        return networks[scope]
    if len(networks) > 1 or (scope is not None and networks):
        raise MismatchError("the module holds networks, choose one with scope=", [*networks])
    for path, network in networks.items():
        other = [name for name, _ in module.named_parameters() if not name.startswith(f"{path}.".lstrip("."))]
        if other:
            raise MismatchError(
                f"the module has parameters outside its network, such as {other[0]}; "
                f"choose it with scope={path!r}"
            )
        return network
    while True:  # a single attention block
        inner = getattr(module, "_orig_mod", None)
        if inner is None and "Parallel" in type(module).__name__:
            inner = getattr(module, "module", None)
        if not isinstance(inner, torch.nn.Module):
            return module
        module = inner


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:  # NumPy lacks it
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16).copy()
    return tensor.numpy().copy()


def _to_torch(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def _dtype(tensor: torch.Tensor) -> np.dtype:
    return (
        np.dtype(ml_dtypes.bfloat16)
        if tensor.dtype == torch.bfloat16
        else tensor.new_empty(()).cpu().numpy().dtype
    )


def keywords_of(module: torch.nn.Module, scope: str | None) -> dict[str, Any]:
    return config_of(unwrapped(module, scope))


def load_into(
    module: torch.nn.Module,
    checkpoint: Checkpoint,
    prefix: str,
    scope: str | None,
    without: Collection[str] = (),
) -> None:
    module = unwrapped(module, scope)
    check_config(config_of(module), checkpoint, without)
    state = module.state_dict()
    wanted = {name: (tuple(tensor.shape), _dtype(tensor)) for name, tensor in state.items()}
    arrays = match(wanted, checkpoint, selected(checkpoint, prefix), without)
    with torch.no_grad():
        for name, array in arrays.items():
            state[name].copy_(_to_torch(array))


def state_of(module: torch.nn.Module, scope: str | None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    module = unwrapped(module, scope)
    return {name: _to_numpy(tensor) for name, tensor in module.state_dict().items()}, config_of(module)


def build(spec: Any, dtype: str) -> torch.nn.Module:
    """A network or block without initialised weights, in eval mode."""
    import torch_impl
    from torch_impl.blocks import make_attention

    with torch.device("meta"):
        if spec.network:
            module = getattr(torch_impl, spec.network)(**spec.model_kwargs())
        else:
            made = make_attention(spec.channels, 0, block_config(spec))
            assert made is not None  # the spec of a block has an attention
            module = made[1]
    module = module.to(getattr(torch, dtype)).to_empty(device="cpu").eval()
    for name, buffer in module.named_buffers():
        if is_count(name):
            buffer.zero_()
    return module


def load_model(checkpoint: Checkpoint, spec: Any, without: Collection[str]) -> torch.nn.Module:
    module = build(spec, common_dtype(checkpoint))
    if without and spec.num_classes:  # as in a network that is made with random weights
        head: Any = module.get_submodule(spec.head)
        head.reset_parameters()
    load_into(module, checkpoint, "", None, without)
    return module
