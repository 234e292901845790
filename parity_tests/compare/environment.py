"""The environment of a run, recorded in every report: versions, flags, the processor."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("numpy", "torch", "keras", "tensorflow", "jax", "h5py", "safetensors", "ml_dtypes")
_VARIABLES = ("TF_ENABLE_ONEDNN_OPTS", "KERAS_BACKEND", "OMP_NUM_THREADS", "JAX_ENABLE_X64", "XLA_FLAGS")
_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile")


def environment() -> dict[str, Any]:
    """Versions of installed packages, flags, and the processor; imports nothing."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "versions": versions,
        "flags": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "cpu_features": _cpu_features(),
    }
    if (torch := sys.modules.get("torch")) is not None:
        facts["torch_threads"] = torch.get_num_threads()
    return facts


def _cpu_features() -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return []
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return [flag for flag in _CPU_FLAGS if flag in flags]
