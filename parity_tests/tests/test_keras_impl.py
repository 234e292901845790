"""Usual work with Keras models: compile, fit, summary, save, load, mixed precision, nesting."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import keras_impl
from parity_tests.judge import synthetic
from parity_tests.judge.synthetic import tiny
from weights_convert import load_into, state_of

SPECS = {
    kind: tiny(attention=kind, groups=2, width_per_group=32, depths=(1, 1))
    for kind in ("none", "se", "cbam", "eca")
}
ONE = {"one_block": tiny(attention="cbam", groups=2, width_per_group=32, depths=(1,))}
# in these tests Keras traces and compiles the whole network: one block in an ordinary run
TRACED = ["one_block", *(pytest.param(kind, marks=pytest.mark.exhaustive) for kind in SPECS)]
traced = pytest.mark.parametrize("model", TRACED, indirect=True)


@pytest.fixture(params=SPECS)
def model(request) -> keras_impl.ResNet:
    model = keras_impl.ResNet(**((SPECS | ONE)[request.param].model_kwargs() | {"dropout": 0.1}))
    load_into(model, synthetic.weights(tiny(**model.config)))
    return model


@pytest.fixture
def images() -> np.ndarray:
    return synthetic.images((33, 40), batch=4).transpose(0, 2, 3, 1)


def run(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(images))


@pytest.mark.parametrize("training", [False, True])
def test_the_output_is_that_of_the_features(model, images, training):
    """`call` does not use `forward_features`, to keep no intermediate outputs."""
    model.dropout.rate = 0.0
    output = keras.ops.convert_to_numpy(model(images, training=training))
    features = model.forward_features(images, training=training)
    np.testing.assert_array_equal(output, keras.ops.convert_to_numpy(features["logits"]))


def compiled(model: keras_impl.ResNet) -> keras_impl.ResNet:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.125, momentum=0.875), loss, metrics=["accuracy"])
    return model


@traced
def test_fit_evaluate_predict(model, images):
    before, labels = state_of(model), np.arange(4) % 5
    history = compiled(model).fit(images, labels, batch_size=2, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    after = state_of(model)
    unchanged = [name for name in before if before[name].tobytes() == after[name].tobytes()]
    assert [name for name in unchanged if ".fc1." not in name] == []
    assert model.predict(images, verbose=0).shape == (4, 5)
    assert np.isfinite(model.evaluate(images, labels, verbose=0)).all()


def test_grouped_networks_do_not_compile_to_xla_on_a_cpu(model):
    """`jit_compile="auto"` would use the path that is over a thousand times slower."""
    assert compiled(model).jit_compile is False


@traced
def test_summary_counts_the_parameters(model):
    lines: list[str] = []
    model.summary(print_fn=lines.append)
    assert f"{model.count_params():,}" in "\n".join(lines)


def test_save_and_load_weights(model, images, tmp_path):
    model.save_weights(tmp_path / "model.weights.h5")
    other = keras_impl.ResNet(**model.config)
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(run(other, images), run(model, images))


@traced
def test_save_and_load_model(model, images, tmp_path):
    compiled(model).fit(images, np.arange(4) % 5, verbose=0)
    model.save(tmp_path / "model.keras")
    other = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(other, keras_impl.ResNet)
    assert other.get_config()["attention"] == model.config["attention"]
    np.testing.assert_array_equal(other.predict(images, verbose=0), model.predict(images, verbose=0))


def test_named_models_have_their_name():
    assert keras_impl.se_resnet20().name == "se_resnet20"
    assert keras_impl.se_resnet20(name="mine").name == "mine"


def test_clone_from_config(model):
    other = keras_impl.ResNet.from_config(model.get_config())
    assert [v.path.split("/")[1:] for v in other.weights] == [v.path.split("/")[1:] for v in model.weights]


@traced
def test_inside_a_functional_model(model, images):
    inputs = keras.Input((None, None, 3))
    outer = keras.Model(inputs, keras.layers.Softmax()(model(inputs)))
    np.testing.assert_allclose(outer(images), keras.ops.softmax(model(images)), rtol=1e-6)


def test_mixed_precision(images):
    model = keras_impl.ResNet(**ONE["one_block"].model_kwargs(), dtype="mixed_bfloat16")
    assert model(images).dtype == "bfloat16"
    assert all(v.dtype == "float32" for v in model.weights)
    compiled(model).fit(images, np.arange(4) % 5, verbose=0)


def test_forward_features(model, images):
    features = model.forward_features(images)
    assert list(features) == ["stem", "layer1", "layer2", "pooled", "logits"]
    np.testing.assert_array_equal(features["logits"], model(images))


def test_channels_first_setting_changes_nothing(images):
    before = keras.config.image_data_format()
    weights = synthetic.weights(SPECS["cbam"])
    results = []
    try:
        for data_format in ("channels_last", "channels_first"):
            keras.config.set_image_data_format(data_format)
            model = keras_impl.ResNet(**SPECS["cbam"].model_kwargs())
            load_into(model, weights)
            results.append(model(images))
    finally:
        keras.config.set_image_data_format(before)
    np.testing.assert_array_equal(*results)


def test_wrong_number_of_channels_is_refused(model):
    with pytest.raises(ValueError, match=r"channel|dimension|shape"):
        model(np.zeros((1, 32, 32, 4), np.float32))
