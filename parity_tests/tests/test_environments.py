"""The same tests elsewhere, each in a process of its own: oneDNN off, Keras on JAX and on torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

NETWORKS, TRAINING, KERAS = "test_networks.py", "test_train_mode.py", "test_keras_impl.py"
FEW = "(senet or cbam or eca or avg_down or pool_same)"
BACKEND = "((test_fit_evaluate_predict or test_save_and_load or test_summary) and cbam)"
ENVIRONMENTS = [  # what differs in the environment, the files, and the tests in them
    pytest.param(
        {"TF_ENABLE_ONEDNN_OPTS": "0"},
        [NETWORKS, TRAINING],
        "grouped and (test_float32 or test_train_mode)",
        id="oneDNN-off",
    ),
    pytest.param(
        {"KERAS_BACKEND": "jax", "JAX_ENABLE_X64": "1"},
        [NETWORKS, TRAINING],
        f"keras and test_float64 and not one_size and ({FEW} or test_train_mode)",
        id="jax-float64",
    ),
    pytest.param({"KERAS_BACKEND": "jax"}, [KERAS], BACKEND, id="jax"),
    pytest.param(
        {"KERAS_BACKEND": "torch"}, [NETWORKS, TRAINING, KERAS], f"test_float32 or {BACKEND}", id="torch"
    ),
]


@pytest.mark.parametrize(("environment", "files", "selection"), ENVIRONMENTS)
def test_environment(environment, files, selection):
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "--no-header"]
    done = subprocess.run(
        [*command, "-k", selection, *(str(here / file) for file in files)],
        cwd=here.parents[1],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert re.search(r"(?<!\d)[1-9]\d* passed", done.stdout), done.stdout[-500:]
    assert "skipped" not in done.stdout
