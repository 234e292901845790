"""HDF5 that only its own library reads: runs `hdf5_library` in another process.

A file that makes the library loop, crash or damage memory affects only that process. This takes half a second
more than `hdf5_plain`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from weights_convert.errors import SourceError, WeightsConvertError
from weights_convert.formats.base import Reader, TensorInfo, fill, one_line
from weights_convert.formats.hdf5_plain import BFLOAT16
from weights_convert.limits import LimitError, Limits

_NUMBERS = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64"
DTYPES = {name: np.dtype(name) for name in _NUMBERS.split()} | {"bfloat16": BFLOAT16}
_SECONDS, _BYTES_PER_SECOND = 10, 50 * 2**20  # time limit of an answer
_PROGRAM = "weights_convert.formats.hdf5_library"


class ProcessReader(Reader):
    """A Keras file opened in another process, whose answers are as untrusted as the file.

    Args:
        path: the file.
        limits: limits for untrusted files.
        unusual: the reason why `hdf5_plain` does not read it.
    """

    format = "keras"

    def __init__(self, path: Path, limits: Limits, unusual: str):
        super().__init__(path, limits)
        self._unusual = unusual
        self.has(path.stat().st_size)
        request = {"path": str(path), "limits": dataclasses.asdict(limits)}
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _PROGRAM, json.dumps(request)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            raise self._failed(f"could not be started ({error.strerror})") from None
        try:
            self._list(self._answer(self.limits.bytes_of(self._size)))
        except BaseException:
            self.close()
            raise

    def _list(self, said: dict[str, Any]) -> None:
        try:
            for name, shape, dtype in said["tensors"]:
                if not all(type(n) is int and n >= 0 for n in shape):
                    raise ValueError(f"shape {shape}")
                self.add(str(name), TensorInfo(tuple(shape), DTYPES[dtype]))
            for name, why in said["left_out"].items():
                self.leave_out(name, str(why))
            self.metadata = dict(said["metadata"])
            self.networks = {str(name): dict(of) for name, of in said["networks"].items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._failed(f"gave an invalid answer ({one_line(error)})") from None

    def read(self, name: str) -> np.ndarray:
        info = self.tensors[name]
        raw = np.empty(info.nbytes, np.uint8)
        try:
            self._ask(name)
            self._answer(info.nbytes, raw)
        except WeightsConvertError:
            raise
        except BaseException:  # interrupted: bytes left in the pipe would look like the next tensor
            self._process.kill()
            if self._process.stdout:
                self._process.stdout.close()
            raise
        if info.dtype == bool:
            raw = (raw != 0).view(np.uint8)
        return raw.view(info.dtype).reshape(info.shape)

    def close(self) -> None:
        super().close()
        self._process.kill()
        with suppress(OSError), self._process:  # closes its pipes, maybe with an unread request, and waits
            pass

    def _ask(self, name: str) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(name).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:  # it has ended, detected below
            pass

    def _answer(self, nbytes: int, buffer: np.ndarray | None = None) -> dict[str, Any]:
        """The answer of the process within the time for `nbytes`; read the data that follow into `buffer`."""
        assert self._process.stdout
        seconds = min(_SECONDS + nbytes // _BYTES_PER_SECOND, threading.TIMEOUT_MAX)
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            said = json.loads(self._process.stdout.readline(4 * self.limits.text))
            if not isinstance(said, dict):
                raise ValueError(said)
            if "error" not in said and buffer is not None:
                fill(self._process.stdout, buffer.data)
        except (ValueError, EOFError, RecursionError):
            self._process.kill()  # it may still be running after an invalid answer
            code = self._process.wait()
            ended = f"was still reading after {seconds} s" if late.is_set() else f"ended with {code}"
            raise self._failed(ended) from None
        finally:
            timer.cancel()
        if "error" in said:
            raise (LimitError if said.get("limit") else SourceError)(str(said["error"]))
        return said

    def _failed(self, how: str) -> SourceError:
        return SourceError(
            f"{self.path}: HDF5 of a kind that Keras does not write ({self._unusual}), and the process that "
            f"reads it {how}; if you trust the file, save it again with Keras"
        )
