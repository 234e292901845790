"""Usual work with PyTorch models: export, compile, autocast, wrappers, files, training."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import torch_impl
from parity_tests.judge import synthetic
from parity_tests.judge.synthetic import tiny
from parity_tests.watch.build import same_bits
from weights_convert import load_into, save, state_of

SPECS = {kind: tiny(attention=kind, groups=4, width_per_group=32) for kind in ("none", "se", "cbam", "eca")}
# in these tests torch traces the whole network: one kind in an ordinary run
TRACED = [pytest.param(kind, marks=[] if kind == "cbam" else pytest.mark.exhaustive) for kind in SPECS]
traced = pytest.mark.parametrize("model", TRACED, indirect=True)


@pytest.fixture(params=SPECS)
def model(request) -> torch_impl.ResNet:
    model = torch_impl.ResNet(**SPECS[request.param].model_kwargs()).eval()
    load_into(model, synthetic.weights(SPECS[request.param]))
    return model


@pytest.fixture
def images() -> torch.Tensor:
    return torch.from_numpy(synthetic.images((33, 40)))


def test_the_output_is_that_of_the_features(model, images):
    """`forward` does not use `forward_features`, to keep no intermediate outputs."""
    for training in (False, True):
        model.train(training)
        assert torch.equal(model(images), model.forward_features(images)["logits"])


@traced
def test_export(model, images):
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
    wide = torch.cat([images, images + 1])
    torch.testing.assert_close(program.module()(wide), model(wide), rtol=1e-5, atol=1e-6)


@traced
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, from inside the compiler
def test_compile(model, images):
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images), rtol=1e-5, atol=1e-6)
    weights = synthetic.weights(tiny(**model.config), seed=1)
    load_into(compiled, weights)
    assert same_bits(weights, state_of(compiled), "float32") == []


def test_autocast(model, images):
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), model(images), rtol=0.1, atol=0.1)


def test_data_parallel(model, images, tmp_path):
    """Its state dict has the prefix `module.`, which readers and live loading ignore."""
    wrapped = nn.DataParallel(model)
    torch.testing.assert_close(wrapped(images), model(images))
    torch.save(wrapped.state_dict(), tmp_path / "wrapped.pth")
    other = nn.DataParallel(torch_impl.ResNet(**model.config)).eval()
    load_into(other, tmp_path / "wrapped.pth")
    torch.testing.assert_close(other(images), model(images), rtol=0, atol=0)


def test_channels_last(model, images):
    expected = model(images)
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images.contiguous(memory_format=torch.channels_last)), expected)


def test_double_half_copy_and_pickle(model, images):
    assert model(images).dtype == torch.float32
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(clone(images), model(images), rtol=0, atol=0)
    assert copy.deepcopy(model).double()(images.double()).dtype == torch.float64
    assert copy.deepcopy(model).bfloat16()(images.bfloat16()).dtype == torch.bfloat16


def test_strict_loading_of_a_written_file(model, tmp_path):
    save(state_of(model), tmp_path / "model.pth")
    other = torch_impl.ResNet(**model.config)
    other.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True), strict=True)


def test_forward_features(model, images):
    features = model.forward_features(images)
    assert list(features) == ["stem", "layer1", "layer2", "pooled", "logits"]
    assert torch.equal(features["logits"], model(images))


def test_training_changes_the_weights(model, images):
    before = state_of(model)
    model.train()
    nn.functional.cross_entropy(model(images), torch.tensor([0, 1])).backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    after = state_of(model)
    unchanged = [name for name in before if before[name].tobytes() == after[name].tobytes()]
    dead = [name for name in unchanged if ".fc1." not in name]  # a hidden unit of an MLP may be dead
    assert dead == []
