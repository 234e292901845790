"""Specs of networks with numbered stages of equal units, as MobileNetV1 and ShuffleNetV1."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import ClassVar, Self

from weights_convert.errors import SpecError
from weights_convert.spec.base import Parameter, Spec, changed

_UNIT = re.compile(r"stage(\d{1,9})\.(\d{1,9})\.")


class StagedSpec(Spec):
    """A network of `stage1.0`, `stage1.1` ...: conv1 and bn1, stages of `depths` units, a dense layer fc.

    Attributes:
        first_stage: the number of its first stage.
        unit: Keras's name for the class of a unit.
    """

    head = "fc"
    first_stage: ClassVar[int] = 1
    unit: ClassVar[str]
    depths: tuple[int, ...]
    in_channels: int

    @classmethod
    def widest(cls) -> list[Self]:
        return [cls(norm="bias_bn", attention=kind, cbam_spatial_bias=True) for kind in ("cbam", "se", "eca")]  # type: ignore[call-arg]

    @classmethod
    def like(cls, name: str) -> Parameter | None:
        return super().like(_UNIT.sub(f"stage{cls.first_stage}.0.", name, count=1))

    def part(self, names: Collection[str]) -> Self:
        units = [tuple(map(int, found.groups())) for name in names if (found := _UNIT.match(name))]
        depths: list[int] = []
        while of_stage := [index for stage, index in units if stage == len(depths) + self.first_stage]:
            depths.append(max(of_stage) + 1)
        if not depths:
            raise SpecError(
                f"a part of a {self.network} that ends before its first unit, "
                f"expected stage{self.first_stage}_0 too"
            )
        of_stages = ("widths", "eca_kernel_sizes")
        fewer = {name: sizes[: len(depths)] for name in of_stages if (sizes := getattr(self, name))}
        return changed(super().part(names), {"depths": tuple(depths), **fewer})

    def stages(self) -> dict[str, tuple[str, ...]]:
        numbers = range(self.first_stage, self.first_stage + len(self.depths))
        stages = {f"stage{number}": (f"stage{number}",) for number in numbers}
        return {"stem": ("conv1", "bn1"), **stages, "pooled": (), "logits": ("fc",)}

    def member_class(self, path: str) -> str:  # noqa: ARG002
        return self.unit

    @property
    def input_channels(self) -> int:
        return self.in_channels
