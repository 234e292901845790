"""States without a counterpart are refused by name, in one line, and only left out if the user names them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import torch_impl
from parity_tests.tests.carried import SPEC, Leg, torch_leg
from parity_tests.tests.test_carry import FACTS
from weights_convert import DestinationError, MismatchError, SourceError, SpecError, convert, load

SGD, ADAM = FACTS["sgd"], FACTS["adam"]
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a training checkpoint of each kind, and the same for Keras and TF1."""
    folder = tmp_path_factory.mktemp("trained")
    for kind in ("sgd", "adam"):
        torch_leg(None, folder / f"{kind}.pth", Leg(kind, 0.125, 0, 2))
        for suffix in (".weights.h5", ".ckpt"):
            convert(folder / f"{kind}.pth", folder / f"{kind}{suffix}", carry=True, assume=True)
    return folder


def message(source: Path, target: str = ".weights.h5", carry: Any = True, **options: Any) -> str:
    """The message of a refused conversion, which leaves no file."""
    destination = source.parent / f"out{target}"
    with pytest.raises((MismatchError, SourceError, SpecError, DestinationError)) as refused:
        convert(source, destination, carry=carry, assume=True, **options)
    assert not destination.exists()
    assert "\n" not in refused.value.message
    return refused.value.message


# --------------------------------------------------------------------------------------------------
# PyTorch


def changed(trained: Path, folder: Path, kind: str, change: Change) -> Path:
    state = torch.load(trained / f"{kind}.pth", weights_only=True)
    change(state)
    torch.save(state, folder / "changed.pth")
    return folder / "changed.pth"


def group(**values: Any) -> Change:
    return lambda state: state["optimizer"]["param_groups"][0].update(values)


def entry(**values: Any) -> Change:
    return lambda state: state["optimizer"]["state"][3].update(values)


def two_groups(state: dict[str, Any]) -> None:
    first = state["optimizer"]["param_groups"][0]
    second = {**first, "params": first["params"][5:], "weight_decay": 0}
    first["params"] = first["params"][:5]
    state["optimizer"]["param_groups"].append(second)


def equal_groups(state: dict[str, Any]) -> None:
    two_groups(state)
    first, second = state["optimizer"]["param_groups"]
    second["weight_decay"] = first["weight_decay"]


def other_names(state: dict[str, Any]) -> None:
    equal_groups(state)
    for one in state["optimizer"]["param_groups"]:
        one["param_names"] = [f"w{number}" for number in one["params"]]


def older_adam(state: dict[str, Any]) -> None:
    del state["optimizer"]["param_groups"][0]["decoupled_weight_decay"]


def swapped(state: dict[str, Any]) -> None:
    of = state["optimizer"]["state"]
    of[0], of[1] = of[1], of[0]


SCHEDULE = {"base_lrs": [0.1], "last_epoch": 2, "_step_count": 3, "_last_lr": [0.125]}
TORCH = {
    "nesterov": ("sgd", group(nesterov=True), "its optimiser 'optimizer' has nesterov=True, which has no"),
    "dampening": ("sgd", group(dampening=0.5), "has dampening=0.5, which has no counterpart"),
    "maximize": ("adam", group(maximize=True), "has maximize=True, which has no counterpart"),
    "amsgrad": ("adam", group(amsgrad=True), "has amsgrad=True, which has no counterpart"),
    "unknown setting": ("sgd", group(lr_scale=0.5), "has the setting 'lr_scale', which has no counterpart"),
    "moment": (
        "adam",
        entry(max_exp_avg_sq=torch.ones(3)),
        "has the state 'max_exp_avg_sq' of layer1.0.conv1",
    ),
    "steps": ("adam", entry(step=torch.tensor(1.0)), "has done 1 to 2 steps of its parameters"),
    "broken step": ("adam", entry(step=torch.tensor(1.5)), "is damaged: float 1.5 as a count of steps"),
    "groups": ("sgd", two_groups, "has parameter groups that differ in 'weight_decay'"),
    "groups without names": (
        "sgd",
        equal_groups,
        "has 2 parameter groups without the weights' names, so their order is unknown; pass "
        "model.named_parameters() in the groups",
    ),
    "groups with other names": ("sgd", other_names, "2 parameter groups without the weights' names"),
    "order": ("sgd", swapped, "another order of parameters"),
    "fewer": ("sgd", group(params=[0, 1]), "has 2 parameters, but the network has"),
    "twice": ("sgd", group(params=[0] * 26), "parameters, but the network has"),
    "adam or adamw": ("adam", older_adam, "is Adam or AdamW, which older PyTorch does not record"),
    "rate": ("sgd", group(lr=torch.ones(2)), "has lr=float32 tensor (2,)"),
    "rate below 0": ("sgd", group(lr=-0.1), "learning_rate=-0.1, expected a number from 0 to inf"),
    "momentum": ("sgd", group(momentum=float("nan")), "momentum=nan, expected a number from 0 to 1"),
    "no tensor": ("sgd", entry(momentum_buffer="text"), "is str 'text', expected a tensor"),
    "scheduler": (
        "sgd",
        lambda state: state.update(scheduler=SCHEDULE),
        "entry 'scheduler' has the state of a",
    ),
    "by content": ("sgd", lambda state: state.update(rates=SCHEDULE), "entry 'rates' has the state of a"),
    "scaler": ("sgd", lambda state: state.update(scaler={"scale": 2.0}), "has the state of a GradScaler"),
    "average": ("sgd", lambda state: state.update(ema={"decay": 0.99}), "'ema' has moving averages"),
    "two": ("sgd", lambda state: state.update(second=state["optimizer"]), "2 optimisers, expected one"),
    "none": ("sgd", lambda state: state.pop("optimizer"), "holds no state of an optimiser"),
    "no state": (
        "sgd",
        lambda state: state["optimizer"].pop("state"),
        "its optimiser 'optimizer' is damaged",
    ),
    "no groups": ("sgd", lambda state: state["optimizer"].update(param_groups=[]), "is damaged: list of 0"),
}


@pytest.mark.parametrize("case", TORCH)
def test_states_of_pytorch(case, trained, tmp_path):
    kind, change, words = TORCH[case]
    assert words in message(changed(trained, tmp_path, kind, change))


OTHERS = ("NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "Rprop", "ASGD", "LBFGS")


@pytest.mark.parametrize("name", OTHERS)
def test_other_optimisers_are_named(name, tmp_path):
    net = torch_impl.ResNet(**SPEC.model_kwargs())
    optimizer = getattr(torch.optim, name)(net.parameters())

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = net(torch.zeros(2, 2, 8, 8)).sum()
        total.backward()
        return total

    optimizer.step(loss)
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pth")
    assert f"is {name}, expected SGD, Adam or AdamW" in message(tmp_path / "x.pth")


@pytest.mark.parametrize("key", ["scheduler", "ema", "lr_scale"])
def test_a_state_is_left_out_if_the_user_names_it(key, trained, tmp_path):
    change = group(lr_scale=0.5) if key == "lr_scale" else lambda state: state.update({key: SCHEDULE})
    source = changed(trained, tmp_path, "sgd", change)
    assert f"leave_out={key}" in message(source)
    convert(source, tmp_path / "out.ckpt", carry={"leave_out": [key]}, assume=True)


LEFT_OUT = ("bogus", "", "step", "optimizer", "state_dict", "learning_rate", "schedulers")


@pytest.mark.parametrize("name", LEFT_OUT)
@pytest.mark.parametrize("kind", ["torch", "keras", "tf1"])
def test_only_what_a_file_holds_can_be_left_out(kind, name, trained, tmp_path):
    if kind == "torch":
        source = changed(trained, tmp_path, "sgd", lambda s: s.update(scheduler=SCHEDULE, epoch=3))
        found = message(source, carry={"leave_out": ["scheduler", name]})
        assert found.endswith("which has epoch, scheduler" + "; did you mean 'scheduler'?" * ("sch" in name))
    elif kind == "keras":
        found = message(
            keras_file(trained, tmp_path, "sgd", lambda _: None), ".ckpt", SGD | {"leave_out": name}
        )
        assert found.endswith("which has nothing to leave out")
    else:
        average = number("conv1/kernel/ExponentialMovingAverage", 1.0)
        source = tf1_file(trained, tmp_path, "sgd", average)
        leave_out = f"ExponentialMovingAverage,{name}"
        found = message(source, carry=SGD | {"learning_rate": 0.1, "leave_out": leave_out})
        assert found.endswith("which has ExponentialMovingAverage")
    assert f"carry: leave_out={name!r} names nothing in {tmp_path}" in found


def test_empty_states_are_none(trained, tmp_path):
    """Lightning writes an empty list without a scheduler, and PyTorch an empty dict for a disabled scaler."""
    source = changed(trained, tmp_path, "sgd", lambda state: state.update(lr_schedulers=[], scaler={}))
    convert(source, tmp_path / "out.ckpt", carry=True, assume=True)
    convert(source, tmp_path / "named.ckpt", carry={"leave_out": "lr_schedulers,scaler"}, assume=True)


# --------------------------------------------------------------------------------------------------
# Keras


def keras_file(trained: Path, folder: Path, kind: str, change: Callable[[h5py.File], Any]) -> Path:
    """A file of Keras, changed; without this project's metadata, as Keras saves it."""
    path = folder / "changed.weights.h5"
    path.write_bytes((trained / f"{kind}.weights.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        del file.attrs["samenet"]
        change(file)
    return path


def variables(names: list[int], shape: tuple[int, ...] = ()) -> Callable[[h5py.File], Any]:
    def change(file: h5py.File) -> None:
        for name in names:
            if str(name) in file["optimizer/vars"]:
                del file[f"optimizer/vars/{name}"]
            file[f"optimizer/vars/{name}"] = np.ones(shape)

    return change


def without_rate(file: h5py.File) -> None:
    inner = file["optimizer/vars"]
    for number in range(1, len(inner) - 1):
        del inner[str(number)]
        inner[str(number)] = inner[str(number + 1)]
    del inner[str(len(inner) - 1)]


def without_moments(file: h5py.File) -> None:
    for number in range(2, len(file["optimizer/vars"])):
        del file[f"optimizer/vars/{number}"]


KERAS = {
    "kind": ("sgd", lambda _: None, {}, "of unknown class", "optimizer=sgd"),
    "adam or adamw": ("adam", lambda _: None, {}, "of unknown class", "optimizer=adam or optimizer=adamw"),
    "moments of adam": ("sgd", lambda _: None, ADAM, "moments, expected", "as Adam of this network's"),
    "no moments": ("sgd", without_moments, SGD, "has momentum=0.0, not 0.9", "omit momentum"),
    "step": ("sgd", variables([0]), SGD, "float64 () as its step", "expected one integer"),
    "shape": ("sgd", variables([2], (2, 2)), SGD, "optimizer/vars/2 of shape (2, 2)", "conv1"),
    "more": ("sgd", variables([99]), SGD, "variables that are not numbered from 0", ""),
    "no rate": ("sgd", without_rate, SGD, "has a learning rate schedule", "leave_out=learning_rate"),
    "none": ("sgd", lambda file: file.pop("optimizer"), SGD, "holds no state of an optimiser", ""),
}


@pytest.mark.parametrize("case", KERAS)
def test_states_of_keras(case, trained, tmp_path):
    kind, change, facts, *words = KERAS[case]
    found = message(keras_file(trained, tmp_path, kind, change), ".ckpt", facts or True)
    assert all(part in found for part in words), found


def test_a_rate_of_zero_cannot_be_divided_by(trained, tmp_path):
    def change(file: h5py.File) -> None:
        file["optimizer/vars/1"][()] = 0.0

    source = keras_file(trained, tmp_path, "sgd", change)
    assert "learning_rate=0, by which its momentum cannot be divided" in message(source, ".ckpt", SGD)


@pytest.mark.parametrize("schedule", [False, True])
@pytest.mark.parametrize("at", ["stop", "next step"])
def test_momentum_is_not_scaled_by_a_rate_of_zero(at, schedule, trained, tmp_path):
    """Keras's momentum would be zeros, from which no rate leads back."""
    source = changed(trained, tmp_path, "sgd", group(lr=0.0) if at == "stop" else lambda _: None)
    carry = {"schedule": schedule} | ({} if at == "stop" else {"next_learning_rate": 0})
    found = message(source, carry=carry)
    assert "goes on with learning_rate=0, by which its momentum cannot be divided; give a rate above" in found
    convert(source, tmp_path / "x.ckpt", carry={"next_learning_rate": 0}, assume=True)  # not scaled
    convert(source, tmp_path / "x.weights.h5", carry={"next_learning_rate": 0.5}, assume=True)


def test_a_rate_of_zero_without_moments_to_scale(trained, tmp_path):
    for kind, change in (("adam", group(lr=0.0)), ("sgd", group(lr=0.0, momentum=0.0))):
        source = changed(trained, tmp_path, kind, change)
        convert(source, tmp_path / f"{kind}.weights.h5", carry=True, assume=True)


def test_a_schedule_of_keras_needs_the_rate(trained, tmp_path):
    source = keras_file(trained, tmp_path, "sgd", without_rate)
    facts = {**SGD, "leave_out": "learning_rate"}
    assert "has no learning rate, by which its momentum is scaled" in message(source, ".ckpt", facts)
    convert(source, tmp_path / "out.ckpt", carry={**facts, "learning_rate": 0.125}, assume=True)
    with load(tmp_path / "out.ckpt", assume=True) as moved, load(trained / "sgd.ckpt") as wanted:
        ours, theirs = moved.training_state().moments["b"], wanted.training_state().moments["b"]
        for name, part in theirs.items():
            np.testing.assert_allclose(ours[name].read(), part.read(), rtol=1e-15)


def archive(trained: Path, folder: Path, optimizer: dict[str, Any], change: Change = lambda _: None) -> Path:
    """A `.keras` with this optimiser in its config."""
    config = {"registered_name": "samenet>ResNet", "config": SPEC.model_kwargs()}
    config["compile_config"] = {"optimizer": optimizer}
    with zipfile.ZipFile(folder / "x.keras", "w") as file:
        file.writestr("config.json", json.dumps(config))
        plain = keras_file(trained, folder, "sgd", change)
        file.write(plain, "model.weights.h5")
    return folder / "x.keras"


CONFIGS = {
    "class": (
        {"class_name": "RMSprop"},
        "is keras.optimizers.RMSprop, expected Keras's own SGD, Adam or AdamW",
    ),
    "scaled loss": ({"class_name": "LossScaleOptimizer"}, "is keras.optimizers.LossScaleOptimizer"),
    "subclass": ({"module": "mine", "registered_name": "mine>SGD"}, "is mine.SGD, expected Keras's own"),
    "nesterov": ({"config": {"nesterov": True}}, "has Nesterov's momentum, which has no counterpart"),
    "amsgrad": ({"class_name": "Adam", "config": {"amsgrad": True}}, "has AMSGrad"),
    "averages": ({"config": {"use_ema": True}}, "has moving averages (use_ema)"),
    "accumulated": ({"config": {"gradient_accumulation_steps": 2}}, "has accumulated gradients"),
    "clipped": ({"config": {"clipnorm": 1.0}}, "has clipped gradients (clipnorm), which has no counterpart"),
    "decay": ({"config": {"weight_decay": 0.1}}, "has weight_decay=0.1, decoupled from the momentum"),
    "schedule": (
        {"config": {"learning_rate": {"class_name": "CosineDecay"}}},
        "has the schedule CosineDecay",
    ),
    "momentum": ({"config": {"momentum": "text"}}, "momentum='text', expected a number"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_settings_in_the_config_of_keras(case, trained, tmp_path):
    change, words = CONFIGS[case]
    plain = {
        "module": "keras.optimizers",
        "class_name": "SGD",
        "config": {"momentum": 0.9},
        "registered_name": None,
    }
    assert words in message(archive(trained, tmp_path, plain | change), ".ckpt", {"weight_decay": 0.0})


def test_a_momentum_without_moments(trained, tmp_path):
    """A `.keras` of an optimiser before its first step."""
    plain = {"module": "keras.optimizers", "class_name": "SGD", "config": {"momentum": 0.9}}
    source = archive(trained, tmp_path, plain, without_moments)
    assert "has a momentum, but no moments" in message(source, ".ckpt", {"weight_decay": 0.0})


# --------------------------------------------------------------------------------------------------
# TensorFlow 1


def tf1_file(trained: Path, folder: Path, kind: str, change: Change) -> Path:
    """A checkpoint with changed tensors; without this project's metadata, as a Saver writes it."""
    from weights_convert.formats.base import TensorInfo
    from weights_convert.formats.tf1.checkpoint import open_tf1, write_tf1

    with open_tf1(trained / f"{kind}.ckpt") as reader:
        arrays = {name: reader.read(name) for name in reader.tensors}
    change(arrays)
    infos = {name: TensorInfo(array.shape, array.dtype) for name, array in arrays.items()}
    write_tf1(folder / "changed.ckpt", infos, arrays.__getitem__, {})
    return folder / "changed.ckpt"


def renamed(old: str, new: str) -> Change:
    def change(arrays: dict[str, Any]) -> None:
        for name in [name for name in arrays if name.endswith(old)]:
            arrays[name.removesuffix(old) + new] = arrays.pop(name)

    return change


def number(name: str, value: Any) -> Change:
    return lambda arrays: arrays.update({name: np.array(value)})


SLOT = "conv1/kernel/Momentum"
TF1 = {
    "slots": (
        "sgd",
        renamed("/Momentum", "/RMSProp"),
        SGD,
        "has the slots RMSProp, which have no counterpart",
    ),
    "two": ("sgd", number("conv1/kernel/Adagrad", 1.0), SGD, "has the slots Adagrad, Momentum"),
    "missing": ("sgd", lambda arrays: arrays.pop(SLOT), SGD, f"has no {SLOT}"),
    "shape": ("sgd", number(SLOT, [1.0]), SGD, f"has {SLOT} of shape (1,), unlike its variable"),
    "none": (
        "sgd",
        lambda a: [a.pop(n) for n in [*a] if "Momentum" in n],
        SGD,
        "holds no state of an optimiser",
    ),
    "averages": ("sgd", number("conv1/kernel/ExponentialMovingAverage", 1.0), SGD, "it has moving averages"),
    "step": ("sgd", number("global_step", -1), SGD, "has -1 as its step, expected a count"),
    "power": (
        "adam",
        lambda arrays: arrays.pop("beta1_power"),
        ADAM,
        "has 0 tensors beta1_power, expected one",
    ),
    "two adams": ("adam", number("beta1_power_1", 0.5), ADAM, "has 2 tensors beta1_power"),
    "other steps": ("adam", number("global_step", 7), ADAM, "has beta1_power=0.729, expected beta_1^8="),
    "nan": ("adam", number("beta2_power", float("nan")), ADAM, "has beta2_power=nan, expected a number"),
    "vector": (
        "adam",
        number("beta2_power", [0.5]),
        ADAM,
        "has beta2_power of shape (1,), expected one number",
    ),
    "kind": ("adam", lambda _: None, SGD, "is adam, not sgd"),
}


@pytest.mark.parametrize("case", TF1)
def test_states_of_tf1(case, trained, tmp_path):
    kind, change, facts, words = TF1[case]
    assert words in message(tf1_file(trained, tmp_path, kind, change), carry={**facts, "learning_rate": 0.1})


# --------------------------------------------------------------------------------------------------
# Facts, and other options


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_slots_of_tf1_are_not_rounded_to_half_precision(kind, dtype, trained, tmp_path):
    """TensorFlow restores a slot only in the dtype of its variable."""
    source = changed(trained, tmp_path, kind, lambda _: None)
    found = message(source, ".ckpt", dtype=dtype)
    assert (
        f"restores slots only in the dtype of the weights, {dtype}, in which small values become 0" in found
    )
    assert found.endswith("use --dtype float32")
    convert(source, tmp_path / "x.ckpt", carry=True, assume=True, dtype="float32")


def test_missing_settings_are_listed_together(trained, tmp_path):
    source = tf1_file(trained, tmp_path, "sgd", lambda _: None)
    found = message(source, ".pth")
    assert "does not hold learning_rate, momentum, weight_decay of its SGD" in found
    assert "--optimizer learning_rate=... --optimizer momentum=... --optimizer weight_decay=..." in found


FACTS_REFUSED = {
    "unknown": ({"momentun": 0.9}, "unknown 'momentun', expected"),
    "lr": ({"lr": 0.1}, "carry: unknown 'lr', expected"),
    "kind": ({"optimizer": "lion"}, "optimizer='lion', expected one of sgd, adam, adamw"),
    "range": ({"momentum": 1.0}, "momentum=1.0, expected a number from 0 to 1"),
    "step": ({"step": -1}, "step=-1, expected a whole number from 0"),
    "schedule": ({"schedule": 1}, "schedule=1, expected True or False"),
    "names": ({"leave_out": 1}, "leave_out=1, expected a list of names"),
    "other kind": ({"beta_1": 0.9}, "beta_1 is no setting of SGD"),
    "contradiction": ({"momentum": 0.5}, "has momentum=0.9, not 0.5; omit momentum"),
    "other step": ({"step": 7}, "has step=2, not 7; omit step"),
    "other optimiser": ({"optimizer": "adam"}, "is sgd, not adam"),
}


@pytest.mark.parametrize("case", FACTS_REFUSED)
def test_facts(case, trained, tmp_path):
    facts, words = FACTS_REFUSED[case]
    assert words in message(changed(trained, tmp_path, "sgd", lambda _: None), carry=facts)


USUAL = {"lr": "learning_rate", "EPS": "epsilon", "wd": "weight_decay", "beta1": "beta_1", "steps": "step"}


@pytest.mark.parametrize("name", USUAL)
def test_usual_names_have_a_hint(name, trained):
    assert message(trained / "sgd.pth", carry={name: 1}).endswith(f"; did you mean {USUAL[name]!r}?")


OPTION = {
    "lr=0.1": "--optimizer: unknown 'lr', expected",
    "step=1e3": "--optimizer: step=1000.0, expected a whole number from 0",
    "optimizer=lion": "--optimizer: optimizer='lion', expected one of",
    "beta_1=0.9": "--optimizer: beta_1 is no setting of SGD",
    "leave_out=": "--optimizer: leave_out='' names nothing in",
    "leave_out=bogus,epoch": "--optimizer: leave_out='bogus' names nothing in",
}


@pytest.mark.parametrize("option", OPTION)
def test_messages_at_the_command_line_name_its_option(option, trained, tmp_path, run):
    ran = run("convert", trained / "sgd.pth", tmp_path / "x.ckpt", "--with-optimizer", "--optimizer", option)
    assert (ran.code, OPTION[option] in ran.err, "carry" in ran.err) == (2, True, False), ran.err


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_other_containers_hold_no_optimiser(suffix, trained, tmp_path):
    source = changed(trained, tmp_path, "sgd", lambda _: None)
    assert "holds no optimiser, expected .pth, .weights.h5 or .ckpt" in message(source, suffix)
    convert(source, tmp_path / f"plain{suffix}", assume=True)
    assert "holds no state of an optimiser" in message(tmp_path / f"plain{suffix}")


OPTIONS = (
    {"new_head": True},
    {"fold_bn": True},
    {"ema": True},
    {"apply_masks": True},
    {"reorder_classes": "x"},
)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options)))
def test_changes_of_the_network(options, trained, tmp_path):
    found = message(changed(trained, tmp_path, "sgd", lambda _: None), **options)
    assert "changes the weights, but not the optimiser; omit" in found


def test_the_command_line(trained, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = trained / "sgd.weights.h5"
    ran = run("convert", source, "x.pth", "--optimizer", "momentum=0.9", "--assume")
    assert (ran.code, "give --with-optimizer too" in ran.err) == (2, True)
    ran = run(
        "convert", source, "x.pth", "--with-optimizer", "--optimizer", "next_learning_rate=0.5", "--assume"
    )
    assert (ran.code, "go on with torch.optim.SGD(lr=0.5, momentum=0.9, weight_decay=0.01)" in ran.out) == (
        0,
        True,
    )
    ran = run("inspect", "x.pth")
    assert "SGD: learning_rate=0.5, momentum=0.9, weight_decay=0.01, step 2, 28 moments" in ran.out
    assert "convert --with-optimizer carries it" in ran.out
    assert "left out: optimizer" not in run("convert", "x.pth", "y.ckpt", "--with-optimizer").out
