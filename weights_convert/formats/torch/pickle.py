"""The pickle in a PyTorch file: an interpreter that runs nothing from the file.

It is a loop over the operations, and checks each one before it builds a value. A file of a few kilobytes can
make Python's unpickler fill the memory, loop for hours or crash:

- a number in the file is an index into the memo, and the memo grows to that length;
- a tuple's hash needs its members' hashes, recursively: a key of a million nested tuples overflows the stack
  and ends the process, and a key of 60 tuples that each hold the next one twice takes 2**60 steps;
- `hash(-1) == hash(-2)`: filling a dictionary with 100,000 tuples of these numbers takes minutes;
- a list of 100,000 values, held in the memo, can be the argument of 100,000 calls.

A pickle names functions and classes to import and call. Here it can only call the functions of
`objects`.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Mapping, Sequence
from pickle import UnpicklingError
from typing import Any, BinaryIO

from weights_convert.formats.torch.objects import (
    FUNCTIONS,
    MADE_BY,
    ArrayType,
    Function,
    Opaque,
    StateDict,
    Storage,
    TensorRef,
    view,
)
from weights_convert.limits import DEFAULT, LimitReached, Limits

_NEWEST_PROTOCOL = 5
_MOST_NAMES = 10_000  # of classes that are not on the list; 30 in an honest training checkpoint
_LONGEST_NAME = 300


class _Interpreter:
    """The stack, marks and memo of a pickle. A value's depth is 1 more than its deepest member's."""

    def __init__(self, limits: Limits):
        self.storages: dict[str, Storage] = {}
        self._limits = limits
        self._stack: list[Any] = []
        self._depths: list[int] = []
        self._marks: list[int] = []
        self._memo: dict[int, tuple[Any, int]] = {}
        self._names: set[str] = set()
        self._count = self._arguments = self._odd_keys = 0

    def run(self, file: Any) -> Any:
        """The object of one pickle."""
        for opcode, argument, _ in pickletools.genops(file):
            name = opcode.name
            if self._count > self._limits.operations:
                raise self._too_many("operations or more in a pickle", self._count, self._limits.operations)
            if name in _ARGUMENTS:
                self._push(argument)
            elif name in _MOVES:
                _MOVES[name](self, argument)
            elif name in _VALUES:
                values, depths = self._take(*_TAKES[name])
                values = values if argument is None else [argument, *values]
                self._push(_VALUES[name](self, *values), 1 + max(depths, default=0))
            elif name in _CHANGES:
                values, (depth, *depths) = self._take(*_TAKES[name])
                _CHANGES[name](self, *values)
                self._push(values[0], max(depth, 1 + max(depths, default=0)))
            else:
                raise UnpicklingError(f"the operation {name}")
            self._count += 1
        return self._top()[0]

    @staticmethod
    def _too_many(what: str, found: int, most: int) -> LimitReached:
        return LimitReached(what, found, "max_tensors", most)

    # The stack and the memo

    def _push(self, value: Any, depth: int = 0) -> None:
        if depth > self._limits.max_depth:
            raise LimitReached("levels or more in a pickle", depth, "max_depth", self._limits.max_depth)
        self._stack.append(value)
        self._depths.append(depth)

    def _take(self, count: int, to_mark: bool = False) -> tuple[list[Any], list[int]]:
        """Remove the top `count` values, or those above a mark and `count` below it; and their depths."""
        begin = (self._marks.pop() if to_mark else len(self._stack)) - count
        if begin < self._bottom():
            raise UnpicklingError("an operation on an empty stack")
        taken = self._stack[begin:], self._depths[begin:]
        del self._stack[begin:], self._depths[begin:]
        return taken

    def _bottom(self) -> int:
        return self._marks[-1] if self._marks else 0

    def _top(self) -> tuple[Any, int]:
        if len(self._stack) == self._bottom():
            raise UnpicklingError("an operation on an empty stack")
        return self._stack[-1], self._depths[-1]

    def mark(self, _: None) -> None:
        self._marks.append(len(self._stack))

    def pop(self, _: None) -> None:
        mark_on_top = bool(self._marks) and self._bottom() == len(self._stack)
        self._take(0 if mark_on_top else 1, mark_on_top)

    def pop_mark(self, _: None) -> None:
        self._take(0, to_mark=True)

    def duplicate(self, _: None) -> None:
        self._push(*self._top())

    def put(self, index: int | None) -> None:
        index = len(self._memo) if index is None else index
        if index > self._count:
            raise UnpicklingError(f"memo index {index} after {self._count} operations")
        self._memo[index] = self._top()

    def get(self, index: int) -> None:
        self._push(*self._memo[index])

    def check_protocol(self, version: int) -> None:
        if version > _NEWEST_PROTOCOL:
            raise UnpicklingError(f"pickle protocol {version}")

    def ignore(self, _: Any) -> None:
        """A frame has no effect on values, and the last operation is `STOP`."""

    # Containers

    def new_tuple(self, *values: Any) -> tuple[Any, ...]:
        return values

    def new_list(self, *values: Any) -> list[Any]:
        return list(values)

    def new_dict(self, *items: Any) -> dict[Any, Any]:
        return dict(zip(self._keys(items[::2]), items[1::2], strict=True))

    def new_set(self, *members: Any) -> set[Any]:
        return set(self._keys(members))

    def new_frozenset(self, *members: Any) -> frozenset[Any]:
        return frozenset(self._keys(members))

    def extend(self, target: Any, *values: Any) -> None:
        if _is(target, list):
            target.extend(values)

    def set_items(self, target: Any, *items: Any) -> None:
        if _is(target, dict):
            target.update(self.new_dict(*items))

    def add(self, target: Any, *members: Any) -> None:
        if _is(target, set):
            target.update(self._keys(members))

    def _keys(self, keys: Sequence[Any]) -> Sequence[Any]:
        """The keys, with a limit for those that are not text: their hashes may collide or take long."""
        most = self._limits.max_tensors // 10
        waiting = [key for key in keys if type(key) not in (str, bytes)]
        self._odd_keys += len(waiting)
        while waiting and self._odd_keys <= most:
            if isinstance(key := waiting.pop(), tuple | frozenset):
                self._odd_keys += len(key)
                waiting += key
        if self._odd_keys > most:
            raise self._too_many("keys or more in a pickle that are not texts", self._odd_keys, most)
        return keys

    # Names and calls

    def named(self, module: Any, name: Any) -> Function | Opaque:
        if not isinstance(module, str) or not isinstance(name, str):
            raise UnpicklingError("a name that is not text")
        path = f"{module[:_LONGEST_NAME]}.{name[:_LONGEST_NAME]}"
        if path in ("builtins.getattr", "__builtin__.getattr"):
            return Function(path, self._attribute)
        if path in ("torch._tensor._rebuild_from_type", "torch._tensor._rebuild_from_type_v2"):
            return Function(path, lambda function, _kind, arguments, _state: self.call(function, arguments))
        return Function(path, FUNCTIONS[path]) if path in FUNCTIONS else self._opaque(MADE_BY.get(path, path))

    def named_in_one_text(self, text: str) -> Function | Opaque:
        return self.named(*text.split(" ", 1))

    def _attribute(self, owner: Any, name: Any) -> Opaque:
        """Nested classes are pickled as `getattr(Outer, "Inner")`."""
        if not isinstance(name, str):
            raise UnpicklingError("an attribute without a name")
        return self._opaque(f"{getattr(owner, 'path', 'object')}.{name[:_LONGEST_NAME]}")

    def _opaque(self, path: str) -> Opaque:
        path = path[:_LONGEST_NAME]
        self._names.add(path)
        if len(self._names) > _MOST_NAMES:
            raise UnpicklingError(f"more than {_MOST_NAMES} names of classes")
        return Opaque(path)

    def call(self, function: Any, arguments: Any, _keywords: Any = None) -> Any:
        if not isinstance(function, Function | Opaque) or not isinstance(arguments, tuple):
            raise UnpicklingError("a call of something that is not a function")
        if isinstance(function, Opaque):
            return Opaque(function.path)
        self._hand_over(arguments)
        return function.call(*arguments)

    def call_class(self, kind: Any, *arguments: Any) -> Any:
        return self.call(kind, arguments)

    def call_named(self, name: str, *arguments: Any) -> Any:
        return self.call(self.named_in_one_text(name), arguments)

    def set_state(self, target: Any, state: Any) -> None:
        if _is(target, StateDict | TensorRef | ArrayType):
            self._hand_over((state, state.get("_metadata") if isinstance(state, dict) else None))
            target.set_state(state)

    def _hand_over(self, arguments: tuple[Any, ...]) -> None:
        """Count the values that a function may look at, because one container may be given to many calls."""
        containers = (
            value for value in arguments if isinstance(value, tuple | list | dict | set | frozenset)
        )
        self._arguments += len(arguments) + sum(map(len, containers))
        if self._arguments > (most := self._limits.operations):
            raise self._too_many("arguments or more of the calls in a pickle", self._arguments, most)

    def persistent(self, identity: Any) -> Any:
        match identity:
            case ("module", kind, *_):  # a class and its source code, in whole models of the older form
                return kind
            case ("storage", kind, str() as key, _, int() as numel) | (
                "storage",
                kind,
                str() as key,
                _,
                int() as numel,
                _,
            ):
                storage = Storage(key, getattr(kind, "path", "unknown"), numel)
                self.storages.setdefault(key, storage)
                return view(storage, *identity[5:])
        raise UnpicklingError("a reference to something that is not a storage")


def _is(target: Any, kind: Any) -> bool:
    """Whether an operation changes `target`; not if it is a stand-in, and an error for anything else."""
    if not isinstance(target, kind | Opaque):
        raise UnpicklingError(f"an operation on a {type(target).__name__}")
    return not isinstance(target, Opaque)


def _takes(opcode: pickletools.OpcodeInfo) -> tuple[int, bool]:
    """How many values an operation takes, and whether also those above a mark."""
    kinds = opcode.stack_before
    to_mark = pickletools.markobject in kinds
    return (kinds.index(pickletools.markobject) if to_mark else len(kinds)), to_mark


def _each(operations: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    return {name: function for names, function in operations.items() for name in names.split()}


_TAKES = {opcode.name: _takes(opcode) for opcode in pickletools.opcodes}
_ARGUMENTS = {  # the value is the operation's argument in the file
    "NONE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_MOVES = _each(  # with that argument, or None
    {
        "NEWTRUE": lambda self, _: self._push(True),
        "NEWFALSE": lambda self, _: self._push(False),
        "MARK": _Interpreter.mark,
        "POP": _Interpreter.pop,
        "POP_MARK": _Interpreter.pop_mark,
        "DUP": _Interpreter.duplicate,
        "PUT BINPUT LONG_BINPUT MEMOIZE": _Interpreter.put,
        "GET BINGET LONG_BINGET": _Interpreter.get,
        "PROTO": _Interpreter.check_protocol,
        "FRAME STOP": _Interpreter.ignore,
    }
)
_VALUES = _each(  # a new value of the values taken
    {
        "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3": _Interpreter.new_tuple,
        "EMPTY_LIST LIST": _Interpreter.new_list,
        "EMPTY_DICT DICT": _Interpreter.new_dict,
        "EMPTY_SET": _Interpreter.new_set,
        "FROZENSET": _Interpreter.new_frozenset,
        "GLOBAL": _Interpreter.named_in_one_text,
        "STACK_GLOBAL": _Interpreter.named,
        "REDUCE NEWOBJ NEWOBJ_EX": _Interpreter.call,
        "OBJ": _Interpreter.call_class,
        "INST": _Interpreter.call_named,
        "BINPERSID": _Interpreter.persistent,
    }
)
_CHANGES = _each(  # the first of the values taken is changed by the others
    {
        "APPEND APPENDS": _Interpreter.extend,
        "SETITEM SETITEMS": _Interpreter.set_items,
        "ADDITEMS": _Interpreter.add,
        "BUILD": _Interpreter.set_state,
    }
)


class _Rest:
    """A file with reads limited to its remaining length: Python allocates before it reads."""

    def __init__(self, file: BinaryIO):
        self._file = file
        start = file.tell()
        self._end = file.seek(0, io.SEEK_END)
        file.seek(start)
        self.readline, self.tell = file.readline, file.tell

    def read(self, size: int) -> bytes:
        return self._file.read(min(size, self._end - self._file.tell()))


def load(file: BinaryIO, limits: Limits = DEFAULT) -> tuple[Any, dict[str, Storage]]:
    """Load one pickle, from the file's position to its end, and the storages that it refers to.

    Raises `UnpicklingError`, `LimitReached` or nearly any other exception for a damaged pickle.
    """
    interpreter = _Interpreter(limits)
    return interpreter.run(_Rest(file)), interpreter.storages
