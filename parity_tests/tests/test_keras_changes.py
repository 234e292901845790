"""Changes of a built Keras network: a new head, freezing, EMA, half precision, int8.

Afterwards its weights and keywords convert as they are, or one line says why not.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L

import keras_impl
from keras_impl.vgg import Rectified
from parity_tests.judge import synthetic
from parity_tests.judge.synthetic import tiny
from parity_tests.tests.test_keras_functional import SE, VGG, images, network, run
from weights_convert import Checkpoint, MismatchError, convert, load, load_into, state_of
from weights_convert.spec import changed, count_parameters, model_spec, parameters

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
ONE = tiny(attention="cbam", block="basic", stem="3x3", depths=(1,))  # Keras compiles the whole network


def body(state: Checkpoint) -> dict[str, bytes]:
    head = state.spec.head
    return {name: state[name].tobytes() for name in state if not name.startswith(f"{head}.")}


def assert_converts(model: keras.Model, folder: Any) -> Checkpoint:
    """The file of a model has the weights and keywords of the live model."""
    state = state_of(model)
    model.save(folder / "a.keras")
    convert(folder / "a.keras", folder / "a.pth", overwrite=True)
    with load(folder / "a.pth") as found:
        assert found.spec == state.spec
        assert {name: found[name].tobytes() for name in state} == {n: state[n].tobytes() for n in state}
    return state


def fit(model: keras.Model, optimizer: Any = "sgd", classes: int = 3) -> None:
    model.compile(optimizer, LOSS, jit_compile=False)
    x = synthetic.images((16, 16), batch=4).transpose(0, 2, 3, 1)
    model.fit(x, np.arange(4) % classes, batch_size=2, verbose=0)


@pytest.mark.quick
@pytest.mark.parametrize("classes", [3, 0])
@pytest.mark.parametrize("spec", [SE, VGG], ids=["resnet", "vgg"])
def test_reset_classifier(spec, classes, tmp_path):
    model, x = network(spec), images()
    before = body(state_of(model))
    model.reset_classifier(classes)
    assert model.count_params() == type(model)(**model.config).count_params()
    state = assert_converts(model, tmp_path)
    assert state.spec == changed(spec, {"num_classes": classes})
    assert model.get_config()["num_classes"] == classes
    assert body(state) == before
    assert {v.path.partition("/")[0] for v in model.weights} == {model.name}
    again = keras.saving.load_model(tmp_path / "a.keras")
    fast = keras_impl.optimize_for_inference(model)
    outer = keras.Model(model.input, model.output)
    for other in (again, fast, outer):
        assert run(other, x).shape == (2, classes or model.num_features)
        np.testing.assert_allclose(run(other, x), run(model, x), rtol=1e-5, atol=1e-6)
    if classes:
        weight = state[f"{spec.head}.weight"]
        assert weight.shape == (classes, model.num_features)
        assert weight.std() > 0


@pytest.mark.quick
def test_a_head_on_a_network_without_one():
    model = network(changed(SE, {"num_classes": 0}))
    model.reset_classifier(5)
    source = synthetic.weights(SE)
    load_into(model, source, new_head=True)
    assert state_of(model)["fc.weight"].tobytes() != source["fc.weight"].tobytes()
    load_into(model, source)
    assert state_of(model)["fc.weight"].tobytes() == source["fc.weight"].tobytes()


@pytest.mark.quick
def test_reset_classifier_keeps_other_changes_and_refuses_invalid_numbers():
    model = network(SE)
    for layer in model._flatten_layers():
        if hasattr(layer, "epsilon"):
            layer.epsilon = 0.25
    model.reset_classifier(0)
    model.reset_classifier(7)
    assert state_of(model).spec == changed(SE, {"num_classes": 7, "bn_epsilon": 0.25})
    assert [layer.name for layer in model.layers[-2:]] == ["dropout", "fc"]
    for wrong in (-1, True, 2.5, "3"):
        with pytest.raises(ValueError, match="num_classes="):
            model.reset_classifier(wrong)  # type: ignore[arg-type]


def test_reset_classifier_after_training_asks_for_a_new_compile(tmp_path):
    model = network(ONE)
    fit(model)
    x = images((16, 16))
    assert model.predict(x, verbose=0).shape == (2, 5)
    model.reset_classifier(3)
    assert model.predict(x, verbose=0).shape == (2, 3)
    with pytest.raises(ValueError, match="compile"):
        model.fit(x, np.zeros(2), verbose=0)
    fit(model)
    assert_converts(model, tmp_path)


@pytest.mark.quick
def test_load_weights_skips_the_head(tmp_path):
    network(SE).save_weights(tmp_path / "a.weights.h5")
    model = keras_impl.ResNet(**changed(SE, {"num_classes": 3}).model_kwargs())
    head = state_of(model)["fc.weight"]
    with pytest.warns(UserWarning, match="1 objects could not be loaded"):
        model.load_weights(tmp_path / "a.weights.h5", skip_mismatch=True)
    state = state_of(model)
    assert body(state) == {
        name: value for name, value in body(synthetic.weights(SE)).items() if not name.endswith("tracked")
    }
    assert state["fc.weight"].tobytes() == head.tobytes()


def test_frozen_stages_and_batch_norms_in_training(tmp_path):
    """The last block trains; everything before it keeps its weights and running statistics."""
    model = network(changed(SE, {"depths": (1, 1), "dropout": 0.25}))
    for layer in (model.conv1, model.bn1, *model.layer1):
        layer.trainable = False
    before = state_of(model)
    fit(model)
    after = assert_converts(model, tmp_path)
    same = {name for name in before if before[name].tobytes() == after[name].tobytes()}
    frozen = {name for name in before if name.startswith(("conv1", "bn1", "layer1."))}
    assert same >= frozen
    assert "layer2.0.bn1.running_mean" not in same
    assert after.spec == before.spec


FROZEN: dict[str, Callable[[], Any]] = {
    "resnet": lambda: network(ONE),
    "vgg": lambda: network(VGG),
    "block": lambda: keras_impl.BasicBlock(3, 3, attention=("eca", keras_impl.ECA())),
    "rectified": lambda: Rectified(("se", keras_impl.SqueezeExcitation())),
    "cbam": lambda: keras_impl.CBAM(),
    "spatial": lambda: keras_impl.SpatialAttention(),
}


@pytest.mark.quick
@pytest.mark.parametrize("name", FROZEN)
def test_frozen_layers_stay_frozen_in_a_file(name, tmp_path):
    """Keras freezes the layers in a layer only when `trainable` changes, and a file is loaded with False."""
    model = keras.Sequential([L.Input((32, 32, 3)), FROZEN[name](), L.Flatten(), L.Dense(2)])
    assert len(model.trainable_weights) > 2
    model.layers[0].trainable = False
    model.save(tmp_path / "a.keras")
    again = keras.saving.load_model(tmp_path / "a.keras")
    assert len(model.trainable_weights) == len(again.trainable_weights) == 2
    again.layers[0].trainable = True
    assert len(again.trainable_weights) > 2


def test_the_average_of_an_optimizer_converts(tmp_path):
    """`use_ema=True`: after `fit` the weights are the averages; the optimizer's copies are bookkeeping."""
    model = network(ONE)
    optimizer = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5)
    fit(model, optimizer)
    state = assert_converts(model, tmp_path)
    (average,) = [
        v for v in optimizer.variables if v.path.endswith("conv1_kernel_average") and "layer" not in v.path
    ]
    np.testing.assert_array_equal(
        state["conv1.weight"].transpose(2, 3, 1, 0), keras.ops.convert_to_numpy(average)
    )
    with load(tmp_path / "a.keras") as found:
        assert {"optimizer state"} == {
            text.partition(" (")[0] for n, text in found.left_out.items() if "optim" in n
        }


POLICIES: dict[str, Callable[[], Any]] = {
    "per model": lambda: network(ONE, dtype="mixed_bfloat16"),
    "global": lambda: network(ONE),
    "pure": lambda: keras_impl.ResNet(**ONE.model_kwargs(), dtype="bfloat16"),
}


@pytest.mark.parametrize("name", POLICIES)
def test_half_precision(name, tmp_path):
    before = keras.config.dtype_policy()
    try:
        if name == "global":
            keras.config.set_dtype_policy("mixed_bfloat16")
        model = POLICIES[name]()
        fit(model)
        state = assert_converts(model, tmp_path)
        again = keras.saving.load_model(tmp_path / "a.keras")
        features = keras.Model(again.input, again.get_layer("layer1_0").output)
        assert state["fc.weight"].dtype == ("bfloat16" if name == "pure" else "float32")
        assert state_of(features)["conv1.weight"].dtype == state["conv1.weight"].dtype
        assert keras.backend.standardize_dtype(features.output.dtype) == "bfloat16"
        np.testing.assert_array_equal(run(again, images()), run(model, images()))
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.quick
def test_int8_covers_the_dense_layers_and_is_not_converted(tmp_path):
    model, x = network(SE), images()
    before = run(model, x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.quantize("int8")
    assert {str(w.message) for w in caught if w.category is UserWarning} == {
        f"Layer {kind} does not have a `quantize` method implemented."
        for kind in ("Conv2D", "BatchNormalization", "Dropout")
    }
    quantized = {layer.name for layer in model._flatten_layers() if getattr(layer, "quantization_mode", None)}
    assert quantized == {"fc", "fc1", "fc2"}
    assert 0 < np.abs(run(model, x) - before).max() < 0.05 * np.abs(before).max()
    line = r"layer1\.0\.se\.fc1 is quantized to int8; save and convert before quantize\(\)"
    with pytest.raises(MismatchError, match=line):
        state_of(model)
    with pytest.raises(ValueError, match=line):
        model.save(tmp_path / "a.keras")
    with pytest.raises(ValueError, match=line):
        keras_impl.optimize_for_inference(model)


@pytest.mark.quick
def test_the_share_of_int8_in_the_docs():
    page = (Path(__file__).parents[2] / "docs/keras.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| `(\w+)` \| (\d+) % \|", page)
    assert len(rows) == 2
    for name, percent in rows:
        spec = model_spec(name)
        dense = {p.name.rpartition(".")[0] for p in parameters(spec) if p.role.endswith("dense")}
        covered = sum(math.prod(p.shape) for p in parameters(spec) if p.name.rpartition(".")[0] in dense)
        assert round(100 * covered / count_parameters(spec)) == int(percent)
