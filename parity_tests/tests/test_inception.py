"""BN-Inception: numbers, pools, sizes, files, errors."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import torch

import keras_impl
import tf1_compat
import torch_impl
from keras_impl.inception import pool as keras_pool
from parity_tests import harness
from parity_tests.compare.investigate import investigate
from parity_tests.judge import numpy_reference, synthetic, tolerances
from parity_tests.judge.numpy_reference.inception import same_size_pool
from parity_tests.tests.test_isolation import ROOT
from parity_tests.tests.test_vgg import outputs
from parity_tests.watch.build import RUNNERS, SUFFIXES
from tf1_compat.inception import pool as tf1_pool
from torch_impl.inception import make_pool
from torch_impl.inception_table import Pool
from weights_convert import convert, load, load_into, load_model, save
from weights_convert.layouts import LAYOUTS
from weights_convert.spec import InceptionSpec, Spec, changed, model_spec, parameters

TINY = {"width_multiplier": 0.0625, "num_classes": 5, "reduction": 4}
SE = InceptionSpec(**TINY, attention="se")
OTHER = InceptionSpec(  # every keyword that no shape shows has another value
    **TINY,
    attention="cbam",
    norm="bias_bn",
    reduction_pool="pad1",
    last_pool="avg",
    count_padding=False,
    bn_epsilon=1e-3,
)
ECA = InceptionSpec(**TINY, attention="eca", norm="bias", reduction_pool="same", eca_kernel_sizes=(3, 5) * 5)


def differences(spec: Spec, framework: str, size: tuple[int, int], folder: Path) -> dict[str, float]:
    """Of every stage from the judge's in float64, relative to its largest value."""
    source, images = synthetic.weights(spec), synthetic.images(size)
    save(source, folder / "a.npz")
    convert(folder / "a.npz", folder / f"a{SUFFIXES[framework]}", dtype="float64")
    found = RUNNERS[framework](spec, folder / f"a{SUFFIXES[framework]}", images, "float64").points
    reference = numpy_reference.network(images, source, spec)
    assert list(reference) == list(spec.stages())
    return {name: tolerances.relative_error(found[name], array) for name, array in reference.items()}


@pytest.mark.parametrize("spec", [SE, OTHER, ECA], ids=["se", "cbam", "eca"])
@pytest.mark.parametrize("size", [(32, 64), (63, 31)])
def test_every_stage_in_torch(tmp_path, spec, size):
    assert max(differences(spec, "torch", size, tmp_path).values()) < 1e-13


@pytest.mark.parametrize("framework", ["keras", "tf1"])
def test_every_stage_in_tensorflow(tmp_path, framework):
    """Odd sizes, where the paddings of the pools differ."""
    assert max(differences(OTHER, framework, (47, 33), tmp_path).values()) < 1e-13


@pytest.mark.exhaustive
def test_parity_holds():
    source = synthetic.weights(changed(SE, {"width_multiplier": 0.125}))
    result = harness.prove("se", source, synthetic.images((64, 64)))
    assert result.holds, result.first_divergence()
    assert result.caveat == ""


@pytest.mark.exhaustive  # a minute: an ordinary run compares the pools, and the layers of the other networks
@pytest.mark.parametrize("framework", ["keras", "tf1"])
def test_layers_gradients_and_training_agree(framework):
    source = synthetic.weights(changed(SE, {"width_multiplier": 0.125}))
    images = synthetic.images((96, 96), batch=4)  # of fewer values batch statistics round by 1e-12
    report = investigate(framework, source, images, frameworks=(framework,), train_steps=5)
    assert report.holds, report.first_divergence()
    assert {"inception_3a.branch2.unit1.conv", "inception_3c.se.fc1"} <= {x.name for x in report.layers}


@pytest.mark.quick
@pytest.mark.parametrize("count_padding", [True, False])
@pytest.mark.parametrize("kind", ["avg", "max"])
def test_pools_that_keep_the_size(kind, count_padding):
    x, c = np.random.default_rng(0).normal(size=(2, 3, 5, 4)) - 3, {"count_padding": count_padding}
    wanted, last = same_size_pool(x, kind, count_padding), x.transpose(0, 2, 3, 1)
    found = [make_pool(Pool(kind), c)(torch.from_numpy(x)).numpy()]
    found.append(
        keras.ops.convert_to_numpy(
            keras_pool(keras.ops.convert_to_tensor(last, "float64"), Pool(kind), c)
        ).transpose(0, 3, 1, 2)
    )
    with tf.Graph().as_default(), tf.Session() as session:
        found.append(session.run(tf1_pool(tf.constant(last), Pool(kind), c)).transpose(0, 3, 1, 2))
    for array in found:
        np.testing.assert_allclose(array, wanted, rtol=1e-14)


@pytest.mark.quick
def test_sizes_of_the_paper():
    model = torch_impl.se_bn_inception(width_multiplier=1 / 64).eval()
    with torch.inference_mode():
        features = model.forward_features(torch.zeros(1, 3, 224, 224))
    sizes = {name: x.shape[2] for name, x in features.items() if x.dim() == 4}
    assert (sizes["stem"], sizes["inception_3b"], sizes["inception_4d"]) == (28, 28, 14)
    assert (sizes["inception_3c"], sizes["inception_4e"], sizes["inception_5b"]) == (14, 7, 7)
    info = [(row["reduction"], row["module"]) for row in model.feature_info]
    assert info == [(8, "inception_3b"), (16, "inception_4d"), (32, "inception_5b")]


DOES_NOT_FIT = r"images with 40 rows or columns: inception_3c would concatenate maps of 2 and 3; expected"


@pytest.mark.quick
def test_an_image_that_does_not_fit_is_refused():
    keywords = {"width_multiplier": 0.01, "num_classes": 2}
    with pytest.raises(ValueError, match=DOES_NOT_FIT):
        torch_impl.bn_inception(**keywords)(torch.zeros(1, 3, 32, 40))
    with tf.Graph().as_default(), pytest.raises(ValueError, match=DOES_NOT_FIT):
        tf1_compat.bn_inception(tf.zeros((1, 40, 32, 3)), **keywords)
    torch_impl.bn_inception(reduction_pool="pad1", **keywords).eval()(torch.zeros(1, 3, 33, 40))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_lead_back(layout):
    names = LAYOUTS[layout].names(model_spec("se_bn_inception"))
    placed = [name for name in names.values() if name is not None]
    assert len(set(placed)) == len(placed)
    without = {p.name for p in parameters(SE) if p.role == "count" and layout != "torch"}
    assert {canonical for canonical, name in names.items() if name is None} == without


def test_every_framework_loads_every_container(tmp_path):
    source, x = synthetic.weights(SE), synthetic.images((32, 32))
    save(source, tmp_path / "a.pth")
    for suffix in (".safetensors", ".npz", ".weights.h5", ".ckpt"):
        convert(tmp_path / "a.pth", tmp_path / f"a{suffix}")
        with load(tmp_path / f"a{suffix}") as checkpoint:
            assert checkpoint.spec == SE
    wanted = numpy_reference.network(x, source, SE)["logits"]
    for framework, suffix in (("torch", ".ckpt"), ("keras", ".pth"), ("tf1", ".weights.h5")):
        model = load_model(tmp_path / f"a{suffix}", framework)
        np.testing.assert_allclose(outputs(model, framework, x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fold", ["fold_bias", "fold_bn"])
def test_folded_networks_give_the_same_outputs(tmp_path, fold):
    source, x = synthetic.weights(OTHER), synthetic.images((32, 33))
    save(source, tmp_path / "a.npz")
    convert(tmp_path / "a.npz", tmp_path / "b.npz", **{fold: True}, dtype="float64")
    wanted = numpy_reference.network(x, source, OTHER)["logits"]
    with load(tmp_path / "b.npz") as folded:
        assert folded.spec.norm == {"fold_bias": "bn", "fold_bn": "bias"}[fold]
        found = numpy_reference.network(x, folded, folded.spec)["logits"]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_a_file_without_metadata_is_identified(tmp_path):
    spec = changed(model_spec("se_bn_inception"), {"num_classes": 3, "in_channels": 1})
    module = torch_impl.Inception(**spec.model_kwargs())
    torch.save(dict(module.half().state_dict()), tmp_path / "a.pth")
    with pytest.warns(UserWarning, match="does not specify these keywords, defaults used: reduction_pool"):
        checkpoint = load(tmp_path / "a.pth")
    with checkpoint:
        assert (checkpoint.spec, checkpoint.model) == (spec, "se_bn_inception")


def test_keras_keeps_a_network_and_a_part_of_it(tmp_path):
    model = keras_impl.Inception(**SE.model_kwargs())
    images = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype("float32")
    model.save(tmp_path / "whole.keras")
    again = keras.saving.load_model(tmp_path / "whole.keras")
    np.testing.assert_array_equal(again.predict_on_batch(images), model.predict_on_batch(images))
    keras.Model(model.input, model.get_layer("inception_5b").output).save(tmp_path / "part.keras")
    with load(tmp_path / "part.keras") as part:
        assert part.spec == changed(SE, {"num_classes": 0})
    with pytest.raises(ValueError, match=DOES_NOT_FIT):
        model(np.zeros((1, 32, 40, 3), "float32"))


def test_networks_for_inference():
    source, x = synthetic.weights(OTHER), synthetic.images((32, 32))
    wanted = numpy_reference.network(x, source, OTHER)["logits"]
    model = torch_impl.Inception(**OTHER.model_kwargs())
    load_into(model, source)
    fast = torch_impl.optimize_for_inference(model, compile=False)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())
    with torch.inference_mode():
        np.testing.assert_allclose(fast(torch.from_numpy(x)).numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_the_tables_are_one_text():
    rooms = ("torch_impl", "keras_impl", "tf1_compat", "weights_convert/spec")
    assert len({(ROOT / room / "inception_table.py").read_text("utf-8") for room in rooms}) == 1
