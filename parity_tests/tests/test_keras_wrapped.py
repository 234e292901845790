"""Keras models that wrap networks of this project convert like the networks, from files and live."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch
from keras import layers as L

import keras_impl
from parity_tests.judge import synthetic
from parity_tests.judge.synthetic import tiny
from parity_tests.tests.test_keras_functional import run as run_model
from weights_convert import MismatchError, SourceError, convert, load, load_into, load_model, state_of
from weights_convert.spec import (
    KINDS,
    InceptionSpec,
    InceptionV3Spec,
    MobileNetSpec,
    ShuffleNetSpec,
    Spec,
    VGGSpec,
)

SE = tiny(attention="se", block="basic", stem="3x3", depths=(1, 2), stem_pool="ceil", bn_epsilon=1e-3)
VGG = VGGSpec(depths=(1, 1), widths=(8, 8), head_width=16, num_classes=5, attention="eca", bn_momentum=0.2)
SUFFIXES = (".keras", ".weights.h5", ".h5")  # the last one is Keras's legacy format


def network(spec: Spec = SE, seed: int = 0, **keywords: Any) -> Any:
    model = getattr(keras_impl, spec.network)(**spec.model_kwargs(), **keywords)
    load_into(model, synthetic.weights(spec, seed))
    return model


@keras.saving.register_keras_serializable("tests")
class Subclass(keras.Model):
    """A model of the user's own, as Keras's guides write it."""

    def __init__(self, net: keras.Model, **keywords: Any):
        super().__init__(**keywords)
        self.net = net

    def call(self, x: Any, training: bool | None = None) -> Any:
        return keras.ops.softmax(self.net(x, training=training))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"net": keras.saving.serialize_keras_object(self.net)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        net = keras.saving.deserialize_keras_object(config.pop("net"))
        return cls(net, **config)


def sequential(net: keras.Model) -> keras.Model:
    return keras.Sequential([L.Input((32, 32, 3)), L.Rescaling(1 / 255), L.RandomFlip("horizontal"), net])


def functional(net: keras.Model) -> keras.Model:
    inputs = L.Input((32, 32, 3))
    return keras.Model(inputs, L.Dense(3, name="mine")(net(inputs)))


def nested(net: keras.Model) -> keras.Model:
    inputs = L.Input((32, 32, 3))
    return keras.Model(inputs, L.Softmax()(sequential(net)(inputs)))


def subclass(net: keras.Model) -> keras.Model:
    model = Subclass(net)
    model(np.zeros((1, 32, 32, 3), np.float32))
    return model


WRAPPERS: dict[str, Callable[[keras.Model], keras.Model]] = {
    "bare": lambda net: net,
    "sequential": sequential,
    "functional": functional,
    "nested": nested,
    "subclass": subclass,
    "time distributed": lambda net: keras.Sequential([L.Input((2, 32, 32, 3)), L.TimeDistributed(net)]),
}


def saved(model: keras.Model, path: Path) -> Path:
    (model.save_weights if path.name.endswith(".weights.h5") else model.save)(path)
    return path


def assert_network(found: Any, seed: int = 0, spec: Spec = SE) -> None:
    """The tensors and the keywords are the network's."""
    source = synthetic.weights(spec, seed)
    assert (found.spec, found.assumed) == (spec, ())
    names = [name for name in source if not name.endswith("num_batches_tracked")]
    assert [name for name in found if name in names] == names
    assert [name for name in names if found[name].tobytes() != source[name].tobytes()] == []


@pytest.mark.quick
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_network_is_read_and_loaded_live(wrap):
    model = WRAPPERS[wrap](network())
    assert_network(state_of(model))
    load_into(model, synthetic.weights(SE, seed=1))
    assert_network(state_of(model), seed=1)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize(
    "suffix", [pytest.param(s, marks=pytest.mark.quick) if s == ".keras" else s for s in SUFFIXES]
)
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_network_converts(wrap, suffix, tmp_path):
    spec = VGG if wrap == "nested" else SE
    path = saved(WRAPPERS[wrap](network(spec)), tmp_path / f"a{suffix}")
    plan = convert(path, tmp_path / "a.pth")
    with load(tmp_path / "a.pth") as found:
        assert_network(found, spec=spec)
    others = [
        name for name in plan.checkpoint.left_out if not name.endswith(("seed_generator/vars/0", "seed"))
    ]
    assert sorted(others) == (
        {
            ".keras": ["mine/vars/0", "mine/vars/1"],
            ".weights.h5": ["mine/vars/0", "mine/vars/1"],
            ".h5": ["mine/bias", "mine/kernel"],
        }[suffix]
        if wrap == "functional"
        else []
    )


OF_KIND: dict[str, Spec] = {
    "resnet": tiny(attention="sk", depths=(2, 1)),
    "vgg": VGG,
    "inception": InceptionSpec(width_multiplier=1 / 32, attention="se", num_classes=5),
    "inception_v3": InceptionV3Spec(width_multiplier=1 / 32, attention="se", num_classes=5, aux_head=True),
    "mobilenet": MobileNetSpec(depths=(2, 3), widths=(8, 8), stem_width=4, attention="se", num_classes=5),
    "shufflenet": ShuffleNetSpec(depths=(2, 3), widths=(12, 24), stem_width=6, attention="se", num_classes=5),
}


def test_every_kind_of_network_is_here():
    assert {kind for kind, spec in KINDS.items() if spec.network} == set(OF_KIND)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", OF_KIND)
def test_what_keras_saves_of_every_kind_of_network_converts(kind, suffix, tmp_path):
    """Alone and wrapped: Keras names the members of lists by the layers and by their classes."""
    net = network(OF_KIND[kind])
    for number, model in enumerate((net, keras.Sequential([L.Input((96, 96, 3)), L.Rescaling(1.0), net]))):
        with load(saved(model, tmp_path / f"{number}{suffix}")) as found:
            assert_network(found, spec=OF_KIND[kind])


def test_a_wrapped_network_gives_the_same_numbers_elsewhere(tmp_path):
    model, x = functional(network()), synthetic.images((32, 32))
    saved(model, tmp_path / "a.keras")
    again = keras.saving.load_model(tmp_path / "a.keras")
    last = x.transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(again.predict(last, verbose=0), model.predict(last, verbose=0))
    with torch.inference_mode():
        logits = load_model(tmp_path / "a.keras")(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(logits, run_model(model.layers[1], last), rtol=1e-4, atol=1e-5)


def two(first: keras.Model, second: keras.Model) -> keras.Model:
    inputs = L.Input((32, 32, 3))
    return keras.Model(inputs, [first(inputs), second(inputs)])


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.quick
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_two_networks_are_listed_with_the_option_that_chooses(suffix, tmp_path, run):
    model = two(network(name="student"), network(VGG, 1, name="teacher"))
    path = saved(model, tmp_path / f"a{suffix}")
    with pytest.raises(SourceError, match="holds several networks, choose one with --scope") as caught:
        load(path)
    assert sorted(caught.value.details) == ["student", "teacher"]
    for scope, seed, spec in (("student", 0, SE), ("teacher", 1, VGG)):
        with load(path, scope=scope) as found:
            assert_network(found, seed, spec)
    assert run("convert", path, tmp_path / "a.pth", "--scope", "teacher").code == 0
    with load(tmp_path / "a.pth") as found:
        assert_network(found, 1, VGG)
    assert run("inspect", path, "--scope", "studen").code == 2


@pytest.mark.quick
def test_two_live_networks_are_listed_with_the_option_that_chooses():
    model = two(network(name="student"), network(seed=1, name="teacher"))
    for wrong in (None, "studen"):
        with pytest.raises(MismatchError, match="holds networks, choose one with scope=") as caught:
            state_of(model, scope=wrong)
        assert caught.value.details == ("student", "teacher")
    assert_network(state_of(model, scope="teacher"), 1)
    load_into(model, synthetic.weights(SE, seed=2), scope="teacher")
    assert_network(state_of(model, scope="student"), 0)
    assert_network(state_of(model, scope="teacher"), 2)


def test_two_networks_of_one_name_are_told_apart_by_their_places():
    class Ensemble(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.nets = [network(name="net"), network(seed=1, name="net")]

    assert_network(state_of(Ensemble(), scope="nets/1"), 1)


@pytest.mark.quick
def test_a_model_without_a_network_is_refused(tmp_path):
    model = keras.Sequential([L.Input((8, 8, 3)), L.Conv2D(4, 1)])
    with pytest.raises(MismatchError, match="is not one of this project; unknown variables"):
        state_of(model)
    with pytest.raises(MismatchError, match="match no known family"):
        load(saved(model, tmp_path / "a.keras"))


def test_a_network_is_found_without_its_metadata(tmp_path):
    """As in a file of a wrapped network whose layers no keyword describes: the names lead to it."""
    net = network(tiny(attention="se"))
    net.bn1.epsilon = 0.5
    with pytest.warns(UserWarning, match="does not specify these keywords"):
        found = load(saved(sequential(net), tmp_path / "a.weights.h5"))
    with found:
        assert found.spec == tiny(attention="se")
        assert found.notes[0].startswith("removed the prefix ")
