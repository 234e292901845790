"""The files that carry an optimiser: as the frameworks write and load them, in every layout, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torch_impl
from parity_tests.judge.synthetic import SMALL, position_coded
from parity_tests.tests.carried import DECAY, MOMENTUM, SPEC, Leg, float64_in_keras, keras_network, torch_leg
from parity_tests.tests.test_carry import FACTS, first
from weights_convert import MismatchError, ResNetSpec, convert, load, save
from weights_convert.optimizer.state import facts_of
from weights_convert.spec import parameters

TRAINED = [parameter.name for parameter in parameters(SPEC) if parameter.trainable]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    for kind in FACTS:
        torch_leg(first(), folder / f"{kind}.pth", Leg(kind, 0.125, 0, 2))
    return folder


def moments(path: Path, **facts: Any) -> dict[str, np.ndarray]:
    """Every moment in PyTorch's terms."""
    with load(path, assume=True) as checkpoint:
        state = checkpoint.training_state(facts_of(facts))
        return {
            f"{m} {name}": part.read() for m, parts in state.moments.items() for name, part in parts.items()
        }


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, name)


@pytest.mark.parametrize("kind", FACTS)
def test_a_round_trip_by_tf1_has_the_same_bits(kind, trained, tmp_path):
    convert(trained / f"{kind}.pth", tmp_path / "a.ckpt", carry=True, assume=True, scope="net")
    convert(tmp_path / "a.ckpt", tmp_path / "b.pth", carry=True, assume=True)
    same(moments(tmp_path / "b.pth"), moments(trained / f"{kind}.pth"))
    ours, theirs = (
        torch.load(path, weights_only=True) for path in (tmp_path / "b.pth", trained / f"{kind}.pth")
    )
    ours, theirs = ours["optimizer"]["param_groups"], theirs["optimizer"]["param_groups"]
    assert ours == [{**group, "params": [*range(len(TRAINED))]} for group in theirs]


@pytest.mark.parametrize("kind", FACTS)
def test_keras_gets_the_moments_of_its_variables(kind, trained, tmp_path):
    """Each moment in the layout of its weight, and SGD's times the rate of the next step."""
    rate, source = 0.5, moments(trained / f"{kind}.pth")
    carry = {"next_learning_rate": rate}
    convert(trained / f"{kind}.pth", tmp_path / "x.weights.h5", carry=carry, assume=True)
    with float64_in_keras():
        model = keras_network(kind, 0.25)
        model.load_weights(tmp_path / "x.weights.h5")
    optimizer = model.optimizer
    assert (float(optimizer.learning_rate), int(optimizer.iterations)) == (rate, 2)
    live = (
        {"b": optimizer.momentums}
        if kind == "sgd"
        else {"m": optimizer._momentums, "v": optimizer._velocities}
    )
    for moment, variables in live.items():
        for name, variable in zip(TRAINED, variables, strict=True):
            array = source[f"{moment} {name}"] * (-rate if kind == "sgd" else 1)
            array = {4: lambda a: a.transpose(2, 3, 1, 0), 2: np.transpose}.get(array.ndim, np.asarray)(array)
            np.testing.assert_array_equal(np.asarray(variable.value), array, name)


def test_a_schedule_of_keras_counts_on(trained, tmp_path):
    """Its optimiser has no variable for the rate, and the file neither."""
    import keras

    import keras_impl

    convert(trained / "adam.pth", tmp_path / "x.weights.h5", carry={"schedule": True}, assume=True)
    model = keras_impl.ResNet(**SPEC.model_kwargs())
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.5, 0.25])
    model.compile(keras.optimizers.Adam(schedule), "mse")
    model.optimizer.build(model.trainable_variables)
    model.load_weights(tmp_path / "x.weights.h5")
    assert (int(model.optimizer.iterations), float(model.optimizer.learning_rate)) == (2, 0.25)
    wanted = moments(trained / "adam.pth")["v fc.bias"].astype(np.float32)
    np.testing.assert_array_equal(np.asarray(model.optimizer._velocities[-1].value), wanted)


def test_tf1_gets_slots_and_powers(trained, tmp_path):
    """Under the names and with the dtypes of a Saver: TensorFlow restores every variable."""
    import tensorflow.compat.v1 as tf

    import tf1_compat

    convert(trained / "adam.pth", tmp_path / "x.ckpt", carry=True, assume=True)
    with tf.Graph().as_default(), tf.Session() as session:
        images = tf.placeholder(tf.float64, (2, 8, 8, 2))
        logits, _ = tf1_compat.resnet(images, is_training=True, **SPEC.model_kwargs())
        betas = np.float64(0.9), np.float64(0.999)
        optimizer = tf.train.AdamOptimizer(0.5, *betas, np.float64(1e-8))
        optimizer.minimize(tf.reduce_sum(logits), tf.train.get_or_create_global_step())
        tf.train.Saver().restore(session, str(tmp_path / "x.ckpt"))
        powers = session.run(optimizer._get_beta_accumulators())
        np.testing.assert_allclose(powers, [0.9**3, 0.999**3], rtol=1e-15)
        stored = {name for name, _ in tf.train.list_variables(str(tmp_path / "x.ckpt"))}
        assert stored - {"samenet"} == {variable.op.name for variable in tf.global_variables()}


def test_the_optimiser_of_pytorch_loads_a_file_of_tf1(trained, tmp_path):
    convert(trained / "sgd.pth", tmp_path / "x.ckpt", carry=True)
    convert(tmp_path / "x.ckpt", tmp_path / "x.pth", carry=True)
    _, optimizer = torch_leg(tmp_path / "x.pth", None, Leg("sgd", 0.125, 2, 2))
    _, wanted = torch_leg(trained / "sgd.pth", None, Leg("sgd", 0.125, 2, 2))
    for number, entry in wanted.state_dict()["state"].items():
        assert torch.equal(
            optimizer.state_dict()["state"][number]["momentum_buffer"], entry["momentum_buffer"]
        )


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_a_network_inside_a_keras_model(suffix, trained, tmp_path):
    """Compiled below a layer without weights, as a user wraps it."""
    import keras

    convert(trained / "sgd.pth", tmp_path / "x.weights.h5", carry=True)
    with float64_in_keras():
        net = keras_network("sgd", 0.125)
        net.load_weights(tmp_path / "x.weights.h5")
        outer = keras.Sequential([keras.Input((8, 8, 2)), keras.layers.Rescaling(1.0, dtype="float64"), net])
        outer.compile(keras.optimizers.SGD(0.125, momentum=MOMENTUM), "mse")
        outer.optimizer.build(outer.trainable_variables)
        for mine, of_net in zip(outer.optimizer.variables, net.optimizer.variables, strict=True):
            mine.assign(of_net)
        (outer.save if suffix == ".keras" else outer.save_weights)(tmp_path / f"outer{suffix}")
    convert(tmp_path / f"outer{suffix}", tmp_path / "y.pth", carry=FACTS["sgd"], assume=True)
    for name, array in moments(tmp_path / "y.pth").items():
        np.testing.assert_allclose(array, moments(trained / "sgd.pth")[name], rtol=1e-15)


def test_layers_of_a_network_are_refused(tmp_path):
    """In a functional model of single layers the variables have another order."""
    import keras

    import keras_impl

    net = keras_impl.ResNet(**SPEC.model_kwargs())
    model = keras.Model(net.input, net.output)
    model.compile(keras.optimizers.SGD(0.5, momentum=0.5), "mse")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "x.keras")
    with pytest.raises(MismatchError, match="does not show the order of its optimiser's variables"):
        convert(tmp_path / "x.keras", tmp_path / "x.pth", carry=FACTS["sgd"], assume=True)


def test_a_checkpoint_of_lightning(trained, tmp_path):
    """Names with a prefix, the step beside them, a list of optimisers, and entries that change nothing."""
    state = torch.load(trained / "sgd.pth", weights_only=True)
    prefixed = {f"model.{name}": tensor for name, tensor in state["state_dict"].items()}
    torch.save(
        {
            "epoch": 1, "global_step": 2, "pytorch-lightning_version": "2.6.6", "state_dict": prefixed,
            "loops": {"fit_loop": {"state_dict": {}}}, "callbacks": {}, "lr_schedulers": [],
            "optimizer_states": [state["optimizer"]],
        },
        tmp_path / "last.ckpt",
    )  # fmt: skip
    plan = convert(tmp_path / "last.ckpt", tmp_path / "y.ckpt", carry=True, assume=True)
    assert "step 2" in plan.notes[-1]
    assert "optimizer_states" not in plan.to_json()["left_out"]
    assert "epoch" in plan.to_json()["left_out"]
    same(moments(tmp_path / "y.ckpt"), moments(trained / "sgd.pth"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of Lightning's own code
@pytest.mark.parametrize(("framework", "name"), [("torch", "lightning.ckpt"), ("tf1", "tf1.ckpt")])
def test_a_state_of_recipes(framework, name, tmp_path):
    """A file of Lightning's Trainer, and one of a MonitoredTrainingSession's Saver."""
    from recipes.data import open_data
    from recipes.pictures import Data
    from recipes.recipe import Recipe
    from recipes.run import train

    data = open_data("digits")
    few = Data("digits", data.train.take(np.arange(32)), data.test.take(np.arange(10)))
    recipe = Recipe(model="resnet20", epochs=1, batch_size=16, learning_rate=0.25, momentum=0.5)
    train(framework, recipe, few, tmp_path / "run")
    facts = {"leave_out": "lr_schedulers"} if framework == "torch" else {"optimizer": "sgd", "momentum": 0.5}
    facts |= {} if framework == "torch" else {"learning_rate": 0.25, "weight_decay": 5e-4}
    if framework == "torch":
        with pytest.raises(MismatchError, match="'lr_schedulers' has the state of a learning rate scheduler"):
            convert(tmp_path / "run/state/2" / name, tmp_path / "x.pth", carry=True, assume=True)
    convert(tmp_path / "run/state/2" / name, tmp_path / "x.pth", carry=facts, assume=True)
    state = torch.load(tmp_path / "x.pth", weights_only=True)
    net = torch_impl.resnet20(num_classes=10, in_channels=1)
    net.load_state_dict(state["state_dict"])
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    optimizer.load_state_dict(state["optimizer"])
    group = optimizer.param_groups[0]
    assert (state["step"], group["lr"], group["momentum"], group["weight_decay"]) == (2, 0.25, 0.5, 5e-4)
    assert all(entry["momentum_buffer"].abs().sum() > 0 for entry in optimizer.state.values())


def test_names_of_parameters_decide_their_order(tmp_path):
    """Groups that agree, in another order than the network's, by `named_parameters()`."""
    torch.manual_seed(0)
    net = torch_impl.ResNet(**SPEC.model_kwargs())
    named = list(net.named_parameters())
    kernels = [(name, p) for name, p in named if p.ndim > 1]
    others = [(name, p) for name, p in named if p.ndim == 1]
    settings = {"lr": 0.5, "momentum": 0.5, "weight_decay": 0.25}
    optimizer = torch.optim.SGD([{"params": others}, {"params": kernels}], **settings)
    net(torch.ones(2, 2, 8, 8)).square().sum().backward()
    optimizer.step()
    torch.save(
        {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "step": 1}, tmp_path / "x.pth"
    )
    found = moments(tmp_path / "x.pth")
    for name, parameter in named:
        np.testing.assert_array_equal(
            found[f"b {name}"], optimizer.state[parameter]["momentum_buffer"].numpy()
        )


def test_names_can_be_added_to_a_saved_optimiser(tmp_path):
    """As docs/training.md says: load it into an optimiser of the same groups with names, and save that."""
    net = torch_impl.ResNet(**SPEC.model_kwargs())
    named = list(net.named_parameters())

    def optimizer(*, names: bool) -> torch.optim.SGD:
        pairs = [[pair for pair in named if (pair[1].ndim > 1) == kernels] for kernels in (False, True)]
        groups = [{"params": group if names else [p for _, p in group]} for group in pairs]
        return torch.optim.SGD(groups, lr=0.5, momentum=0.5)

    plain, again = optimizer(names=False), optimizer(names=True)
    net(torch.ones(2, 2, 8, 8)).square().sum().backward()
    plain.step()
    again.load_state_dict(plain.state_dict())
    for name, one in (("plain", plain), ("again", again)):
        torch.save({"model": net.state_dict(), "optimizer": one.state_dict()}, tmp_path / f"{name}.pth")
    with pytest.raises(MismatchError, match="2 parameter groups without the weights' names"):
        moments(tmp_path / "plain.pth")
    found = moments(tmp_path / "again.pth")
    for name, parameter in named:
        np.testing.assert_array_equal(found[f"b {name}"], plain.state[parameter]["momentum_buffer"].numpy())


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_settings_in_scalar_tensors(kind, tmp_path):
    """`lr=torch.tensor(...)`, as a compiled step needs it."""
    net = torch_impl.ResNet(**SPEC.model_kwargs())
    own = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
    optimizer = own(net.parameters(), lr=torch.tensor(0.125), weight_decay=0.25)
    optimizer.param_groups[0]["betas"] = (torch.tensor(0.5), torch.tensor(0.75, dtype=torch.float64))
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pth")
    with load(tmp_path / "x.pth", assume=True) as checkpoint:
        settings = checkpoint.training_state().settings
    wanted = {"learning_rate": 0.125, "beta_1": 0.5, "beta_2": 0.75, "epsilon": 1e-8, "weight_decay": 0.25}
    assert settings == wanted


@pytest.mark.parametrize("family", ["timm", "cadene", "pytorchcv"])
def test_moments_follow_the_names_and_layouts_of_other_families(family, tmp_path):
    """Twice each weight as its momentum, in the file's own order, with 1x1 kernels for dense ones."""
    cadene = {"block": "bottleneck", "stem_pool": "ceil", "stride_in": "conv1"}
    keywords = cadene if family == "cadene" else {"block": "basic"}
    spec = ResNetSpec(**keywords, depths=(1, 1), attention="se", num_classes=3)
    save(position_coded(spec), tmp_path / "plain.pth", family=family)
    state = torch.load(tmp_path / "plain.pth", weights_only=True)
    trained = [
        name for name in state if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    ]
    group = {"lr": 0.5, "momentum": 0.5, "dampening": 0, "weight_decay": 0, "nesterov": False}
    group["params"] = list(range(len(trained)))
    optimizer = {
        "state": {n: {"momentum_buffer": 2 * state[name]} for n, name in enumerate(trained)},
        "param_groups": [group],
    }
    torch.save({"state_dict": state, "optimizer": optimizer, "step": 1}, tmp_path / "x.pth")
    given = {"settings": spec.model_kwargs(), "assume": True}
    convert(tmp_path / "x.pth", tmp_path / "x.ckpt", carry=True, from_family=family, **given)
    with load(tmp_path / "x.ckpt") as checkpoint:
        slots = checkpoint.training_state().moments["b"]
        assert len(slots) == len(trained)
        for name, part in slots.items():
            np.testing.assert_array_equal(part.read(), 2 * checkpoint[name], name)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_before_the_first_step(momentum, tmp_path):
    """No moments without momentum; with it zeros, from which both frameworks begin."""
    net = torch_impl.ResNet(**SPEC.model_kwargs())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=momentum)
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pth")
    with pytest.warns(UserWarning, match="holds no count of steps, 0 is written"):
        convert(tmp_path / "x.pth", tmp_path / "x.weights.h5", carry=True)
    found = moments(tmp_path / "x.weights.h5")
    assert len(found) == (len(TRAINED) if momentum else 0)
    assert not any(array.any() for array in found.values())
    convert(tmp_path / "x.weights.h5", tmp_path / "y.pth", carry=True)
    state = torch.load(tmp_path / "y.pth", weights_only=True)["optimizer"]
    torch.optim.SGD(net.parameters(), lr=0.1).load_state_dict(state)
    assert state["param_groups"][0]["momentum"] == momentum


def test_sgd_without_momentum_goes_on_in_every_framework(tmp_path):
    """The note's optimiser loads the file, and the file converts back."""
    import keras
    import tensorflow.compat.v1 as tf

    import keras_impl
    import tf1_compat

    net = torch_impl.ResNet(**SPEC.model_kwargs())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.125, weight_decay=0.25)
    state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "step": 7}
    torch.save(state, tmp_path / "a.pth")
    note = convert(tmp_path / "a.pth", tmp_path / "a.ckpt", carry=True, assume=True).notes[-1]
    decay = ", and 0.25 w added to the gradient of w, step 7"
    assert note == f"go on with tf.train.GradientDescentOptimizer(0.125){decay}"
    with tf.Graph().as_default(), tf.Session() as session:
        logits, _ = tf1_compat.resnet(
            tf.placeholder(tf.float32, (2, 8, 8, 2)), is_training=True, **SPEC.model_kwargs()
        )
        step = tf.train.get_or_create_global_step()
        tf.train.GradientDescentOptimizer(0.125).minimize(tf.reduce_sum(logits), step)
        tf.train.Saver().restore(session, str(tmp_path / "a.ckpt"))
        assert session.run(step) == 7
        tf.train.Saver().save(session, str(tmp_path / "b.ckpt"), write_meta_graph=False)
    note = convert(tmp_path / "a.ckpt", tmp_path / "b.weights.h5", carry=True, assume=True).notes[-1]
    assert note == f"go on with keras.optimizers.SGD(0.125, momentum=0){decay}"
    model = keras_impl.ResNet(**SPEC.model_kwargs())
    model.compile(keras.optimizers.SGD(0.5, momentum=0.0), "mse")
    model.optimizer.build(model.trainable_variables)
    model.load_weights(tmp_path / "b.weights.h5")
    assert (float(model.optimizer.learning_rate), int(model.optimizer.iterations)) == (0.125, 7)
    note = convert(tmp_path / "b.weights.h5", tmp_path / "c.pth", carry=True, assume=True).notes[-1]
    assert note == "go on with torch.optim.SGD(lr=0.125, momentum=0, weight_decay=0.25), step 7"
    with pytest.raises(MismatchError, match="of SGD without momentum give optimizer=sgd and momentum=0"):
        moments(tmp_path / "b.ckpt")
    with pytest.raises(MismatchError, match="holds no state of an optimiser"):
        moments(tmp_path / "b.ckpt", optimizer="sgd", momentum=0.5)
    facts = {"optimizer": "sgd", "momentum": 0, "weight_decay": 0.25, "learning_rate": 0.125}
    convert(tmp_path / "b.ckpt", tmp_path / "d.pth", carry=facts, assume=True)
    for name in ("c.pth", "d.pth"):
        found = torch.load(tmp_path / name, weights_only=True)
        group = found["optimizer"]["param_groups"][0]
        assert (found["step"], group["lr"], group["momentum"], group["weight_decay"]) == (7, 0.125, 0.0, 0.25)
        torch.optim.SGD(net.parameters(), lr=1.0).load_state_dict(found["optimizer"])


def test_moments_without_momentum_are_in_no_formula(trained, tmp_path):
    """Slots of `MomentumOptimizer(rate, 0)`: Keras has no variables for them, and neither does the note."""
    convert(trained / "sgd.pth", tmp_path / "x.ckpt", carry=True, assume=True)
    with load(tmp_path / "x.ckpt", assume=True) as checkpoint:
        checkpoint.metadata.pop("optimizer")
        facts = {"optimizer": "sgd", "momentum": 0, "learning_rate": 0.5}
        assert checkpoint.training_state(facts_of(facts)).moments == {}


def torch_of(path: Path, kind: str) -> dict[str, np.ndarray]:
    """The moments as PyTorch's optimiser of a float32 network loads them."""
    state = torch.load(path, weights_only=True)
    net = torch_impl.ResNet(**SPEC.model_kwargs())
    net.load_state_dict(state["state_dict"])
    own = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[kind]
    optimizer = own(net.parameters(), lr=1.0)
    optimizer.load_state_dict(state["optimizer"])
    rows = {"sgd": {"b": "momentum_buffer"}, "adam": {"m": "exp_avg", "v": "exp_avg_sq"}}[kind]
    named = [(f"{ours} {name}", p, key) for name, p in net.named_parameters() for ours, key in rows.items()]
    return {name: optimizer.state[p][key].numpy() for name, p, key in named}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_moments_beside_weights_of_half_precision(kind, dtype, trained, tmp_path):
    """They are float32: in float16 small values of Adam's v become 0, and epsilon alone divides."""
    wanted = {name: a.astype(np.float32) for name, a in moments(trained / f"{kind}.pth").items()}
    for suffix in (".pth", ".weights.h5"):
        path = tmp_path / f"x{suffix}"
        plan = convert(
            trained / f"{kind}.pth", path, carry={"next_learning_rate": 0.5}, assume=True, dtype=dtype
        )
        assert {move.target.dtype.name for move in plan.moves if "num_batches" not in move.canonical} == {
            dtype
        }
        same(moments(path), wanted)
    same(torch_of(tmp_path / "x.pth", kind), wanted)
    model = half_in_keras(kind, dtype)
    model.load_weights(tmp_path / "x.weights.h5")
    last = model.optimizer.variables[-1]
    kept = wanted["b fc.bias"] * np.float32(-0.5) if kind == "sgd" else wanted["v fc.bias"]
    np.testing.assert_array_equal(np.asarray(last.value), kept.astype(last.dtype))


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_momentum_of_half_precision_is_scaled_in_float32(dtype, trained, tmp_path):
    """A small rate times a float16 would be 0 in float16."""
    state = torch.load(trained / "sgd.pth", weights_only=True)
    for held in [state["state_dict"], *state["optimizer"]["state"].values()]:
        held |= {key: t.half() for key, t in held.items() if t.is_floating_point()}
    torch.save(state, tmp_path / "x.pth")
    carry, target = {"next_learning_rate": 1e-6}, tmp_path / "x.weights.h5"
    convert(tmp_path / "x.pth", target, carry=carry, assume=True, dtype=dtype)
    wanted = moments(tmp_path / "x.pth")
    for name, array in moments(target).items():
        np.testing.assert_allclose(array, wanted[name].astype(np.float32), rtol=1e-6)


def half_in_keras(kind: str, dtype: str) -> Any:
    """A compiled network of half precision, without float32 copies of its weights."""
    import keras

    import keras_impl

    model = keras_impl.ResNet(**SPEC.model_kwargs(), dtype=dtype)
    model.compile({"sgd": keras.optimizers.SGD(momentum=0.9), "adam": keras.optimizers.Adam()}[kind], "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def test_another_dtype_is_the_moments_too(trained, tmp_path):
    convert(trained / "sgd.pth", tmp_path / "x.pth", carry=True, dtype="float32")
    assert {array.dtype.name for array in moments(tmp_path / "x.pth").values()} == {"float32"}


def test_what_is_assumed_is_stated(trained, tmp_path):
    """Epsilon's place between PyTorch and the others, and properties that a file does not show."""
    with pytest.warns(UserWarning, match="add Adam's epsilon before the bias correction"):
        convert(trained / "adam.pth", tmp_path / "x.ckpt", carry=True)
    with pytest.raises(MismatchError, match=r"epsilon before the bias correction.*\(--strict\)"):
        convert(trained / "adam.pth", tmp_path / "y.ckpt", carry=True, strict=True)
    convert(
        tmp_path / "x.ckpt", tmp_path / "x.weights.h5", carry={"learning_rate": 0.125}
    )  # the same formula


def test_the_record_of_a_conversion_checks_the_file(trained, tmp_path, run):
    record, target = tmp_path / "record.json", tmp_path / "x.ckpt"
    ran = run("convert", trained / "sgd.pth", target, "--with-optimizer", "--json", record)
    assert ran.code == 0, ran.err
    facts = json.loads(record.read_text())
    assert {line["target"] for line in facts["optimizer"]["tensors"]} >= {
        "global_step",
        "conv1/kernel/Momentum",
    }
    assert facts["optimizer"]["settings"] == {"learning_rate": 0.125, "momentum": 0.9, "weight_decay": DECAY}
    assert run("check", record, target).code == 0


def test_a_dry_run_writes_nothing(trained, tmp_path):
    plan = convert(trained / "sgd.pth", tmp_path / "x.ckpt", carry=True, dry_run=True)
    assert [move.target_name for move in plan.carried][:2] == ["global_step", "conv1/kernel/Momentum"]
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_an_optimiser_is_inspected_as_before(tmp_path, run):
    save(position_coded(SMALL), tmp_path / "x.pth")
    assert "optimizer" not in run("inspect", tmp_path / "x.pth").out
