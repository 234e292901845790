"""A torch module prepared for `measure`: a float64 copy, and its compared modules with their inputs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from parity_tests.compare.power.scopes import Call, Item, Scope, recorded
from parity_tests.watch.trace import OUTPUT


def wide(module: nn.Module, train: bool) -> nn.Module:
    """A float64 copy in the mode of the comparison, without dropout; frozen submodules stay frozen."""
    model = copy.deepcopy(module).to("cpu", torch.float64)
    frozen = [inner for inner in model.modules() if model.training and not inner.training]
    dropouts = [inner for inner in model.modules() if isinstance(inner, nn.modules.dropout._DropoutNd)]
    model.train(train)
    for inner in (*frozen, *dropouts):
        inner.training = False
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return model


@dataclass
class Model:
    """A model to measure: its modules, the arguments of their calls, and the compared modules.

    Attributes:
        modules, calls, scopes: by name; "" is the model itself.
        outermost: the scope that every item can reach, or None.
        limits: compared point -> limit.
        batch: the number of images.
        inside: module -> the name of the compared function that runs it.
    """

    modules: dict[str, nn.Module]
    calls: dict[str, list[Call]]
    scopes: dict[str, Scope]
    outermost: Scope | None
    limits: Mapping[str, float]
    batch: int
    inside: Mapping[str, str] = field(default_factory=dict)

    def scope_of(self, owner: str) -> Scope | None:
        """The nearest compared module: `owner` itself or one around it."""
        while owner and owner not in self.scopes and owner not in self.inside:
            owner = owner.rpartition(".")[0]
        return self.scopes.get(self.inside.get(owner, owner))

    def around(self, owner: str) -> str | None:
        """The nearest compared module around `owner`, or None."""
        while owner:
            owner = owner.rpartition(".")[0]
            if owner in self.scopes and self.scopes[owner].points:
                return owner
        return None


def compared(model: nn.Module, images: Tensor, limits: Mapping[str, float], items: Iterable[Item]) -> Model:
    """The compared modules of a model, with their inputs for these images."""
    modules = dict(model.named_modules())
    wanted = {point.partition("#")[0] for point in limits} | {o for item in items for o in item.owners}
    moving = {n: b for n, b in model.named_buffers() if model.training and n in limits}
    wanted |= {name.rpartition(".")[0] for name in moving}
    calls = recorded(model, wanted & {*modules} - {""}, images)
    calls[""] = [((images,), {})]
    scopes = {}
    for name, runs in calls.items():
        points = [name or OUTPUT] + [f"{name}#{i}" for i in range(2, len(runs) + 1)]
        own = [(point, limits[point]) if point in limits else None for point in points[: len(runs)]]
        after = {n: (b, limits[n]) for n, b in moving.items() if n.rpartition(".")[0] == name}
        if any(own) or (runs and after):
            scopes[name] = Scope(modules[name], runs, own, after, modules[name])
    return Model(modules, calls, scopes, scopes.get(""), limits, len(images))


def stages(
    model: nn.Module,
    images: Tensor,
    limits: Mapping[str, float],
    items: Iterable[Item],
    paths: Mapping[str, tuple[str, ...]],
) -> Model:
    """A network of `torch_impl` with only its stages compared.

    Args:
        paths: stage -> the modules that run for it, from `Spec.stages`.
    """
    modules = dict(model.named_modules())
    calls = recorded(model, {o for item in items for o in item.owners} - {""}, images)
    calls[""] = [((images,), {})]
    scopes: dict[str, Scope] = {}
    network: Any = model
    x = images
    for name, stage in network.stages():
        scope = Scope(stage, [((x,), {})], [(name, limits[name])], {}, model)
        scopes[name] = scope
        with torch.no_grad():
            x = stage(x.clone())
    inside = {path: name for name, modules_of in paths.items() for path in modules_of}
    return Model(modules, calls, scopes, None, {}, len(images), inside)
