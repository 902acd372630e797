"""Rows of a NumPy file that holds a pickled object array of rows: read as a stream, without executing anything.

The skip-thoughts tables are published so: a Python-2 pickle (protocol 2) of 930,000 arrays of shape (620,) or (1, 620),
2.3 GB. A walk over the opcodes notes where each row's bytes stand and passes over them; what is wanted is read then.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from util.pickles import Type

SHORT = 64  # bytes; a longer string is data, of which the place is kept
OPCODES_A_ROW = 60  # the published files need 15 to 25


class Place(NamedTuple):
    """Where in the file some bytes stand."""

    start: int
    length: int


class Row:
    """Stands in for numpy.ndarray: its shape, its type, and where its numbers stand (of the whole table: its rows)."""

    __slots__ = ("data", "kind", "shape")

    def __init__(self, *_: object) -> None:
        self.shape, self.kind, self.data = (), None, None

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, self.kind, _, self.data = state


STAND_INS = {
    "numpy.core.multiarray _reconstruct": Row,
    "numpy._core.multiarray _reconstruct": Row,
    "numpy ndarray": Row,
    "numpy dtype": Type,
}


def read_rows(
    file: BinaryIO, wanted: np.ndarray, rows: int, width: int, passed: Callable[[int], object] = lambda _: None
) -> np.ndarray:
    """The wanted rows (their numbers, from 0) of a pickled table of so many rows -> (len(wanted), width) float32.

    file: stands behind the NumPy header. passed: is told how many more rows have been passed, now and then.
    Raises ValueError, EOFError or UnpicklingError for anything else than a table of such rows; a damaged pickle may
    raise other errors too.
    """
    table = Walk(file, OPCODES_A_ROW * (rows + 20), passed).load()
    if not isinstance(table, Row) or not isinstance(table.data, list) or len(table.data) != rows:
        raise ValueError(f"not an array of {rows} rows")
    found = np.empty((len(wanted), width), np.float32)
    for at in np.argsort(wanted, kind="stable"):
        found[at] = _numbers(file, table.data[wanted[at]], width)
    return found


def _numbers(file: BinaryIO, row: Any, width: int) -> np.ndarray:
    if not isinstance(row, Row) or row.shape not in ((width,), (1, width)) or row.kind.dtype.kind != "f":
        raise ValueError(f"a row is not {width} numbers: {getattr(row, 'shape', type(row).__name__)}")
    if isinstance(row.data, Place):
        file.seek(row.data.start)
        raw = file.read(min(row.data.length, width * 8))
    else:  # of a narrow table
        raw = row.data.encode("latin1")
    if len(raw) != width * row.kind.dtype.itemsize:
        raise ValueError(f"a row does not hold the bytes of {width} numbers")
    return np.frombuffer(raw, row.kind.dtype)


class Walk:
    """A reader of the opcodes that arrays of numbers need; every other one, and every other name, is refused.

    most: opcodes that are read before the file is refused, so that memory is bounded by what the file claims to hold.
    """

    def __init__(self, file: BinaryIO, most: int, passed: Callable[[int], object]) -> None:
        self.file, self.read, self.most, self.passed = file, file.read, most, passed
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = []

    def load(self) -> Any:
        read = self.read
        for _ in range(self.most):
            opcode = read(1)
            if opcode == pickle.STOP:
                return self.stack.pop()
            if opcode not in OPCODES:
                raise EOFError("the file ends early") if not opcode else pickle.UnpicklingError(f"opcode {opcode!r}")
            OPCODES[opcode](self)
        raise pickle.UnpicklingError("more opcodes than a table of so many rows needs")

    # ---------------------------------------------------------------- numbers and strings

    def number(self, size: int) -> int:
        raw = self.read(size)
        if len(raw) != size:
            raise EOFError("the file ends early")
        return int.from_bytes(raw, "little")

    def string(self, size: int) -> None:
        """A short string is kept, as Latin-1; of a long one, its place."""
        length = self.number(size)
        if length <= SHORT:
            self.stack.append(self.read(length).decode("latin1"))
        else:
            self.stack.append(Place(self.file.tell(), length))
            self.file.seek(length, 1)

    def signed(self) -> None:
        self.stack.append(int.from_bytes(self.read(4), "little", signed=True))

    def name(self, module: str, name: str) -> None:
        if f"{module} {name}" not in STAND_INS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array")
        self.stack.append(STAND_INS[f"{module} {name}"])

    def global_name(self) -> None:
        module, name = (self.file.readline(SHORT)[:-1].decode("latin1") for _ in range(2))
        self.name(module, name)

    def stacked_name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(module, name)

    # ---------------------------------------------------------------- containers

    def since_mark(self) -> list[Any]:
        at = self.marks.pop()
        items = self.stack[at:]
        del self.stack[at:]
        return items

    def tuple_of(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.stack.append(items)

    def append(self) -> None:
        item = self.stack.pop()
        self.open_list().append(item)

    def extend(self) -> None:
        items = self.since_mark()
        self.open_list().extend(items)
        self.passed(len(items))

    def open_list(self) -> list[Any]:
        if not isinstance(self.stack[-1], list):
            raise pickle.UnpicklingError("something is appended to what is no list")
        return self.stack[-1]

    def put(self, index: int) -> None:
        if index > self.most:
            raise pickle.UnpicklingError("a memo beyond all opcodes")
        self.memo.extend([None] * (index + 1 - len(self.memo)))
        self.memo[index] = self.stack[-1]

    # ---------------------------------------------------------------- arrays and types

    def make(self) -> None:
        """An array, empty as yet, or a type, of its name."""
        arguments, stand_in = self.stack.pop(), self.stack.pop()
        if stand_in is Row:
            self.stack.append(Row())
        elif stand_in is Type and isinstance(arguments[0], str):
            self.stack.append(Type(arguments[0]))
        else:
            raise pickle.UnpicklingError("a call of what is neither array nor type")

    def fill(self) -> None:
        """Shape, type and place of an array; byte order of a type."""
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, (Row, Type)):
            raise pickle.UnpicklingError("a state of what is neither array nor type")
        target.__setstate__(state)


OPCODES: dict[bytes, Callable[[Walk], object]] = {
    pickle.PROTO: lambda walk: walk.number(1),
    pickle.FRAME: lambda walk: walk.number(8),
    pickle.NONE: lambda walk: walk.stack.append(None),
    pickle.NEWTRUE: lambda walk: walk.stack.append(True),
    pickle.NEWFALSE: lambda walk: walk.stack.append(False),
    pickle.BININT1: lambda walk: walk.stack.append(walk.number(1)),
    pickle.BININT2: lambda walk: walk.stack.append(walk.number(2)),
    pickle.BININT: Walk.signed,
    pickle.BINSTRING: lambda walk: walk.string(4),
    pickle.SHORT_BINSTRING: lambda walk: walk.string(1),
    pickle.BINUNICODE: lambda walk: walk.string(4),
    pickle.SHORT_BINUNICODE: lambda walk: walk.string(1),
    pickle.BINBYTES: lambda walk: walk.string(4),
    pickle.SHORT_BINBYTES: lambda walk: walk.string(1),
    pickle.GLOBAL: Walk.global_name,
    pickle.STACK_GLOBAL: Walk.stacked_name,
    pickle.MARK: lambda walk: walk.marks.append(len(walk.stack)),
    pickle.EMPTY_TUPLE: lambda walk: walk.stack.append(()),
    pickle.TUPLE: lambda walk: walk.stack.append(tuple(walk.since_mark())),
    pickle.TUPLE1: lambda walk: walk.tuple_of(1),
    pickle.TUPLE2: lambda walk: walk.tuple_of(2),
    pickle.TUPLE3: lambda walk: walk.tuple_of(3),
    pickle.EMPTY_LIST: lambda walk: walk.stack.append([]),
    pickle.APPEND: Walk.append,
    pickle.APPENDS: Walk.extend,
    pickle.BINPUT: lambda walk: walk.put(walk.number(1)),
    pickle.LONG_BINPUT: lambda walk: walk.put(walk.number(4)),
    pickle.MEMOIZE: lambda walk: walk.put(len(walk.memo)),
    pickle.BINGET: lambda walk: walk.stack.append(walk.memo[walk.number(1)]),
    pickle.LONG_BINGET: lambda walk: walk.stack.append(walk.memo[walk.number(4)]),
    pickle.REDUCE: Walk.make,
    pickle.BUILD: Walk.fill,
}
