"""Start frameworks from a command line without their start-up lines on stderr.

The native code of TensorFlow, oneDNN, XLA and CUDA reports libraries and devices, partly before it reads any
setting. Only the command line calls this module; a user's program keeps its own settings.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

_MODULES = {"torch": ["torch", "torch_impl"], "keras": ["keras_impl"], "tf1": ["tf1_compat"]}
_STDERR = 2  # the file descriptor that native code writes to


@contextmanager
def python_stderr_apart() -> Iterator[None]:
    """Give `sys.stderr` its own descriptor, so that native output can be discarded separately."""
    before = sys.stderr
    try:
        own = before.fileno() == _STDERR
    except (OSError, ValueError, AttributeError):  # replaced by a test, or closed
        own = False
    if not own:
        yield
        return
    sys.stderr = os.fdopen(os.dup(_STDERR), "w", buffering=1, encoding=before.encoding, errors=before.errors)
    try:
        yield
    finally:
        sys.stderr.close()
        sys.stderr = before


@contextmanager
def _native_stderr_discarded() -> Iterator[None]:
    """Discard native output to stderr; write it after an exception."""
    before = os.dup(_STDERR)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), _STDERR)
        try:
            yield
        except BaseException:
            file.seek(0)
            os.write(before, file.read())
            raise
        finally:
            os.dup2(before, _STDERR)
            os.close(before)


def start(frameworks: Iterable[str]) -> None:
    """Import these frameworks quietly and let them find their devices.

    A failing import is ignored here: the import that needs the framework fails again.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with suppress(Exception), _native_stderr_discarded(), warnings.catch_warnings():
        # a CUDA build of PyTorch without a driver warns when it first counts the devices
        warnings.filterwarnings("ignore", "CUDA initialization", UserWarning)
        for name in [module for framework in frameworks for module in _MODULES[framework]]:
            importlib.import_module(name)
        if torch := sys.modules.get("torch"):
            torch.cuda.device_count()
            torch.cuda.is_available()
        if tensorflow := sys.modules.get("tensorflow"):
            tensorflow.config.list_physical_devices()
