"""A Keras network used like a model of keras.applications: `input`, `output`, features, export.

A functional model made of a network's layers is saved, loaded and converted: the part that it has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import torch
from keras import layers as L

import keras_impl
from parity_tests.judge import synthetic, tolerances
from parity_tests.judge.synthetic import tiny
from weights_convert import MismatchError, SourceError, convert, load, load_into, load_model, save, state_of
from weights_convert.spec import MobileNetSpec, ShuffleNetSpec, Spec, VGGSpec, changed

SE = tiny(attention="se", block="basic", stem="3x3", depths=(1, 2))
SPECS: dict[str, Spec] = {
    "se": SE,
    "cbam": tiny(attention="cbam", cbam_order="mean_max", stem="deep", stride_in="conv1", bn_epsilon=1e-3),
    "eca": tiny(
        attention="eca", eca_padding="circular", downsample_pool="avg", stem_pool="ceil", norm="bias_bn"
    ),
    "sk": tiny(attention="sk", sk_min_hidden=3, groups=2, width_per_group=32, activation="gelu"),
    "bias": tiny(norm="bias", groups=2, width_per_group=32, stem_pool="same", activation="silu"),
    "pools": tiny(stem_pool="conv", anti_aliasing="blur", global_pool="catavgmax", head_bias=False),
    "dilated": tiny(
        strides=(1, 1), dilations=(1, 2), anti_aliasing="avg", activation="gelu", global_pool="avgmax"
    ),
}
MOBILENET = MobileNetSpec(depths=(1, 1), widths=(8, 8), stem_width=4, num_classes=5, stride_padding="keras")
SHUFFLENET = ShuffleNetSpec(
    depths=(1, 1), widths=(12, 24), stem_width=6, num_classes=5, count_padding=False, attention="se"
)
VGG = VGGSpec(depths=(2, 1), widths=(8, 8), head_width=16, num_classes=5, attention="cbam", reduction=4)
ORDINARY = ("se", "eca")
each = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ORDINARY else pytest.mark.exhaustive) for name in SPECS]
)


def network(spec: Spec, **keywords: Any) -> Any:
    model = getattr(keras_impl, spec.network)(**spec.model_kwargs(), **keywords)
    load_into(model, synthetic.weights(spec))
    return model


def images(size: tuple[int, int] = (37, 32)) -> np.ndarray:
    return synthetic.images(size).transpose(0, 2, 3, 1)


def run(model: keras.Model, x: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(x, training=False))


def reloaded(model: keras.Model, path: Path) -> Any:
    model.save(path)
    return keras.saving.load_model(path)


class Part(NamedTuple):
    """The contents of a file or a live model."""

    spec: Any
    assumed: tuple[str, ...]
    arrays: dict[str, np.ndarray]


def part(source: Path | keras.Model) -> Part:
    if isinstance(source, keras.Model):
        state = state_of(source)
        return Part(state.spec, state.assumed, dict(state))
    with load(source) as checkpoint:
        return Part(checkpoint.spec, checkpoint.assumed, dict(checkpoint))


def assert_part(tensors: Any, whole: Any) -> None:
    """The tensors are those of the whole network, and the end is missing."""
    names = [name for name in whole if name in tensors]
    assert list(tensors) == names
    for name in names:
        assert tensors[name].tobytes() == whole[name].tobytes(), name


@pytest.mark.quick
@pytest.mark.parametrize("spec", [SE, VGG], ids=["resnet", "vgg"])
def test_input_output_and_layers_of_a_new_and_of_a_loaded_network(tmp_path, spec):
    save(synthetic.weights(spec), tmp_path / "a.npz")
    for model in (network(spec), load_model(tmp_path / "a.npz", "keras")):
        assert model.input.shape == (None, None, None, 3)
        assert model.output.shape == (None, 5)
        assert (model.inputs, model.outputs) == ([model.input], [model.output])
        assert model.layers[-2].output.shape == (None, model.num_features)
        x = images()
        np.testing.assert_array_equal(run(keras.Model(model.input, model.output), x), run(model, x))


@each
def test_features_are_saved_loaded_and_converted(name, tmp_path):
    spec = SPECS[name]
    model, x = network(spec), images()
    features = keras.Model(model.input, model.get_layer("layer1_0").output)
    expected = keras.ops.convert_to_numpy(
        model.layer1[0](model.forward_stem(x))  # the first block of `forward_features`
    )
    np.testing.assert_array_equal(run(features, x), expected)
    again = reloaded(features, tmp_path / "a.keras")
    np.testing.assert_array_equal(run(again, x), expected)
    features.save_weights(tmp_path / "a.weights.h5")
    whole = state_of(model)
    for source in (features, again, tmp_path / "a.keras", tmp_path / "a.weights.h5"):
        found = part(source)
        assert found.assumed == ()
        assert found.spec == changed(spec, {"depths": (1,), "num_classes": 0, **first_stage(spec)})
        assert_part(found.arrays, whole)
        assert not any(key.startswith(("layer2", "fc")) for key in found.arrays)


def first_stage(spec: Any) -> dict[str, Any]:
    """The keywords with one value per stage, for a network of one stage."""
    names = ("strides", "dilations", "eca_kernel_sizes")
    return {name: sizes[:1] for name in names if (sizes := getattr(spec, name))}


@pytest.mark.quick
def test_features_of_one_stage_are_saved_and_converted(tmp_path):
    """`forward_features` with images of a known size, and numbers in another framework."""
    model = network(SE)
    inputs = keras.Input((32, 32, 3))
    features = keras.Model(inputs, model.forward_features(inputs)["layer2"])
    again, x = reloaded(features, tmp_path / "a.keras"), images((32, 32))
    expected = run(features, x).mean((1, 2))
    np.testing.assert_array_equal(run(again, x), run(features, x))
    convert(tmp_path / "a.keras", tmp_path / "a.pth")
    other = load_model(tmp_path / "a.pth")
    with torch.inference_mode():
        pooled = other(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))).numpy()
    assert tolerances.relative_error(pooled, expected) < 1e-5
    assert other.config == changed(SE, {"num_classes": 0}).model_kwargs()


def test_features_of_mobilenet(tmp_path):
    """The layers of a unit keep their padding in a saved part."""
    model, x = network(MOBILENET), images((33, 32))
    features = keras.Model(model.input, model.get_layer("stage2_0").output)
    again = reloaded(features, tmp_path / "a.keras")
    np.testing.assert_array_equal(run(again, x), run(features, x))
    found = part(again)
    assert found.spec == changed(MOBILENET, {"num_classes": 0})
    assert_part(found.arrays, state_of(model))


def test_features_of_shufflenet(tmp_path):
    """With shuffles and means of maps of any size."""
    model, x = network(SHUFFLENET), images((63, 64))
    features = keras.Model(model.input, model.get_layer("stage3_0").output)
    again = reloaded(features, tmp_path / "a.keras")
    np.testing.assert_array_equal(run(again, x), run(features, x))
    found = part(again)
    assert found.spec == changed(SHUFFLENET, {"num_classes": 0})
    assert_part(found.arrays, state_of(model))


def test_features_of_vgg(tmp_path):
    model, x = network(VGG), images()
    features = keras.Model(model.input, model.layers[-2].output)
    again = reloaded(features, tmp_path / "a.keras")
    np.testing.assert_array_equal(run(again, x), run(features, x))
    for source in (again, tmp_path / "a.keras"):
        found = part(source)
        assert found.spec == changed(VGG, {"num_classes": 0})
        assert_part(found.arrays, state_of(model))


@pytest.mark.parametrize(
    ("spec", "layer", "missing"),
    [
        (SE, "conv1", "ends before its first block"),
        (VGG, "features_2", "ends before classifier_3"),
        (MOBILENET, "conv1", "ends before its first unit, expected stage1_0"),
        (SHUFFLENET, "conv1", "ends before its first unit, expected stage2_0"),
    ],
    ids=["resnet", "vgg", "mobilenet", "shufflenet"],
)
def test_a_part_that_is_no_network_is_refused_in_one_line(tmp_path, spec, layer, missing):
    model = network(spec)
    features = keras.Model(model.input, model.get_layer(layer).output)
    with pytest.raises(MismatchError, match=missing):
        state_of(features)
    features.save(tmp_path / "a.keras")
    with pytest.raises(SourceError, match=f"a.keras: holds a part of .* that {missing}"):
        load(tmp_path / "a.keras")


@pytest.mark.quick
def test_a_new_head_on_the_layers_of_a_network(tmp_path):
    """As for transfer learning with keras.applications: the head is another layer's."""
    model = network(SE)
    transfer = keras.Model(model.input, L.Dense(3, name="mine")(model.layers[-2].output))
    again = reloaded(transfer, tmp_path / "a.keras")
    plan = convert(tmp_path / "a.keras", tmp_path / "a.pth")
    others = {"mine/vars/0": "another layer's (16, 3)", "mine/vars/1": "another layer's (3,)"}
    assert plan.checkpoint.left_out.items() >= others.items()
    for source in (tmp_path / "a.pth", transfer, again):
        found = part(source)
        assert found.spec == changed(SE, {"num_classes": 0})
        assert_part(found.arrays, state_of(model))


def test_a_part_is_loaded_from_a_whole_network():
    model = network(SE)
    features = keras.Model(model.input, model.get_layer("layer2_0").output)
    source = synthetic.weights(SE, seed=1)
    load_into(features, source)
    assert_part(state_of(features), source)
    assert state_of(model)["fc.weight"].tobytes() == synthetic.weights(SE)["fc.weight"].tobytes()
    with pytest.raises(MismatchError, match=r"bn_epsilon: 0\.01 in the checkpoint"):
        load_into(features, synthetic.weights(changed(SE, {"bn_epsilon": 1e-2})))


def test_features_follow_changes_of_their_layers(tmp_path):
    """Or say that no keyword describes them."""
    model = network(SPECS["cbam"])
    for layer in model._flatten_layers():
        if isinstance(layer, L.BatchNormalization):
            layer.epsilon = 0.1
    features, x = keras.Model(model.input, model.get_layer("layer1_0").output), images()
    again = reloaded(features, tmp_path / "a.keras")
    np.testing.assert_array_equal(run(again, x), run(features, x))
    assert part(again).spec.bn_epsilon == part(tmp_path / "a.keras").spec.bn_epsilon == 0.1
    model = network(SPECS["cbam"])
    features = keras.Model(model.input, model.get_layer("layer1_0").output)
    model.layer1[0].bn1.epsilon = 0.2
    with pytest.raises(
        ValueError, match=r"layer1\.0\.bn1\.epsilon is 0\.2, but 0\.001 by the network's keywords"
    ):
        features.save(tmp_path / "b.keras")
    with pytest.raises(ValueError, match=r"layer1_0\.bn1\.epsilon is 0\.2, but 0\.001"):
        model.layer1[0].get_config()


BLOCKS = {
    "basic": lambda: keras_impl.BasicBlock(
        8, 16, 2, attention=("se", keras_impl.SqueezeExcitation(reduction=4)), relu_before_attention=True
    ),
    "bottleneck": lambda: keras_impl.Bottleneck(
        8, 4, groups=2, width_per_group=32, stride_in="conv1", norm="bias"
    ),
    "cbam": lambda: keras_impl.Bottleneck(
        8, 4, 2, attention=("cbam", keras_impl.CBAM(reduction=4, order="mean_max")), downsample_pool="avg"
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_have_a_config(name, tmp_path):
    block = BLOCKS[name]()
    model = keras.Sequential([L.Input((9, 8, 8)), block])
    block.trainable = name != "cbam"
    again, x = reloaded(model, tmp_path / "a.keras"), np.random.default_rng(0).normal(size=(2, 9, 8, 8))
    np.testing.assert_array_equal(run(again, x), run(model, x))
    configs = [json.dumps(keras.saving.serialize_keras_object(b)) for b in (again.layers[0], block)]
    assert configs[0] == configs[1]
    assert len(again.trainable_weights) == len(model.trainable_weights)


def exported(model: keras.Model, folder: Path, x: np.ndarray) -> np.ndarray:
    """The output of an exported model, run by its framework without Keras."""
    backend, sizes = keras.backend.backend(), {}
    if backend != "tensorflow":  # an export of the others has one size of images
        sizes = {"input_signature": [keras.InputSpec(shape=x.shape, dtype="float32")]}
    if backend == "torch":  # Keras exports no SavedModel from it
        model.export(folder / "a.pt2", format="torch", verbose=False, **sizes)
        with torch.inference_mode():
            return torch.export.load(folder / "a.pt2").module()(torch.from_numpy(x)).numpy()
    import tensorflow as tf

    model.export(folder / "a", verbose=False, **sizes)
    served = tf.saved_model.load(str(folder / "a"))
    return served.serve(x).numpy()


@pytest.mark.filterwarnings(
    "ignore:The `native_serialization` parameter:DeprecationWarning"
)  # of JAX, by Keras
@pytest.mark.quick
@pytest.mark.parametrize("spec", [SE, VGG], ids=["resnet", "vgg"])
def test_export_without_a_call(tmp_path, spec):
    save(synthetic.weights(spec), tmp_path / "a.npz")
    model, x = load_model(tmp_path / "a.npz", "keras"), images()
    assert tolerances.relative_error(exported(model, tmp_path, x), run(model, x)) < 4e-6
