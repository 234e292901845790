"""The effect of environment switches on accuracy: each network in each framework under each switch.

Every run is a separate process, because frameworks read most switches when they start. The reference is the
NumPy judge in float64. `python -m parity_tests.compare.sweep SWITCH CHECKPOINT IMAGES OUT` is one run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from parity_tests.judge import numpy_reference, tolerances
from weights_convert import Checkpoint, load, load_model, save


@dataclass(frozen=True)
class Switch:
    """One way to run a framework: environment variables, and a function that runs the model."""

    framework: str
    name: str
    run: Callable[[Any, np.ndarray], np.ndarray]
    variables: dict[str, str] = field(default_factory=dict)


@dataclass
class Cost:
    """The logits' error against the judge; None with a reason if the run failed."""

    framework: str
    switch: str
    float32: float | None = None
    float64: float | None = None
    reason: str = ""


def _torch(model: Any, x: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return model(torch.from_numpy(x)).numpy()


def _torch_channels_last(model: Any, x: np.ndarray) -> np.ndarray:
    import torch

    model = model.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        return model(torch.from_numpy(x).contiguous(memory_format=torch.channels_last)).numpy()


def _torch_without_onednn(model: Any, x: np.ndarray) -> np.ndarray:
    import torch

    with torch.backends.mkldnn.flags(enabled=False):
        return _torch(model, x)


def _torch_one_thread(model: Any, x: np.ndarray) -> np.ndarray:
    import torch

    torch.set_num_threads(1)
    return _torch(model, x)


def _torch_compiled(model: Any, x: np.ndarray) -> np.ndarray:
    import torch

    return _torch(torch.compile(model), x)


def _torch_tf32(model: Any, x: np.ndarray) -> np.ndarray:
    import torch

    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, bfloat16 where oneDNN supports it
    return _torch(model, x)


def _keras(model: Any, x: np.ndarray) -> np.ndarray:
    import keras

    return np.asarray(keras.ops.convert_to_numpy(model(x.transpose(0, 2, 3, 1), training=False)))


def _keras_predict(jit: bool) -> Callable[[Any, np.ndarray], np.ndarray]:
    def run(model: Any, x: np.ndarray) -> np.ndarray:
        model.compile(jit_compile=jit)
        return model.predict(x.transpose(0, 2, 3, 1), verbose=0)

    return run


def _tf1(network: Any, x: np.ndarray) -> np.ndarray:
    import tensorflow.compat.v1 as tf

    with tf.Graph().as_default(), tf.Session() as session:
        logits, _ = network(tf.constant(x.transpose(0, 2, 3, 1)))
        session.run(tf.global_variables_initializer())
        return session.run(logits)


_NO_ONEDNN = {"TF_ENABLE_ONEDNN_OPTS": "0"}
_XLA = {"TF_XLA_FLAGS": "--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit"}
_ONE = {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
SWITCHES = {
    f"{switch.framework}: {switch.name}": switch
    for switch in (
        Switch("torch", "as it is", _torch),
        Switch("torch", "channels_last", _torch_channels_last),
        Switch("torch", "oneDNN off", _torch_without_onednn),
        Switch("torch", "one thread", _torch_one_thread),
        Switch("torch", "TF32 allowed", _torch_tf32),
        Switch("torch", "torch.compile", _torch_compiled),
        Switch("keras", "as it is", _keras),
        Switch("keras", "oneDNN off", _keras, _NO_ONEDNN),
        Switch("keras", "one thread", _keras, _ONE),
        Switch("keras", "compiled", _keras_predict(False)),
        Switch("keras", "XLA", _keras_predict(True)),
        Switch("keras", "JAX backend", _keras, {"KERAS_BACKEND": "jax", "JAX_ENABLE_X64": "1"}),
        Switch("keras", "torch backend", _keras, {"KERAS_BACKEND": "torch"}),
        Switch("tf1", "as it is", _tf1),
        Switch("tf1", "oneDNN off", _tf1, _NO_ONEDNN),
        Switch("tf1", "one thread", _tf1, _ONE),
        Switch("tf1", "XLA", _tf1, _XLA),
    )
}


def sweep(
    checkpoint: Checkpoint,
    images: np.ndarray,
    frameworks: Iterable[str],
    say: Callable[[str], None] = lambda _: None,
) -> list[Cost]:
    """Run a network under every switch of these frameworks, in float32 and float64."""
    spec = checkpoint.spec
    reference = numpy_reference.network(images, checkpoint, spec)["logits"]
    chosen = {name: s for name, s in SWITCHES.items() if s.framework in frameworks}
    costs = []
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
        for dtype in ("float32", "float64"):
            save(checkpoint, Path(folder) / f"{dtype}.npz", dtype=dtype)
            np.save(Path(folder) / f"{dtype}.npy", images.astype(dtype))
        for name, switch in chosen.items():
            cost = Cost(switch.framework, switch.name)
            for dtype in ("float32", "float64"):
                say(f"{name}, {dtype}")
                logits, reason = _child(name, switch, Path(folder), dtype)
                if logits is None:
                    cost.reason = cost.reason or f"{dtype}: {reason}"
                else:
                    setattr(cost, dtype, tolerances.relative_error(logits, reference))
            costs.append(cost)
    return costs


def _child(name: str, switch: Switch, folder: Path, dtype: str) -> tuple[np.ndarray | None, str]:
    """One run in a separate process: the logits, or the reason why there are none."""
    out = folder / "logits.npy"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "parity_tests.compare.sweep", name]
    command += [str(folder / f"{dtype}.npz"), str(folder / f"{dtype}.npy"), str(out)]
    variables = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | switch.variables
    ran = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if ran.returncode or not out.exists():
        lines = [line for line in ran.stderr.splitlines() if line.strip()]
        return None, lines[-1][:200] if lines else f"exit {ran.returncode}"
    return np.load(out), ""


def _main(name: str, checkpoint: str, images: str, out: str) -> None:
    switch = SWITCHES[name]
    with load(checkpoint, assume=True) as source:  # refuse bad input before a framework is imported
        assert source.spec.network
    model = load_model(checkpoint, switch.framework, assume=True)
    np.save(out, switch.run(model, np.load(images)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
