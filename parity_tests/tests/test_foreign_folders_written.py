"""Folders for timm: config.json, the card, and what cannot be written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from parity_tests.judge import synthetic
from parity_tests.tests.test_foreign_folders import CONFIG, SPEC, STATE, THEIRS, changed_config, folder
from weights_convert import (
    DestinationError,
    MismatchError,
    ResNetSpec,
    WeightsConvertError,
    load,
    load_model,
    save,
)
from weights_convert.families import FAMILIES
from weights_convert.families.configs import VALUES
from weights_convert.families.timm_arguments import arguments_of
from weights_convert.spec import changed, parameters

pytestmark = pytest.mark.quick


def test_a_folder_for_timm(tmp_path, run):
    save(synthetic.weights(changed(SPEC, {"activation": "silu"})), tmp_path / "a.npz")
    ran = run("convert", tmp_path / "a.npz", f"{tmp_path}/x/", "--to", "timm")
    assert ran.code == 0, ran.err
    assert sorted(file.name for file in (tmp_path / "x").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert (config["architecture"], config["num_classes"]) == ("seresnet18", 5)
    assert config["model_args"] == CONFIG["model_args"] | {"act_layer": "silu"}
    card = (tmp_path / "x" / "README.md").read_text()
    assert "| origin | `a.npz`, npz in the torch layout |" in card
    assert "| licence | fill in" in card
    assert "verified" in card
    with load(tmp_path / "x") as checkpoint:
        assert (checkpoint.spec.activation, checkpoint.assumed) == ("silu", ())
    assert run("diff", tmp_path / "a.npz", tmp_path / "x").code == 0


def test_what_was_read_from_a_folder_is_written_to_the_next(tmp_path):
    config = changed_config(act_layer="gelu", output_stride=8, global_pool="catavgmax")
    arrays = dict(THEIRS) | {"fc.weight": np.concatenate([STATE["fc.weight"]] * 2, 1)}
    with load(folder(tmp_path / "x", config, arrays)) as checkpoint:
        save(checkpoint, f"{tmp_path}/y/")
    with load(tmp_path / "x") as first, load(tmp_path / "y") as second:
        assert first.spec == second.spec
        assert first.feeds == second.feeds
    images = torch.from_numpy(synthetic.images((64, 64)))
    with torch.inference_mode():
        assert (load_model(tmp_path / "x")(images) == load_model(tmp_path / "y")(images)).all()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_folder_stays_as_it_is(tmp_path, overwrite):
    save(synthetic.weights(SPEC), f"{tmp_path}/x/")
    before = {file.name: file.read_bytes() for file in (tmp_path / "x").iterdir()}
    with pytest.raises(DestinationError, match="exists already; choose a new folder, or remove this one"):
        save(synthetic.weights(SPEC), f"{tmp_path}/x/", overwrite=overwrite)
    assert {file.name: file.read_bytes() for file in (tmp_path / "x").iterdir()} == before
    (tmp_path / "empty").mkdir()
    save(synthetic.weights(SPEC), tmp_path / "empty")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["empty", "x"]


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(WeightsConvertError, match="No space left on device"):
        save(synthetic.weights(SPEC), f"{tmp_path}/x/")
    assert list(tmp_path.iterdir()) == []


NOT_TIMMS = {
    "the stem": ({"stem": "3x3", "stem_pool": "none"}, "stem='3x3'"),
    "hidden widths": ({"hidden_rule": "absolute", "reduction": 5}, "hidden_rule='absolute'"),
    "the epsilon": ({"bn_epsilon": 1e-3}, "keywords differ"),
    "no bias": ({"head_bias": False}, "without a bias of its classifier"),
}


@pytest.mark.parametrize("case", NOT_TIMMS)
def test_networks_that_timm_does_not_have(tmp_path, case):
    keywords, message = NOT_TIMMS[case]
    with pytest.raises(MismatchError, match=message):
        save(synthetic.weights(changed(SPEC, keywords)), f"{tmp_path}/x/")
    assert list(tmp_path.iterdir()) == []


NETWORKS = [
    {"attention": "none", "strides": (1, 2, 2, 1), "dilations": (1, 1, 1, 2)},
    {"attention": "eca", "anti_aliasing": "avg", "global_pool": "avgmax"},
    {"attention": "cbam", "hidden_rule": "floor", "cbam_mlp_bias": False, "cbam_order": "mean_max"},
    {"block": "bottleneck", "groups": 4, "width_per_group": 16, "stem": "deep", "downsample_pool": "avg"},
    {"block": "bottleneck", "stem": "deep_tiered", "stem_width": 24, "activation": "leaky_relu"},
    {"attention": "none", "stem": "deep", "stem_pool": "conv", "num_classes": 0},
    {"attention": "se", "norm": "gn", "stem_width": 32, "width": 32},
    {"attention": "sk", "sk_split": True, "sk_min_hidden": 16, "activation": "silu"},
    {"attention": "none", "anti_aliasing": "blur", "in_channels": 1, "dropout": 0.5},
]


@pytest.mark.parametrize("keywords", NETWORKS, ids=range(len(NETWORKS)))
def test_the_arguments_are_read_as_the_same_network(tmp_path, keywords):
    spec = changed(SPEC, keywords)
    architecture, arguments = arguments_of(spec)
    save(synthetic.weights(spec), f"{tmp_path}/x/")
    with _without_metadata(tmp_path, spec) as checkpoint:
        ours, theirs = checkpoint.spec.model_kwargs(), spec.model_kwargs()
        different = {k for k in ours if ours[k] != theirs[k]}
        assert not different - {"cbam_bn_momentum", "reduction", "hidden_rule"}, architecture
    assert "aa_layer" not in arguments


def _without_metadata(tmp_path: Path, spec: ResNetSpec) -> Any:
    """The folder with weights as timm saves them: config.json alone says what the network is."""
    layout = FAMILIES["timm"].layout_of(spec)
    arrays = {}
    for parameter in parameters(spec):
        array = np.array(synthetic.weights(spec)[parameter.name])
        arrays[str(layout.names(spec)[parameter.name])] = layout.stored(parameter).to_file(array)
    save_file({n: a.copy(order="C") for n, a in arrays.items()}, tmp_path / "x" / "model.safetensors")
    return load(tmp_path / "x")


def test_cbams_maps_are_swapped_and_said_to_be(tmp_path):
    """With another momentum too, which once brought the old order back into the metadata."""
    spec = changed(SPEC, {"attention": "cbam", "cbam_mlp_bias": False, "cbam_order": "max_mean"})
    save(synthetic.weights(spec), tmp_path / "x.pth", family="timm")
    with load(tmp_path / "x.pth") as checkpoint:
        assert checkpoint.spec.cbam_order == "mean_max"
        name = "layer1.0.cbam.spatial.conv.weight"
        assert (checkpoint[name] == synthetic.weights(spec)[name][:, ::-1]).all()


def test_every_value_has_keywords_of_the_spec():
    for values in VALUES.values():
        for keywords in values.values():
            changed(ResNetSpec(stem="deep"), keywords)
