"""Artefacts that cannot be read or do not fit: one clear line each, exit code 2 at the command line."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from parity_tests.__main__ import main
from parity_tests.compare import Callable, compare_models
from parity_tests.judge.synthetic import weights
from parity_tests.tests import exports
from parity_tests.tests.exports import IMAGES
from parity_tests.watch.exported.kinds import KINDS, opened
from weights_convert import SpecError, load_model, model_spec, save, transfer

pytestmark = pytest.mark.quick

WRONG = [  # path, its content (None: there is none, "/": a folder), the message
    ("none.onnx", None, r"none\.onnx: no such file or folder"),
    ("none.foo", None, r"none\.foo: no such file or folder"),
    ("text.foo", b"text", r"text\.foo: no exported artefact; expected \.onnx, "),
    ("empty", "/", r"empty: a folder without saved_model\.pb, expected a SavedModel"),
    ("m.onnx", b"no model", r"m\.onnx: (cannot be read as ONNX|an empty ONNX graph)"),
    ("m.onnx", b"", r"m\.onnx: an empty ONNX graph"),
    ("m.pt", b"no model", r"m\.pt: no TorchScript program .*a file of weights is no model: load it into one"),
    ("m.pt2", b"no model", r"m\.pt2: cannot be read as torch\.export program"),
    ("m.pb", b"no model", r"m\.pb: cannot be read as frozen graph"),
    ("m.pb", b"", r"m\.pb: no placeholders or no outputs, expected a frozen network"),
    ("m.tflite", b"no model", r"m\.tflite: starts with b'no model', expected a LiteRT flatbuffer"),
    ("m.tflite", b"\0\0\0\0TFL3" + b"\0" * 9, r"m\.tflite: cannot be read as LiteRT"),
    ("m.xml", b"<net/>", r"m\.xml: no m\.bin beside it, which has the weights"),
]
NEEDS = {".onnx": ("onnx", "onnxruntime"), ".tflite": ("ai_edge_litert",), ".xml": ("openvino",)}


def one_line(error: pytest.ExceptionInfo[SpecError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def written(path: Path, content: bytes | str | None) -> Path:
    if content == "/":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    return path


@pytest.mark.parametrize(("name", "content", "message"), WRONG)
def test_a_file_that_is_none(name, content, message, tmp_path):
    for module in NEEDS.get(Path(name).suffix, ()) if content is not None else ():
        pytest.importorskip(module)
    with pytest.raises(SpecError, match=message) as error:
        compare_models(exports.residual(), written(tmp_path / name, content), IMAGES)
    one_line(error)


def test_weights_are_no_torchscript(tmp_path):
    torch.save(exports.residual().state_dict(), tmp_path / "m.pth")
    with pytest.raises(SpecError, match=r"m\.pth: no TorchScript program") as error:
        compare_models(exports.residual(), tmp_path / "m.pth", IMAGES)
    one_line(error)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_missing_package(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    path = tmp_path / f"m{kind.suffixes[0]}".rstrip("/")
    written(path, "/" if "/" in kind.suffixes else b"")
    packages = [*kind.packages.values()]
    with pytest.raises(SpecError, match=f"^{kind.name}: .* is not installed: pip install {packages[0]}$"):
        opened(path)


def test_inputs_that_do_not_fit():
    program = exports.program(exports.residual())
    with pytest.raises(SpecError, match=r"takes inputs \(N, 3, 12, 12\); received \(4, 3, 10, 10\)"):
        compare_models(exports.residual(), program, IMAGES[:, :, :10, :10])
    with pytest.raises(SpecError, match=r"takes 1 inputs \(input\); received 2"):
        opened(program).__class__(program)._slots(["", ""])
    with pytest.raises(SpecError, match="takes the inputs input; received x"):
        opened(program)._slots(["x"])


def test_an_artefact_has_no_train_mode():
    with pytest.raises(SpecError, match="is exported and has no train mode; compare it with train=False"):
        compare_models(exports.residual(), exports.scripted(exports.residual()), IMAGES, train=True)


def test_an_artefact_has_no_weights_to_transfer():
    with pytest.raises(SpecError, match="is exported, expected a torch module or a Keras model"):
        transfer(exports.residual(), exports.program(exports.residual()), IMAGES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fn": 3}, r"Callable\(int\): expected a function"),
        ({"fn": abs, "layout": "chw"}, r"layout='chw'.*'nchw' or 'nhwc'"),
        ({"fn": abs, "dtype": "int8"}, r"dtype='int8'.*'float32' or 'float64'"),
    ],
)
def test_a_callable_that_is_none(arguments, message):
    with pytest.raises(SpecError, match=message):
        Callable(**arguments)


def test_a_callable_that_fails_or_returns_no_arrays():
    with pytest.raises(SpecError, match=r"the callable model does not run on inputs .*ZeroDivisionError"):
        compare_models(exports.residual(), Callable(lambda _: 1 / 0), IMAGES)
    with pytest.raises(SpecError, match="returned str, expected arrays"):
        compare_models(exports.residual(), Callable(lambda _: "text"), IMAGES)
    noise = np.random.default_rng(0)
    random = Callable(lambda x: noise.normal(size=(len(x), 5)))
    assert not compare_models(exports.residual(), random, IMAGES).holds


@pytest.mark.parametrize("top1", [0, 1.5, "all"])
def test_a_share_that_is_none(top1):
    with pytest.raises(SpecError, match="expected a share above 0 and at most 1"):
        compare_models(exports.residual(), exports.residual(), IMAGES, top1=top1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint with, beside it, its network as TorchScript, right, wrong, and in bfloat16."""
    folder = tmp_path_factory.mktemp("artefact")
    spec = model_spec("resnet20", width=4)
    save(weights(spec), folder / "m.pth")
    model = load_model(folder / "m.pth", "torch").eval()
    images = torch.zeros(1, 3, 32, 32)
    exports.save_script(model, folder / "right.pt", "trace", images)
    exports.save_script(copy.deepcopy(model).bfloat16(), folder / "half.pt", "trace", images.bfloat16())
    model.bn1.eps = 1e-2
    exports.save_script(model, folder / "wrong.pt", "trace", images)
    return folder / "m.pth"


RUNS = [  # arguments, exit code, what is printed
    ("--artifact right.pt", 0, r"^parity holds: m.pth and right.pt \(only outputs were compared"),
    ("--artifact wrong.pt", 1, r"^NO PARITY: m.pth and wrong.pt: torchscript differs first at layer output"),
    ("--artifact half.pt", 1, r"^no verdict: m.pth and half.pt: no verdict of equality.*bfloat16"),
    ("--artifact half.pt --top1 0.5", 0, r"^accuracy reached: m.pth and half.pt \(torchscript, bfloat16"),
    ("--artifact none.pt", 2, r"none.pt: no such file or folder"),
    ("--artifact m.pth", 2, r"m\.pth: no TorchScript program"),
    ("--artifact right.pt --layers", 2, r"--artifact does not go with --layers"),
    ("--artifact right.pt --json right.pt", 2, r"right\.pt"),
    ("--artifact right.pt --top1 2", 2, r"'2': expected a share above 0"),
    ("--top1 0.5", 2, r"--top1 goes with --artifact"),
    ("resnet20 --artifact right.pt", 2, r"--dump, --against and --artifact take one model or checkpoint"),
]


@pytest.mark.parametrize(("arguments", "code", "printed"), RUNS)
def test_the_command(arguments, code, printed, checkpoint, monkeypatch, capsys):
    monkeypatch.chdir(checkpoint.parent)
    assert (
        main(["m.pth", *arguments.split(), "--allow-no-power"] if code < 2 else ["m.pth", *arguments.split()])
        == code
    )
    out, err = capsys.readouterr()
    assert re.search(printed, out if code < 2 else err, re.MULTILINE), (out, err)
    assert code < 2 or len(err.splitlines()) == 1


def test_the_command_writes_reports(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(checkpoint.parent)
    page, facts = tmp_path / "page.html", tmp_path / "facts.json"
    arguments = ["m.pth", "--artifact", "right.pt", "--report", str(page), "--json", str(facts), "--quiet"]
    assert main([*arguments, "--allow-no-power"]) == 0
    assert "only outputs were compared" in page.read_text("utf-8")
    assert json.loads(facts.read_text("utf-8"))[0]["outputs_only"] == ["torchscript"]
