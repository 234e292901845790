"""VGG, identified by the table of models: numbers, names, files, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torch_impl
from parity_tests import harness
from parity_tests.compare.investigate import investigate
from parity_tests.judge import numpy_reference, synthetic
from weights_convert import MismatchError, convert, load, load_model, save, state_of
from weights_convert.formats.base import TensorInfo
from weights_convert.formats.npz import write_npz
from weights_convert.layouts import LAYOUTS
from weights_convert.spec import VGGSpec, model_spec, parameters

SMALL = {"depths": (1, 2), "widths": (8, 16), "head_width": 24, "num_classes": 5, "reduction": 4}
NETWORKS = [
    {},
    {"attention": "se"},
    {"attention": "cbam", "norm": "bn"},
    {"attention": "eca", "norm": "bias", "eca_kernel_sizes": (3, 5), "pool_size": 3},
]


@pytest.mark.parametrize("size", [(30, 33), (32, 32)])
@pytest.mark.parametrize("keywords", NETWORKS)
def test_parity_holds(keywords, size):
    spec = VGGSpec(**SMALL, **keywords)
    result = harness.prove("vgg", synthetic.weights(spec), synthetic.images(size))
    assert result.holds, result.first_divergence()
    assert result.caveat == ""
    assert [row.point for row in result.rows] == list(spec.stages())


def test_layers_gradients_and_training_agree():
    checkpoint = synthetic.weights(VGGSpec(**SMALL, attention="se"))
    report = investigate("vgg", checkpoint, synthetic.images((30, 33)), train_steps=5)
    assert report.holds, report.first_divergence()
    assert {"features.2.se.fc1", "features.4", "classifier.6"} <= {layer.name for layer in report.layers}


def test_the_pool_before_the_classifier_is_pytorchs():
    """Sizes smaller than the pool, equal to it, and not a multiple of it."""
    from parity_tests.judge.numpy_reference.vgg import adaptive_average_pool

    for height, width in ((7, 7), (1, 3), (10, 8), (15, 14)):
        x = np.random.default_rng(0).normal(size=(2, 3, height, width))
        theirs = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(x), 7).numpy()
        np.testing.assert_allclose(adaptive_average_pool(x, 7), theirs, rtol=1e-13)


@pytest.mark.parametrize("model", ["vgg16_bn", "se_vgg16_bn"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_lead_back(layout, model):
    names = LAYOUTS[layout].names(model_spec(model))
    placed = [name for name in names.values() if name is not None]
    assert len(set(placed)) == len(placed)
    without = {p.name for p in parameters(model_spec(model)) if p.role == "count" and layout != "torch"}
    assert {canonical for canonical, name in names.items() if name is None} == without


Change = dict[str, tuple[int, ...] | None]  # name -> another shape, or None for a missing tensor


def without_metadata(path: Path, layout: str, change: Change | None = None) -> Path:
    """A file without metadata of `se_vgg16_bn` with a small head, in one of our layouts."""
    spec, rules = model_spec("se_vgg16_bn", num_classes=7, in_channels=1), LAYOUTS[layout]
    shapes: dict[str, tuple[int, ...]] = {}
    for parameter in parameters(spec):
        if name := rules.rename(parameter, spec):
            shapes[name] = rules.stored(parameter).shape(parameter.shape)
    shapes |= {name: shape for name, shape in (change or {}).items() if shape is not None}
    shapes = {name: shape for name, shape in shapes.items() if (change or {}).get(name, ()) is not None}
    kinds = {name: np.dtype(np.int64 if name.endswith("tracked") else np.float16) for name in shapes}
    infos = {name: TensorInfo(shape, kinds[name]) for name, shape in shapes.items()}
    write_npz(path, infos, lambda name: np.zeros(*infos[name]), {})
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("vgg")
    return {layout: without_metadata(folder / f"{layout}.npz", layout) for layout in LAYOUTS}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_without_metadata_is_identified(files, layout):
    with pytest.warns(UserWarning, match="does not specify these keywords, defaults used: bn_epsilon"):
        checkpoint = load(files[layout])
    with checkpoint:
        assert checkpoint.family == layout
        assert checkpoint.spec == model_spec("se_vgg16_bn", num_classes=7, in_channels=1)
        assert checkpoint.model == "se_vgg16_bn"
        assert checkpoint.assumed == ("bn_epsilon", "bn_momentum", "dropout")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"features.3.weight": (64, 64, 5, 5)}, "misshapen: features.3.weight"),
        ({"features.4.running_var": None}, "missing: features.4.running_var"),
        ({"features.2.se.fc3.weight": (4, 64)}, "extra: features.2.se.fc3.weight"),
    ],
)
def test_one_wrong_tensor_is_named(tmp_path, change, line):
    path = without_metadata(tmp_path / "x.npz", "torch", change)
    with pytest.raises(MismatchError, match="do not match se_vgg16_bn; mismatches: 1") as caught:
        load(path)
    assert line in str(caught.value)


@pytest.mark.parametrize("framework", ["torch", "keras", "tf1"])
def test_every_framework_loads_every_container(tmp_path, framework):
    module = torch_impl.VGG(**SMALL, attention="se")
    save(state_of(module), tmp_path / "a.pth")
    for suffix in (".safetensors", ".npz", ".weights.h5", ".ckpt"):
        convert(tmp_path / "a.pth", tmp_path / f"a{suffix}")
    x = synthetic.images((32, 32))
    with torch.inference_mode():
        wanted = module.eval()(torch.from_numpy(x)).numpy()
    for suffix in (".pth", ".safetensors", ".npz", ".weights.h5", ".ckpt"):
        model = load_model(tmp_path / f"a{suffix}", framework)
        np.testing.assert_allclose(outputs(model, framework, x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["none", "cbam"])
@pytest.mark.parametrize("fold", ["fold_bias", "fold_bn"])
def test_folded_networks_give_the_same_outputs(tmp_path, fold, attention):
    """Without batch norms the convolutions have other numbers in `features`."""
    spec = VGGSpec(**SMALL, attention=attention)
    source, x = synthetic.weights(spec), synthetic.images((32, 33))
    save(source, tmp_path / "a.npz")
    convert(tmp_path / "a.npz", tmp_path / "b.npz", **{fold: True}, dtype="float64")
    wanted = numpy_reference.network(x, source, spec)["logits"]
    with load(tmp_path / "b.npz") as folded:
        assert folded.spec.norm == {"fold_bias": "bn", "fold_bn": "bias"}[fold]
        found = numpy_reference.network(x, folded, folded.spec)["logits"]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def outputs(model: Any, framework: str, x: np.ndarray) -> np.ndarray:
    if framework == "torch":
        with torch.inference_mode():
            return model(torch.from_numpy(x)).numpy()
    last = x.transpose(0, 2, 3, 1)
    if framework == "keras":
        return np.array(model(last, training=False))
    import tensorflow.compat.v1 as tf

    with tf.Graph().as_default(), tf.Session() as session:
        logits, _ = model(tf.constant(last))
        session.run(tf.global_variables_initializer())
        return session.run(logits)
