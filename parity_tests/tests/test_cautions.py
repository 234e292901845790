"""Missing facts that change the numbers: a warning in Python, one line on stderr in commands."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import torch

import keras_impl
import tf1_compat
import torch_impl
from parity_tests.judge.synthetic import position_coded, tiny
from parity_tests.tests.live import keras_network, tf1_network, torch_network
from weights_convert import MismatchError, convert, load, load_into, load_model, save, state_of
from weights_convert.spec import TRAINING_ONLY

SPEC = tiny(attention="cbam")
INFERENCE = {
    "stem_pool": "pad1",
    "strides": (1, 2),
    "dilations": (1, 1),
    "activation": "relu",
    "anti_aliasing": "none",
    "global_pool": "avg",
    "stride_in": "conv2",
    "downsample_pool": "none",
    "relu_before_attention": False,
    "cbam_order": "max_mean",
    "cbam_spatial_input": "refined",
    "bn_epsilon": 1e-5,
}


@pytest.fixture
def plain(tmp_path) -> Path:
    """A state dict without metadata, as from scripts that copy tensors one by one."""
    path = tmp_path / "x.pth"
    state = torch_network(SPEC).state_dict()
    torch.save({name: tensor.clone() for name, tensor in state.items()}, path)
    return path


def each_way(path: Path, **keywords: object) -> dict[str, object]:
    """Every function that reads a file."""
    return {
        "load": lambda: load(path, **keywords).close(),
        "convert": lambda: convert(path, path.with_suffix(".npz"), overwrite=True, **keywords),
        "dry run": lambda: convert(path, path.with_suffix(".npz"), overwrite=True, dry_run=True, **keywords),
        "load_model": lambda: load_model(path, "torch", **keywords),
        "load_into": lambda: load_into(torch_network(SPEC), path, **keywords),
    }


def heard(function: object) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    return [warning for warning in caught if warning.category is UserWarning]


@pytest.mark.quick
def test_every_reader_warns_once_with_file_keywords_and_remedy(plain):
    for name, function in each_way(plain).items():
        (warning,) = heard(function)
        text = str(warning.message)
        assert text.startswith(f"{plain}: does not specify these keywords, "), name
        assert "\n" not in text
        for keyword, value in INFERENCE.items():
            assert f"{keyword}={value!r}" in text, name
        assert "settings={...} (--set KEY=VALUE)" in text
        assert "assume=True (--assume)" in text
        assert warning.filename == __file__, name  # it names the caller's file


@pytest.mark.quick
def test_given_keywords_cause_no_warning(plain):
    for keywords in ({"assume": True}, {"settings": INFERENCE}):
        for name, function in each_way(plain, **keywords).items():
            assert heard(function) == [], name
    some = {name: value for name, value in INFERENCE.items() if name != "cbam_order"}
    for function in each_way(plain, settings=some).values():
        (warning,) = heard(function)
        assert "cbam_order='max_mean'" in str(warning.message)
        assert "stride_in" not in str(warning.message)


def test_a_named_model_causes_no_warning(tmp_path):
    state = torch_impl.se_resnet20().state_dict()
    torch.save(dict(state), tmp_path / "x.pth")
    with load(tmp_path / "x.pth", model="se_resnet20") as checkpoint:
        assert checkpoint.assumed == ()


def test_training_keywords_cause_no_warning(plain):
    with load(plain, settings=INFERENCE) as checkpoint:
        assert set(checkpoint.assumed) == set(TRAINING_ONLY)


def test_a_warning_that_is_an_error_leaves_nothing_open_or_written(plain):
    """As with `python -W error`; an open file would cause a ResourceWarning, also an error."""
    for function in each_way(plain).values():
        with pytest.raises(UserWarning, match="does not specify"):
            function()
    assert not plain.with_suffix(".npz").exists()


def test_assumptions_of_a_converted_file_warn_again(plain):
    convert(plain, plain.with_suffix(".npz"), assume=True)
    with pytest.warns(UserWarning, match=r"x\.npz: does not specify these keywords"):
        load(plain.with_suffix(".npz")).close()
    with load(plain.with_suffix(".npz"), settings=INFERENCE):
        pass


def test_load_into_assumes_the_keywords_of_the_model(plain, session):
    spec = tiny(attention="cbam", stride_in="conv1", bn_epsilon=1e-3)
    tf1_network(session, spec)
    for model in (torch_network(spec), keras_network(spec), session):
        with pytest.warns(UserWarning, match=r"the model's values used: .*stride_in='conv1', .*=0\.001"):
            load_into(model, plain)
        with pytest.raises(MismatchError, match="keywords differ"):
            load_into(model, plain, settings={"stride_in": "conv2"}, assume=True)


def test_a_loaded_checkpoint_does_not_warn_twice(plain):
    with load(plain, assume=True) as checkpoint:
        load_into(torch_network(SPEC), checkpoint)
        save(checkpoint, plain.with_name("y.npz"))


def test_lone_blocks(tmp_path):
    torch.save(torch_impl.CBAM(16, 4, order="mean_max").state_dict(), tmp_path / "cbam.pth")
    with pytest.warns(UserWarning, match=r"cbam_order='max_mean', cbam_spatial_input='refined'.*bn_epsilon"):
        load(tmp_path / "cbam.pth").close()
    torch.save(torch_impl.SqueezeExcitation(16, 4).state_dict(), tmp_path / "se.pth")
    load(tmp_path / "se.pth").close()  # shapes show all keywords


def test_nan_is_a_warning_in_python_too(tmp_path):
    bad = {"fc.bias": np.array([np.nan, 1, 2, 3, 4], np.float32)}
    np.savez(tmp_path / "x.npz", **dict(position_coded(SPEC)) | bad)
    with pytest.warns(UserWarning, match=r"fc\.bias has 1 values that are NaN or infinite"):
        convert(tmp_path / "x.npz", tmp_path / "y.npz", assume=True)
    with (
        pytest.warns(UserWarning, match=r"fc\.bias has 1 values"),
        load(tmp_path / "y.npz", assume=True) as bad,
    ):
        save(bad, tmp_path / "z.npz")


# --------------------------------------------------------------------------------------------------
# Commands


@pytest.mark.quick
@pytest.mark.parametrize("command", ["convert", "inspect", "dry run", "diff"])
def test_commands_print_one_line_on_stderr(run, plain, command):
    arguments = {
        "convert": ["convert", plain, plain.with_suffix(".npz")],
        "dry run": ["convert", plain, plain.with_suffix(".npz"), "--dry-run"],
        "inspect": ["inspect", plain],
        "diff": ["diff", plain, plain],
    }[command]
    ran = run(*arguments)
    files = 2 if command == "diff" else 1
    assert ran.code == 0
    assert len(ran.lines) == files
    for line in ran.lines:
        assert line.startswith(
            f"warning: {plain}: does not specify these keywords, defaults used: stem_pool="
        )
    assert "UserWarning" not in ran.err + ran.out
    ran = run(*arguments, "--assume", *(["--overwrite"] if command == "convert" else []))
    assert (ran.code, ran.err) == (0, "")


def test_a_command_prints_no_python_warning(plain):
    """In a separate process, where pytest catches no warnings."""
    command = [sys.executable, "-m", "weights_convert", "inspect", str(plain)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("warning: ")


def test_check_accepts_assume(run, plain, tmp_path):
    run("convert", plain, tmp_path / "y.npz", "--json", tmp_path / "m.json", "--assume")
    ran = run("check", tmp_path / "m.json", plain, "--assume")
    assert (ran.code, ran.err) == (0, "")


# --------------------------------------------------------------------------------------------------
# Keywords that a live model does not record


def test_a_lone_block_of_tf1_knows_its_keywords(session):
    """No shape shows its order: `state_of` used to return the default without a warning."""
    with session.graph.as_default():
        x = tf.zeros((1, 8, 8, 16))
        tf1_compat.cbam(x, 4, order="mean_max", bn_epsilon=1e-3, bn_momentum=0.5, scope="mine")
        session.run(tf.global_variables_initializer())
    spec = state_of(session, scope="mine").spec
    assert (spec.cbam_order, spec.bn_epsilon, spec.cbam_bn_momentum) == ("mean_max", 1e-3, 0.5)


def test_a_lone_block_knows_its_momentum_and_its_channels():
    layer = keras_impl.CBAM(16, 4, bn_momentum=0.5)
    layer.build((None, 8, 8, 16))
    for block in (torch_impl.CBAM(16, 4, bn_momentum=0.5), layer):
        assert state_of(block).spec.cbam_bn_momentum == 0.5
    eca = keras_impl.ECA(256)
    eca.build((None, 8, 8, 256))
    for block in (torch_impl.ECA(256), eca):
        state = state_of(block)
        assert (state.spec.channels, state.assumed) == (256, ())


def test_a_graph_without_keywords_causes_a_warning(session):
    tf1_network(session, SPEC)
    session.graph.clear_collection("resnet_config")
    with pytest.warns(UserWarning, match="the weights: does not specify these keywords.*stride_in"):
        state_of(session)
    assert state_of(session, assume=True).spec == SPEC
    assert state_of(session, settings=INFERENCE | {"stride_in": "conv1"}).spec.stride_in == "conv1"


def test_two_networks_on_the_same_variables_are_one_or_refused(session):
    with session.graph.as_default():
        x = tf.zeros((1, 9, 9, 3))
        for dropout, training in ((0.5, True), (0.0, False)):
            kwargs = SPEC.model_kwargs() | {"dropout": dropout}
            tf1_compat.resnet(x, training, scope="net", reuse=tf.AUTO_REUSE, **kwargs)
        session.run(tf.global_variables_initializer())
        assert state_of(session).spec == SPEC
        tf1_compat.resnet(x, scope="net", reuse=tf.AUTO_REUSE, **SPEC.model_kwargs() | {"stride_in": "conv1"})
    with pytest.raises(
        MismatchError, match="share the variables under 'net': stride_in='conv2' and stride_in="
    ):
        state_of(session)
