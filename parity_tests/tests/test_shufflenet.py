"""ShuffleNetV1: numbers, shuffles, grouped 1x1 kernels, place of the attention, files, errors."""

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
from parity_tests.judge.numpy_reference.shufflenet import shuffle, strided_mean
from parity_tests.tests.test_vgg import outputs
from weights_convert import SpecError, convert, load, load_model, save, state_of
from weights_convert.layouts import LAYOUTS
from weights_convert.spec import ShuffleNetSpec, changed, model_spec, parameters

SMALL: dict[str, Any] = {"depths": (1, 2), "widths": (24, 48), "stem_width": 12, "reduction": 4}
SMALL |= {"num_classes": 5}
OTHER = {"shuffle_after": "conv2", "shuffle_view": "groups_last", "concat_order": "shortcut_branch"}
NETWORKS = [  # images of each size, and keywords
    ((64, 64), {"attention": "se"}),
    ((62, 65), {"attention": "cbam", "attention_on": "output", "bn_epsilon": 1e-3} | OTHER),
    ((63, 60), {"attention": "eca", "norm": "bias", "eca_kernel_sizes": (3, 5), "count_padding": False}),
    ((65, 62), {"norm": "bias_bn", "num_classes": 0, "groups": 2} | OTHER),
    ((33, 34), {"groups": 1, "attention": "se", "attention_on": "output", "head_bias": False}),
]


@pytest.mark.parametrize(("size", "keywords"), NETWORKS)
def test_parity_holds(size, keywords):
    spec = ShuffleNetSpec(**SMALL | keywords)
    result = harness.prove("shufflenet", synthetic.weights(spec), synthetic.images(size))
    assert result.holds, result.first_divergence()
    assert result.caveat == ""
    assert [row.point for row in result.rows] == list(spec.stages())


@pytest.mark.parametrize("keywords", [{}, OTHER | {"attention_on": "output", "count_padding": False}])
def test_layers_gradients_and_training_agree(keywords):
    spec = ShuffleNetSpec(**SMALL, attention="se", **keywords)
    images = synthetic.images((66, 63), batch=4)
    report = investigate("shufflenet", synthetic.weights(spec), images, train_steps=3)
    assert report.holds, report.first_divergence()
    assert {"stage2.0.conv1", "stage3.1.conv2", "stage3.1.se.fc1", "fc"} <= {x.name for x in report.layers}


@pytest.mark.quick
@pytest.mark.parametrize("view", ["groups_first", "groups_last"])
def test_shuffles_and_means(view):
    """The authors' and the paper's shuffle are each other's inverse; means of even and odd sizes."""
    x = np.random.default_rng(0).normal(size=(2, 12, 7, 6))
    wanted, last = shuffle(x, 3, view), x.transpose(0, 2, 3, 1)
    other = {"groups_first": "groups_last", "groups_last": "groups_first"}[view]
    np.testing.assert_array_equal(shuffle(wanted, 3, other), x)
    assert (wanted != x).any()
    found = [torch_impl.layers.shuffle_channels(torch.from_numpy(x), 3, view).numpy()]
    rows = keras.ops.convert_to_tensor(last, "float64")
    found.append(np.array(keras_impl.layers.shuffle_channels(rows, 3, view)).transpose(0, 3, 1, 2))
    with tf.Graph().as_default(), tf.Session() as session:
        y = session.run(tf1_compat.layers.shuffle_channels(tf.constant(last), 3, view))
        found.append(y.transpose(0, 3, 1, 2))
    for array in found:
        np.testing.assert_array_equal(array, wanted)
    for counted in (True, False):
        theirs = torch.nn.functional.avg_pool2d(torch.from_numpy(x), 3, 2, 1, count_include_pad=counted)
        np.testing.assert_allclose(strided_mean(x, counted), theirs.numpy(), rtol=1e-14, atol=1e-15)


@pytest.mark.quick
@pytest.mark.parametrize("keyword", [*OTHER, "count_padding", "attention_on"])
def test_each_keyword_changes_the_numbers(keyword):
    """Among them `attention_on`, whose two places have equal shapes with ECA."""
    spec = ShuffleNetSpec(**SMALL, attention="eca", eca_kernel_sizes=(3, 3))
    other = changed(spec, {keyword: {"attention_on": "output", "count_padding": False, **OTHER}[keyword]})
    weights, images = synthetic.weights(spec), synthetic.images((64, 64))
    first, second = (numpy_reference.network(images, weights, s)["logits"] for s in (spec, other))
    assert parameters(spec) == parameters(other)
    assert np.abs(first - second).max() > 1e-3 * np.abs(first).max()
    assert spec.matters_unseen(keyword)


@pytest.mark.quick
@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_lead_back(layout):
    spec = model_spec("se_shufflenet_v1_g3")
    names = LAYOUTS[layout].names(spec)
    placed = [name for name in names.values() if name is not None]
    assert len(set(placed)) == len(placed)
    assert all(LAYOUTS[layout].parse(name) for name in placed if layout != "keras")
    without = {p.name for p in parameters(spec) if p.role == "count" and layout != "torch"}
    assert {canonical for canonical, name in names.items() if name is None} == without


@pytest.mark.parametrize("suffix", [".pth", ".npz", ".weights.h5", ".ckpt"])
def test_a_file_without_metadata_is_identified(tmp_path, suffix):
    """A new network's tensors, with another number of classes; MobileNet has names like these."""
    spec = model_spec("se_shufflenet_v1_g3", num_classes=7, in_channels=1)
    with torch.device("meta"):
        shapes = torch_impl.ShuffleNet(**spec.model_kwargs()).state_dict()
    torch.save({name: torch.zeros(x.shape, dtype=x.dtype) for name, x in shapes.items()}, tmp_path / "a.pth")
    if suffix != ".pth":
        convert(tmp_path / "a.pth", tmp_path / f"a{suffix}", assume=True)
    with pytest.warns(UserWarning, match="shuffle_after='conv1', shuffle_view='groups_first', concat_order"):
        checkpoint = load(tmp_path / f"a{suffix}")
    with checkpoint:
        assert (checkpoint.spec, checkpoint.model) == (spec, "se_shufflenet_v1_g3")


@pytest.mark.parametrize("framework", ["torch", "keras", "tf1"])
def test_every_framework_loads_every_container(tmp_path, framework):
    module = torch_impl.ShuffleNet(**SMALL | OTHER, attention="se", count_padding=False)
    save(state_of(module), tmp_path / "a.pth")
    x = synthetic.images((65, 64))
    with torch.inference_mode():
        wanted = module.eval()(torch.from_numpy(x)).numpy()
    for suffix in (".pth", ".safetensors", ".npz", ".weights.h5", ".ckpt"):
        if suffix != ".pth":
            convert(tmp_path / "a.pth", tmp_path / f"a{suffix}")
        model = load_model(tmp_path / f"a{suffix}", framework)
        np.testing.assert_allclose(outputs(model, framework, x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fold", ["fold_bias", "fold_bn"])
def test_folded_networks_give_the_same_outputs(tmp_path, fold):
    spec = ShuffleNetSpec(**SMALL, attention="cbam", norm="bias_bn")
    source, x = synthetic.weights(spec), synthetic.images((64, 65))
    save(source, tmp_path / "a.npz")
    convert(tmp_path / "a.npz", tmp_path / "b.npz", **{fold: True}, dtype="float64")
    wanted = numpy_reference.network(x, source, spec)["logits"]
    with load(tmp_path / "b.npz") as folded:
        found = numpy_reference.network(x, folded, folded.spec)["logits"]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"norm": "gn"}, "norm='gn': expected 'bn', 'bias_bn' or 'bias' in a ShuffleNet"),
        ({"attention": "sk"}, "attention='sk': expected 'none', 'se', 'cbam' or 'eca' in a ShuffleNet"),
        ({"widths": (24,)}, "expected 2, one per stage"),
        ({"widths": (24, 24)}, "stage3 has convolutions of 0 channels, expected a multiple of 3 above 0"),
        ({"stem_width": 10}, "stage2 has convolutions of 14 channels, expected a multiple of 3 above 0"),
        ({"groups": 4}, "stage2 has convolutions of 6 channels, expected a multiple of 4 above 0"),
        ({"shuffle_after": "conv3"}, "expected one of 'conv1', 'conv2'"),
        ({"concat_order": "input"}, "expected one of 'branch_shortcut', 'shortcut_branch'"),
    ],
)
def test_invalid_keywords_are_refused(keywords, message):
    for build, error in ((ShuffleNetSpec, SpecError), (torch_impl.ShuffleNet, ValueError)):
        with pytest.raises(error, match=message):
            build(**SMALL | keywords)
