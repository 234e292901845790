"""A live PyTorch network gets another classifier, or none: keywords, files and inference tell the truth."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_impl
from parity_tests.judge.synthetic import tiny
from weights_convert import MismatchError, load, load_into, load_model, save, state_of
from weights_convert.spec import MobileNetSpec, ShuffleNetSpec, VGGSpec, changed

pytestmark = pytest.mark.quick

SPECS = {
    "resnet": tiny(attention="se"),
    "two pools": tiny(global_pool="catavgmax", head_bias=False),
    "shufflenet": ShuffleNetSpec(depths=(1,), widths=(12,), stem_width=6, num_classes=5, head_bias=False),
    "mobilenet": MobileNetSpec(depths=(1, 1), widths=(8, 8), num_classes=5, stride_padding="same"),
    "vgg": VGGSpec(depths=(1, 1), widths=(8, 8), head_width=16, pool_size=2, num_classes=5, reduction=4),
}


@pytest.fixture(params=SPECS)
def spec(request) -> Any:
    return SPECS[request.param]


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 32, 32)


def network(spec: Any, **keywords: Any) -> Any:
    return getattr(torch_impl, spec.network)(**changed(spec, keywords).model_kwargs()).eval()


def replaced(model: Any, layer: nn.Module) -> None:
    """As people do it: `model.fc = ...` or `model.classifier[6] = ...`."""
    if model.head == "fc":
        model.fc = layer
    else:
        model.classifier[6] = layer


def truth(model: Any, images: Tensor, folder: Path) -> tuple[int, bool]:
    """The classes and the bias of a network by everything that speaks of it, which has to agree."""
    said = model.live_keywords()
    state = state_of(model)
    assert state.spec.model_kwargs() | said == state.spec.model_kwargs()
    save(state, folder / "a.safetensors", overwrite=True)
    torch.save(model.state_dict(), folder / "a.pth")  # its metadata hold the keywords
    with torch.inference_mode():
        wanted = model(images)
        for name in ("a.safetensors", "a.pth"):
            with load(folder / name) as checkpoint:
                assert checkpoint.assumed == ()
                assert checkpoint.spec == state.spec
            assert torch.equal(load_model(folder / name)(images), wanted)
        same = type(model)(**said).eval()
        load_into(same, folder / "a.pth")
        assert torch.equal(same(images), wanted)
        fast = torch_impl.optimize_for_inference(model, compile=False)
        torch.testing.assert_close(fast(images), wanted, rtol=1e-4, atol=1e-5)
        assert state_of(fast).spec.num_classes == said["num_classes"]
    assert wanted.shape == (2, said["num_classes"] or model.num_features)
    return said["num_classes"], said["head_bias"]


@pytest.mark.parametrize("before", [5, 0])
def test_reset_classifier(spec, images, tmp_path, before):
    model, bias = network(spec, num_classes=before), spec.head_bias
    rest = {name: x.clone() for name, x in model.state_dict().items() if not name.startswith(model.head)}
    for classes in (4, 0, 5):
        model.reset_classifier(classes)
        assert truth(model, images, tmp_path) == (classes, bias)
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in rest.items())
    assert state[f"{model.head}.weight"].std() > 0
    assert not model.get_submodule(model.head).training


@pytest.mark.parametrize("before", [5, 0])
def test_a_classifier_is_replaced_by_hand(spec, images, tmp_path, before):
    for bias in (True, False):
        model = network(spec, num_classes=before)
        replaced(model, nn.Linear(model.num_features, 4, bias=bias))
        assert truth(model, images, tmp_path) == (4, bias)
    replaced(model, nn.Identity())
    assert truth(model, images, tmp_path)[0] == 0
    model.reset_classifier(3)  # its bias is that of the construction
    assert truth(model, images, tmp_path) == (3, spec.head_bias)


def test_a_classifier_that_no_keywords_describe_can_be_reset(spec, images, tmp_path):
    model = network(spec)
    for layer, message in (
        (nn.Sequential(nn.Dropout(), nn.Linear(model.num_features, 4)), "'Sequential'"),
        (nn.Linear(model.num_features + 1, 5, bias=spec.head_bias), "in_features"),
    ):
        replaced(model, layer)
        with pytest.raises(MismatchError, match=message):
            state_of(model)
    model.reset_classifier(4)
    assert truth(model, images, tmp_path)[0] == 4


def test_the_new_classifier_has_the_networks_dtype_and_mode(spec):
    model = network(spec).to(torch.bfloat16).train().requires_grad_(False)
    model.reset_classifier(4)
    head = model.get_submodule(model.head)
    assert (head.weight.dtype, head.training, head.weight.requires_grad) == (torch.bfloat16, True, True)
    copy.deepcopy(model)


@pytest.mark.parametrize("classes", [-1, 2.0, True, "4", 2**31])
def test_invalid_numbers_of_classes_are_refused(spec, classes):
    model = network(spec)
    with pytest.raises(ValueError, match=f"^num_classes={classes!r}: expected an int of at "):
        model.reset_classifier(classes)
    assert state_of(model).spec == spec


class Pipeline(nn.Module):
    """A stranger's module with a network in it."""

    def __init__(self, **parts: nn.Module):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def test_the_network_in_a_wrapper_is_found(spec, tmp_path):
    model = network(spec)
    for wrapper in (
        Pipeline(norm=nn.BatchNorm2d(3, affine=False), net=model),
        nn.Sequential(nn.Identity(), model),
    ):
        assert state_of(wrapper).spec == spec
        save(state_of(wrapper), tmp_path / "a.npz", overwrite=True)
        load_into(wrapper, tmp_path / "a.npz")
    pair = Pipeline(student=model, teacher=network(spec, num_classes=4))
    with pytest.raises(MismatchError, match="holds networks, choose one with scope=") as caught:
        state_of(pair)
    assert caught.value.details == ("student", "teacher")
    assert state_of(pair, scope="teacher").spec.num_classes == 4
    load_into(pair, tmp_path / "a.npz", scope="student")
    detector = Pipeline(body=model, neck=nn.Conv2d(1, 1, 1))
    with pytest.raises(MismatchError, match=r"such as neck\.weight; choose it with scope='body'"):
        state_of(detector)
    assert state_of(detector, scope="body").spec == spec
    with pytest.raises(MismatchError, match="choose one with scope="):
        state_of(detector, scope="neck")
