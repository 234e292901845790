"""keras-hub's presets: a backbone and its classifier in two files, and what their configs say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from parity_tests.judge import synthetic
from parity_tests.judge.synthetic import tiny
from weights_convert import SourceError, load
from weights_convert.families import FAMILIES
from weights_convert.layouts import ROLES
from weights_convert.spec import parameters

pytestmark = pytest.mark.quick

SPEC = tiny(depths=(2, 1), stem="deep", downsample_pool="avg", global_pool="max", reduction=16)
WEIGHTS = synthetic.weights(SPEC)
BACKBONE = {
    "registered_name": "keras_hub>ResNetBackbone",
    "config": {
        "block_type": "bottleneck_block_vd",
        "stackwise_num_strides": [1, 2],
        "use_pre_activation": False,
    },
}
TASK = {"config": {"pooling": "max", "num_classes": 5, "activation": "softmax"}}


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """As `save_weights` of a functional model: groups that count layers, with the layers' names."""
    with h5py.File(path, "w") as file:
        groups: dict[str, h5py.Group] = {}
        for name, array in arrays.items():
            layer, _, number = name.partition("/vars/")
            if layer not in groups:
                groups[layer] = file.create_group(f"layers/layer_{len(groups)}/vars")
                groups[layer].attrs["name"] = layer
            groups[layer][number] = array


def preset(folder: Path, backbone: Any = BACKBONE, task: Any = TASK) -> Path:
    layout = FAMILIES["keras_hub"].layout_of(SPEC)
    arrays = {}
    for parameter in parameters(SPEC):
        if (number := ROLES[parameter.role].keras_index) is not None:
            module = layout.in_file(parameter.name, SPEC).rpartition("/")[0]
            arrays[f"{module}/vars/{number}"] = layout.stored(parameter).to_file(WEIGHTS[parameter.name])
    head = {name: array for name, array in arrays.items() if name.startswith("predictions/")}
    write(folder / "model.weights.h5", {n: a for n, a in arrays.items() if n not in head})
    write(folder / "task.weights.h5", head | {"optimizer/vars/0": np.array(3)})
    (folder / "config.json").write_text(json.dumps(backbone))
    (folder / "task.json").write_text(json.dumps(task))
    return folder


def test_a_preset(tmp_path, recwarn):
    with load(preset(tmp_path)) as checkpoint:
        assert (checkpoint.family, checkpoint.spec, checkpoint.assumed) == ("keras_hub", SPEC, ())
        assert "as keras-hub's ResNet in config.json; without its 'softmax' after the classifier" in (
            checkpoint.notes
        )
        wanted = {n: a for n, a in WEIGHTS.items() if "num_batches" not in n}
        assert checkpoint.keys() == wanted.keys()
        assert all((checkpoint[name] == array).all() for name, array in wanted.items())
    assert list(recwarn) == []


def test_a_file_of_weights_alone(tmp_path):
    preset(tmp_path)
    with pytest.warns(UserWarning, match="as in keras_hub's networks: .*downsample_pool='none'"):
        checkpoint = load(tmp_path / "model.weights.h5")
    assert (checkpoint.family, checkpoint.spec.num_classes) == ("keras_hub", 0)
    checkpoint.close()


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("conv1_conv/vars/1", "conv1.bias"),
        ("conv2_block1_0_bn/vars/2", "layer1.0.downsample.1.running_mean"),
        ("conv1_conv/vars/9", None),
        ("conv1_conv/vars/10", None),
    ],
)
def test_numbered_variables_of_keras_applications(name, canonical):
    """As `save_weights` of Keras 3 writes them."""
    _, layout = FAMILIES["keras_applications"].layouts(())[0]
    assert layout.parse(name) == canonical


WRONG: dict[str, tuple[Any, Any, str]] = {
    "another network": (
        {"registered_name": "keras_hub>ViTBackbone"},
        TASK,
        "ViTBackbone, which this project",
    ),
    "v2": ({"use_pre_activation": True}, TASK, r"with pre-activation \(ResNet v2\), which this project"),
    "an unknown block": ({"block_type": ["x"]}, TASK, r"block_type is \['x'\], expected one of basic_block"),
    "strides": ({"stackwise_num_strides": "x"}, TASK, "stackwise_num_strides is 'x', expected a number"),
    "pooling": ({}, {"config": {"pooling": 3}}, "task.json: global_pool is 3, expected one of 'avg'"),
    "a list": ({}, {"config": []}, "task.json: 'config' is a list, expected an object"),
}


@pytest.mark.parametrize("case", WRONG)
def test_configs_that_are_refused(tmp_path, case):
    change, task, message = WRONG[case]
    config = {"registered_name": change.get("registered_name", BACKBONE["registered_name"])}
    inner = {**BACKBONE["config"], **{k: v for k, v in change.items() if k != "registered_name"}}  # type: ignore[dict-item]
    with pytest.raises(SourceError, match=message):
        load(preset(tmp_path, config | {"config": inner}, task))
