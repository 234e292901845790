"""A plain copy of a torch module: wrappers and torch.compile are looked through."""

from __future__ import annotations

import copy

import torch

from weights_convert.errors import SpecError

_WRAPPERS = {  # class of a module that only calls another -> the attribute that holds it
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
}
_NOTES = {
    "OptimizedModule": "torch.compile was left out: judged is the module that it compiles",
    "DataParallel": "DataParallel was left out: judged is the module inside it",
    "DistributedDataParallel": "DistributedDataParallel was left out: judged is the module inside it",
    "AveragedModel": "judged is the average that AveragedModel holds",
}


def notes_of(module: torch.nn.Module) -> list[str]:
    """Notes for the report on the wrappers that `unwrapped` removes."""
    kinds = {type(layer).__name__ for layer in module.modules()}
    return [note for kind, note in _NOTES.items() if kind in kinds]


def copied(module: torch.nn.Module) -> torch.nn.Module:
    """A copy without wrappers, whose layers have their own names.

    Raises:
        SpecError: the module cannot be copied.
    """
    # the weight that torch.nn.utils.weight_norm computes is no leaf, which deepcopy refuses
    memo = {
        id(value): value.detach().clone()
        for layer in module.modules()
        for value in vars(layer).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
    try:
        return unwrapped(copy.deepcopy(module, memo))
    except Exception as error:  # a user's module may raise anything
        reason = " ".join(str(error).split())[:160]
        raise SpecError(
            f"the torch module cannot be copied ({type(error).__name__}: {reason}); "
            "expected a module that copy.deepcopy copies"
        ) from error


def unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """Replace each wrapper by the module inside it."""
    while (attribute := _WRAPPERS.get(type(module).__name__)) and hasattr(module, attribute):
        module = getattr(module, attribute)
    for name, child in module.named_children():
        if (inner := unwrapped(child)) is not child:
            setattr(module, name, inner)
    return module


def live_layers(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The layers of a live module under the names that they have in a copy without wrappers."""
    names = [name for name, _ in copied(module).named_modules()]
    layers = [layer for layer in module.modules() if type(layer).__name__ not in _WRAPPERS]
    return dict(zip(names, layers, strict=True))
