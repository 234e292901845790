"""Inception-v3: numbers, the auxiliary head, sizes, files, errors."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import torch

import keras_impl
import tf1_compat
import torch_impl
from parity_tests import harness
from parity_tests.compare.gradients import gradients
from parity_tests.compare.investigate import investigate
from parity_tests.judge import numpy_reference, synthetic
from parity_tests.judge.photographs import dithered
from parity_tests.tests.test_inception import differences
from parity_tests.tests.test_isolation import ROOT
from parity_tests.tests.test_vgg import outputs
from parity_tests.watch.build import keras_model, torch_module
from torch_impl.inception_v3 import Outputs
from weights_convert import convert, load, load_into, load_model, save
from weights_convert.changes import reorder_classes
from weights_convert.layouts import LAYOUTS
from weights_convert.spec import InceptionV3Spec, changed, model_spec, parameters

TINY = {"width_multiplier": 0.0625, "num_classes": 5, "reduction": 4}
SE = InceptionV3Spec(**TINY, attention="se")
AUX = InceptionV3Spec(**TINY, attention="se", aux_head=True)
OTHER = InceptionV3Spec(  # every keyword that no shape shows has another value
    **TINY,
    attention="cbam",
    norm="bias_bn",
    last_pool="max",
    count_padding=False,
    transform_input=True,
    bn_epsilon=1e-5,
)
ECA = InceptionV3Spec(**TINY, attention="eca", norm="bias", eca_kernel_sizes=(3, 5) * 5 + (7,))
FULL = (299, 299)


@pytest.mark.parametrize(
    ("spec", "size"),
    [(SE, (75, 96)), (OTHER, (87, 75)), (ECA, (76, 75)), (AUX, (299, 301))],
    ids=["se", "cbam", "eca", "aux"],
)
def test_every_stage_in_torch(tmp_path, spec, size):
    assert max(differences(spec, "torch", size, tmp_path).values()) < 1e-13


@pytest.mark.parametrize("framework", ["keras", "tf1"])
def test_every_stage_in_tensorflow(tmp_path, framework):
    spec = changed(OTHER, {"aux_head": True})
    assert max(differences(spec, framework, (300, 299), tmp_path).values()) < 1e-13


@pytest.mark.exhaustive
def test_parity_holds():
    source = synthetic.weights(changed(AUX, {"width_multiplier": 0.125}))
    result = harness.prove("se", source, synthetic.images(FULL))
    assert result.holds, result.first_divergence()
    assert result.caveat == ""


@pytest.mark.exhaustive  # minutes: an ordinary run compares the stages, and the layers of the other networks
@pytest.mark.parametrize("framework", ["keras", "tf1"])
def test_layers_gradients_and_training_agree(framework):
    source = synthetic.weights(changed(AUX, {"width_multiplier": 0.125}))
    images = synthetic.images(FULL, batch=4)  # of fewer values batch statistics round by 1e-12
    report = investigate(framework, source, images, frameworks=(framework,), train_steps=5)
    assert report.holds, report.first_divergence()
    assert {"Mixed_5b.branch5x5_2.conv", "Mixed_6a.se.fc1"} <= {x.name for x in report.layers}


def test_the_auxiliary_head_is_trained():
    """Its gradients agree, and reach every parameter."""
    spec = changed(AUX, {"attention": "none", "width_multiplier": 0.125})
    points = gradients(synthetic.weights(spec), synthetic.images(FULL, batch=4), frameworks=("tf1",))
    assert all(error <= point.limit for point in points for error in point.errors.values())
    assert {"aux_logits", "AuxLogits.conv1.conv.weight", "AuxLogits.fc.bias"} <= {p.name for p in points}


def test_both_classifiers_answer_in_training():
    """The two outputs of a network in training, and only the logits otherwise."""
    spec = changed(AUX, {"dropout": 0.0, "num_classes": 4})
    source, images = synthetic.weights(spec), synthetic.images(FULL)
    model = torch_module(spec, source, "float32").train()
    found = model(torch.from_numpy(images))
    assert type(found) is Outputs
    other = keras_model(spec, source, "float32")
    logits, auxiliary = other(images.transpose(0, 2, 3, 1), training=True)
    np.testing.assert_allclose(logits, found.logits.detach(), rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(auxiliary, found.aux_logits.detach(), rtol=2e-3, atol=2e-4)
    with torch.inference_mode():
        assert model.eval()(torch.from_numpy(images)).shape == (2, 4)
        assert model(torch.zeros(1, 3, 75, 75)).shape == (1, 4)  # the auxiliary head does not run
    assert other.predict_on_batch(np.zeros((1, 75, 75, 3), "float32")).shape == (1, 4)


def test_keras_fits_both_classifiers():
    model = keras_impl.InceptionV3(**changed(AUX, {"attention": "none", "dropout": 0.0}).model_kwargs())
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(2.0**-10), cross_entropy, metrics=["accuracy"])
    x, y = synthetic.images(FULL, batch=4).transpose(0, 2, 3, 1), np.arange(4)
    logits, auxiliary = model(x, training=True)
    wanted = cross_entropy(y, logits) + model.aux_weight * cross_entropy(y, auxiliary)
    before = {variable.path: variable.numpy() for variable in model.trainable_variables}
    figures = model.fit(x, y, batch_size=4, verbose=0).history
    assert set(figures) == {"loss", "accuracy"}
    np.testing.assert_allclose(figures["loss"], wanted, rtol=1e-4)
    unchanged = [v.path for v in model.trainable_variables if np.array_equal(v.numpy(), before[v.path])]
    assert not unchanged
    assert set(model.evaluate(x, y, batch_size=4, verbose=0, return_dict=True)) == {"loss", "accuracy"}


@pytest.mark.quick
def test_sizes_of_the_paper():
    model = torch_impl.se_inception_v3(width_multiplier=1 / 64).eval()
    with torch.inference_mode():
        features = model.forward_features(torch.zeros(1, 3, *FULL))
    sizes = {name: x.shape[2] for name, x in features.items() if x.dim() == 4}
    assert (sizes["stem"], sizes["Mixed_5d"], sizes["Mixed_6e"], sizes["Mixed_7c"]) == (35, 35, 17, 8)
    info = [(row["reduction"], row["module"]) for row in model.feature_info]
    assert info == [(8, "Mixed_5d"), (16, "Mixed_6e"), (32, "Mixed_7c")]


@pytest.mark.quick
@pytest.mark.parametrize(("aux_head", "smallest"), [(False, 75), (True, 299)])
def test_an_image_that_is_too_small_is_refused(aux_head, smallest):
    keywords = {"width_multiplier": 0.01, "num_classes": 2, "aux_head": aux_head}
    message = rf"images with {smallest - 1} rows or columns: expected at least {smallest}"
    model = torch_impl.inception_v3(**keywords).eval()
    model.forward_features(torch.zeros(1, 3, smallest, smallest))
    with pytest.raises(ValueError, match=message):
        model.forward_features(torch.zeros(1, 3, smallest, smallest - 1))
    with tf.Graph().as_default(), pytest.raises(ValueError, match=message):
        tf1_compat.inception_v3(tf.zeros((1, smallest - 1, smallest, 3)), **keywords)
    with pytest.raises(ValueError, match=message):
        torch_impl.inception_v3(**keywords).train()(torch.zeros(2, 3, smallest - 1, smallest))


@pytest.mark.quick
def test_the_input_transform_is_for_three_colours():
    with pytest.raises(ValueError, match="in_channels=1: expected 3 with transform_input=True"):
        torch_impl.inception_v3(transform_input=True, in_channels=1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_lead_back(layout):
    names = LAYOUTS[layout].names(changed(model_spec("se_inception_v3"), {"aux_head": True}))
    placed = [name for name in names.values() if name is not None]
    assert len(set(placed)) == len(placed)
    without = {p.name for p in parameters(AUX) if p.role == "count" and layout != "torch"}
    assert {canonical for canonical, name in names.items() if name is None} == without


def test_every_framework_loads_every_container(tmp_path):
    source, x = synthetic.weights(AUX), synthetic.images(FULL, batch=1)
    save(source, tmp_path / "a.pth")
    for suffix in (".safetensors", ".npz", ".weights.h5", ".ckpt"):
        convert(tmp_path / "a.pth", tmp_path / f"a{suffix}")
        with load(tmp_path / f"a{suffix}") as checkpoint:
            assert checkpoint.spec == AUX
    wanted = numpy_reference.network(x, source, AUX)["logits"]
    for framework, suffix in (("torch", ".ckpt"), ("keras", ".pth"), ("tf1", ".weights.h5")):
        model = load_model(tmp_path / f"a{suffix}", framework)
        np.testing.assert_allclose(outputs(model, framework, x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fold", ["fold_bias", "fold_bn"])
def test_folded_networks_give_the_same_outputs(tmp_path, fold):
    spec = changed(OTHER, {"aux_head": True})
    source, x = synthetic.weights(spec), synthetic.images(FULL, batch=1)
    save(source, tmp_path / "a.npz")
    convert(tmp_path / "a.npz", tmp_path / "b.npz", **{fold: True}, dtype="float64")
    wanted = numpy_reference.network(x, source, spec)
    with load(tmp_path / "b.npz") as folded:
        assert folded.spec.norm == {"fold_bias": "bn", "fold_bn": "bias"}[fold]
        found = numpy_reference.network(x, folded, folded.spec)
    for name in ("logits", "aux_logits"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-6)


@pytest.mark.parametrize("aux_head", [False, True])
def test_a_file_without_metadata_is_identified(tmp_path, aux_head):
    keywords = {"num_classes": 3, "in_channels": 1, "aux_head": aux_head}
    spec = changed(model_spec("se_inception_v3"), keywords)
    module = torch_impl.InceptionV3(**spec.model_kwargs())
    torch.save(dict(module.half().state_dict()), tmp_path / "a.pth")
    with pytest.warns(UserWarning, match="does not specify these keywords, defaults used: last_pool"):
        checkpoint = load(tmp_path / "a.pth")
    with checkpoint:
        assert checkpoint.spec == spec
        assert checkpoint.model == (None if aux_head else "se_inception_v3")


def test_keras_keeps_a_network_and_a_part_of_it(tmp_path):
    model = keras_impl.InceptionV3(**changed(SE, {"transform_input": True}).model_kwargs())
    images = np.random.default_rng(0).normal(size=(1, 75, 75, 3)).astype("float32")
    model.save(tmp_path / "whole.keras")
    again = keras.saving.load_model(tmp_path / "whole.keras")
    np.testing.assert_array_equal(again.predict_on_batch(images), model.predict_on_batch(images))
    keras.Model(model.input, model.get_layer("Mixed_7c").output).save(tmp_path / "part.keras")
    with load(tmp_path / "part.keras") as part:
        assert part.spec == changed(SE, {"num_classes": 0, "transform_input": True})


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_both_classifiers_are_replaced(tmp_path, framework):
    room = {"torch": torch_impl, "keras": keras_impl}[framework]
    model = room.InceptionV3(**AUX.model_kwargs())
    model.reset_classifier(3)
    assert model.live_keywords() == changed(AUX, {"num_classes": 3}).model_kwargs()
    path = tmp_path / {"torch": "a.pth", "keras": "a.weights.h5"}[framework]
    if framework == "torch":
        torch.save(model.state_dict(), path)
    else:
        model.save_weights(path)
    with load(path) as checkpoint:
        assert checkpoint.spec == changed(AUX, {"num_classes": 3})
    again = room.InceptionV3(**changed(AUX, {"num_classes": 3}).model_kwargs())
    load_into(again, path)
    model.reset_classifier(0)
    assert model.live_keywords()["num_classes"] == 0


def test_a_new_head_replaces_both_classifiers(tmp_path):
    source = synthetic.weights(AUX)
    save(source, tmp_path / "a.npz")
    model = torch_impl.InceptionV3(**changed(AUX, {"num_classes": 3}).model_kwargs())
    load_into(model, tmp_path / "a.npz", new_head=True)
    assert load_model(tmp_path / "a.npz", num_classes=3).config["num_classes"] == 3
    convert(tmp_path / "a.npz", tmp_path / "b.npz", new_head=True, num_classes=3)
    with load(tmp_path / "b.npz") as found:
        assert found.spec == changed(AUX, {"num_classes": 3})
        kept = [name for name in source if found[name].shape == source[name].shape]
        assert set(source) - set(kept) == {f"{h}.{n}" for h in found.spec.heads for n in ("weight", "bias")}
        assert all(found[name].tobytes() == source[name].tobytes() for name in kept)


@pytest.mark.quick
def test_both_classifiers_get_another_order_of_classes():
    source = synthetic.weights(AUX)
    found = reorder_classes(source, [4, 3, 2, 1, 0], "x")
    for name in source:
        order = slice(None, None, -1 if name.startswith(("fc.", "AuxLogits.fc.")) else None)
        if source[name].ndim:
            np.testing.assert_array_equal(found[name], source[name][order], name)


@pytest.mark.quick
def test_one_replaced_classifier_is_noticed():
    model = torch_impl.InceptionV3(**AUX.model_kwargs())
    model.fc = torch.nn.Linear(model.num_features, 3)
    with pytest.raises(ValueError, match=r"AuxLogits\.fc does not have the 3 classes of fc"):
        model.live_keywords()


def test_networks_for_inference():
    spec = changed(OTHER, {"aux_head": True})
    source, x = synthetic.weights(spec), synthetic.images((75, 80))
    wanted = numpy_reference.network(x, source, changed(spec, {"aux_head": False}))["logits"]
    model = torch_impl.InceptionV3(**spec.model_kwargs())
    load_into(model, source)
    fast = torch_impl.optimize_for_inference(model, compile=False)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())
    with torch.inference_mode():
        np.testing.assert_allclose(fast(torch.from_numpy(x)).numpy(), wanted, rtol=1e-4, atol=1e-5)
    other = keras_impl.InceptionV3(**spec.model_kwargs())
    load_into(other, source)
    found = keras_impl.optimize_for_inference(other).predict_on_batch(x.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    with tf.Graph().as_default(), tf.Session() as session:
        tf1_compat.inception_v3(tf.placeholder("float32", (None, None, None, 3)), **spec.model_kwargs())
        load_into(session, source)
        graph_def = tf1_compat.optimize_for_inference(session)
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(graph_def, name="")
        found = session.run("logits:0", {"images:0": x.transpose(0, 2, 3, 1)})
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.quick
def test_white_areas_of_photographs_get_noise():
    """Less than the quantisation of a picture, and everywhere another value."""
    white = np.full((1, 3, 16, 16), 2.25, np.float32)
    found = dithered(white)
    assert found.dtype == np.float32
    assert 0.4 / 255 / 0.23 < np.abs(found - white).max() <= 0.5 / 255 / 0.22
    assert (np.diff(found, axis=3) != 0).all()
    np.testing.assert_array_equal(dithered(white), found)


def test_the_tables_are_one_text():
    rooms = ("torch_impl", "keras_impl", "tf1_compat", "weights_convert/spec")
    assert len({(ROOT / room / "inception_v3_table.py").read_text("utf-8") for room in rooms}) == 1
