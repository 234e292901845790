"""What a pickle would do, seen before it is done: each operation's effect on the stack, and nothing else.

Python's own unpickler, written in C, can be made to fill the memory, to loop for hours or to crash by a file
of a few kilobytes, whatever classes it may reach:

- a bare number says where in the memo a value goes, and the memo is made that long;
- an empty set takes one byte in the file and 200 in memory;
- a tuple's hash asks its members' hashes, as deep as they go: a million tuples within one another as a key
  end the process (the stack overflows);
- `hash(-1) == hash(-2)`: a dictionary of 100,000 tuples of these numbers is filled in minutes;
- a frame within a frame, longer than what is left of it, makes the unpickler skip that rest: what it runs is
  then not what is read here, so frames, which mean nothing, are taken out.
"""

from __future__ import annotations

import pickle
import pickletools
from typing import Any, NamedTuple

from weights_convert.limits import LimitReached, Limits

_PUT = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GET = {"GET", "BINGET", "LONG_BINGET"}
_ONTO = {"APPEND", "SETITEM", "BUILD", "APPENDS", "SETITEMS", "ADDITEMS"}  # what is below the rest changes
_PAIRS = {"SETITEM", "SETITEMS", "DICT"}
_MEMBERS = {"ADDITEMS", "FROZENSET"}
_TEXTS = {pickletools.pyunicode, pickletools.pystring, pickletools.pybytes, pickletools.pybytes_or_str}

FRAME_SIZE = 9  # bytes of the operation
_TEXT = -1  # the height of a text on the stack; of other values 0, of a container 1 more than its highest


class _Effect(NamedTuple):
    """What an operation takes from the stack and puts there."""

    name: str
    takes: int  # single values
    to_mark: bool  # and everything above the last mark, those included
    onto: bool
    result: int | None  # None: a container of what was taken
    puts: int


def _effect(opcode: pickletools.OpcodeInfo) -> _Effect:
    before = [kind for kind in opcode.stack_before if kind is not pickletools.stackslice]
    to_mark = pickletools.markobject in before
    onto = opcode.name in _ONTO
    takes = 1 if to_mark and onto else 0 if to_mark else len(before)
    texts = bool(opcode.stack_after) and opcode.stack_after[0] in _TEXTS
    result = _TEXT if texts else 0 if not before else None
    return _Effect(opcode.name, takes, to_mark, onto, result, len(opcode.stack_after))


_EFFECTS = {opcode.name: _effect(opcode) for opcode in pickletools.opcodes}


class _Machine:
    """The unpickler's stack, marks and memo, with heights in place of values."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._stack: list[int] = []
        self._marks: list[int] = []
        self._memo: dict[int, int] = {}
        self._odd_keys = 0

    def run(self, name: str, value: Any) -> None:
        stack = self._stack
        if name == "MARK":
            self._marks.append(len(stack))
        elif name in _GET:
            stack.append(self._memo.get(int(value), 0))
        elif name in _PUT:
            self._memo[len(self._memo) if value is None else int(value)] = stack[-1]
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "POP" and self._marks and self._marks[-1] == len(stack):
            self._marks.pop()
        else:
            self._operate(_EFFECTS[name])

    def _operate(self, effect: _Effect) -> None:
        stack = self._stack
        begin = self._marks.pop() if effect.to_mark else len(stack)
        begin -= effect.takes
        if begin < 0 or begin > len(stack):
            raise pickle.UnpicklingError("an operation on an empty stack")
        taken = stack[begin:]
        del stack[begin:]
        self._look_at_keys(effect, taken)
        if not effect.puts:
            return
        if effect.result is not None:
            stack.append(effect.result)
        elif effect.onto:
            stack.append(self._nested(taken[1:], taken[0]))
        else:
            stack.append(self._nested(taken))

    def _nested(self, inside: list[int], least: int = 0) -> int:
        height = max(least, 1 + max(inside, default=0), 1)
        if height > self._limits.max_depth:
            raise LimitReached("levels or more in a pickle", height, "max_depth", self._limits.max_depth)
        return height

    def _look_at_keys(self, effect: _Effect, taken: list[int]) -> None:
        if effect.name in _PAIRS:
            keys = taken[1 if effect.onto else 0 :: 2]
        elif effect.name in _MEMBERS:
            keys = taken[1 if effect.onto else 0 :]
        else:
            return
        self._odd_keys += len(keys) - keys.count(_TEXT)
        most = self._limits.max_tensors // 10
        if self._odd_keys > most:
            what = "keys or more in a pickle that are no texts"
            raise LimitReached(what, self._odd_keys, "max_tensors", most)


def check(file: Any, limits: Limits) -> list[int]:
    """Move behind one pickle; where its frames begin, from the file's start.

    Raises `UnpicklingError` or `LimitReached` for one that is not to be loaded.
    """
    machine, frames = _Machine(limits), []
    run = machine.run
    for count, (opcode, value, position) in enumerate(pickletools.genops(file)):
        if opcode.name == "FRAME":
            frames.append(position or 0)
            continue
        if opcode.name in _PUT and (value or 0) > count:
            raise pickle.UnpicklingError(f"memo index {value} after {count} operations")
        if count > limits.operations:
            raise LimitReached("operations or more in a pickle", count, "max_tensors", limits.operations)
        run(opcode.name, value)
    return frames
