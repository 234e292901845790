"""Allowed imports: each implementation alone, the converter without a framework, and working copies."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FRAMEWORKS = {"torch", "tensorflow", "keras", "jax"}
HEAVY = FRAMEWORKS | {"rich", "h5py", "safetensors", "PIL", "matplotlib", "hypothesis", "pytest"}


def python(code: str, cwd: Path, **environment: str) -> str:
    """The output of a new interpreter, started in a folder without the project on its path."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_the_converter_imports_no_framework():
    code = f"import weights_convert, sys; print(sorted({HEAVY} & set(sys.modules)))"
    assert python(code, ROOT) == "[]"


def test_inspect_imports_nothing_that_it_does_not_need(tmp_path):
    """For output into a pipe neither rich, whose import takes 50 ms, nor h5py."""
    code = f"""
import sys
import numpy as np
from weights_convert import Checkpoint, save
from weights_convert.__main__ import main
path = {str(tmp_path)!r} + "/a.pth"
save(Checkpoint.from_arrays({{"conv.weight": np.zeros((1, 1, 3), np.float32)}}), path)
assert main(["inspect", path]) == 0
print(sorted({HEAVY} & set(sys.modules)))
"""
    assert python(code, ROOT).splitlines()[-1] == "[]"


def test_converting_imports_no_framework(tmp_path):
    """Also during a conversion through every container."""
    code = f"""
import sys
import numpy as np
from weights_convert import Checkpoint, convert, save
from weights_convert.spec import parameters, ResNetSpec
spec = ResNetSpec(depths=(1,), width=8, stem_width=8)
arrays = {{p.name: np.zeros(p.shape, np.float32) for p in parameters(spec) if p.role != "count"}}
folder = {str(tmp_path)!r}
save(Checkpoint.from_arrays(arrays), folder + "/a.pth")
previous = folder + "/a.pth"
for suffix in (".safetensors", ".npz", ".weights.h5", ".ckpt", ".pt"):
    convert(previous, folder + "/a" + suffix)
    previous = folder + "/a" + suffix
print(sorted({FRAMEWORKS} & set(sys.modules)))
"""
    assert python(code, ROOT) == "[]"


ALLOWED = {  # room -> the top-level modules that its files may import besides the standard library
    "torch_impl": {"torch"},
    "keras_impl": {"keras", "tensorflow", "jax", "numpy"},
    "tf1_compat": {"tensorflow", "numpy"},
    "weights_convert": {"weights_convert", "numpy", "h5py", "ml_dtypes"},
}
INSIDE = {  # allowed imports inside functions, or in files that only functions import
    "torch_impl": {"safetensors"},  # in a function that only huggingface_hub calls, which requires it
    "weights_convert": {"rich", "torch", "keras", "tensorflow", "torch_impl", "keras_impl", "tf1_compat"},
}


def imports(tree: ast.AST, *, top_level: bool) -> set[str]:
    nodes = ast.iter_child_nodes(tree) if top_level else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
    return found - set(sys.stdlib_module_names)


@pytest.mark.parametrize("room", ALLOWED)
def test_imports(room):
    adapters = {
        "torch_model.py",
        "keras_model.py",
        "tf1_session.py",
    }  # imported inside frameworks/__init__.py
    for path in (ROOT / room).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = ALLOWED[room] | INSIDE.get(room, set())
        assert imports(tree, top_level=False) <= inside, path
        if path.name not in adapters:
            assert imports(tree, top_level=True) <= ALLOWED[room], path


RUN = {
    "torch_impl": "import torch, torch_impl; y = torch_impl.cbam_resnet20()(torch.zeros(2, 3, 32, 32))",
    "keras_impl": "import numpy, keras_impl; y = keras_impl.cbam_resnet20()(numpy.zeros((2, 32, 32, 3)))",
    "tf1_compat": """
import tensorflow.compat.v1 as tf, tf1_compat
with tf.Graph().as_default():
    y, end_points = tf1_compat.cbam_resnet20(tf.zeros((2, 32, 32, 3)))
""",
}
ATTENTION = {
    "torch_impl": "import torch, attention; y = attention.CBAM(32)(torch.zeros(2, 32, 4, 4))",
    "keras_impl": "import numpy, attention; y = attention.CBAM()(numpy.zeros((2, 4, 4, 32)))",
    "tf1_compat": """
import tensorflow.compat.v1 as tf, attention
with tf.Graph().as_default():
    y = attention.cbam(tf.zeros((2, 4, 4, 32)))
""",
}
OTHERS = {  # TensorFlow itself imports Keras and, if installed, JAX
    "torch_impl": {"tensorflow", "keras", "jax"},
    "keras_impl": {"torch"},
    "tf1_compat": {"torch"},
}
PROJECT = {"torch_impl", "keras_impl", "tf1_compat", "weights_convert", "parity_tests"}


@pytest.mark.parametrize("room", RUN)
def test_a_copy_runs_alone(room, tmp_path):
    """First `attention.py` alone in a folder, then the package, in one process."""
    attention, package = tmp_path / "attention", tmp_path / "package"
    attention.mkdir()
    shutil.copy(ROOT / room / "attention.py", attention)
    shutil.copytree(ROOT / room, package / room, ignore=shutil.ignore_patterns("__pycache__"))
    others = (OTHERS[room] | PROJECT) - {room}
    code = f"""import sys
{ATTENTION[room]}
print(len(y.shape), sorted({PROJECT} & set(sys.modules)))
sys.path.insert(0, {str(package)!r})
{RUN[room]}
print(tuple(y.shape), sorted({others} & set(sys.modules)))
"""
    assert python(code, attention, KERAS_BACKEND="tensorflow") == "4 []\n(2, 10) []"


@pytest.mark.parametrize("file", ["attention.py", "blocks.py", "resnet.py"])
def test_the_three_files_hold_the_same_definitions(file):
    """The same classes in torch and Keras, and functions in TF1: the files can be read side by side."""

    def definitions(room: str) -> set[str]:
        tree = ast.parse((ROOT / room / file).read_text(encoding="utf-8"))
        found = {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
        return {name.lower().replace("_", "") for name in found}

    only_one = {"batchnormalization", "batchnorm", "dense", "mean", "channellayer", "openscope"}  # tools
    only_one |= {"maxpoolsame", "conv2d", "buildchain", "residualblock", "attentionandshortcut"}
    only_one |= {"checkinput", "checkgraph", "graphinput", "checkistraining", "uniform", "opennetwork"}
    only_one |= {"keepfrozen", "makehead", "makenorm"}
    only_one |= {"conv", "convolutionstride"}
    torch_, keras_, tf1_ = (
        definitions(room) - only_one for room in ("torch_impl", "keras_impl", "tf1_compat")
    )
    assert torch_ == keras_ == tf1_
