"""A conversion opens, recognises and parses its source once."""

from __future__ import annotations

import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parity_tests.judge.synthetic import position_coded, tiny
from weights_convert import convert, save
from weights_convert.formats import given as given_module
from weights_convert.formats import open_reader
from weights_convert.formats.given import Given
from weights_convert.identify import candidates

Counts = collections.Counter[str]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counts:
    """How often each of these is called for a source."""
    counts: Counts = collections.Counter()

    def count(module: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(module, name)

        def called(*args: Any, **keywords: Any) -> Any:
            counts[name] += 1
            return real(*args, **keywords)

        monkeypatch.setattr(module, name, called)

    for name in ("open_zip", "read_table", "find_tf1_prefix"):
        count(given_module, name)
    return counts


@pytest.mark.parametrize(
    ("suffix", "parsed"),
    [(".pth", "open_zip"), (".npz", "open_zip"), (".ckpt", "read_table"), (".safetensors", None)],
)
def test_a_source_is_parsed_once(tmp_path, counted, suffix, parsed):
    source = position_coded(tiny(attention="se"))
    save(source, tmp_path / f"a{suffix}")
    counted.clear()
    convert(tmp_path / f"a{suffix}", tmp_path / "b.weights.h5")
    # the destination, which is read back, is an .h5: neither a zip nor a table
    assert {name: counted[name] for name in ("open_zip", "read_table") if counted[name]} == (
        {parsed: 1} if parsed else {}
    )
    assert counted["find_tf1_prefix"] <= 2  # once for each of the two


def test_a_file_is_opened_once(tmp_path, monkeypatch):
    save(position_coded(tiny()), tmp_path / "a.npz")
    opened = []
    real = Path.open

    def count(self: Path, *args: Any, **keywords: Any) -> Any:
        opened.append(self.name)
        return real(self, *args, **keywords)

    monkeypatch.setattr(Path, "open", count)
    with open_reader(tmp_path / "a.npz"):
        assert opened == ["a.npz"]


def test_a_reader_closes_what_was_given(tmp_path):
    save(position_coded(tiny()), tmp_path / "a.npz")
    given = Given(tmp_path / "a.npz")
    open_reader(given).close()
    assert given.file.closed


def test_a_network_is_inferred_once_for_names_that_several_families_share(tmp_path, monkeypatch):
    """torch, torchvision, timm and others have the same names for a plain ResNet."""
    import numpy as np

    np.savez(tmp_path / "a.npz", **dict(position_coded(tiny())))
    calls = []
    real = candidates.INFERENCES["resnet"]
    monkeypatch.setitem(candidates.INFERENCES, "resnet", lambda shapes: calls.append(1) or real(shapes))
    convert(tmp_path / "a.npz", tmp_path / "b.npz", assume=True)
    assert len(calls) <= 2  # timm has two ways to name the projections
