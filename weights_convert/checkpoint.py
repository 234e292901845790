"""`Checkpoint`: canonical names and arrays of a file or a live model, with checks of its contents."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from weights_convert.errors import MismatchError, SourceError
from weights_convert.families.base import Preprocessing
from weights_convert.formats.base import Reader, TensorInfo
from weights_convert.identify.candidates import infer
from weights_convert.identify.misfits import describe, do_not_fit, misfits, title
from weights_convert.optimizer.state import Facts, NoOptimizer, TrainingState
from weights_convert.source import Source
from weights_convert.spec import Spec, changed, model_name, network_spec

MAPPING_VERSION = 1  # of names and axes; recorded in every output file


class Tensor(NamedTuple):
    """One canonical tensor: its canonical shape and dtype, its name in the source, and how to read it."""

    info: TensorInfo
    name: str
    read: Callable[[], np.ndarray]


def in_memory(array: np.ndarray, name: str) -> Tensor:
    """A tensor in memory."""
    return Tensor(TensorInfo(array.shape, array.dtype), name, lambda: array)


class Checkpoint(Mapping[str, np.ndarray]):
    """A read-only mapping of canonical names to arrays in PyTorch's layout, read on demand.

    Attributes:
        spec: the architecture, a `ResNetSpec` or `AttentionSpec`.
        assumed: keywords of `spec` that the source does not show and that have their default.
        tensors: name -> `Tensor`, without reading.
        path, format, family: origin of the checkpoint; None for a live model.
        same_as: other families that give the same result.
        feeds: input preprocessing of the network, if its family specifies it.
        metadata: this project's metadata in the file, {} for other files.
        left_out: name -> description of other contents of the source.
        notes: remarks for the user on how the source was read.
        cautions: properties that names and shapes of such a file cannot show, one line each.
        liberties: what else was assumed to find the network in the file, one line each.
        source: the files, with their state when they were opened.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        spec: Spec,
        *,
        assumed: Iterable[str] = (),
        reader: Reader | None = None,
        family: str | None = None,
        same_as: Iterable[str] = (),
        feeds: Preprocessing | None = None,
        left_out: Mapping[str, str] | None = None,
        notes: Iterable[str] = (),
        cautions: Iterable[str] = (),
        liberties: Iterable[str] = (),
        source: Source | None = None,
        training: Callable[[Facts], TrainingState] | None = None,
    ):
        self.tensors = dict(tensors)
        self.spec = spec
        self.assumed = tuple(assumed)
        self.family = family
        self.same_as = tuple(same_as)
        self.feeds = feeds
        self.left_out = dict(left_out or {})
        self.notes = list(notes)
        self.cautions = list(cautions)
        self.liberties = list(liberties)
        self.source = source or Source(None)
        self._training = training
        self._reader = reader
        self.path = reader.path if reader else None
        self.format = reader.format if reader else None
        self.metadata = reader.metadata if reader else {}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], keywords: Mapping[str, Any] | None = None
    ) -> Checkpoint:
        """A checkpoint of arrays in memory; missing keywords of its spec are inferred."""
        keywords = dict(keywords or {})
        arrays = {name: _native(array) for name, array in arrays.items()}
        spec: Any = network_spec(keywords)
        assumed: tuple[str, ...] = ()
        if spec is None:
            found = infer({name: array.shape for name, array in arrays.items()})
            if found is None:
                raise MismatchError("the arrays' names match neither a network nor an attention block")
            assumed = tuple(name for name in found.assumed if name not in keywords)
            spec = changed(found.spec, keywords)
        tensors = {name: in_memory(array, name) for name, array in arrays.items()}
        infos = {name: tensor.info for name, tensor in tensors.items()}
        if lines := misfits(spec, infos):
            raise do_not_fit("the arrays", title(spec), lines)
        return cls(tensors, spec, assumed=assumed)

    def derived(self, tensors: Mapping[str, Tensor], spec: Spec, note: str) -> Checkpoint:
        """Another view of the same source with an additional note; closing one closes both."""
        other = copy.copy(self)
        other.tensors, other.spec, other.notes = dict(tensors), spec, [*self.notes, note]
        return other

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self.tensors[name]
        if self._reader is not None and self._reader.closed:
            raise SourceError(f"{self.path}: is closed; read {name} inside the `with` block")
        array = tensor.read().view()
        array.flags.writeable = False
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; arrays read before stay valid."""
        if self._reader is not None:
            self._reader.close()

    def close_when_dropped(self) -> None:
        """Close the file automatically when the last reference to this checkpoint ends."""
        if self._reader is not None:
            weakref.finalize(self, self._reader.close)

    def training_state(self, facts: Facts | None = None) -> TrainingState:
        """The state of the optimiser in the file; its tensors are read on demand.

        Args:
            facts: the user's statements on the training.

        Raises:
            NoOptimizer: the source holds none.
            MismatchError: it has no counterpart, or does not fit the weights.
        """
        if self._training is None:
            raise NoOptimizer(f"{self.path or 'the model'}: holds no state of an optimiser")
        return self._training(facts or Facts())

    @property
    def model(self) -> str | None:
        """The name of the architecture, None for one without a name."""
        return model_name(self.spec)

    def describe(self) -> str:
        """Text for messages: `se_resnet50` with its differences from the named model, or `one se block`."""
        return describe(self.spec)


def _native(array: np.ndarray) -> np.ndarray:
    """The array in this machine's byte order, without a copy if possible."""
    array = np.asarray(array)
    return array.astype(array.dtype.newbyteorder("="), copy=False)
