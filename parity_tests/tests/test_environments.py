"""The same tests in other environments, each in a separate process: oneDNN off, Keras on JAX and on torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

NETWORKS, TRAINING, KERAS = "test_networks.py", "test_train_mode.py", "test_keras_impl.py"
SECOND_DAY = [f"test_keras_{subject}.py" for subject in ("functional", "wrapped", "changes", "images")]
USED = "test_features_of or test_a_head_on or live and sequential or test_preprocessing_is"
FEW = "(senet or cbam or eca or avg_down or pool_same)"
BACKEND = "((test_fit_evaluate_predict or test_save_and_load or test_summary) and cbam)"
ALL_USED = " or ".join(file.removesuffix(".py") for file in SECOND_DAY)
# in an ordinary run: JAX compiles in half of the time; at level 0 it gives NaN in training
FAST = {"XLA_FLAGS": "--xla_backend_optimization_level=1"}
ENVIRONMENTS = {  # environment variables, files, tests in an ordinary run, all tests
    "oneDNN-off": (
        {"TF_ENABLE_ONEDNN_OPTS": "0"},
        [NETWORKS, TRAINING],
        "test_float32 and (bias_bn_grouped or outputs and grouped_se)",
        "grouped and (test_float32 or test_train_mode)",
    ),
    "jax-float64": (
        {"KERAS_BACKEND": "jax", "JAX_ENABLE_X64": "1"},
        [NETWORKS, TRAINING],
        "test_one_size or test_float64_outputs and grouped_cbam-keras",
        f"keras and test_float64 and ({FEW} or test_train_mode)",
    ),
    "jax": (
        {"KERAS_BACKEND": "jax"},
        [KERAS, *SECOND_DAY],
        f"test_fit_evaluate_predict and one_block or {USED}",
        f"{BACKEND} or {ALL_USED}",
    ),
    "torch": (
        {"KERAS_BACKEND": "torch"},
        [NETWORKS, TRAINING, KERAS, *SECOND_DAY],
        "test_float32 and (senet or outputs and grouped_cbam) or test_save_and_load_model and one_block "
        f"or test_features_follow or test_reset_classifier or {USED}",
        f"test_float32 or {BACKEND} or {ALL_USED}",
    ),
}


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_environment(name, every):
    environment, files, *selections = ENVIRONMENTS[name]
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "--no-header"]
    command += ["-m", ""] if every else []
    command += ["-k", selections[every], *(str(here / file) for file in files)]
    done = subprocess.run(
        command,
        cwd=here.parents[1],
        env=os.environ | ({} if every else FAST) | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert re.search(r"(?<!\d)[1-9]\d* passed", done.stdout), done.stdout[-500:]
    assert "skipped" not in done.stdout
