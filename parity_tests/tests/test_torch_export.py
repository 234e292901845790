"""PyTorch networks on their way to others: trace, export, script, and folders of the Hugging Face hub."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_impl
from parity_tests.judge.synthetic import tiny
from parity_tests.tests.test_torch_features import SPECS
from weights_convert import load, load_into, load_model, state_of

ORDINARY = ("deep", "vgg with attention")
EXPORTED = [pytest.param(name, marks=() if name in ORDINARY else pytest.mark.exhaustive) for name in SPECS]


def network(name: str) -> Any:
    spec = SPECS[name]
    return getattr(torch_impl, spec.network)(**spec.model_kwargs()).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 33, 40)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", SPECS)
def test_a_traced_network_takes_other_batches_and_sizes(name, images):
    model = network(name)
    with torch.inference_mode():
        traced = torch.jit.trace(model, images)
        for x in (images, torch.rand(3, 3, 34, 31)):
            torch.testing.assert_close(traced(x), model(x))


@pytest.mark.parametrize("name", EXPORTED)
def test_an_exported_network_takes_other_batches(name, images):
    model = network(name)
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
    with torch.inference_mode():
        for x in (images, torch.cat([images, images + 1, images + 2])):
            assert torch.equal(program.module()(x), model(x))


@pytest.mark.quick
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_script_is_refused_in_one_line():
    """Also in a wrapper. The attention blocks alone compile: `test_keywords.py` holds that."""
    block = torch_impl.BasicBlock(8, 8)
    for module, kind in (
        (network("se"), "ResNet"),
        (nn.Sequential(nn.Identity(), network("vgg")), "VGG"),
        (nn.Sequential(block), "BasicBlock"),
    ):
        with pytest.raises(TypeError) as caught:
            torch.jit.script(module)
        assert str(caught.value) == (
            f"torch.jit.script cannot compile {kind}; use torch.jit.trace(model.eval(), images) "
            "or torch.export.export(model.eval(), (images,))"
        )


# --------------------------------------------------------------------------------------------------
# Folders of the Hugging Face hub


def changed_network() -> Any:
    """A network whose keywords are no longer those of its construction."""
    model = torch_impl.ResNet(**tiny(attention="se").model_kwargs()).eval()
    model.reset_classifier(4)
    model.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
    return model


@pytest.mark.quick
def test_a_saved_folder_says_what_the_network_is(images, tmp_path):
    """`_save_pretrained` is what huggingface_hub's mixin calls in `save_pretrained` and `push_to_hub`."""
    model = changed_network()
    model._save_pretrained(tmp_path)
    keywords = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert (keywords["num_classes"], keywords["stem_pool"]) == (4, "ceil")
    with load(tmp_path) as checkpoint:  # without a warning: nothing is assumed
        assert (checkpoint.format, checkpoint.assumed) == ("folder", ())
        assert checkpoint.spec == state_of(model).spec
    with torch.inference_mode():
        assert torch.equal(load_model(tmp_path)(images), model(images))
        other = torch_impl.ResNet(**keywords).eval()
        load_into(other, tmp_path)
        assert torch.equal(other(images), model(images))
    model.layer1[0].conv1 = nn.Conv2d(8, 8, 1, bias=False, padding=1)
    with pytest.raises(ValueError, match="by the network's keywords"):
        model._save_pretrained(tmp_path)


def test_a_folder_of_pickled_weights_is_read(tmp_path):
    torch.save(changed_network().state_dict(), tmp_path / "pytorch_model.bin")
    assert state_of(load_model(tmp_path)).spec.num_classes == 4


def test_the_mixin_of_the_hub_saves_and_loads(images, tmp_path, capsys):
    reason = "huggingface_hub is no dependency; `test_a_saved_folder_says_what_the_network_is` needs none"
    hub = pytest.importorskip("huggingface_hub", reason=reason)

    class HubResNet(torch_impl.ResNet, hub.PyTorchModelHubMixin):
        """A ResNet that the hub's mixin saves and loads."""

    model = HubResNet(**tiny(attention="cbam").model_kwargs()).eval()
    model.reset_classifier(4)
    model.save_pretrained(tmp_path)
    again = HubResNet.from_pretrained(tmp_path)
    with torch.inference_mode():
        for other in (again, load_model(tmp_path)):
            assert torch.equal(other(images), model(images))
    assert again.live_keywords() == model.live_keywords()
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert "Loading weights from local directory" in capsys.readouterr().out
