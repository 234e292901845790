"""The same tests elsewhere, each in a process of its own: oneDNN off, Keras on JAX and on torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

NETWORKS, TRAINING, KERAS = "test_networks.py", "test_train_mode.py", "test_keras_impl.py"
FEW = "keras and (senet or cbam or eca-keras or avg_down or pool_same) and not other_sizes"
BACKEND = "(test_fit_evaluate_predict or test_save_and_load or test_summary) and cbam"
ENVIRONMENTS = [
    pytest.param({"TF_ENABLE_ONEDNN_OPTS": "0"}, [TRAINING], "grouped", id="oneDNN-off-training"),
    pytest.param(
        {"TF_ENABLE_ONEDNN_OPTS": "0"}, [NETWORKS], "test_float32 and 33 and grouped", id="oneDNN-off"
    ),
    pytest.param(
        {"KERAS_BACKEND": "jax", "JAX_ENABLE_X64": "1"},
        [NETWORKS],
        f"test_float64 and {FEW}",
        id="jax-float64",
    ),
    pytest.param(
        {"KERAS_BACKEND": "jax", "JAX_ENABLE_X64": "1"},
        [TRAINING],
        "test_float64 and keras",
        id="jax-float64-training",
    ),
    pytest.param({"KERAS_BACKEND": "jax"}, [KERAS], BACKEND, id="jax-keras"),
    pytest.param({"KERAS_BACKEND": "torch"}, [NETWORKS], "test_float32 and 33", id="torch-float32"),
    pytest.param({"KERAS_BACKEND": "torch"}, [TRAINING], "test_float32", id="torch-float32-training"),
    pytest.param({"KERAS_BACKEND": "torch"}, [KERAS], BACKEND, id="torch-keras"),
]


@pytest.mark.parametrize(("environment", "files", "selection"), ENVIRONMENTS)
def test_environment(environment, files, selection):
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header", "-k", selection]
    done = subprocess.run(
        [*command, *(str(here / file) for file in files)],
        cwd=here.parent,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert re.search(r"(?<!\d)[1-9]\d* passed", done.stdout), done.stdout[-500:]
    assert "skipped" not in done.stdout
