"""Names that only count layers, as in Keras: `conv2d_7/kernel` belongs to the seventh convolution created.

The order of creation identifies the layer: the stem, then block after block, each in the family's order, or
the order of the spec's own list. A file stores its tensors in another order, therefore numbers are sorted. A
grouped convolution may be one layer per group.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from weights_convert.layouts import ROLES, Layout, Shapes, from_tensorflow
from weights_convert.spec import Parameter, Spec, model_spec, parameters

AS_LISTED = ("as listed",)  # the order of the spec's parameters

_LAYER = re.compile(r"((conv2d|batch_normalization|dense)(?:_(\d{1,9}))?)/(\w+)(?::0)?")
_KINDS = {"conv2d": "conv2d", "scale": "batch_normalization", "dense": "dense"}  # by the role of `weight`
_LEAVES = [leaf for leaf in dict.fromkeys(role.tf for role in ROLES.values()) if leaf]


def _nowhere(parameter: Parameter, spec: Spec) -> None:
    """Counted layers have no name before the whole network is known."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CountedLayers(Layout):
    """The layout of files whose names count layers.

    Attributes:
        order: the modules of a block in the order of creation, or `AS_LISTED`.
        models: the possible architectures of such a file.
        named: layers with names of their own -> canonical module.
    """

    order: tuple[str, ...]
    models: tuple[str, ...]
    named: Mapping[str, str]
    rename: Callable[[Parameter, Spec], str | None] = _nowhere
    parse: Callable[[str], str | None] = lambda name: None  # noqa: ARG005
    tensorflow_axes: bool = True
    mlp_1x1: tuple[str, ...] = ("se",)

    def knows(self, name: str) -> bool:
        return _LAYER.fullmatch(name) is not None or self._named(name) is not None

    def _named(self, name: str) -> str | None:
        """The canonical name of a tensor of a layer with a name of its own."""
        layer, _, leaf = name.removesuffix(":0").rpartition("/")
        return from_tensorflow(self.named[layer], leaf) if layer in self.named else None

    def assign(self, shapes: Shapes) -> dict[str, tuple[str, ...]]:
        numbers: dict[str, dict[int, str]] = {kind: {} for kind in _KINDS.values()}  # number -> layer
        names = {name.removesuffix(":0"): name for name in shapes}
        for name in shapes:
            if match := _LAYER.fullmatch(name):
                numbers[match[2]][int(match[3] or 0)] = match[1]
        expected = min(map(self._layers, map(model_spec, self.models)), key=lambda e: _distance(e, numbers))
        found: dict[str, list[str]] = {}
        for kind, modules in expected.items():
            layers = sorted(numbers[kind].items())
            # a missing layer leaves a gap in the numbers
            first = layers[0][0] if layers and len(layers) != len(modules) else None
            for rank, (number, layer) in enumerate(layers):
                place = rank if first is None else number - first
                if place < len(modules):
                    for leaf in _LEAVES:
                        canonical = from_tensorflow(modules[place], leaf)
                        if canonical and f"{layer}/{leaf}" in names:
                            found.setdefault(canonical, []).append(names[f"{layer}/{leaf}"])
        for name in shapes:
            if (canonical := self._named(name)) is not None:
                found[canonical] = [name]
        return {canonical: tuple(names) for canonical, names in found.items()}

    def _layers(self, spec: Spec) -> dict[str, list[str]]:
        """Kind of layer -> modules in order of creation; a grouped convolution appears once per group."""
        modules: dict[str, list[str]] = {kind: [] for kind in _KINDS.values()}
        weights = {p.name.rpartition(".")[0]: p for p in parameters(spec) if p.name.endswith(".weight")}
        made = list(weights) if self.order == AS_LISTED else sorted(weights, key=self._when_made)
        for module in (module for module in made if module not in self.named.values()):
            kind = _KINDS["conv2d" if self.stored(weights[module]).is_1x1 else weights[module].role]
            parts = getattr(spec, "groups", 1) if re.fullmatch(r"layer\d+\.\d+\.conv2", module) else 1
            modules[kind] += [module] * parts
        return modules

    def _when_made(self, module: str) -> tuple[int, ...]:
        if match := re.fullmatch(r"layer(\d+)\.(\d+)\.(.+)", module):
            return 1, int(match[1]), int(match[2]), self.order.index(match[3])
        return (2,) if module == "fc" else (0, int(module[-1]))


def _distance(expected: dict[str, list[str]], numbers: dict[str, dict[int, str]]) -> int:
    return sum(abs(len(modules) - len(numbers[kind])) for kind, modules in expected.items())
