"""Every value of every keyword, and of pairs: the spec and the implementations accept and refuse the same."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import torch

import keras_impl
import tf1_compat
import torch_impl
from parity_tests.judge.synthetic import tiny
from weights_convert.errors import SpecError
from weights_convert.spec import (
    AttentionSpec,
    InceptionSpec,
    InceptionV3Spec,
    MobileNetSpec,
    ResNetSpec,
    ShuffleNetSpec,
    Spec,
    VGGSpec,
)

ROOT = Path(__file__).parents[2]
ROOMS = ("torch_impl", "keras_impl", "tf1_compat")


def kind_of(keywords: Mapping[str, Any]) -> type[Spec]:
    """The kind of network with these keywords."""
    own = {
        "head_width": VGGSpec,
        "aux_head": InceptionV3Spec,
        "last_pool": InceptionSpec,
        "stride_padding": MobileNetSpec,
        "concat_order": ShuffleNetSpec,
    }
    return next((kind for name, kind in own.items() if name in keywords), ResNetSpec)


def torch_network(**keywords: Any) -> None:
    with torch.device("meta"):
        getattr(torch_impl, kind_of(keywords).network)(**keywords)


def keras_network(**keywords: Any) -> None:
    getattr(keras_impl, kind_of(keywords).network)(**keywords)


def tf1_network(**keywords: Any) -> None:
    channels = keywords["in_channels"]
    with tf.Graph().as_default():
        channels = channels if isinstance(channels, (int, np.integer)) and 0 < channels < 9 else 3
        network = getattr(tf1_compat, kind_of(keywords).kind)
        network(tf.placeholder(tf.float32, (1, None, None, int(channels))), **keywords)


def spec(**keywords: Any) -> None:
    kind_of(keywords)(**keywords)


BUILD: dict[str, Callable[..., Any]] = {
    "spec": spec,
    "torch": torch_network,
    "keras": keras_network,
    "tf1": tf1_network,
}


def verdict(build: Callable[..., Any], keywords: dict[str, Any]) -> str:
    """The error for these keywords, or ""."""
    try:
        build(**keywords)
    except (ValueError, SpecError) as error:
        return str(error)
    return ""


BASE = tiny(depths=(1,), attention="cbam").model_kwargs()
NAMES = list(BASE)
VGG = VGGSpec(depths=(1,), widths=(8,), pool_size=1, head_width=4, attention="cbam").model_kwargs()
OF_VGG = [name for name in VGG if name not in BASE] + ["depths", "eca_kernel_sizes"]
INCEPTION = InceptionSpec(width_multiplier=1 / 64, attention="cbam").model_kwargs()
OF_INCEPTION = [name for name in INCEPTION if name not in {*BASE, *VGG}] + ["eca_kernel_sizes"]
INCEPTION_V3 = InceptionV3Spec(width_multiplier=1 / 64, attention="cbam").model_kwargs()
OF_INCEPTION_V3 = ["last_pool", "transform_input", "aux_head", "in_channels", "eca_kernel_sizes"]
MOBILENET = MobileNetSpec(depths=(1,), widths=(8,), stem_width=4, attention="cbam").model_kwargs()
OF_MOBILENET = ["stride_padding", "depths", "widths", "activation"]
SHUFFLENET = ShuffleNetSpec(depths=(1,), widths=(8,), stem_width=4, groups=2, attention="cbam").model_kwargs()
OF_SHUFFLENET = ["groups", "shuffle_after", "shuffle_view", "concat_order", "attention_on", "widths"]
OF_SHUFFLENET += ["stem_width", "count_padding"]
POOL = [
    *(None, True, False, 0, 1, 2, 3, 4, 5, -1, 2**31 - 1, 2**31, 10**400, 0.0, 0.5, 1.0, 1.5, -0.5),
    *(
        float("nan"),
        float("inf"),
        1e308,
        "",
        "none",
        "conv1",
        "basic",
        "deep_tiered",
        "same",
        "relu6",
        "absolute",
        "conv2",
        "groups_last",
        "shortcut_branch",
        "output",
        "1",
    ),
    *((), (1,), (1, 1), [3], [3, 5], (2,), (0,), ("1",), (1.0,), (True,), (1,) * 9, (700,), "34", b"34"),
    *({1: 1}, {1}, object, np.int64(1), np.float32(0.5), np.bool_(True), np.str_("avg"), np.array([1])),
    *(np.array([[1]]), np.array(1), np.array("none"), np.array([True]), range(1, 2)),
]
# valid, but too large for this computer: implementations are not built with it
SIZES = ("width", "groups", "width_per_group", "stem_width", "reduction", "num_classes", "in_channels")
SIZES += ("head_width", "pool_size")
TOO_LARGE = {(name, 2**31 - 1) for name in (*SIZES, "cbam_kernel_size")}


@pytest.mark.parametrize("built", [1, pytest.param(len(POOL) + 1, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize(
    ("base", "name"),
    [(BASE, name) for name in NAMES]
    + [(VGG, name) for name in OF_VGG]
    + [(INCEPTION, name) for name in OF_INCEPTION]
    + [(INCEPTION_V3, name) for name in OF_INCEPTION_V3]
    + [(MOBILENET, name) for name in OF_MOBILENET]
    + [(SHUFFLENET, name) for name in OF_SHUFFLENET],
)
def test_any_value_of_a_keyword_has_one_verdict(base, name, built):
    """`built` networks of Keras and TF1 are built; for other valid values only their checks run."""
    seen, valid = set(), 0
    # an ordinary run builds none of Inception, whose networks have many layers
    built -= base is INCEPTION or base is INCEPTION_V3
    for value in [base[name], *POOL]:
        if isinstance(value, int) and (name, value) in TOO_LARGE:
            continue
        keywords = base | {name: value}
        said = {room: verdict(checked(room), keywords) for room in ROOMS}
        said |= {who: verdict(BUILD[who], keywords) for who in ("spec", "torch")}
        valid += said["spec"] == ""
        if said["spec"] or valid <= built:
            said |= {who: verdict(BUILD[who], keywords) for who in ("keras", "tf1")}
        assert len(set(said.values())) == 1, (value, said)
        seen.add(said["spec"] == "")
    assert seen == {True, False}  # some are refused, and some are not


def few(name: str) -> list[Any]:
    """Values that are valid alone and differ from the default."""
    choices = {
        "block": ["basic"],
        "depths": [(2, 1), (1, 1, 1)],
        "width": [1, 3],
        "groups": [2, 3],
        "width_per_group": [1, 32],
        "reduce_first": [2, 5],
        "stem": ["deep", "deep_tiered", "3x3"],
        "stem_width": [1, 3],
        "eca_kernel_sizes": [(3,), (3, 5)],
        "attention": ["none", "se", "eca"],
        "reduction": [1, 7],
        "hidden_rule": ["absolute"],
        "norm": ["bias"],
        "cbam_kernel_size": [1],
    }
    default = BASE[name]
    other = [not default] if isinstance(default, bool) else [0.25] if isinstance(default, float) else []
    return choices.get(name, other)


def test_pairs_of_keywords_have_one_verdict():
    """The checks of all, and for PyTorch also the networks, which take no memory."""
    refused = 0
    for first, second in itertools.combinations(NAMES, 2):
        for one, two in itertools.product(few(first), few(second)):
            keywords = BASE | {first: one, second: two}
            verdicts = {room: verdict(checked(room), keywords) for room in ROOMS}
            verdicts |= {who: verdict(BUILD[who], keywords) for who in ("spec", "torch")}
            assert len(set(verdicts.values())) == 1, (first, one, second, two, verdicts)
            refused += verdicts["spec"] != ""
    assert refused > 50


def checked(room: str) -> Callable[..., Any]:
    """`check_keywords` of a room, which each of its networks calls first."""
    module = {"torch_impl": torch_impl, "keras_impl": keras_impl, "tf1_compat": tf1_compat}[room]
    check = module.keywords.check_keywords
    return lambda **keywords: check(keywords, kind_of(keywords).kind)


@pytest.mark.quick
@pytest.mark.parametrize(
    "keywords",
    [
        {"block": "basic", "groups": 2},
        {"block": "basic", "width_per_group": 32},
        {"block": "basic", "reduce_first": 2},
        {"depths": ()},
        {"depths": (1,) * 9},
        {"depths": (641,)},
        {"groups": 2, "reduce_first": 5, "width_per_group": 32},
        {"width": 1, "width_per_group": 1},
        {"stem": "deep_tiered", "stem_width": 3},
        {"hidden_rule": "ceil", "attention": "none"},
        {"cbam_order": "mean", "attention": "se"},
        {"se_bias": 1},
        {"bn_epsilon": 10**400},
    ],
    ids=str,
)
def test_keywords_without_effect_are_refused_by_all(keywords):
    verdicts = {who: verdict(build, BASE | keywords) for who, build in BUILD.items()}
    assert len(set(verdicts.values())) == 1, verdicts
    assert "expected" in verdicts["spec"]


@pytest.mark.quick
def test_numpy_values_are_plain_in_the_spec():
    spec = ResNetSpec(**BASE | {"width": np.int64(8), "depths": np.array([1]), "se_bias": np.False_})
    assert (type(spec.width), spec.depths, spec.se_bias) == (int, (1,), False)
    assert AttentionSpec(channels=np.int64(8)) == AttentionSpec(channels=8)


@pytest.mark.quick
@pytest.mark.parametrize("name", ["bias", "mlp_bias", "spatial_bias", "bn"])
@pytest.mark.parametrize("value", ["False", 1, 0, None])
def test_switches_of_a_block_are_bools(name, value):
    """A text such as "False" would count as true."""
    block, function = ("CBAM", "cbam") if name != "bias" else ("SqueezeExcitation", "squeeze_excitation")
    message = f"{name}={value!r}: expected one of True, False"
    for room in (torch_impl, keras_impl):
        with pytest.raises(ValueError, match=message):
            getattr(room, block)(16, **{name: value})
    with tf.Graph().as_default(), pytest.raises(ValueError, match=message):
        getattr(tf1_compat, function)(tf.zeros((1, 4, 4, 16)), **{name: value})


def parts(path: Path) -> dict[str, str]:
    """The functions, classes and constants of a file, as normalised text."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = ast.dump(node)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            found[ast.unparse(target)] = ast.dump(node)
    return found


@pytest.mark.quick
def test_the_checks_are_one_text():
    files = [(ROOT / room / "keywords.py").read_text(encoding="utf-8") for room in ROOMS]
    assert files == files[:1] * 3
    ours = parts(ROOT / "weights_convert" / "spec" / "checks.py")
    table = parts(ROOT / "torch_impl" / "keywords.py")
    scalars = {name for name in ours if name not in table}
    assert scalars == {"_MOST", "check_choice", "check_bool", "check_int", "check_odd", "check_float"}
    for room in ROOMS:
        theirs = parts(ROOT / room / "attention.py")
        assert ours == table | {name: theirs[name] for name in scalars}
