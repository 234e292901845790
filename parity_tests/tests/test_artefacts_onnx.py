"""ONNX layer by layer: unbroken exports hold, and injected faults of exports are named."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from parity_tests.compare import compare_models
from parity_tests.tests import exports
from parity_tests.tests.exports import IMAGES
from parity_tests.watch.trace import covers

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
EXPORTERS = {"legacy": {}, "fused": {"dynamo": True}, "plain": {"dynamo": True, "optimize": False}}


class Branches(nn.Module):
    """Two branches, an enlarging layer, a gate whose two layers are called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 2, 3), nn.Conv2d(3, 2, 3, groups=1, dilation=1)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.act = nn.LeakyReLU(0.1)
        self.down, self.back = nn.Linear(4, 2), nn.Linear(2, 4)
        self.soft = nn.Softmax(dim=1)

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        return self.back(torch.relu(self.down(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.up(torch.cat([self.left(x), self.right(x)], 1)))
        weights = torch.sigmoid(self.gate(x.mean((2, 3))) + self.gate(x.amax((2, 3))))
        return self.soft(x * weights[:, :, None, None]).mean((2, 3))


def mobile() -> nn.Module:
    layers = [nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU6()]
    layers += [nn.Conv2d(4, 4, 3, 2, 1, groups=4, bias=False), nn.BatchNorm2d(4), nn.Hardswish()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(4, 3))


def grown() -> nn.Module:
    layers = [nn.ConvTranspose2d(3, 4, 3, 2, 1), nn.GroupNorm(2, 4), nn.GELU(), nn.AvgPool2d(3, 2)]
    return nn.Sequential(*layers, nn.Conv2d(4, 2, 3), nn.Tanh())


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": exports.residual,
    "branches": Branches,
    "mobile": mobile,
    "grown": grown,
}


@cache
def network(name: str) -> nn.Module:
    return exports.randomised(NETWORKS[name]())


@cache
def content(name: str, exporter: str) -> bytes:
    return exports.onnx_model(network(name), **EXPORTERS[exporter]).SerializeToString()


def exported(name: str, exporter: str) -> Any:
    return onnx.load_from_string(content(name, exporter))


@pytest.mark.quick
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_an_unbroken_export_holds(name, exporter):
    model = exported(name, exporter)
    before = model.SerializeToString()
    report = compare_models(network(name), model, IMAGES)
    assert report.holds, report.why_not()
    assert report.culprits() == []
    assert not report.outputs_only
    reference = report.coverage["onnx"]["reference"]
    assert reference.parameters[0] == reference.parameters[1]
    assert len(report.layers) > 5
    assert model.SerializeToString() == before


def node(model: Any, operator: str, place: int = 0) -> Any:
    return [n for n in model.graph.node if n.op_type == operator][place]


def weight(model: Any, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = np.ascontiguousarray(change(onnx.numpy_helper.to_array(tensor).copy()))
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))


def attribute(found: Any, **values: Any) -> None:
    kept = [a for a in found.attribute if a.name not in values]
    del found.attribute[:]
    found.attribute.extend([*kept, *(onnx.helper.make_attribute(k, v) for k, v in values.items())])


def become(found: Any, operator: str, inputs: int | None = None, **values: Any) -> None:
    """Another operator in the same place."""
    found.op_type = operator
    del found.attribute[:]
    attribute(found, **values)
    del found.input[inputs if inputs is not None else len(found.input) :]


def remove(model: Any, found: Any) -> None:
    """A node that the exporter forgot."""
    for other in model.graph.node:
        for place, value in enumerate(other.input):
            if value == found.output[0]:
                other.input[place] = found.input[0]
    model.graph.node.remove(found)


def swap(found: Any, one: int, other: int) -> None:
    found.input[one], found.input[other] = found.input[other], found.input[one]


def folded(model: Any, place: int, change: Callable[[np.ndarray], np.ndarray], which: int = 1) -> None:
    """Change the weight (1) or bias (2) of a convolution, whatever its name; an alias is looked through."""
    name = node(model, "Conv", place).input[which]
    alias = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Identity"}
    weight(model, alias.get(name, name), change)


Fault = tuple[str, str, str, Callable[[Any], Any]]
FAULTS: dict[str, Fault] = {  # network, exporter, the name to find, the fault
    "epsilon": (
        "residual",
        "plain",
        "block.bn1",
        lambda m: attribute(node(m, "BatchNormalization"), epsilon=1e-3),
    ),
    "scale and shift swapped": (
        "residual",
        "plain",
        "block.bn1",
        lambda m: swap(node(m, "BatchNormalization"), 1, 2),
    ),
    "scale lost": ("residual", "plain", "block.bn2", lambda m: weight(m, "block.bn2.weight", np.ones_like)),
    "wrong weights": ("residual", "plain", "stem", lambda m: weight(m, "stem.weight", lambda w: w * 1.001)),
    "bias lost": ("residual", "plain", "stem", lambda m: weight(m, "stem.bias", np.zeros_like)),
    "padding at one side": (
        "residual",
        "plain",
        "stem",
        lambda m: attribute(node(m, "Conv"), pads=[0, 0, 2, 2]),
    ),
    "padding of the block": (
        "residual",
        "plain",
        "block.conv1",
        lambda m: attribute(node(m, "Conv", 1), pads=[2, 2, 0, 0]),
    ),
    "kernel flipped": (
        "residual",
        "plain",
        "block.conv2",
        lambda m: weight(m, "block.conv2.weight", lambda w: w[:, :, ::-1]),
    ),
    "kernel axes swapped": (
        "residual",
        "plain",
        "block.conv1",
        lambda m: weight(m, "block.conv1.weight", lambda w: w.swapaxes(0, 1)),
    ),
    "another pooling": (
        "residual",
        "plain",
        "pool",
        lambda m: become(node(m, "MaxPool"), "AveragePool", kernel_shape=[2, 2], strides=[2, 2]),
    ),
    "max for mean": (
        "residual",
        "plain",
        "mean",
        lambda m: setattr(node(m, "ReduceMean"), "op_type", "ReduceMax"),
    ),
    "classes permuted": ("residual", "plain", "head", lambda m: weight(m, "head.weight", lambda w: w[::-1])),
    "alpha": ("residual", "plain", "head", lambda m: attribute(node(m, "Gemm"), alpha=0.99)),
    "another activation": ("residual", "plain", "block.relu", lambda m: become(node(m, "Relu"), "Elu")),
    "activation lost": ("residual", "plain", "block.relu", lambda m: become(node(m, "Relu"), "Identity")),
    "batch norm missing": (
        "residual",
        "plain",
        "block.bn1",
        lambda m: remove(m, node(m, "BatchNormalization")),
    ),
    "residual lost": ("residual", "plain", "block", lambda m: become(node(m, "Add"), "Identity", 1)),
    "residual multiplied": ("residual", "plain", "block", lambda m: become(node(m, "Add"), "Mul")),
    "folded scale": ("residual", "fused", "block.bn1", lambda m: folded(m, 1, lambda w: w * 1.01)),
    "folded shift": ("residual", "fused", "block.bn2", lambda m: folded(m, 2, lambda w: w * 1.01)),
    "folded scale, legacy": ("residual", "legacy", "block.conv1", lambda m: folded(m, 1, lambda w: w * 1.01)),
    "folded shift, legacy": ("residual", "legacy", "block.conv2", lambda m: folded(m, 2, np.zeros_like, 2)),
    "resize mode": ("branches", "plain", "up", lambda m: attribute(node(m, "Resize"), mode="nearest")),
    "resize coordinates": (
        "branches",
        "plain",
        "up",
        lambda m: attribute(node(m, "Resize"), coordinate_transformation_mode="asymmetric"),
    ),
    "softmax axis": ("branches", "plain", "soft", lambda m: attribute(node(m, "Softmax"), axis=2)),
    "slope": ("branches", "plain", "act", lambda m: attribute(node(m, "LeakyRelu"), alpha=0.2)),
    "concatenated in another order": ("branches", "plain", "up", lambda m: swap(node(m, "Concat"), 0, 1)),
    "tanh for erf": ("grown", "plain", "2", lambda m: attribute(node(m, "Gelu"), approximate="tanh")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_an_export_is_named(fault):
    name, exporter, wanted, inject = FAULTS[fault]
    model = exported(name, exporter)
    inject(model)
    report = compare_models(network(name), model, IMAGES)
    assert not report.holds
    found = report.first_divergence()
    named = {found.point.removeprefix("input of "), *found.culprits}
    assert wanted in named, report.why_not()
    assert all(covers(culprit, wanted) for culprit in found.culprits), report.why_not()  # no innocent one
    absent = {point.name for point in report.layers if np.inf in point.errors.values()}
    assert absent <= {wanted}  # nothing else counts as missing


def test_the_example_prints_what_the_page_shows(capsys):
    docs = Path(__file__).parents[2] / "docs"
    runpy.run_path(str(docs / "examples" / "compare_an_export.py"), run_name="__main__")
    shown = re.search(
        r"\$ python docs/examples/compare_an_export.py\n(.*?)```",
        (docs / "harness.md").read_text("utf-8"),
        re.S,
    )
    assert capsys.readouterr().out == shown[1]


def test_a_graph_without_paths_is_paired_by_weights():
    model = exported("residual", "plain")
    for found in model.graph.node:
        del found.metadata_props[:]
        found.name = ""
    for place, tensor in enumerate(model.graph.initializer):  # names that tell nothing
        renamed = f"w{place}"
        for found in model.graph.node:
            found.input[:] = [renamed if value == tensor.name else value for value in found.input]
        tensor.name = renamed
    report = compare_models(network("residual"), model, IMAGES)
    assert report.holds, report.why_not()
    assert not report.outputs_only
    assert {how for _, how in report.pairing["onnx"].values()} <= {"equal weights", "equal outputs"}


def test_control_flow_leaves_outputs_only():
    model = exported("residual", "plain")
    last = model.graph.output[0]
    inner = onnx.helper.make_node("Identity", [last.name], ["same"])
    branch = onnx.helper.make_graph([inner], "b", [], [onnx.ValueInfoProto(name="same")])
    yes = onnx.helper.make_tensor("yes", onnx.TensorProto.BOOL, [], [True])
    model.graph.initializer.append(yes)
    model.graph.node.append(
        onnx.helper.make_node("If", ["yes"], ["end"], then_branch=branch, else_branch=branch)
    )
    end = onnx.helper.make_tensor_value_info("end", onnx.TensorProto.FLOAT, [None, 5])
    del model.graph.output[:]
    model.graph.output.append(end)
    report = compare_models(network("residual"), model, IMAGES)
    assert report.holds, report.why_not()
    assert report.outputs_only == ["onnx"]
    assert report.coverage["onnx"]["reference"].tensors == (0, 0)


def test_a_quantised_graph_has_figures():
    model = exported("residual", "legacy")
    end = model.graph.output[0].name
    model.graph.node[-1].output[0] = "before"
    scale = onnx.numpy_helper.from_array(np.float32(0.05), "scale")
    zero = onnx.numpy_helper.from_array(np.int8(0), "zero")
    model.graph.initializer.extend([scale, zero])
    model.graph.node.append(onnx.helper.make_node("QuantizeLinear", ["before", "scale", "zero"], ["q"]))
    model.graph.node.append(onnx.helper.make_node("DequantizeLinear", ["q", "scale", "zero"], [end]))
    report = compare_models(network("residual"), model, IMAGES)
    found = report.accuracy["onnx"]
    assert not report.holds
    assert found.precision == "int8"
    assert found.step == pytest.approx(0.05)
    assert found.error <= 0.026


def test_channels_last_inputs():
    model = exported("residual", "plain")
    first = model.graph.input[0]
    first.type.tensor_type.shape.CopyFrom(
        onnx.helper.make_tensor_value_info("x", 1, [4, 12, 12, 3]).type.tensor_type.shape
    )
    for found in model.graph.node:
        found.input[:] = ["moved" if value == first.name else value for value in found.input]
    move = onnx.helper.make_node("Transpose", [first.name], ["moved"], perm=[0, 3, 1, 2])
    model.graph.node.insert(0, move)
    report = compare_models(network("residual"), model, IMAGES)
    assert report.holds, report.why_not()
