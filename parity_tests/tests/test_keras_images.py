"""The entrance of a Keras network: clear words for wrong images, and preprocessing as a layer."""

from __future__ import annotations

import json
import zipfile
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

import keras_impl
from parity_tests.tests.test_keras_functional import SE, VGG, network, reloaded, run
from weights_convert import state_of
from weights_convert.families import FAMILIES

FLOATS = "images of dtype uint8, expected floats, preprocessed as for training"
WRONG = {
    "uint8": (np.zeros((1, 32, 32, 3), np.uint8), FLOATS),
    "channels first": (
        np.zeros((1, 3, 32, 32), np.float32),
        r"images of shape \(1, 3, 32, 32\), expected \(N, H, W, 3\); transpose \(N, C, H, W\) with \(0, 2",
    ),
    "channels": (
        np.zeros((1, 32, 32, 4), np.float32),
        r"images of shape \(1, 32, 32, 4\), expected \(N, H, W, 3\)",
    ),
    "one image": (
        np.zeros((32, 32, 3), np.float32),
        r"images of shape \(32, 32, 3\), expected \(N, H, W, 3\)",
    ),
}


@pytest.mark.quick
@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("spec", [SE, VGG], ids=["resnet", "vgg"])
def test_wrong_images_are_refused_at_the_entrance(spec, kind):
    model = getattr(keras_impl, spec.network)(**spec.model_kwargs())
    images, words = WRONG[kind]
    for use in (model, model.forward_features, lambda x: model.predict(x, verbose=0)):
        with pytest.raises(ValueError, match=words):
            use(images)
    if kind != "uint8":
        with pytest.raises(ValueError, match=words.replace(r"\(1", r"\(None")):
            model(
                keras.Input(images.shape[1:]) if images.ndim == 4 else keras.Input(batch_shape=images.shape)
            )


@pytest.mark.quick
def test_a_file_of_another_module_names_what_to_import(tmp_path):
    """Keras imports no module for a file; its message holds the module's name."""
    network(SE).save(tmp_path / "a.keras")
    registered = keras.saving.get_custom_objects()
    kept = dict(registered)
    try:
        registered.clear()
        with pytest.raises(
            TypeError, match=r"make sure they are all imported.*'module': 'keras_impl.resnet'"
        ):
            keras.saving.load_model(tmp_path / "a.keras")
    finally:
        registered.update(kept)
    assert isinstance(keras.saving.load_model(tmp_path / "a.keras"), keras_impl.ResNet)


def picture(rows: int, columns: int) -> np.ndarray:
    """A smooth picture: interpolations differ most at edges."""
    small = np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((columns, rows), Image.Resampling.BICUBIC))


@pytest.mark.quick
@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.feeds])
def test_preprocessing_is_what_a_family_declares(family):
    feeds = FAMILIES[family].feeds
    assert feeds is not None
    layer = keras_impl.Preprocessing(feeds.channels, feeds.top, feeds.mean, feeds.std)
    x = picture(9, 8)[None]
    pixels = x[..., ::-1] if feeds.channels == "BGR" else x
    expected = (pixels * (feeds.top / 255) - np.array(feeds.mean)) / np.array(feeds.std)
    for given in (x, x.astype(np.float32)):
        np.testing.assert_allclose(run(layer, given), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(60, 77), (80, 61)])
def test_resize_and_crop_are_pillows(interpolation, size):
    x = picture(*size)
    layer = keras_impl.Preprocessing(
        "BGR", 255, (104, 117, 123), (1, 1, 1), resize=32, crop=28, interpolation=interpolation
    )
    rows, columns = (n * 32 // min(size) for n in size)
    resized = Image.fromarray(x).resize((columns, rows), Image.Resampling[interpolation.upper()])
    top, left = (rows - 28) // 2, (columns - 28) // 2
    expected = np.asarray(resized)[top : top + 28, left : left + 28, ::-1] - np.array([104.0, 117.0, 123.0])
    found = run(layer, x[None])[0]
    assert found.shape == (28, 28, 3)
    assert np.abs(found - expected).max() < 3  # Pillow rounds to bytes, and cuts values off
    assert np.abs(found - expected).mean() < 0.35  # rounding alone gives 0.25


@pytest.mark.quick
def test_preprocessing_in_a_model(tmp_path):
    net, x = network(SE), picture(40, 50)[None]
    layer = keras_impl.Preprocessing(resize=36, crop=32)
    model = keras.Sequential([keras.Input((40, 50, 3), dtype="uint8"), layer, net])
    again = reloaded(model, tmp_path / "a.keras")
    np.testing.assert_array_equal(run(again, x), run(model, x))
    np.testing.assert_array_equal(run(model, x), run(net, run(layer, x)))
    assert again.layers[0].get_config() | {"name": ""} == layer.get_config() | {"name": ""}
    assert model.layers[0].output.shape == (None, 32, 32, 3)
    assert keras_impl.Preprocessing(resize=36).compute_output_shape((None, 40, 50, 3)) == (None, 36, 45, 3)
    assert state_of(model).spec == SE
    config = json.loads(zipfile.ZipFile(tmp_path / "a.keras").read("config.json"))
    assert "samenet>Preprocessing" in json.dumps(config)


WRONG_ARGUMENTS: dict[str, dict[str, Any]] = {
    "channels='GBR'": {"channels": "GBR"},
    "top=2": {"top": 2},
    "mean=": {"mean": (1.0, 2.0)},
    "crop=0": {"crop": 0},
    "interpolation='nearest'": {"interpolation": "nearest"},
}


@pytest.mark.parametrize("words", WRONG_ARGUMENTS)
def test_wrong_preprocessing_is_refused(words):
    with pytest.raises(ValueError, match=words):
        keras_impl.Preprocessing(**WRONG_ARGUMENTS[words])


def test_images_that_cannot_be_preprocessed_are_refused():
    with pytest.raises(ValueError, match=r"images of shape \(1, 9, 8, 3\), too small for crop=9"):
        keras_impl.Preprocessing(crop=9)(picture(9, 8)[None])
    with pytest.raises(ValueError, match=r"images of shape \(9, 8, 3\), expected \(N, H, W, 3\)"):
        keras_impl.Preprocessing()(picture(9, 8))
