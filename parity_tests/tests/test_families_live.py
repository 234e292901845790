"""Other projects' models: their files give their outputs here, and our files give our outputs there."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from parity_tests.judge import tolerances
from parity_tests.judge.synthetic import images, weights
from parity_tests.tests.foreign import (
    Foreign,
    Saved,
    both_dtypes,
    logits,
    save_foreign,
    torch_network,
    torch_norms,
)
from weights_convert import MismatchError, ResNetSpec, convert, load, load_model, model_spec, save
from weights_convert.checkpoint import changed
from weights_convert.families import FAMILIES

FRAMEWORKS = ("torch", "keras", "tf1")

# In all three frameworks in an ordinary run: small networks that cover every kind of layer.
EVERYWHERE = [
    Foreign("pytorchcv", "cbam_resnet18", "pytorchcv"),
    Foreign("pytorchcv", "seresnet20_cifar10", "pytorchcv", size=(32, 32)),
    Foreign("timm", "seresnet18", "timm"),
    Foreign("timm", "resnet18d", "timm"),
    Foreign("timm", "legacy_seresnet18", "cadene"),  # the pool rounds up, a ReLU before the attention
]
# In torch in an ordinary run, in the others with `-m exhaustive`.
AMBIGUOUS = [
    Foreign("pytorchcv", name, "pytorchcv", f"pytorchcv:{name}")
    for name in ("seresnet50", "resnet50", "resnet50b", "seresnet50b")
]
IN_TORCH = [
    Foreign("pytorchcv", "resneta18", "pytorchcv"),  # deep stem, average pool in the projection
    AMBIGUOUS[0],
    Foreign("pytorchcv", "senet16", "pytorchcv"),  # 32 groups, deep stem, 3x3 projections
    Foreign("timm", "seresnet50", "timm"),
    Foreign("timm", "seresnext26d_32x4d", "timm"),
    Foreign("timm", "seresnext26t_32x4d", "timm"),
    Foreign("timm", "ecaresnet50d", "timm"),
    Foreign("timm", "ecaresnet26t", "timm"),
    Foreign("timm", "ecaresnetlight", "timm"),
    Foreign("timm", "resnet50_cbam", "timm"),
    Foreign("timm", "skresnet18", "timm"),
    Foreign("timm", "skresnext50_32x4d", "timm"),
    Foreign("pytorchcv", "bninception", "pytorchcv_inception", size=(64, 64), residual=False),
    Foreign("pretrainedmodels", "bninception", "cadene_inception", size=(64, 64), residual=False),
    Foreign("torchvision", "inception_v3", "torchvision_inception", residual=False),
    Foreign("timm", "inception_v3", "torchvision_inception", residual=False),
    Foreign("pretrainedmodels", "inceptionv3", "torchvision_inception", size=(299, 299), residual=False),
    Foreign("pytorchcv", "inceptionv3", "pytorchcv_inception_v3", residual=False),
    Foreign("timm", "legacy_seresnet50", "cadene"),
    Foreign("timm", "legacy_seresnext50_32x4d", "cadene"),
    Foreign("pretrainedmodels", "se_resnet50", "cadene"),
    Foreign("pretrainedmodels", "se_resnext50_32x4d", "cadene"),
    Foreign("pretrainedmodels", "resnet18", "torchvision"),  # a copy
    Foreign("torchvision", "resnet18", "torchvision"),
    Foreign("torchvision", "resnext50_32x4d", "torchvision"),
    Foreign("keras.applications", "ResNet50", "keras_applications"),
    Foreign("classification_models", "SEResNet50", "qubvel"),
    Foreign("classification_models", "SEResNeXt50", "qubvel"),
]
EXHAUSTIVE = [  # only with `-m exhaustive`: more of the kinds above, or large
    *AMBIGUOUS[1:],
    Foreign("pytorchcv", "resnet18", "pytorchcv"),
    Foreign("pytorchcv", "seresnet18", "pytorchcv"),
    Foreign("pytorchcv", "seresnext50_32x4d", "pytorchcv"),
    Foreign("pytorchcv", "cbam_resnet50", "pytorchcv"),
    Foreign("timm", "senet154", "timm"),
]


def _cases() -> Iterator[Any]:
    for network in (*EVERYWHERE, *IN_TORCH, *EXHAUSTIVE):
        for framework in FRAMEWORKS:
            ordinary = network in EVERYWHERE or (network in IN_TORCH and framework == "torch")
            marks = [] if ordinary else [pytest.mark.exhaustive]
            yield pytest.param(network, framework, marks=marks, id=f"{network}-{framework}")


@pytest.fixture(scope="module")
def saved(request) -> Iterator[Saved]:
    """The network of the parameter, saved by its own code; the file, maybe large, is removed afterwards."""
    installed(request.param)
    with tempfile.TemporaryDirectory(prefix="foreign-") as folder:
        yield save_foreign(request.param, Path(folder))


def installed(network: Foreign) -> None:
    """Skip the test if the network's package is not installed."""
    package = network.package.partition(".")[0]
    name = "image-classifiers" if package == "classification_models" else package
    pytest.importorskip(package, reason=f"{name} is not installed", exc_type=ImportError)


@pytest.fixture
def record() -> Callable[[dict[str, Any]], None]:
    """Append the figures of a test to the file in PARITY_FAMILIES_TABLE, if set."""

    def record(row: dict[str, Any]) -> None:
        if table := os.environ.get("PARITY_FAMILIES_TABLE"):
            with Path(table).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    return record


def in_float64(saved: Saved) -> Path:
    """The network's file, converted to float64."""
    wide = saved.path.with_name("wide.safetensors")
    if not wide.exists():
        convert(saved.path, wide, model=saved.network.known_as, dtype="float64", assume=True)
    return wide


# the scope avoids building a network once per framework
@pytest.mark.parametrize(("saved", "framework"), [*_cases()], indirect=["saved"], scope="module")
def test_their_files_give_their_outputs(saved: Saved, framework: str, record):
    network, wanted = saved.network, saved.outputs["float64"]
    with load(saved.path, model=network.known_as, assume=True) as checkpoint:
        spec, variant = checkpoint.spec, checkpoint.describe()
        assert network.family in (checkpoint.family, *checkpoint.same_as)
        # names of these do not show the options of their networks: the defaults are right
        unsure = ("torch", "torchvision", "torchvision_inception", "timm")
        assert not checkpoint.assumed or checkpoint.family in unsure
    momenta = {spec.bn_momentum, spec.cbam_bn_momentum if spec.attention == "cbam" else spec.bn_momentum}
    assert saved.norms == {(spec.bn_epsilon, momentum) for momentum in momenta}

    wide = logits(in_float64(saved), framework, saved.images.astype(np.float64))
    single = logits(saved.path, framework, saved.images, model=network.known_as)
    assert (wide.dtype, single.dtype) == (np.float64, np.float32)
    noise = tolerances.relative_error(saved.outputs["float32"], wanted)
    errors = [tolerances.relative_error(output, wanted) for output in (wide, single)]
    record(
        {
            "family": network.family,
            "package": network.package,
            "model": network.model,
            "variant": variant,
            "framework": framework,
            "float64": errors[0],
            "float32": errors[1],
            "float32_over_noise": errors[1] / max(noise, tolerances.FLOAT32_RESOLUTION),
        }
    )
    assert errors[0] <= tolerances.FLOAT64
    assert errors[1] <= tolerances.float32_limit(noise)


def _ambiguous() -> Iterator[Any]:
    for network in AMBIGUOUS:
        marks = [pytest.mark.exhaustive] if network in EXHAUSTIVE else []
        yield pytest.param(network, marks=marks, id=str(network))


@pytest.mark.parametrize("saved", [*_ambiguous()], indirect=True)
def test_what_only_the_user_knows_is_asked_for(saved: Saved):
    right = str(saved.network.known_as)
    with pytest.raises(MismatchError, match="2 networks that compute different numbers") as caught:
        load(saved.path)
    options = [line.split()[1] for line in caught.value.details if line.startswith("--model ")]
    assert options == [right.removesuffix("b"), f"{right.removesuffix('b')}b"]
    wrong = next(option for option in options if option != right)
    mistaken = logits(saved.path, "torch", saved.images, model=wrong)
    assert tolerances.relative_error(mistaken, saved.outputs["float64"]) > 1e-3


# --------------------------------------------------------------------------------------------------
# Writing back: our networks in their layout

D = {"stem": "deep", "stem_width": 32, "downsample_pool": "avg"}
TIMM_CBAM = {"cbam_mlp_bias": False, "cbam_order": "max_mean"}  # the maps have to be swapped
WRITTEN = [  # their network, one of ours, and keywords fixed by theirs
    (Foreign("pytorchcv", "resneta18", "pytorchcv"), "resnet18", D),
    (Foreign("pytorchcv", "seresnet20_cifar10", "pytorchcv"), "se_resnet20", {}),
    (Foreign("pytorchcv", "cbam_resnet18", "pytorchcv"), "cbam_resnet18", {"cbam_bn_momentum": 0.1}),
    (Foreign("timm", "seresnet18", "timm"), "se_resnet18", {"hidden_rule": "multiple_of_8"}),
    (Foreign("timm", "resnet18d", "timm"), "resnet18", D),
    (Foreign("timm", "ecaresnet50d", "timm"), "eca_resnet50", D),
    (Foreign("timm", "resnet50_cbam", "timm"), "cbam_resnet50", TIMM_CBAM),
    (Foreign("timm", "legacy_seresnet18", "cadene"), "se_resnet18", {}),
    (Foreign("pretrainedmodels", "se_resnet50", "cadene"), "se_resnet50", {}),
    (Foreign("pretrainedmodels", "se_resnext50_32x4d", "cadene"), "se_resnext50_32x4d", {}),
    (Foreign("torchvision", "resnext50_32x4d", "torchvision"), "resnext50_32x4d", {}),
]
WRITTEN_LARGE = [  # with `-m exhaustive`
    (Foreign("pytorchcv", "seresnet50b", "pytorchcv"), "se_resnet50", {"stride_in": "conv2"}),
    (Foreign("pytorchcv", "seresnext50_32x4d", "pytorchcv"), "se_resnext50_32x4d", {}),
    (Foreign("pytorchcv", "seresnet50", "pytorchcv"), "se_resnet50", {"stride_in": "conv1"}),
]


def _written() -> Iterator[Any]:
    for row in (*WRITTEN, *WRITTEN_LARGE):
        marks = [pytest.mark.exhaustive] if row in WRITTEN_LARGE else []
        yield pytest.param(*row, marks=marks, id=f"{row[1]}-as-{row[0]}")


@pytest.mark.parametrize(("network", "ours", "keywords"), [*_written()])
def test_ours_written_as_theirs_give_our_outputs_there(tmp_path, network: Foreign, ours: str, keywords):
    installed(network)
    spec: ResNetSpec = changed(model_spec(ours), keywords)
    spec = changed(spec, FAMILIES[network.family].implied(spec) | keywords)
    own, written, inputs = tmp_path / "own.pth", tmp_path / "theirs.pth", images((49, 66))
    save(weights(spec), own)
    convert(own, written, to_family=network.family)
    model = torch_network(network)
    model.load_state_dict(torch.load(written, weights_only=True), strict=True)
    theirs = both_dtypes(model, inputs)
    assert (spec.bn_epsilon, spec.bn_momentum) in torch_norms(model)

    wanted = both_dtypes(load_model(own), inputs)
    noise = tolerances.relative_error(wanted["float32"], wanted["float64"])
    errors = {d: tolerances.relative_error(y, wanted["float64"]) for d, y in theirs.items()}
    assert errors["float64"] <= tolerances.FLOAT64
    assert errors["float32"] <= tolerances.float32_limit(noise)
    for file in tmp_path.iterdir():  # some are large
        file.unlink()
