"""MobileNetV1: numbers, paddings, depthwise kernels, identification by the table of models, folding."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import torch

import keras_impl
import tf1_compat
import torch_impl
from parity_tests import harness
from parity_tests.compare.investigate import investigate
from parity_tests.judge import numpy_reference, synthetic
from parity_tests.tests.test_vgg import outputs
from weights_convert import MismatchError, SpecError, convert, load, load_model, save, state_of
from weights_convert.layouts import LAYOUTS
from weights_convert.spec import MobileNetSpec, model_spec, parameters

SMALL: dict[str, Any] = {"depths": (1, 2), "widths": (8, 12), "stem_width": 6, "reduction": 4}
SMALL |= {"num_classes": 5}
NETWORKS = [  # images of each size, and keywords
    ((32, 32), {"attention": "se"}),
    ((30, 33), {"attention": "cbam", "stride_padding": "same", "activation": "relu6", "bn_epsilon": 1e-3}),
    ((31, 28), {"attention": "eca", "norm": "bias", "eca_kernel_sizes": (3, 5), "stride_padding": "keras"}),
    ((33, 30), {"norm": "bias_bn", "activation": "silu", "num_classes": 0}),
]


@pytest.mark.parametrize(("size", "keywords"), NETWORKS)
def test_parity_holds(size, keywords):
    spec = MobileNetSpec(**SMALL | keywords)
    result = harness.prove("mobilenet", synthetic.weights(spec), synthetic.images(size))
    assert result.holds, result.first_divergence()
    assert result.caveat == ""
    assert [row.point for row in result.rows] == list(spec.stages())


def test_layers_gradients_and_training_agree():
    spec = MobileNetSpec(**SMALL, attention="se", activation="relu6", stride_padding="keras")
    # seed 0 gives stage1 a gate that is alike in all images, and batch norm makes its gradient vanish
    weights = synthetic.weights(spec, seed=1)
    report = investigate("mobilenet", weights, synthetic.images((30, 33)), train_steps=3)
    assert report.holds, report.first_divergence()
    assert {"stage2.0.conv1", "stage2.0.se.fc1", "fc"} <= {layer.name for layer in report.layers}


def test_the_paddings_are_those_of_the_projects():
    """TensorFlow's own, and that of keras.applications' layers, on even and odd sizes."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 1)).astype("float32")
    pads = keras.layers.ZeroPadding2D(((0, 1), (0, 1)))
    for rows, columns in ((8, 9), (9, 8), (3, 2)):
        x = np.random.default_rng(1).normal(size=(1, rows, columns, 4)).astype("float32")
        theirs = {
            "same": keras.ops.depthwise_conv(x, kernel, 2, "same", "channels_last"),
            "end": keras.ops.depthwise_conv(pads(x), kernel, 2, "valid", "channels_last"),
        }
        for rule, wanted in theirs.items():
            layer = keras_impl.layers.DepthwiseConv2D(3, 2, pad_rule=rule)
            layer.build(x.shape)
            layer.kernel.assign(kernel)
            np.testing.assert_allclose(layer(x), wanted, rtol=1e-5, atol=1e-5)
            assert layer.compute_output_shape(x.shape) == tuple(wanted.shape)
            conv = torch_impl.layers.depthwise_conv2d(4, 3, 2, padding=rule)
            conv.weight.data = torch.from_numpy(kernel.transpose(2, 3, 0, 1).copy())
            found = conv(torch.from_numpy(x.transpose(0, 3, 1, 2))).detach().numpy().transpose(0, 2, 3, 1)
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.quick
@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_lead_back(layout):
    spec = model_spec("se_mobilenet_v1")
    names = LAYOUTS[layout].names(spec)
    placed = [name for name in names.values() if name is not None]
    assert len(set(placed)) == len(placed)
    without = {p.name for p in parameters(spec) if p.role == "count" and layout != "torch"}
    assert {canonical for canonical, name in names.items() if name is None} == without


@pytest.mark.parametrize("suffix", [".pth", ".npz", ".weights.h5", ".ckpt"])
def test_a_file_without_metadata_is_identified(tmp_path, suffix):
    """A new network's tensors, with another number of classes."""
    spec = model_spec("se_mobilenet_v1", num_classes=7, in_channels=1)
    with torch.device("meta"):
        shapes = torch_impl.MobileNet(**spec.model_kwargs()).state_dict()
    torch.save({name: torch.zeros(x.shape, dtype=x.dtype) for name, x in shapes.items()}, tmp_path / "a.pth")
    if suffix != ".pth":
        convert(tmp_path / "a.pth", tmp_path / f"a{suffix}", assume=True)
    with pytest.warns(UserWarning, match="stride_padding='pad1', activation='relu', bn_epsilon"):
        checkpoint = load(tmp_path / f"a{suffix}")
    with checkpoint:
        assert (checkpoint.spec, checkpoint.model) == (spec, "se_mobilenet_v1")


def test_more_units_than_the_named_network_are_read_by_its_keywords(tmp_path):
    spec = MobileNetSpec(depths=(3, 12), widths=(8, 8), stem_width=6, num_classes=5, attention="se")
    weights = synthetic.weights(spec)
    arrays = {f"net.{name}": torch.tensor(weights[name]) for name in weights}
    torch.save(arrays, tmp_path / "a.pth")
    with pytest.raises(MismatchError, match="have the names of a mobilenet, but no named model has"):
        load(tmp_path / "a.pth")
    settings = {name: getattr(spec, name) for name in ("depths", "widths", "stem_width", "num_classes")}
    with load(tmp_path / "a.pth", model="se_mobilenet_v1", settings=settings, assume=True) as found:
        assert found.spec == spec
        assert all(np.array_equal(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize("framework", ["torch", "keras", "tf1"])
def test_every_framework_loads_every_container(tmp_path, framework):
    module = torch_impl.MobileNet(**SMALL, attention="se", stride_padding="keras", activation="relu6")
    save(state_of(module), tmp_path / "a.pth")
    x = synthetic.images((33, 32))
    with torch.inference_mode():
        wanted = module.eval()(torch.from_numpy(x)).numpy()
    for suffix in (".pth", ".safetensors", ".npz", ".weights.h5", ".ckpt"):
        if suffix != ".pth":
            convert(tmp_path / "a.pth", tmp_path / f"a{suffix}")
        model = load_model(tmp_path / f"a{suffix}", framework)
        np.testing.assert_allclose(outputs(model, framework, x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fold", ["fold_bias", "fold_bn"])
def test_folded_networks_give_the_same_outputs(tmp_path, fold):
    spec = MobileNetSpec(**SMALL, attention="cbam", norm="bias_bn")
    source, x = synthetic.weights(spec), synthetic.images((32, 33))
    save(source, tmp_path / "a.npz")
    convert(tmp_path / "a.npz", tmp_path / "b.npz", **{fold: True}, dtype="float64")
    wanted = numpy_reference.network(x, source, spec)["logits"]
    with load(tmp_path / "b.npz") as folded:
        found = numpy_reference.network(x, folded, folded.spec)["logits"]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.quick
def test_depthwise_kernels_start_alike():
    """He's initial values for one group: deviation sqrt(2 / 9)."""
    module = torch_impl.layers.depthwise_conv2d(4096, 3)
    layer = keras_impl.layers.DepthwiseConv2D(3)
    layer.build((None, 8, 8, 4096))
    with tf.Graph().as_default(), tf.Session() as session:
        tf1_compat.layers.depthwise_conv2d(tf.zeros((1, 4, 4, 4096)), 3, scope="conv1")
        session.run(tf.global_variables_initializer())
        (kernel,) = session.run(tf.global_variables())
    for values in (module.weight.detach().numpy(), np.array(layer.kernel), kernel):
        assert values.std() == pytest.approx((2 / 9) ** 0.5, rel=0.03)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"norm": "gn"}, "norm='gn': expected 'bn', 'bias_bn' or 'bias' in a MobileNet"),
        ({"attention": "sk"}, "attention='sk': expected 'none', 'se', 'cbam' or 'eca' in a MobileNet"),
        ({"widths": (8,)}, "expected 2, one per stage"),
        ({"stride_padding": "ceil"}, "expected one of 'pad1', 'same', 'keras'"),
    ],
)
def test_invalid_keywords_are_refused(keywords, message):
    for build, error in ((MobileNetSpec, SpecError), (torch_impl.MobileNet, ValueError)):
        with pytest.raises(error, match=message):
            build(**SMALL | keywords)
