"""A new classifier: everything else comes from the checkpoint, and the classifier keeps its own values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import torch
from torch import nn

import keras_impl
import tf1_compat
import torch_impl
from parity_tests import harness
from parity_tests.judge import synthetic
from parity_tests.judge.synthetic import tiny
from parity_tests.tests.test_vgg import outputs
from weights_convert import (
    Checkpoint,
    MismatchError,
    SpecError,
    convert,
    load,
    load_into,
    load_model,
    save,
    state_of,
)
from weights_convert.spec import AttentionSpec, VGGSpec, changed

RESNET = tiny(attention="se")
VGG = VGGSpec(depths=(1, 1), widths=(8, 8), head_width=16, num_classes=5, reduction=4)
FRAMEWORKS = ("torch", "keras", "tf1")


@contextmanager
def network(framework: str, spec: Any) -> Iterator[Any]:
    """A network with random weights; a session for TF1."""
    if framework == "torch":
        yield getattr(torch_impl, spec.network)(**spec.model_kwargs())
    elif framework == "keras":
        yield getattr(keras_impl, spec.network)(**spec.model_kwargs())
    else:
        with tf.Graph().as_default() as graph, tf.Session(graph=graph) as session:
            build = getattr(tf1_compat, spec.network.lower())
            build(tf.zeros((1, 32, 32, spec.in_channels)), **spec.model_kwargs())
            session.run(tf.global_variables_initializer())
            yield session


def head(state: Checkpoint) -> dict[str, bytes]:
    start = f"{state.spec.head}."
    return {name: state[name].tobytes() for name in state if name.startswith(start)}


def rest(state: Checkpoint) -> dict[str, bytes]:
    start = f"{state.spec.head}."
    return {n: state[n].tobytes() for n in state if not n.startswith(start) and not n.endswith("tracked")}


@pytest.mark.quick
@pytest.mark.parametrize("classes", [5, 3])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_load_into_leaves_the_classifier(framework, classes):
    source = synthetic.weights(RESNET)
    with network(framework, changed(RESNET, {"num_classes": classes})) as model:
        before = head(state_of(model))
        load_into(model, source, new_head=True)
        after = state_of(model)
    assert head(after) == before
    assert rest(after) == rest(source)


@pytest.mark.parametrize("spec", [RESNET, VGG], ids=["resnet", "vgg"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_load_model_has_a_new_classifier(tmp_path, framework, spec):
    source = synthetic.weights(spec)
    save(source, tmp_path / "a.safetensors")
    model = load_model(tmp_path / "a.safetensors", framework, num_classes=3)
    if framework == "tf1":
        with tf.Graph().as_default() as graph, tf.Session(graph=graph) as session:
            logits, _ = model(tf.zeros((1, 32, 32, 3)))
            session.run(tf.global_variables_initializer())
            state = state_of(session)
        assert logits.shape == (1, 3)
    else:
        state = state_of(model)
    assert state.spec.num_classes == 3
    assert rest(state) == rest(source)
    weight = state[f"{spec.head}.weight"]
    assert np.isfinite(weight).all()
    assert weight.std() > 0


@pytest.mark.quick
def test_the_files_own_number_of_classes_keeps_its_classifier(tmp_path):
    source = synthetic.weights(RESNET)
    save(source, tmp_path / "a.npz")
    state = state_of(load_model(tmp_path / "a.npz", num_classes=5))
    assert head(state) == head(source)


@pytest.mark.quick
def test_a_replaced_classifier_is_read_as_it_is(tmp_path):
    model = torch_impl.ResNet(**RESNET.model_kwargs())
    model.fc = nn.Linear(model.fc.in_features, 4)
    state = state_of(model)
    assert state.spec.num_classes == 4
    save(state, tmp_path / "a.pth")
    x = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        wanted = model.eval()(x)
        assert torch.equal(load_model(tmp_path / "a.pth")(x), wanted)


@pytest.mark.quick
def test_everything_else_must_match(tmp_path):
    source = synthetic.weights(RESNET)
    model = torch_impl.ResNet(**changed(RESNET, {"num_classes": 3, "stride_in": "conv1"}).model_kwargs())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(MismatchError, match="1 keywords differ") as caught:
        load_into(model, source, new_head=True)
    assert "stride_in" in str(caught.value)
    with pytest.raises(MismatchError, match="width: 8 in the checkpoint, 16 in the model"):
        load_into(torch_impl.ResNet(**changed(RESNET, {"width": 16}).model_kwargs()), source, new_head=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    block = AttentionSpec(attention="se", channels=8, reduction=4)
    save(synthetic.weights(block), tmp_path / "block.npz")
    with pytest.raises(SpecError, match="one se block has no classifier to replace"):
        load_model(tmp_path / "block.npz", num_classes=3)


HEADLESS = [changed(RESNET, {"num_classes": 0}), changed(VGG, {"num_classes": 0})]


@pytest.mark.parametrize("spec", HEADLESS, ids=["resnet", "vgg"])
def test_networks_without_a_classifier_agree(spec):
    result = harness.prove("headless", synthetic.weights(spec), synthetic.images((32, 33)))
    assert result.holds, result.first_divergence()
    pooled, logits = result.rows[-2:]
    assert logits.shape == ((2, 16) if spec.kind == "vgg" else pooled.shape)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_file_without_a_classifier_gives_features_or_takes_a_new_one(tmp_path, framework):
    """As `timm.create_model(..., num_classes=0)` saves it: no tensor of the classifier, no metadata."""
    source = synthetic.weights(RESNET)
    tensors = {n: torch.from_numpy(a.copy()) for n, a in source.items() if not n.startswith("fc.")}
    torch.save(tensors, tmp_path / "a.pth")
    x = synthetic.images((32, 32))
    with torch.inference_mode():
        whole = torch_impl.ResNet(**RESNET.model_kwargs()).eval()
        load_into(whole, source)
        wanted = whole.forward_features(torch.from_numpy(x))["pooled"].numpy()
    model = load_model(tmp_path / "a.pth", framework, assume=True)
    np.testing.assert_allclose(outputs(model, framework, x), wanted, rtol=1e-4, atol=1e-5)
    model = load_model(tmp_path / "a.pth", framework, assume=True, num_classes=3)
    assert outputs(model, framework, x).shape == (2, 3)


@pytest.mark.quick
def test_a_file_without_a_classifier_says_so(tmp_path):
    source = synthetic.weights(RESNET)
    np.savez(tmp_path / "a.npz", **{n: a for n, a in source.items() if not n.startswith("fc.")})
    with load(tmp_path / "a.npz", assume=True) as checkpoint:
        assert checkpoint.spec == changed(RESNET, {"num_classes": 0})
        assert "it has no classifier: num_classes=0" in checkpoint.notes
    convert(tmp_path / "a.npz", tmp_path / "a.weights.h5", assume=True)
    keras_impl.ResNet(**changed(RESNET, {"num_classes": 0}).model_kwargs()).load_weights(
        tmp_path / "a.weights.h5"
    )
    np.savez(tmp_path / "half.npz", **{n: a for n, a in source.items() if n != "fc.bias"})
    with load(tmp_path / "half.npz", assume=True) as checkpoint:
        assert checkpoint.spec == changed(RESNET, {"head_bias": False})
        assert "its classifier has no bias: head_bias=False" in checkpoint.notes
    with pytest.raises(MismatchError, match="head_bias"):
        load_into(torch_impl.ResNet(**RESNET.model_kwargs()), tmp_path / "half.npz", assume=True)


@pytest.mark.quick
def test_the_classifier_of_a_whole_file_can_be_left_out(tmp_path):
    source = synthetic.weights(RESNET)
    save(source, tmp_path / "a.npz")
    model = load_model(tmp_path / "a.npz", num_classes=0)
    assert model.num_features == model(torch.zeros(1, 3, 32, 32)).shape[1]
    assert rest(state_of(model)) == rest(source)
