"""Files whose names and shapes fit several networks: each assumption is stated, the right keywords work."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torch_impl
from parity_tests.judge import numpy_reference, synthetic, tolerances
from parity_tests.judge.synthetic import tiny
from parity_tests.tests.foreign import logits
from weights_convert import MismatchError, SpecError, load, load_model, save, state_of
from weights_convert.families import FAMILIES
from weights_convert.families.timm_models import keywords_of
from weights_convert.spec import ResNetSpec, changed, parameters

SE = {"attention": "se", "hidden_rule": "multiple_of_8"}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # family, shown keywords, the ones not shown
    "timm aa": ("timm", SE, {"anti_aliasing": "avg"}),
    "timm blur": ("timm", {}, {"anti_aliasing": "blur"}),
    "timm output stride": ("timm", SE, {"strides": (1, 1), "dilations": (1, 2)}),
    "timm silu": ("timm", SE, {"activation": "silu"}),
    "timm leaky": ("timm", SE, {"activation": "leaky_relu"}),
    "timm max": ("timm", SE, {"global_pool": "max"}),
    "timm epsilon": ("timm", SE, {"bn_epsilon": 1e-3}),
    "timm ceca": ("timm", {"attention": "eca"}, {"eca_padding": "circular"}),
    "torchvision dilated": ("torchvision", {}, {"strides": (1, 1), "dilations": (1, 2)}),
    "torchvision stride in the 1x1": ("torchvision", {}, {"stride_in": "conv1"}),
    "torchvision without a pool": ("torchvision", {}, {"stem_pool": "none"}),
    "last stride 1": ("torchvision", {}, {"strides": (1, 1)}),
    "moskomule epsilon": ("moskomule", {"attention": "se"}, {"bn_epsilon": 1e-3}),
    "CBAM in a dilated network": ("cbam", {"attention": "cbam"}, {"strides": (1, 1), "dilations": (1, 2)}),
    "mmpretrain caffe": ("mmpretrain", SE | {"hidden_rule": "floor"}, {"stride_in": "conv1"}),
}


def family_file(path: Path, family: str, spec: ResNetSpec) -> dict[str, np.ndarray]:
    """Write a state dict with a family's names and without metadata; return the canonical arrays."""
    layout = FAMILIES[family].layout_of(spec)
    arrays = dict(synthetic.weights(spec))
    names = layout.names(spec)
    state = {names[p.name]: layout.stored(p).to_file(arrays[p.name]) for p in parameters(spec)}
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in state.items()}, path)
    return arrays


def as_in(family: str, shown: dict[str, Any], unshown: dict[str, Any]) -> ResNetSpec:
    """A tiny network of a family, with other values of keywords that no name shows."""
    spec = tiny(**shown)
    return changed(changed(spec, FAMILIES[family].implied(spec)), unshown)


@pytest.mark.parametrize("case", CASES)
def test_every_silent_variant_is_announced_and_right_with_its_keyword(tmp_path, case: str):
    family, shown, unshown = CASES[case]
    spec, path = as_in(family, shown, unshown), tmp_path / "x.pth"
    arrays = family_file(path, family, spec)
    with pytest.warns(UserWarning, match="does not specify these keywords") as caught:
        load(path).close()
    (line,) = [str(warning.message) for warning in caught]
    for keyword in unshown:
        assert f" {keyword}=" in line, line
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with load(path, settings=unshown) as checkpoint:
            assert {k: getattr(checkpoint.spec, k) for k in unshown} == unshown
    x = synthetic.images((64, 48), 2)
    wanted = numpy_reference.network(x, arrays, spec)["logits"]
    got = logits(path, "torch", x, settings=unshown)
    assert tolerances.relative_error(got, wanted) < 1e-5
    assert tolerances.relative_error(logits(path, "torch", x), wanted) > 1e-4  # the assumption was wrong


@pytest.mark.parametrize("family", ["timm", "torchvision", "moskomule", "cbam", "mmpretrain"])
def test_described_files_and_accepted_assumptions_cause_no_line(tmp_path, family: str):
    shown = {"moskomule": {"attention": "se"}, "cbam": {"attention": "cbam"}}.get(family, {})
    spec = as_in(family, shown, {})
    family_file(tmp_path / "x.pth", family, spec)
    load(tmp_path / "x.pth", assume=True).close()
    if FAMILIES[family].written:
        save(synthetic.weights(spec), tmp_path / "said.pth", family=family)  # with metadata
        load(tmp_path / "said.pth").close()


def test_a_family_that_fixes_everything_causes_no_line(tmp_path):
    spec = as_in("cadene", {"attention": "se"}, {})
    family_file(tmp_path / "x.pth", "cadene", spec)
    load(tmp_path / "x.pth").close()


def test_the_place_of_a_users_attention_is_assumed(tmp_path):
    family_file(tmp_path / "x.pth", "moskomule", as_in("moskomule", {"attention": "se"}, {}))
    with pytest.warns(UserWarning, match="the attention follows the last batch norm of a block"):
        load(tmp_path / "x.pth").close()


def test_the_command_states_it_in_one_line(run, folder):
    family_file(folder / "x.pth", "timm", as_in("timm", SE, {}))
    ran = run("convert", "x.pth", "x.weights.h5")
    assert ran.code == 0
    (line,) = [line for line in ran.lines if "does not specify" in line]
    assert "as in timm's networks: strides=(1, 2), dilations=(1, 1), activation='relu'" in line
    assert "does not specify" not in "".join(run("convert", "x.pth", "y.weights.h5", "--assume").lines)
    refused = run("convert", "x.pth", "z.weights.h5", "--strict")
    assert (refused.code, len(refused.lines)) == (2, 1)
    assert refused.lines[0].endswith("(--strict)")
    assert not (folder / "z.weights.h5").exists()
    assert (
        "assumed       strides, dilations, activation, anti_aliasing, global_pool"
        in run("inspect", "x.pth").out
    )


# --------------------------------------------------------------------------------------------------
# The dtype of a model


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_a_half_precision_file_states_its_dtype(tmp_path, framework: str):
    spec, path = tiny(attention="se"), tmp_path / "x.pth"
    save(synthetic.weights(spec), path, dtype="float16")
    with pytest.warns(
        UserWarning, match=r"x\.pth: holds float16, and so does the model; dtype='float32' gives"
    ):
        model = load_model(path, framework)
    assert "float16" in {str(array.dtype) for array in state_of(model).values()}
    x = synthetic.images((32, 32), 2)
    got = logits(path, framework, x, dtype="float32")
    with load(path) as checkpoint:
        wanted = numpy_reference.network(x, checkpoint, spec)["logits"]
    assert tolerances.relative_error(got, wanted) < 1e-5


def test_a_dtype_rounds_the_weights_and_an_unknown_one_is_refused(tmp_path):
    save(synthetic.weights(tiny()), tmp_path / "x.pth")
    model = load_model(tmp_path / "x.pth", dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert load_model(tmp_path / "x.pth", dtype="float64").fc.weight.dtype == torch.float64
    with pytest.raises(SpecError, match="there is no dtype 'float'; did you mean"):
        load_model(tmp_path / "x.pth", dtype="float")


# --------------------------------------------------------------------------------------------------
# Networks by their name in timm

NAMES = {
    "seresnetaa50d": {"anti_aliasing": "avg", "stem": "deep", "downsample_pool": "avg", "attention": "se"},
    "resnetblur18": {"anti_aliasing": "blur", "block": "basic"},
    "resnetrs101": {"stem_pool": "conv", "reduction": 4, "attention": "se", "depths": (3, 4, 23, 3)},
    "seresnext26t_32x4d.bt_in1k": {"stem": "deep_tiered", "groups": 32, "width_per_group": 4},
    "ecaresnetlight": {"attention": "eca", "depths": (1, 1, 11, 3)},
    "skresnet34.ra_in1k": {"attention": "sk", "block": "basic", "sk_split": True, "reduction": 8},
    "skresnet50d": {"sk_min_hidden": 8, "stem": "deep", "downsample_pool": "avg"},
    "skresnext50_32x4d": {"attention": "sk", "groups": 32},
    "resnet50_gn.a1h_in1k": {"norm": "gn"},
    "wide_resnet50_2": {"width_per_group": 128},
    "seresnextaa201d_32x8d": {"stem_width": 64, "depths": (3, 24, 36, 4)},
}


@pytest.mark.quick
@pytest.mark.parametrize("name", NAMES)
def test_timm_names_are_keywords(name: str):
    keywords = keywords_of(name)
    assert keywords is not None
    assert NAMES[name].items() <= keywords.items()
    ResNetSpec(**keywords)


@pytest.mark.quick
def test_other_names_are_none():
    for name in (
        "skresnet26",
        "resnet51",
        "seresnet50tiny",
        "ecaresnet50d_pruned",
        "se_resnet50",
    ):
        assert keywords_of(name) is None, name


def test_a_name_of_timm_settles_every_keyword(tmp_path):
    keywords = keywords_of("seresnetaa50d")
    assert keywords is not None
    spec = as_in("timm", SE, {})
    spec = ResNetSpec(**{**spec.model_kwargs(), **keywords, "strides": None, "dilations": None, "width": 4})
    family_file(tmp_path / "x.pth", "timm", spec)
    with load(tmp_path / "x.pth", model="timm:seresnetaa50d") as checkpoint:  # without a warning
        assert (checkpoint.spec, checkpoint.assumed) == (spec, ())
    with pytest.raises(MismatchError, match="do not match timm's"):
        load(tmp_path / "x.pth", model="timm:seresnet101")


WIDE = ("senet154", "resnet50_gn")  # widths that 64 groups and 32 group norms divide


def test_group_norms_need_the_keyword(tmp_path):
    """Batch norms without their statistics have the same names and shapes."""
    spec = tiny(norm="gn", width=32, stem_width=32, depths=(1,))
    arrays = {name: torch.from_numpy(np.array(a)) for name, a in synthetic.weights(spec).items()}
    torch.save(arrays, tmp_path / "x.pth")
    with pytest.raises(MismatchError, match="for group norms set --set norm=gn"):
        load(tmp_path / "x.pth", assume=True)
    with load(tmp_path / "x.pth", assume=True, settings={"norm": "gn"}) as checkpoint:
        assert parameters(checkpoint.spec) == parameters(spec)


def test_every_resnet_of_timm():
    """With timm installed: the names, the shapes and the numbers of each, at reduced widths."""
    timm = pytest.importorskip("timm", reason="timm needs torchvision, which needs an environment of its own")
    family = FAMILIES["timm"]
    for name in [*timm.list_models(module="resnet"), *timm.list_models(module="sknet")]:
        keywords = keywords_of(name)
        if keywords is None:
            assert name == "test_resnet" or name.endswith("_pruned"), name
            continue
        small = {"depths": (1, 1, 1, 1), "width": 64 if "eca" in name or name in WIDE else 16}
        spec = ResNetSpec(**{**keywords, **small}, hidden_rule="multiple_of_8", num_classes=7)
        implied = {k: v for k, v in family.implied(spec).items() if k not in keywords}
        spec = changed(spec, implied)
        channels = tuple(small["width"] * 2**stage for stage in range(4))
        theirs = (
            timm.create_model(name, channels=channels, layers=(1, 1, 1, 1), num_classes=7).double().eval()
        )
        names = family.layout_of(spec).names(spec)
        state = theirs.state_dict()
        arrays = {n: a.astype(np.float64) for n, a in synthetic.weights(spec).items()}
        for parameter in parameters(spec):
            array = np.asarray(arrays[parameter.name]).reshape(state[names[parameter.name]].shape)
            state[names[parameter.name]].copy_(torch.from_numpy(np.array(array)))
        ours = torch_impl.ResNet(**spec.model_kwargs()).double().eval()
        ours.load_state_dict({n: torch.from_numpy(np.array(a)) for n, a in arrays.items()})
        x = torch.from_numpy(synthetic.images((64, 96), 2).astype(np.float64))
        with torch.inference_mode():
            assert tolerances.relative_error(ours(x).numpy(), theirs(x).numpy()) <= tolerances.FLOAT64, name
