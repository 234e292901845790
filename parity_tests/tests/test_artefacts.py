"""Exported artefacts in the place of a live model: right ones hold, wrong ones differ, and nothing is claimed
about weights that were not seen."""

from __future__ import annotations

import json
from collections.abc import Callable as Function
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from parity_tests.compare import Callable, assert_parity, compare_models
from parity_tests.tests import exports
from parity_tests.tests.exports import IMAGES

ONLY_OUTPUTS = "only outputs were compared, no layers and no weights"


def openvino_file(module: torch.nn.Module, folder: Path) -> Path:
    openvino = pytest.importorskip("openvino")
    openvino.save_model(
        openvino.convert_model(module, example_input=exports.given()),
        folder / "m.xml",
        compress_to_fp16=False,
    )
    return folder / "m.xml"


def program_file(module: torch.nn.Module, folder: Path) -> Path:
    torch.export.save(exports.program(module), folder / "m.pt2")
    return folder / "m.pt2"


def tflite_file(model: Any, folder: Path) -> Path:
    (folder / "m.tflite").write_bytes(exports.tflite(model))
    return folder / "m.tflite"


def loaded(model: Any, folder: Path) -> Any:
    import tensorflow as tf

    return tf.saved_model.load(str(exports.saved_model(model, folder / "saved")))


def layer_of(model: Any, folder: Path) -> Any:
    import keras

    path = str(exports.saved_model(model, folder / "saved"))
    return keras.layers.TFSMLayer(path, call_endpoint="serve")


Export = Function[[Any, Path], Any]
OF_TORCH: dict[str, Export] = {
    "TorchScript file": lambda m, f: exports.save_script(m, f / "m.pt"),
    "scripted": lambda m, _: exports.scripted(m),
    "traced": lambda m, _: exports.scripted(m, "trace"),
    "pt2 file": program_file,
    "program": lambda m, _: exports.program(m),
    "OpenVINO": openvino_file,
    "callable": lambda m, _: Callable(lambda x: m(torch.tensor(x))),
}
OF_KERAS: dict[str, Export] = {
    "SavedModel": lambda m, f: exports.saved_model(m, f / "saved"),
    "loaded SavedModel": loaded,
    "TFSMLayer": layer_of,
    "frozen graph": lambda m, f: exports.frozen(m, f / "m.pb"),
    "LiteRT file": tflite_file,
    "LiteRT bytes": lambda m, _: exports.tflite(m),
    "callable": lambda m, _: Callable(m, "nhwc"),
}


def judged(report: Any, right: bool) -> None:
    assert report.holds is right, report.why_not()
    assert report.dtype == "float32"
    if report.outputs_only:
        assert report.extent == ONLY_OUTPUTS
        assert report.coverage[report.candidates[0]]["candidate"].tensors == (0, 0)
        assert [point.name for point in report.layers] in (["output"], ["input of output", "output"])


@pytest.mark.quick
@pytest.mark.parametrize("kind", OF_TORCH)
def test_an_export_of_a_torch_module(kind, tmp_path):
    model = exports.residual()
    artefact = OF_TORCH[kind](model, tmp_path)
    judged(compare_models(model, artefact, IMAGES), True)
    with torch.no_grad():
        other = exports.residual()
        other.block.conv1.weight[0, 0, 0, 0] += 0.01
    judged(compare_models(other, artefact, IMAGES), False)


SLOW = ("loaded SavedModel", "TFSMLayer", "LiteRT bytes")  # these reach the same code as the others
MARKED = [pytest.param(kind, marks=[pytest.mark.exhaustive] * (kind in SLOW)) for kind in OF_KERAS]


@pytest.mark.parametrize("kind", MARKED)
def test_an_export_of_a_keras_model(kind, tmp_path):
    model = exports.keras_net()
    artefact = OF_KERAS[kind](model, tmp_path)
    judged(compare_models(model, artefact, IMAGES), True)
    other = exports.keras_net()
    other.get_layer("stem").bias.assign_add([0.001, 0, 0, 0])
    judged(compare_models(other, artefact, IMAGES), False)


def test_an_artefact_as_the_reference(tmp_path):
    model = exports.keras_net()
    saved = exports.saved_model(model, tmp_path / "saved")
    judged(compare_models(saved, model, IMAGES), True)
    judged(compare_models(str(saved), exports.tflite(model), IMAGES), True)


def test_an_artefact_in_float64():
    model = exports.residual().double()
    report = compare_models(model, Callable(lambda x: model(torch.tensor(x)), dtype="float64"), IMAGES)
    assert report.holds
    assert (report.dtype, report.layers[0].limit <= 1e-12) == ("float64", True)


def test_fixed_batches():
    model = exports.residual()
    program = torch.export.export(model, (exports.given(IMAGES[:1]),))
    judged(compare_models(model, program, IMAGES), True)  # exported for one image at a time


@pytest.mark.parametrize("layouts", [None, {"input": "same"}])
def test_a_layout_is_found_or_stated(layouts):
    import tensorflow as tf

    module = tf.Module()
    module.f = tf.function(
        lambda images: tf.reduce_mean(images, [2, 3]), [tf.TensorSpec((None, None, None, None), tf.float32)]
    )
    tail = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    frozen = module.f.get_concrete_function().graph.as_graph_def()
    report = compare_models(tail, frozen, IMAGES, layouts=layouts)
    assert report.holds, report.why_not()
    assert any("the same axes in both models at the input" in note for note in report.notes) is (not layouts)
    assert not compare_models(tail, frozen, IMAGES, layouts={"input": "moved"}).holds


def test_several_inputs_and_outputs():
    class Two(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return a + 2 * b, a * b

    inputs = [IMAGES, IMAGES[::-1].copy()]
    program = torch.export.export(Two(), tuple(exports.given(x) for x in inputs))
    assert compare_models(Two(), program, inputs).holds
    assert compare_models(Two(), program, {"a": inputs[0], "b": inputs[1]}).holds
    swapped = Callable(lambda a, b: [b + 2 * a, a * b])
    report = compare_models(Two(), swapped, inputs)
    assert report.first_divergence().point == "output 0"


def test_the_report_says_how_much_was_compared():
    from rich.console import Console

    from parity_tests.compare.table import show
    from parity_tests.page.page import page

    model = exports.residual()
    report = compare_models(model, exports.program(model), IMAGES)
    report.outputs_only = ["torch.export"]
    console = Console(width=200, record=True, quiet=False)
    show(console, report)
    assert ONLY_OUTPUTS in console.export_text()
    assert ONLY_OUTPUTS in page([report])
    assert report.to_json()["outputs_only"] == ["torch.export"]


def test_quantised_litert_has_figures_and_no_verdict():
    model = exports.keras_net()
    content = exports.tflite(model, quantised=True)
    report = compare_models(model, content, IMAGES)
    found = report.accuracy["litert"]
    assert not report.holds
    assert "no verdict of equality for litert in int8: top-1 agrees on" in report.why_not()
    assert (found.precision, found.inputs) == ("int8", 4)
    assert 0 < found.error / found.step < 8
    assert compare_models(model, content, IMAGES, top1=0.5).holds
    other = exports.keras_net()
    other.get_layer("head").bias.assign([1000.0, 0, 0, 0, 0])
    wrong = compare_models(other, content, IMAGES, top1=0.5)
    assert wrong.accuracy["litert"].agree == 0
    assert "wanted 50.0%" in wrong.why_not()
    assert json.dumps(wrong.to_json())


def test_bfloat16_has_figures_and_no_verdict():
    model = exports.residual()
    half = exports.scripted(exports.residual().bfloat16())
    report = compare_models(model, half, IMAGES)
    assert not report.holds
    assert report.accuracy["torchscript"].precision == "bfloat16"
    assert 1e-5 < report.accuracy["torchscript"].relative < 0.1
    assert compare_models(model, half, IMAGES, top1=0.75).holds


class TwoHeads(torch.nn.Module):
    """Classes from two heads, or classes and a map."""

    def __init__(self, sign: float = 1.0, *, classes: bool = True) -> None:
        super().__init__()
        self.body, self.sign, self.classes = exports.residual(), sign, classes

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.body(x)
        return logits, self.sign * (logits if self.classes else x)


def test_every_output_of_a_quantised_artefact_decides():
    right, wrong = (
        exports.scripted(TwoHeads(sign).bfloat16(), "trace", exports.given().bfloat16())
        for sign in (1.0, -1.0)
    )
    assert compare_models(TwoHeads(), right, IMAGES, top1=0.75).holds
    report = compare_models(TwoHeads(), wrong, IMAGES, top1=0.75)
    assert not report.holds
    assert report.accuracy["torchscript"].relative > 1


def test_an_output_without_classes_leaves_no_verdict_of_a_quantised_artefact():
    wrong = exports.scripted(TwoHeads(-1.0, classes=False).bfloat16(), "trace", exports.given().bfloat16())
    report = compare_models(TwoHeads(classes=False), wrong, IMAGES, top1=0.01)
    assert not report.holds
    assert "an output is no classes" in report.why_not()


def test_a_wrong_shape_of_a_quantised_artefact_is_a_difference():
    half = exports.scripted(torch.nn.Sequential(exports.residual(), torch.nn.Linear(5, 4)).bfloat16())
    report = compare_models(exports.residual(), half, IMAGES, top1=0.01)
    assert not report.holds
    assert report.accuracy == {}


def test_nothing_of_the_models_changes():
    model = exports.residual()
    script = exports.scripted(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compare_models(model, script, IMAGES)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in script.state_dict().items())
    assert not script._forward_hooks
    images = IMAGES.copy()
    compare_models(model, Callable(lambda x: x.__imul__(0)), images)
    assert np.array_equal(images, IMAGES)  # the function worked in place


def test_the_fixture_takes_artefacts(parity):
    model = exports.residual()
    assert parity.compare(model, exports.program(model), IMAGES).holds
    with pytest.raises(AssertionError, match="differs first at"):
        parity.assert_same(model, Callable(lambda x: model(torch.tensor(x)) + 1), IMAGES)


def test_assert_parity_takes_artefacts():
    model = exports.residual()
    with pytest.warns(UserWarning, match="without power for"):
        assert_parity(model, exports.scripted(model), IMAGES)
