"""TensorFlow, an optimiser step of PyTorch and its compiler in one process, in either order of imports.

Without `import_order` the process crashes if TensorFlow comes first and triton second. Each order runs in a
separate process.
"""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest

from parity_tests.tests.test_isolation import ROOT

FOLDERS = ("torch_impl", "keras_impl", "tf1_compat", "weights_convert")
IMPORTS = ("torch", "tensorflow", "keras", "jax", "torch_impl", "keras_impl", "tf1_compat")
PLAIN = [("tensorflow", "torch")]  # the order that crashes without `import_order`
REST = [pair for pair in itertools.permutations(IMPORTS, 2) if pair not in PLAIN]
# an optimiser's step and the compiler import triton
AFTERWARDS = """
import keras_impl, tf1_compat, torch, torch_impl
model = torch_impl.se_resnet20(depths=(1,))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
model(torch.zeros(2, 3, 8, 8)).sum().backward()
optimizer.step()
assert torch.compile(lambda x: x + 1)(torch.zeros(1)).item() == 1
print("done")
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_text_is_the_same_in_each_folder():
    texts = {(ROOT / folder / "import_order.py").read_text(encoding="utf-8") for folder in FOLDERS}
    assert len(texts) == 1


@pytest.mark.parametrize(
    "pair", [*PLAIN, *(pytest.param(pair, marks=pytest.mark.exhaustive) for pair in REST)], ids="-".join
)
def test_either_order(pair):
    done = run(f"import {pair[0]}\nimport {pair[1]}\n{AFTERWARDS}")
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-2000:]


def test_a_package_of_ours_decides_before_tensorflow_comes():
    """torch_impl imports triton at once if TensorFlow is installed, since the user may import it later."""
    code = "import sys, torch_impl; assert 'tensorflow' not in sys.modules; print('triton' in sys.modules)"
    wanted = run("from importlib.util import find_spec; print(find_spec('triton') is not None)").stdout
    assert run(code).stdout == wanted


def test_a_gpu_without_triton_is_one_clear_error(monkeypatch):
    import torch

    from torch_impl.inference import _check_compiler

    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(RuntimeError, match="import torch_impl before TensorFlow, or pass compile=False"):
        _check_compiler(torch.device("cuda"))
    _check_compiler(torch.device("cpu"))
