"""Kills a command at each of its steps on the file system, to get every state that a kill can leave.

    python -m parity_tests.tests.crashes START STATES ARGUMENT ...

For k = 0, 1, ... the folder START is copied to STATES/k, `weights-convert ARGUMENT ...` runs there, and
SIGKILL ends it before its k-th step. The last run takes at most k steps; its k and exit code are printed.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from weights_convert.__main__ import main

_STEPS = {"os.mkdir", "os.rmdir", "os.rename", "os.link", "os.remove", "os.chmod", "fcntl.flock"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Steps:
    """Counts this process's steps on the file system, and kills it before step number `last`."""

    def __init__(self, last: int):
        self._left = last
        fsync = os.fsync

        def counted(descriptor: int) -> None:
            self._step()
            fsync(descriptor)

        os.fsync = counted  # type: ignore[assignment]  # the only step without an audit event
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if event in _STEPS or (event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING):
            self._step()

    def _step(self) -> None:
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1


def _main(start: str, states: str, *arguments: str) -> None:
    out, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    Path(states).mkdir()
    for number in itertools.count(-1):
        folder = Path(states) / str(number)
        subprocess.run(["cp", "-a", start, folder], check=True)  # keeps hard links
        if number < 0:  # in this process, so that its imports are ready for the children
            _run_here(folder, arguments)
            shutil.rmtree(folder)
        elif (result := _run_to(number, folder, arguments)) is not None:
            os.write(out, f"{number} {result}\n".encode())
            return


def _run_here(folder: Path, arguments: Sequence[str]) -> int:
    before = Path.cwd()
    os.chdir(folder)
    code = main(arguments)
    os.chdir(before)
    return code


def _run_to(last: int, folder: Path, arguments: Sequence[str]) -> int | None:
    """Run the command in a separate process; return its exit code, None if it was killed."""
    child = os.fork()
    if child == 0:
        Steps(last)
        os._exit(_run_here(folder, arguments))
    status = os.waitpid(child, 0)[1]
    return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    _main(*sys.argv[1:])
