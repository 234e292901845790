"""`weights-convert names FILE`: what shapes decide, what only the order supports, and what fits nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from parity_tests.judge import synthetic
from parity_tests.tests.test_families import ListingReader
from parity_tests.tests.test_foreign_inside import SPEC, STATE, file, put, read, renamed, same
from parity_tests.tests.test_foreign_names import PAIRS, THEIRS
from weights_convert import model_spec
from weights_convert.formats.base import TensorInfo
from weights_convert.identify.choice import identify
from weights_convert.identify.reading import Listing
from weights_convert.mapping import OwnNames
from weights_convert.propose import propose
from weights_convert.spec import changed, is_count, parameters

pytestmark = pytest.mark.quick


def wild(name: str) -> str:
    """A name that no family has, for a tensor of the network."""
    name = re.sub(r"^layer(\d)\.(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.units.{int(m[2]) + 1}.", name)
    for old, new in {"conv": "c", "se.fc1": "gate.a", "se.fc2": "gate.z", "downsample": "skip"}.items():
        name = name.replace(f".{old}", f".{new}")
    return f"net.{name.replace('fc.', 'top.')}"


def proposed(run: Callable, *words: object) -> str:
    ran = run("names", *words)
    assert ran.code == 0, ran.err
    return ran.out


def test_an_attention_with_other_names(tmp_path, run):
    text = proposed(run, file(tmp_path, THEIRS))
    assert text.splitlines()[1:] == ["# certain by their shapes", *map(" = ".join, PAIRS.items())]
    (tmp_path / "names.txt").write_text(text)
    assert same(read(tmp_path, THEIRS, names=tmp_path / "names.txt")[0], STATE)


def listed(shapes: dict[str, tuple[int, ...]]) -> ListingReader:
    """A file of these names and shapes, without bytes."""
    reader = ListingReader(Path("x.file"))
    reader.tensors = {
        n: TensorInfo(s, np.dtype(np.int64 if is_count(n) else "f4")) for n, s in shapes.items()
    }
    return reader


@pytest.mark.parametrize("model", ["se_resnet18", "resnet50", "eca_resnet18", "cbam_resnet18"])
def test_every_name_is_other(model):
    """The order decides where shapes do not, and such pairs are comments until the user removes the mark."""
    spec = changed(model_spec(model), {"num_classes": 3})
    reader = listed({wild(p.name): p.shape for p in parameters(spec)})
    text = "\n".join(propose(Listing(reader, None)).lines())
    assert "\n#? net.bn1 = bn1\n" in text
    assert "\nnet.stages.{s}.units.{b+1}.c1 = layer{s+1}.{b}.conv1\n" in text
    assert "not in the" not in text
    pairs = [line.removeprefix("#? ").split(" = ") for line in text.splitlines() if " = " in line]
    found = identify(Listing(reader, None, None, OwnNames(dict(pairs))))
    assert found.spec == spec
    assert all(names == (wild(canonical),) for canonical, names in found.reading.names.items())


def test_names_in_another_order_are_not_certain():
    """Blocks that define conv2 before conv1: only kernels of other shapes show which is which."""
    spec = changed(model_spec("resnet18"), {"num_classes": 3})
    shapes = {f"net.{p.name}": p.shape for p in parameters(spec)}
    swap = {".conv1.": ".conv2.", ".conv2.": ".conv1.", ".bn1.": ".bn2.", ".bn2.": ".bn1."}
    order = [re.sub(r"\.(conv|bn)[12]\.", lambda m: swap[m[0]], n) if ".layer" in n else n for n in shapes]
    pairs = propose(Listing(listed({name: shapes[name] for name in order}), None)).pairs
    wrong = [pair for pair in pairs if pair.theirs.rpartition(".")[2] != pair.ours.rpartition(".")[2]]
    assert wrong
    assert not any(pair.certain for pair in wrong), wrong


def test_the_classifier(tmp_path, run):
    text = proposed(run, file(tmp_path, renamed("fc.weight", "top.weight", renamed("fc.bias", "top.bias"))))
    assert "top = fc" in text.splitlines()


def test_tensors_that_are_left(tmp_path, run):
    text = proposed(run, file(tmp_path, put("net.", STATE) | {"loss.weight": np.ones(77)}))
    assert "# not in the network: loss" in text.splitlines()


def test_a_prefix_selects(tmp_path, run):
    text = proposed(run, file(tmp_path, put("a.", THEIRS) | put("b.", THEIRS)), "--prefix", "b")
    assert "b.layer{s}.{b}.attention.squeeze.0 = layer{s}.{b}.se.fc1" in text
    assert "a.layer" not in text


def test_other_networks_are_refused(tmp_path, run):
    ran = run("names", file(tmp_path, {f"l{i}.weight": np.ones((3, 3)) for i in range(30)}))
    assert (ran.code, "its shapes match no known network; the nearest is" in ran.err) == (2, True), ran.err
    ran = run("inspect", tmp_path / "x.npz")
    assert f"`weights-convert names {tmp_path}/x.npz` proposes names for --names" in ran.err


def test_the_model_can_be_given(tmp_path, run):
    spec = changed(model_spec("resnet20"), {"num_classes": 7})
    arrays = {f"net.{n}": a for n, a in synthetic.weights(spec).items()}
    assert proposed(run, file(tmp_path, arrays), "--model", "resnet20").startswith(
        "# resnet20, by the shapes"
    )
    ran = run("names", file(tmp_path, STATE), "--model", "se_resnet18")
    assert ran.code == 2
    assert SPEC.attention == "se"
