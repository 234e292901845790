"""The choice of the state dict in a PyTorch file, and the other contents of the file."""

from __future__ import annotations

import argparse
import collections
import datetime
import functools
import os
from pathlib import Path

import numpy as np
import pytest

from parity_tests.tests.test_torch_file import FORMS, assert_same, coded, error_of, seen, torch
from weights_convert.formats.torch.file import (
    open_torch,
)


@pytest.fixture(params=FORMS)
def save(request, tmp_path):
    """`save(object) -> path`, in the zip form and in the stream form."""

    def save(value: object) -> Path:
        path = tmp_path / f"{request.param}.pth"
        torch.save(value, path, _use_new_zipfile_serialization=FORMS[request.param])
        return path

    return save


# --- Choice of the state dict, and other contents


class Outer:
    class Inner:
        def __init__(self, value: int = 0):
            self.value = value


def training_checkpoint() -> tuple[dict, dict[str, torch.Tensor]]:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    factory = collections.defaultdict(list, {"loss": [0.5, 0.25]})
    cycle: list = [1]
    cycle.append(cycle)
    return {
        "epoch": 90,
        "arch": "resnet50",
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best_acc1": torch.tensor(76.1),
        "args": argparse.Namespace(lr=0.1, nested=argparse.Namespace(path=Path("data"))),
        "acc": np.float64(76.1),
        "confusion": np.eye(3),
        "history": factory,
        "folder": Path("runs"),
        "when": datetime.datetime(2020, 1, 2),
        "collate": functools.partial(sorted, reverse=True),
        "function": os.path.join,
        "inner": Outer.Inner(3),
        "numbers": {1, 2},
        "frozen": frozenset([1]),
        "complex": 1j,
        "raw": b"abc",
        "array": bytearray(b"abcd"),
        "cycle": cycle,
        "size": coded(2, 3).size(),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "rng": np.random.RandomState(0).get_state(),
        "nothing": None,
        "flag": True,
        "lr": 0.5,
        "large": 10**5000,
        "keys": {(1, 2): "tuple", Path("p"): "path", 3: "int"},
    }, dict(model.state_dict())


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("form", FORMS)
def test_training_checkpoint(tmp_path, form, protocol):
    root, expected = training_checkpoint()
    path = tmp_path / "x.pth.tar"
    torch.save(root, path, pickle_protocol=protocol, _use_new_zipfile_serialization=FORMS[form])
    assert_same(path, expected)
    reader = seen(path)
    assert reader.notes == ["took the entry 'state_dict'; others that hold tensors: '.' (choose with --key)"]
    assert list(reader.left_out) == [name for name in root if name != "state_dict"]
    facts = {
        "epoch": "int 90",
        "arch": "str 'resnet50'",
        "optimizer": "dict of 2 (18 tensors)",
        "best_acc1": "float32 tensor ()",
        "args": "argparse.Namespace",
        "acc": "numpy scalar",
        "confusion": "float64 array (3, 3)",
        "history": "collections.defaultdict",
        "folder": "pathlib.PosixPath",
        "when": "datetime.datetime",
        "collate": "functools.partial",
        "inner": f"{__name__}.Outer.Inner",
        "cycle": "list of 2",
        "nothing": "None",
        "flag": "True",
        "lr": "float 0.5",
        "large": "int of 16610 bits",
        "keys": "dict of 3",
    }
    assert {name: reader.left_out[name] for name in facts} == facts
    assert all(len(text) <= 80 and text.isprintable() for text in reader.left_out.values())


W = {"w": torch.zeros(2), "b": torch.zeros(1)}
CYCLE: dict = {**W}
CYCLE["again"] = CYCLE
CHOICES = {  # root, key -> names of the tensors, note, left out
    "top": (W, None, "wb", "", {}),
    "top with others": ({**W, "epoch": 3}, None, "wb", "", {"epoch": "int 3"}),
    "top with nested": (
        {**W, "x": W},
        None,
        "wb",
        "'.'; others that hold tensors: 'x'",
        {"x": "dict of 2 (2 tensors)"},
    ),
    "top before ema": (
        {**W, "model_ema": W},
        None,
        "wb",
        "'.'; others",
        {"model_ema": "dict of 2 (2 tensors)"},
    ),
    "lone tensor": (
        {"model": W, "best": torch.zeros(())},
        None,
        "wb",
        "'model'; others that hold tensors: '.'",
        {"best": "float32 tensor ()"},
    ),
    "raw before ema": (
        {"state_dict_ema": {"e": W["w"]}, "state_dict": W},
        None,
        "wb",
        "'state_dict'; others that hold tensors: 'state_dict_ema'",
        {"state_dict_ema": "dict of 1 (1 tensor)"},
    ),
    "ema by key": (
        {"state_dict_ema": {"e": W["w"]}, "state_dict": W},
        "state_dict_ema",
        "e",
        "",
        {"state_dict": "dict of 2 (2 tensors)"},
    ),
    "not a tensor": (
        {"net": {**W, "_extra_state": 1}, "lr": 0.5},
        None,
        "wb",
        "",
        {"lr": "float 0.5", "net._extra_state": "int 1"},
    ),
    "only one, of any name": ({"student": W, "epoch": 1}, None, "wb", "", {"epoch": "int 1"}),
    "deep": ({"a": {"b": W, "n": 1}, "m": 2}, None, "wb", "", {"m": "int 2", "a.n": "int 1"}),
    "deep by key": ({"a": {"b": W}, "c": W}, "a.b", "wb", "", {"c": "dict of 2 (2 tensors)"}),
    "key with a dot": ({"a.b": W, "model": W}, "a.b", "wb", "", {"model": "dict of 2 (2 tensors)"}),
    "top by key": (
        {"model": {**W, "c": torch.zeros(3)}, **W},
        ".",
        "wb",
        "",
        {"model": "dict of 3 (3 tensors)"},
    ),
    "holding itself": (CYCLE, None, "wb", "hold tensors: 'again' (", {"again": "dict of 3 (2 tensors)"}),
    "keys of all kinds": (
        {**W, 1: W["w"], None: 2},
        None,
        "wb",
        "",
        {"1": "float32 tensor (2,)", "None": "int 2"},
    ),
}


@pytest.mark.parametrize("case", CHOICES)
def test_choice_of_the_state_dict(save, case):
    root, key, names, note, left_out = CHOICES[case]
    with open_torch(save(root), key) as reader:
        assert list(reader.tensors) == list(names)
        assert reader.left_out == left_out
        assert note in "".join(reader.notes)
        assert bool(note) == bool(reader.notes)


REFUSALS = {
    "several": (
        {"student": W, "teacher": W},
        None,
        ["2 entries hold tensors; choose one with --key", "'teacher': 2 tensors"],
    ),
    "no such key": (
        {"student": W},
        "studnet",
        ["no entry 'studnet'", "did you mean 'student'?", "'student': 2 tensors"],
    ),
    "key of no tensors": ({**W, "epoch": 3}, "epoch", ["no entry 'epoch' that holds tensors (it is int 3)"]),
    "a tensor": (torch.zeros(2, 3), None, ["float32 tensor (2, 3), expected a mapping"]),
    "a list": ([torch.zeros(2)], None, ["list of 1 (1 tensor), expected a mapping"]),
    "no tensors": (
        {"epoch": 3, "x": {}},
        None,
        ["dict of 2, expected a mapping", "epoch: int 3", "x: dict of 0"],
    ),
    "arrays of objects": ({"w": np.array([{}])}, None, ["dict of 1, expected a mapping", "w: numpy.ndarray"]),
    "a number": (3, None, ["int 3, expected a mapping"]),
    "a whole module": (
        torch.nn.Linear(2, 2),
        None,
        ["a pickled torch.nn.modules.linear.Linear object, expected a state dict", "save model.state_dict()"],
    ),
    "a module in a dict": (
        {"model": torch.nn.Linear(2, 2), "epoch": 1},
        None,
        ["expected a mapping", "model.state_dict()", "model: torch.nn.modules.linear.Linear"],
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
@pytest.mark.filterwarnings("ignore")
def test_refuses_without_a_state_dict(save, case):
    root, key, texts = REFUSALS[case]
    message = error_of(save(root), key)
    assert [text for text in texts if text not in message] == []
