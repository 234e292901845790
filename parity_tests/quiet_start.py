"""Start frameworks from a command line without their start-up lines on stderr.

TensorFlow, oneDNN, XLA and CUDA report from native code which libraries and devices they found. Some of
these lines come before any setting is read. Only the command line calls this: a user's program keeps its own
settings.
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
    """Give `sys.stderr` a descriptor of its own, so that native output can be discarded beside it."""
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
    """Discard what native code writes to stderr; after an exception it is written after all."""
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
    """Import these frameworks and have them look for their devices, quietly.

    An import that fails is left to the import that needs it, which fails again.
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
