"""Manifests: a file in any container matches its record, or every difference is named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from parity_tests.judge.synthetic import arrays_with


@pytest.fixture
def manifest(run, folder) -> Path:
    assert run("convert", "good.pth", "made.weights.h5", "--json", "manifest.json").code == 0
    return folder / "manifest.json"


@pytest.mark.quick
def test_a_converted_file_matches_its_manifest(run, manifest):
    ran = run("check", "manifest.json", "made.weights.h5")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("as recorded: ")
    for suffix in (".pth", ".npz", ".safetensors", ".ckpt"):  # in every container
        assert run("convert", "made.weights.h5", f"on{suffix}").code == 0
        assert run("check", "manifest.json", f"on{suffix}").code == 0
    facts = json.loads(manifest.read_text())
    assert facts["source"]["sha256"] == {
        "good.pth": hashlib.sha256(Path("good.pth").read_bytes()).hexdigest()
    }


def test_the_source_of_a_tensorflow_checkpoint_is_two_files(run, folder):
    assert run("convert", "good.ckpt", "x.pth", "--json", "manifest.json").code == 0
    facts = json.loads((folder / "manifest.json").read_text())
    assert set(facts["source"]["sha256"]) == {"good.ckpt.index", "good.ckpt.data-00000-of-00001"}


@pytest.mark.usefixtures("manifest")
def test_differences_are_named(run):
    changed = arrays_with({})
    changed["fc.bias"] = changed["fc.bias"] + 1
    changed["fc.weight"] = changed["fc.weight"].astype(np.float64)
    np.savez("other.npz", **changed)
    ran = run("check", "manifest.json", "other.npz")
    assert ran.code == 1
    assert "fc.bias\tother values" in ran.out
    assert "fc.weight\tfloat32 [8, 5] in the manifest, float64 [8, 5]" in ran.out
    assert "2 differences" in ran.out
    assert run("convert", "other.npz", "eps.pth", "--set", "bn_epsilon=0.001").code == 0
    assert (
        "(bn_epsilon)\t1e-05 in the manifest, 0.001 in the file"
        in run("check", "manifest.json", "eps.pth").out
    )


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"destination": 3, "tensors": [], "spec": {}}', "\x00"]
)
def test_other_files_are_refused(run, manifest, text):
    manifest.write_text(text)
    ran = run("check", "manifest.json", "made.weights.h5")
    assert (ran.code, len(ran.lines)) == (2, 1)
    assert "manifest.json: " in ran.err


@pytest.mark.usefixtures("folder")
def test_a_manifest_that_is_not_there(run):
    ran = run("check", "none.json", "good.pth")
    assert (ran.code, len(ran.lines)) == (2, 1)
