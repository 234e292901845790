"""The main job: it holds for correct networks and fails for injected mistakes."""

from __future__ import annotations

import json

import numpy as np
import pytest

import keras_impl.layers
import tf1_compat.blocks
import torch_impl.attention
import torch_impl.resnet
from parity_tests import __main__ as command
from parity_tests import harness
from parity_tests.judge import synthetic, tolerances
from parity_tests.judge.synthetic import tiny
from parity_tests.watch.build import same_bits
from weights_convert import layouts, save
from weights_convert.spec import ResNetSpec

SPEC = tiny(attention="cbam", groups=4, width_per_group=32, depths=(1, 1))


def prove(spec: ResNetSpec = SPEC, **keywords) -> harness.Result:
    return harness.prove("tiny", synthetic.weights(spec), synthetic.images((32, 40)), **keywords)


@pytest.mark.quick
def test_parity_holds():
    result = prove()
    assert result.holds
    assert result.first_divergence() is None
    assert result.not_equal == []
    assert set(result.files) == set(harness.CONTAINERS)
    assert {key for row in result.rows for key in row.errors} == {
        (dtype, framework) for dtype in ("float64", "float32") for framework in ("torch", "keras", "tf1")
    }


# Each fault patches one implementation; the harness must name that framework and the first point it reaches.


def wrong_epsilon(patch):
    original = tf1_compat.blocks.batch_norm
    patch.setattr(
        tf1_compat.blocks,
        "batch_norm",
        lambda *args, epsilon, **kw: original(*args, epsilon=epsilon * 1.001, **kw),
    )


def same_padding(patch):
    def convolution_op(self, inputs, kernel):
        return keras_impl.layers.ops.conv(inputs, kernel, self.strides, "same", "channels_last")

    patch.setattr(keras_impl.layers.Conv2D, "convolution_op", convolution_op)


def swapped_maps(patch):
    def forward(self, x):
        maps = torch_impl.attention.torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return self.bn(self.conv(maps)).sigmoid()

    patch.setattr(torch_impl.attention.SpatialAttention, "forward", forward)


def ceil_pool(patch):
    patch.setitem(torch_impl.resnet.STEM_POOLS, "pad1", torch_impl.resnet.STEM_POOLS["ceil"])


def transposed_kernels(patch):
    """Height and width swapped on the way to TensorFlow; shapes and round trips do not show it."""
    role = layouts.ROLES["conv2d"]
    patch.setitem(layouts.ROLES, "conv2d", role._replace(to_tf=(3, 2, 1, 0)))


FAULTS = [
    (wrong_epsilon, "tf1 in float64 differs at stem"),
    (same_padding, "keras in float64 differs at stem"),
    pytest.param(swapped_maps, "torch in float64 differs at layer1", marks=pytest.mark.quick),
    (ceil_pool, "torch in float64 differs at stem"),
    (transposed_kernels, "keras in float64 differs at stem"),
]


@pytest.mark.parametrize(("fault", "found"), FAULTS, ids=lambda value: getattr(value, "__name__", None))
def test_a_fault_is_found_and_named(fault, found, monkeypatch):
    fault(monkeypatch)
    spec = tiny(attention="cbam", groups=1, depths=(1, 1)) if fault is same_padding else SPEC
    result = prove(spec, dtypes=["float64"])
    assert not result.holds
    assert result.first_divergence().startswith(found)


def test_float32_alone_finds_a_fault(monkeypatch):
    swapped_maps(monkeypatch)
    result = prove(dtypes=["float32"])
    assert result.first_divergence().startswith("torch in float32 differs at layer1")


@pytest.mark.quick
def test_one_weight_off_by_one_ulp_is_found():
    weights = synthetic.weights(SPEC)
    arrays = {name: weights[name].copy() for name in weights}
    first = arrays["layer2.0.cbam.channel.fc1.weight"]
    first.flat[3] = np.nextafter(first.flat[3], np.float32(np.inf))
    wrong = synthetic.checkpoint(arrays, SPEC)
    assert same_bits(weights, wrong, "float32") == ["layer2.0.cbam.channel.fc1.weight"]
    assert same_bits(weights, weights, "float32") == []


@pytest.mark.quick
@pytest.mark.parametrize(
    ("actual", "reference", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([1.0, np.nan], [1.0, 2.0], np.inf),
        ([1.0, np.nan], [1.0, np.nan], 0.0),
        ([np.nan, 1.0], [1.0, np.nan], np.inf),
        ([1.0, np.inf], [1.0, np.inf], 0.0),
        ([1.0, -np.inf], [1.0, np.inf], np.inf),
        ([1.0, np.inf], [1.0, np.nan], np.inf),
        ([1.0], [1.0, 2.0], np.inf),
        ([0.0], [0.0], 0.0),
        ([1e-30], [0.0], np.inf),
    ],
)
def test_relative_error(actual, reference, error):
    assert tolerances.relative_error(np.array(actual), np.array(reference)) == error


# --------------------------------------------------------------------------------------------------
# The command line


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "tiny.safetensors"
    save(synthetic.weights(tiny(stem="3x3", attention="eca")), path)
    return path


@pytest.mark.quick
def test_command_on_a_checkpoint(checkpoint, capsys):
    assert command.main([str(checkpoint), "--dtype", "float64", "--frameworks", "torch", "tf1"]) == 0
    output = capsys.readouterr().out
    assert "parity holds" in output
    assert "the same bits in every file and every framework" in output
    assert "keras" not in output


def test_command_says_where_it_differs(checkpoint, capsys, monkeypatch):
    wrong_epsilon(monkeypatch)
    assert command.main([str(checkpoint), "--json", "-"]) == 1
    captured = capsys.readouterr()
    (report,) = json.loads(captured.out)
    assert not report["holds"]
    assert report["first_divergence"].startswith("tf1 in float64 differs at stem")
    assert "NO PARITY: tf1 in float64 differs at stem" in captured.err
    assert "tf1 differs first at layer bn1" in captured.err
    assert "wrong by itself: bn1" in captured.err


@pytest.mark.quick
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["se_resnext5_32x4d"], "neither a model nor a file; did you mean 'se_resnext50_32x4d'?"),
        (["nowhere.pth"], "there is no such file"),
        (["resnet20", "--images", "nowhere"], "there is no such folder of images"),
        (["resnet20", "--dtype", "float16"], "invalid choice: 'float16'"),
        (["resnet20", "--frameworks", "caffe"], "invalid choice: 'caffe'"),
        (["--nonsense"], "unrecognized arguments"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(arguments, message, capsys):
    assert command.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.quick
def test_bad_images(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("no picture")
    assert command.main(["resnet20", "--images", str(tmp_path)]) == 2
    assert "holds no images" in capsys.readouterr().err
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    assert command.main(["resnet20", "--images", str(tmp_path)]) == 2
    assert "broken.png: cannot be read as an image" in capsys.readouterr().err
