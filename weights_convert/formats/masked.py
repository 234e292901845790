"""Pruned weights: `torch.nn.utils.prune` stores a weight's factors, `weight_orig` and `weight_mask`."""

from __future__ import annotations

import numpy as np

from weights_convert.errors import MismatchError
from weights_convert.formats.base import Reader

_ORIGINAL, _MASK = "_orig", "_mask"


class MaskedReader(Reader):
    """A file with its masks applied: `x` in place of `x_orig` and `x_mask`.

    Raises:
        MismatchError: there are no masks, or one without its weights or of another shape.
    """

    def __init__(self, reader: Reader):
        super().__init__(reader.path, reader.limits)
        self._reader, self.format = reader, reader.format  # type: ignore[misc]
        self.metadata, self.networks, self.configs = reader.metadata, reader.networks, reader.configs
        self.left_out, self.notes = reader.left_out, list(reader.notes)
        masked = {n.removesuffix(_MASK) for n in reader.tensors if n.endswith(_MASK)}
        masked = {name for name in masked if f"{name}{_ORIGINAL}" in reader.tensors}
        if not masked:
            raise MismatchError(f"{reader.path}: has no masks to apply, expected pairs of x_orig and x_mask")
        for name, info in reader.tensors.items():
            plain = name.removesuffix(_ORIGINAL)
            if name.endswith(_MASK) and name.removesuffix(_MASK) in masked:
                continue
            if plain != name and plain in masked:
                if reader.tensors[f"{plain}{_MASK}"].shape != info.shape or plain in reader.tensors:
                    raise MismatchError(f"{reader.path}: the mask of {plain!r} does not fit its weights")
                name = plain
            self.tensors[name] = info
        self._masked = masked
        self.notes.append(f"{len(masked)} masks are applied")

    def read(self, name: str) -> np.ndarray:
        if name not in self._masked:
            return self._reader.read(name)
        array = self._reader.read(f"{name}{_ORIGINAL}")
        return (array * self._reader.read(f"{name}{_MASK}")).astype(array.dtype, copy=False)

    def close(self) -> None:
        super().close()
        self._reader.close()
