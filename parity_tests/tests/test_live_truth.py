"""`state_of`, `state_dict`, `save` and `save_weights` see the current model, not its construction."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import torch
from torch import nn

import keras_impl
import torch_impl
from parity_tests.judge.synthetic import images, tiny, weights
from parity_tests.tests.live import keras_network, torch_network
from weights_convert import MismatchError, load, load_into, load_model, state_of

SPEC = tiny(attention="cbam", downsample_pool="avg")


def torch_bns(model: nn.Module, **values: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name, value in values.items():
                setattr(module, name, value)


def keras_bns(model: keras.Model, **values: float) -> None:
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            for name, value in values.items():
                setattr(layer, name, value)


def head(model: nn.Module) -> None:
    model.fc = nn.Linear(model.fc.in_features, 4)


def first(model: nn.Module) -> None:
    model.conv1 = nn.Conv2d(1, 8, 7, 2, 3, bias=False)


def setting(path: str, value: Any) -> Callable[[Any], None]:
    """Sets an attribute somewhere below a model."""
    *steps, name = path.split(".")

    def change(model: Any) -> None:
        for step in steps:
            model = model[int(step)] if step.isdigit() else getattr(model, step)
        setattr(model, name, value)

    return change


def both_blocks(path: str, value: Any) -> Callable[[Any], None]:
    """Sets an attribute in every block of `SPEC`."""

    def change(model: Any) -> None:
        for block in ("layer1.0", "layer1.1", "layer2.0"):
            setting(f"{block}.{path}", value)(model)

    return change


READ_IN_TORCH = {  # change -> resulting keywords
    "classes": (head, {"num_classes": 4}),
    "channels": (first, {"in_channels": 1}),
    "epsilons": (lambda m: torch_bns(m, eps=1e-3), {"bn_epsilon": 1e-3}),
    "momenta": (lambda m: torch_bns(m, momentum=0.5), {"bn_momentum": 0.5, "cbam_bn_momentum": 0.5}),
    "dropout": (setting("dropout.p", 0.5), {"dropout": 0.5}),
    "no pool": (setting("maxpool", nn.Identity()), {"stem_pool": "none"}),
    "another pool": (setting("maxpool", nn.MaxPool2d(3, 2, ceil_mode=True)), {"stem_pool": "ceil"}),
    "order": (both_blocks("cbam.spatial.order", "mean_max"), {"cbam_order": "mean_max"}),
    "input": (both_blocks("cbam.spatial_input", "input"), {"cbam_spatial_input": "input"}),
    "relu": (both_blocks("relu_before_attention", True), {"relu_before_attention": True}),
}
READ_IN_KERAS = {
    "epsilons": (lambda m: keras_bns(m, epsilon=1e-3), {"bn_epsilon": 1e-3}),
    "momenta": (lambda m: keras_bns(m, momentum=0.5), {"bn_momentum": 0.5, "cbam_bn_momentum": 0.5}),
    "dropout": (setting("dropout.rate", 0.5), {"dropout": 0.5}),
    "no pool": (setting("stem_pool", "none"), {"stem_pool": "none"}),
    "order": (both_blocks("cbam.spatial.order", "mean_max"), {"cbam_order": "mean_max"}),
    "input": (both_blocks("cbam.spatial_input", "input"), {"cbam_spatial_input": "input"}),
    "relu": (both_blocks("relu_before_attention", True), {"relu_before_attention": True}),
}
REFUSED_IN_TORCH = {  # change -> part of the message
    "one epsilon": (setting("bn1.eps", 1e-3), "bn1.eps is 0.001, but 1e-05 by the network's keywords"),
    "an epsilon of CBAM": (
        setting("layer1.0.cbam.spatial.bn.eps", 0.5),
        "cbam.spatial.bn.eps is 0.5",
    ),
    "a stride": (setting("layer2.0.conv2.stride", (1, 1)), "layer2.0.conv2.stride is (1, 1), but (2, 2)"),
    "a dilation": (setting("layer2.0.conv2.dilation", (2, 2)), "layer2.0.conv2.dilation is (2, 2)"),
    "a pool": (setting("maxpool", nn.AvgPool2d(3, 2)), "maxpool is 'AvgPool2d', but 'MaxPool2d'"),
    "a pool's padding": (setting("maxpool.padding", 0), "maxpool.padding is 0, but 1"),
    "a shortcut's pool": (setting("layer2.0.downsample_pool", nn.Identity()), "layer2.0.downsample_pool"),
    "one order": (setting("layer1.0.cbam.spatial.order", "mean_max"), "layer1.0.cbam.spatial.order"),
    "a head of two": (setting("fc", nn.Sequential(nn.Dropout(), nn.Linear(64, 5))), "fc is 'Sequential'"),
    "another norm": (setting("bn1", nn.GroupNorm(1, 8)), "bn1 is 'GroupNorm', but 'BatchNorm2d'"),
    "a momentum": (lambda m: torch_bns(m, momentum=None), "bn_momentum=None: expected a finite float"),
}
REFUSED_IN_KERAS = {
    "one epsilon": (
        setting("bn1.epsilon", 1e-3),
        "bn1.epsilon is 0.001, but 1e-05 by",
    ),
    "a stride": (setting("layer2.0.conv2.strides", (1, 1)), "layer2.0.conv2.strides is (1, 1)"),
    "an activation": (setting("fc.activation", keras.activations.softmax), "fc.activation is 'softmax'"),
    "a shortcut's pool": (setting("layer2.0.downsample_pool", False), "layer2.0.downsample_pool is False"),
    "a pool": (setting("stem_pool", "max"), "stem_pool='max': expected one of None, 'pad1'"),
    "one order": (setting("layer1.0.cbam.spatial.order", "mean_max"), "layer1.0.cbam.spatial.order"),
}


@pytest.mark.quick
@pytest.mark.parametrize("case", READ_IN_TORCH)
def test_torch_changes_that_keywords_describe_are_read(tmp_path, case):
    change, keywords = READ_IN_TORCH[case]
    model = torch_network(SPEC)
    load_into(model, weights(SPEC))
    change(model)
    wanted = tiny(**{**SPEC.model_kwargs(), **keywords})
    assert state_of(model).spec == wanted
    torch.save(model.state_dict(), tmp_path / "x.pth")
    with load(tmp_path / "x.pth") as checkpoint:
        assert checkpoint.spec == wanted
    x = torch.from_numpy(images((9, 9), channels=wanted.in_channels))
    twin = load_model(tmp_path / "x.pth", "torch")
    with torch.inference_mode():
        torch.testing.assert_close(twin(x), copy.deepcopy(model).eval()(x), rtol=0, atol=0)


# every second case in an ordinary run: PyTorch's cases above have the same keywords
@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.exhaustive if i % 2 else []) for i, c in enumerate(READ_IN_KERAS)],
)
def test_keras_changes_that_keywords_describe_are_read(tmp_path, case):
    change, keywords = READ_IN_KERAS[case]
    model = keras_network(SPEC)
    load_into(model, weights(SPEC))
    change(model)
    wanted = tiny(**{**SPEC.model_kwargs(), **keywords})
    assert state_of(model).spec == wanted
    model.save_weights(tmp_path / "x.weights.h5")
    model.save(tmp_path / "x.keras")
    for name in ("x.weights.h5", "x.keras"):
        with load(tmp_path / name) as checkpoint:
            assert checkpoint.spec == wanted
    x = images((9, 9)).transpose(0, 2, 3, 1)
    again = keras.saving.load_model(tmp_path / "x.keras")
    np.testing.assert_array_equal(again(x, training=False), model(x, training=False))


@pytest.mark.quick
@pytest.mark.parametrize("case", REFUSED_IN_TORCH)
def test_torch_changes_that_no_keywords_describe_are_refused(case):
    change, message = REFUSED_IN_TORCH[case]
    model = torch_network(SPEC)
    change(model)
    for function in (state_of, lambda m: load_into(m, weights(SPEC))):
        with pytest.raises(MismatchError) as caught:
            function(model)
        assert caught.value.message.startswith("the model no longer matches its keywords: ")
        assert message in caught.value.message
    with pytest.raises(ValueError, match=r"expected|by the network's keywords"):
        torch_impl.optimize_for_inference(model, compile=False)
    assert all("samenet" not in said for said in model.state_dict()._metadata.values())


@pytest.mark.parametrize("case", REFUSED_IN_KERAS)
def test_keras_changes_that_no_keywords_describe_are_refused(tmp_path, case):
    change, message = REFUSED_IN_KERAS[case]
    model = keras_network(SPEC)
    change(model)
    for function in (state_of, lambda m: load_into(m, weights(SPEC))):
        with pytest.raises(MismatchError) as caught:
            function(model)
        assert caught.value.message.startswith("the model no longer matches its keywords: ")
        assert message in caught.value.message
    with pytest.raises(ValueError, match=r"expected|by the network's keywords"):
        model.save(tmp_path / "x.keras")  # Keras would build another network from it
    model.save_weights(tmp_path / "x.weights.h5")
    with pytest.warns(UserWarning, match="does not specify these keywords"):
        load(tmp_path / "x.weights.h5").close()


@pytest.mark.quick
def test_the_head_of_the_issue():
    model = torch_impl.se_resnet20()
    model.fc = nn.Linear(64, 4)
    state = state_of(model)
    assert (state.model, state.spec.num_classes, state["fc.weight"].shape) == ("se_resnet20", 4, (4, 64))


def test_changes_without_effect_are_ignored(tmp_path):
    model = torch_network(SPEC)
    model.train().requires_grad_(False).to(memory_format=torch.channels_last)
    model.fc.bias.requires_grad_(True)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    for same in (model, copy.deepcopy(model), synced, model.double()):
        assert state_of(same).spec == SPEC
    torch.save(model, tmp_path / "whole.pt")
    assert state_of(torch.load(tmp_path / "whole.pt", weights_only=False)).spec == SPEC
    layer = keras_network(SPEC)
    layer.trainable = False
    layer.compile("sgd", "mse")
    layer.predict(np.zeros((1, 9, 9, 3), np.float32), verbose=0)
    assert state_of(layer).spec == SPEC
    assert state_of(keras.models.clone_model(layer)).spec == SPEC


def test_networks_for_inference_know_their_keywords(tmp_path):
    model = torch_network(SPEC)
    load_into(model, weights(SPEC))
    torch_bns(model, eps=1e-3)
    fast = torch_impl.optimize_for_inference(model, compile=False)
    assert (state_of(fast).spec.norm, state_of(fast).spec.cbam_bn) == ("bias", False)
    torch.save(fast.state_dict(), tmp_path / "x.pth")
    x = torch.from_numpy(images((9, 9)))
    with torch.inference_mode():
        wanted = model.eval()(x)
        torch.testing.assert_close(fast(x), wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(load_model(tmp_path / "x.pth", "torch")(x), wanted, rtol=1e-4, atol=1e-5)
    layer = keras_network(SPEC)
    load_into(layer, weights(SPEC))
    keras_bns(layer, epsilon=1e-3)
    quick = keras_impl.optimize_for_inference(layer)
    x = images((9, 9)).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(quick(x), layer(x, training=False), rtol=1e-4, atol=1e-5)
