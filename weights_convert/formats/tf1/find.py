"""Finds the TF1 checkpoint of a path: a prefix, one of its files, a SavedModel, a directory's newest one."""

from __future__ import annotations

import re
from pathlib import Path

from weights_convert.formats.tf1.place import index_path

_FILE_OF_PREFIX = re.compile(r"(?P<prefix>.+)\.(index|data-[0-9]{5}-of-[0-9]{5})", re.DOTALL)
STATE = "checkpoint"  # a CheckpointState as protobuf text; its first line names the newest checkpoint
SAVED_MODEL, _VARIABLES = "saved_model.pb", "variables/variables"  # of TF2; the graph is not read
_STATE_LINE = re.compile(
    rb"""^[ \t]*model_checkpoint_path[ \t]*:[ \t]*(["'])((?:\\.|(?!\1)[^\\\n])+)\1""", re.MULTILINE
)
_STATE_ESCAPE = re.compile(rb"\\([0-7]{1,3}|.)")
_MAX_STATE_BYTES = 1 << 16


def is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # not permitted, or a name that is too long
        return False


def find_tf1_prefix(path: Path) -> Path | None:
    """The prefix of the checkpoint that `path` names, or None.

    `open_tf1` checks whether the files of that prefix exist and are valid.
    """
    path = Path(path)
    folder = path.parent if path.name == SAVED_MODEL else path
    if is_file(folder / SAVED_MODEL) and is_file(index_path(folder / _VARIABLES)):
        return folder / _VARIABLES
    one_of_its_files = _FILE_OF_PREFIX.fullmatch(path.name)
    if one_of_its_files and is_file(path):
        return path.with_name(one_of_its_files["prefix"])
    if is_file(path / STATE):
        return _prefix_in_state(path / STATE)
    return path if is_file(index_path(path)) and not is_file(path) else None


def _prefix_in_state(state: Path) -> Path | None:
    """The prefix in a file named `checkpoint`; beside that file, in case the directory has moved."""
    try:
        with state.open("rb") as file:
            line = _STATE_LINE.search(file.read(_MAX_STATE_BYTES))
        if line is None:
            return None
        named = Path(_STATE_ESCAPE.sub(_unescape, line[2]).decode())
    except (OSError, UnicodeDecodeError):
        return None
    # the file may come from another computer or from a stranger: only files beside it are used
    return state.parent / named.name if named.name else None


def _unescape(escape: re.Match[bytes]) -> bytes:
    return bytes([int(escape[1], 8) & 0xFF]) if escape[1].isdigit() else escape[1]
