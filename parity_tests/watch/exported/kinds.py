"""The kinds of exported artefacts: how each is recognised, the class that reads it, the package it needs.

A new kind is a line of `KINDS` and a subclass of `Exported` that takes a path or an object.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from parity_tests.watch.exported.base import Exported, file_of
from weights_convert.errors import SpecError, WeightsConvertError, nearest


class Kind(NamedTuple):
    """One kind of artefact.

    Attributes:
        name: for messages.
        suffixes: of its files; "/" for a folder.
        types: the classes of its objects, by their full names; with a dot at the end all of a module.
        reader: the class that reads it, a subclass of `Exported`, as module and name.
        packages: that it imports, any one of each group -> the package to install.
    """

    name: str
    suffixes: tuple[str, ...]
    types: tuple[str, ...]
    reader: tuple[str, str]
    packages: Mapping[tuple[str, ...], str]


_HERE = "parity_tests.watch.exported"
_Packages = Mapping[tuple[str, ...], str]
_TORCH: _Packages = {("torch",): "torch"}
_TF: _Packages = {("tensorflow",): "tensorflow"}
_TORCHSCRIPT = (".pt", ".pth", ".ts", ".jit", ".torchscript")
KINDS = (
    Kind(
        "ONNX",
        (".onnx",),
        ("onnx.onnx_ml_pb2.ModelProto", "torch.onnx._internal.exporter._onnx_program.ONNXProgram"),
        (f"{_HERE}.onnx_file", "Onnx"),
        {("onnx",): "onnx", ("onnxruntime",): "onnxruntime"},
    ),
    Kind(
        "TorchScript",
        _TORCHSCRIPT,
        ("torch.jit._script.ScriptModule", "torch.ScriptFunction", "torch.jit.ScriptFunction"),
        (f"{_HERE}.torch_programs", "TorchScript"),
        _TORCH,
    ),
    Kind(
        "torch.export program",
        (".pt2",),
        ("torch.export.exported_program.ExportedProgram",),
        (f"{_HERE}.torch_programs", "Program"),
        _TORCH,
    ),
    Kind(
        "SavedModel",
        ("/",),
        ("tensorflow.python.saved_model.load.", "keras.src.export.tfsm_layer.TFSMLayer"),
        (f"{_HERE}.tensorflow_graphs", "SavedModel"),
        _TF,
    ),
    Kind(
        "frozen graph",
        (".pb",),
        ("tensorflow.core.framework.graph_pb2.GraphDef",),
        (f"{_HERE}.tensorflow_graphs", "Frozen"),
        _TF,
    ),
    Kind(
        "LiteRT",
        (".tflite",),
        ("builtins.bytes",),
        (f"{_HERE}.litert", "LiteRT"),
        {("ai_edge_litert", "tensorflow"): "ai-edge-litert"},
    ),
    Kind(
        "OpenVINO",
        (".xml",),
        ("openvino.Model", "openvino._ov_api.Model", "openvino._pyopenvino.Model"),
        (f"{_HERE}.openvino_ir", "OpenVino"),
        {("openvino",): "openvino"},
    ),
)
FILES = ", ".join(dict.fromkeys(suffix for kind in KINDS for suffix in kind.suffixes if suffix != "/"))


def kind_of(model: Any) -> Kind | None:
    """The kind of an artefact, or None for a model that is none.

    Raises:
        SpecError: a path with no kind.
    """
    if isinstance(model, (str, os.PathLike)):
        return _kind_of_path(Path(model))
    names = {f"{base.__module__}.{base.__qualname__}" for base in type(model).__mro__}
    modules = {f"{base.__module__}." for base in type(model).__mro__}
    return next((kind for kind in KINDS if (names | modules) & {*kind.types}), None)


def needs(path: Path, module: str) -> bool:
    """Whether reading an artefact imports a module; for a missing file it does not."""
    kind = kind_of(path) if path.exists() else None
    return kind is not None and (module,) in kind.packages


def is_artefact(model: Any) -> bool:
    return isinstance(model, Exported) or kind_of(model) is not None


def _kind_of_path(path: Path) -> Kind:
    if path.is_dir():
        return next(kind for kind in KINDS if "/" in kind.suffixes)
    found = next((kind for kind in KINDS if path.suffix.lower() in kind.suffixes), None)
    if found is None:
        file_of(path)
        hint = nearest(path.suffix, FILES.split(", "))
        raise SpecError(f"{path}: no exported artefact{hint}; expected {FILES} or a SavedModel's folder")
    return found


def opened(model: Any) -> Any:
    """The tracer of an artefact; any other model unchanged.

    Raises:
        SpecError: the artefact cannot be read, or a package is missing.
    """
    if isinstance(model, Exported) or (kind := kind_of(model)) is None:
        return model
    if isinstance(model, (str, os.PathLike)):
        file_of(Path(model))
    for modules, package in kind.packages.items():
        if not any(importlib.util.find_spec(module) for module in modules):
            raise SpecError(f"{kind.name}: {modules[0]} is not installed: pip install {package}")
    module, name = kind.reader
    source = Path(model) if isinstance(model, (str, os.PathLike)) else model
    try:
        reader = getattr(importlib.import_module(module), name)
        found: Exported = reader(source)
    except WeightsConvertError:
        raise
    except Exception as error:  # a damaged file raises anything
        reason = " ".join(str(error).split())[:160]
        what = str(model) if isinstance(source, Path) else f"this {kind.name}"
        raise SpecError(
            f"{what}: cannot be read as {kind.name} ({type(error).__name__}: {reason})"
        ) from error
    return found


def title_of(model: Any) -> str:
    """A model's name in the title of a report."""
    if isinstance(model, Exported):
        return model.what
    return Path(model).name if isinstance(model, (str, os.PathLike)) else type(model).__name__
