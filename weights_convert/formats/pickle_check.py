"""Checks a pickle before loading it: simulates the effect of each operation on the stack, and nothing else.

A file of a few kilobytes can make Python's unpickler, written in C, fill the memory, loop for hours or crash,
even
if it may not import any class:

- a number in the file is an index into the memo, and the memo grows to that length;
- an empty set takes one byte in the file and 200 in memory;
- a tuple's hash needs its members' hashes, recursively: a key of a million nested tuples overflows the stack
and
  ends the process;
- `hash(-1) == hash(-2)`: filling a dictionary with 100,000 tuples of these numbers takes minutes;
- a frame inside a frame that is longer than the rest of the outer frame makes the unpickler skip this rest:
it
  would run other operations than those checked here. Frames have no effect on values and are removed.
"""

from __future__ import annotations

import pickle
import pickletools
from typing import Any, NamedTuple

from weights_convert.limits import LimitReached, Limits

_PUT = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GET = {"GET", "BINGET", "LONG_BINGET"}
_ONTO = {"APPEND", "SETITEM", "BUILD", "APPENDS", "SETITEMS", "ADDITEMS"}  # they change the value below
_PAIRS = {"SETITEM", "SETITEMS", "DICT"}
_MEMBERS = {"ADDITEMS", "FROZENSET"}
_TEXTS = {pickletools.pyunicode, pickletools.pystring, pickletools.pybytes, pickletools.pybytes_or_str}

FRAME_SIZE = 9  # bytes of the operation
_TEXT = -1  # height of a text on the stack; other values have 0, a container 1 more than its highest member


class _Effect(NamedTuple):
    """The values that an operation pops from the stack and pushes."""

    name: str
    takes: int  # single values
    to_mark: bool  # also everything above the last mark, which includes the single values
    onto: bool
    result: int | None  # None: a container of the popped values
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
            what = "keys or more in a pickle that are not texts"
            raise LimitReached(what, self._odd_keys, "max_tensors", most)


def check(file: Any, limits: Limits) -> list[int]:
    """Read one pickle to its end and return the positions of its frames.

    Raises `UnpicklingError` or `LimitReached` for a pickle that must not be loaded.
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
