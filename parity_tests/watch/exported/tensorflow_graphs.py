"""TensorFlow's SavedModel (a folder, also of Keras's `export`) and frozen graphs (`.pb`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from parity_tests.watch.exported.base import Slot, Values, lowest, paths, slots_of
from parity_tests.watch.exported.layered import NONE, Arrays
from parity_tests.watch.exported.tensorflow_layers import GraphLayers, widened
from parity_tests.watch.trace import reason_of
from weights_convert.errors import SpecError

_ENDPOINTS = ("serve", "serving_default")  # Keras's `export`, and tf.saved_model's usual signature


class SavedModel(GraphLayers):
    """The endpoint of a SavedModel: Keras's `serve`, else the signature `serving_default`."""

    framework = "savedmodel"
    channels_last = True

    def __init__(self, source: Path | Any) -> None:
        super().__init__(source.name if isinstance(source, Path) else "the SavedModel")
        endpoint = getattr(source, "call_endpoint", None)  # of a TFSMLayer
        source = Path(source.filepath) if hasattr(source, "filepath") else source
        if isinstance(source, Path):
            if not (source / "saved_model.pb").is_file():
                raise SpecError(f"{source}: a folder without saved_model.pb, expected a SavedModel")
            source = tf.saved_model.load(str(source))
        self.loaded = source  # the function holds its variables weakly
        self.function = _signature(source, self.what, endpoint)
        keywords = self.function.structured_input_signature[1]
        self.inputs = [
            Slot(name, np.dtype(spec.dtype.as_numpy_dtype), slots_of(_shape(spec.shape)))
            for name, spec in keywords.items()
        ]
        graph = self.function.graph
        self.precision = _precision([*self.function.variables, *graph.get_operations()])
        self._look_inside()

    def _look_inside(self) -> None:
        """See the layers of a copy whose variables are constants; without one, the outputs alone."""
        try:
            frozen = convert_variables_to_constants_v2(self.function)
            graph = tf.Graph()
            with graph.as_default():
                tf.import_graph_def(frozen.graph.as_graph_def(), name="")
            given = {tensor.op.name: graph.get_tensor_by_name(tensor.name) for tensor in frozen.inputs}
            self.inside(graph, [given[slot.name] for slot in self.inputs])
        except Exception as error:  # a graph with tables or resources of its own
            self.notes.append(f"{self.what}: its layers are not seen ({reason_of(error)})")
            self.see(NONE)

    def between(self, given: Sequence[np.ndarray], right: Arrays) -> tuple[dict[str, np.ndarray], Values]:
        return self.values(self.ordered(given), right), self.call(given)

    def call(self, given: Sequence[np.ndarray]) -> Values:
        names = [slot.name for slot in self._slots(self._input_names())]
        returned = self.function(
            **{name: tf.constant(array) for name, array in zip(names, given, strict=True)}
        )
        found = sorted(returned.items()) if isinstance(returned, dict) else [("", returned)]
        arrays = [_array(value) for _, value in found]
        return list(zip(paths([name for name, _ in found]), arrays, strict=True))


class Frozen(GraphLayers):
    """A graph whose variables are constants; its inputs are its placeholders."""

    framework = "frozen"
    channels_last = True

    def __init__(self, source: Path | Any) -> None:
        super().__init__(source.name if isinstance(source, Path) else "the frozen graph")
        definition = source
        if isinstance(source, Path):
            definition = tf.compat.v1.GraphDef()
            definition.ParseFromString(source.read_bytes())
        self.graph = tf.Graph()
        with self.graph.as_default():
            tf.import_graph_def(definition, name="")
        operations = self.graph.get_operations()
        given = [op.outputs[0] for op in operations if op.type == "Placeholder"]
        self._ends = [
            op.outputs[0]
            for op in operations
            if op.outputs and op.type != "Placeholder" and not any(t.consumers() for t in op.outputs)
        ]
        if not given or not self._ends:
            raise SpecError(f"{self.what}: no placeholders or no outputs, expected a frozen network")
        self._given_to = given
        self.inputs = [
            Slot(t.op.name, np.dtype(t.dtype.as_numpy_dtype), slots_of(_shape(t.shape))) for t in given
        ]
        self.precision = _precision(operations)
        self.inside(self.graph, given)

    def between(self, given: Sequence[np.ndarray], right: Arrays) -> tuple[dict[str, np.ndarray], Values]:
        return self.values(self.ordered(given), right), self.call(given)

    def call(self, given: Sequence[np.ndarray]) -> Values:
        names = self._input_names()
        tensors = dict(zip((t.op.name for t in self._given_to), self._given_to, strict=True))
        feed = {tensors[slot.name]: array for slot, array in zip(self._slots(names), given, strict=True)}
        values = self.session.run(self._ends, feed)
        return list(zip(paths([t.op.name for t in self._ends]), map(widened, values), strict=True))


def _signature(loaded: Any, what: str, wanted: str | None) -> Any:
    """The concrete function of an endpoint; its structured signature has names."""
    signatures = dict(getattr(loaded, "signatures", {}))
    found = next((name for name in (wanted, *_ENDPOINTS) if name in signatures), None)
    if found is None and len(signatures) == 1:
        found = next(iter(signatures))
    if found is None:
        listed = ", ".join(signatures) or "none"
        raise SpecError(f"{what}: signatures {listed}; expected one of {', '.join(_ENDPOINTS)}")
    return signatures[found]


def _shape(shape: Any) -> list[int | None] | None:
    return None if shape.rank is None else shape.as_list()


def _precision(tensors: Sequence[Any]) -> str:
    kinds = set()
    for tensor in tensors:
        if hasattr(tensor, "dtype"):
            kinds.add(tensor.dtype.base_dtype.name)
        elif tensor.type == "Const":
            kinds.add(tensor.outputs[0].dtype.base_dtype.name if tensor.outputs[0].shape.rank else "")
    return lowest([kind for kind in kinds if kind != "int8"])


def _array(value: Any) -> np.ndarray:
    return widened(value.numpy())
