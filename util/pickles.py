"""NumPy files that hold a pickle, read without executing anything and in bounded memory."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from utils import InputError, one_line

GIB = 2**30


class Type:
    """Stand in for numpy.dtype: numbers and objects, nothing structured."""

    def __init__(self, kind: str, *_: object) -> None:
        if not isinstance(kind, str):
            raise pickle.UnpicklingError("it holds an array whose type is no name")
        self.dtype = np.dtype(kind)
        if self.dtype.kind not in "biufO":
            raise pickle.UnpicklingError(f"it holds an array of type {kind}")

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])

    def array(self, data: Any, shape: tuple, order: str) -> np.ndarray:
        if self.dtype.kind != "O":
            data = data.encode("latin1") if isinstance(data, str) else data  # a string of Python 2
            return np.frombuffer(data, self.dtype).reshape(shape, order=order)
        values = np.empty(len(data), object)
        for i, value in enumerate(data):
            values[i] = value
        return values.reshape(shape, order=order)


class Array:
    """Stand in for numpy.ndarray, whose own reader trusts the types and buffers of a pickle: a hostile one makes it
    take any bytes for the address of an object."""

    __slots__ = ("value",)

    def __init__(self, *_: object) -> None:
        self.value: Any = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, data = state
        self.value = kind.array(data, shape, "F" if fortran else "C")


def scalar(kind: Type, data: Any) -> Any:
    """Stand in for the function that makes NumPy's scalars: return a number of Python's own types."""
    if kind.dtype.kind == "O":
        raise pickle.UnpicklingError("it holds a scalar that is no number")
    return kind.array(data, (), "C").item()


class ArraysOnly(pickle.Unpickler):
    """Admit NumPy arrays, scalars and types, by stand-ins; refuse everything else that a pickle names."""

    STAND_INS = {("numpy", "ndarray"): Array, ("numpy", "dtype"): Type} | {
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", Array),
            ("multiarray", "scalar", scalar),
            ("numeric", "_frombuffer", lambda data, kind, shape, order: kind.array(data, shape, order)),
        )
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.STAND_INS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is neither an array nor a plain container")
        return self.STAND_INS[module, name]


def load_pickled_npy(path: Path, what: str = "local features", shape: tuple[int, ...] = (), most: int = 2 * GIB) -> Any:
    """Read the object array of this shape in a `.npy` file; of no dimensions (`np.save` of a dict), the object itself.

    Arrays within it come as objects whose `value` is the array. Raises InputError for a file that is damaged, that
    names anything but arrays and plain containers, or that takes more than `most` bytes of memory.
    """
    try:
        with path.open("rb") as file, memory_limit(most):
            header = npy_header(file)
            value = ArraysOnly(file, encoding="latin1").load()
        value = value.value if isinstance(value, Array) else value
        if header != (shape, np.dtype(object)) or (shape and getattr(value, "shape", None) != shape):
            raise ValueError(f"it must hold a pickled object array of shape {shape}")
        return value.item() if isinstance(value, np.ndarray) and not shape else value
    except MemoryError:
        reason = f"it takes more than {most / GIB:.0f} GiB of memory"
    except Exception as error:  # a hostile pickle can raise anything
        reason = one_line(error)
    raise InputError(f"{what} {path} were not read: {reason}")


@contextlib.contextmanager
def memory_limit(most: int) -> Iterator[None]:
    """Raise MemoryError inside when the process grows by more than `most` bytes (on Linux)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # another system
        yield
        return
    import resource  # there is none on Windows

    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + most
    resource.setrlimit(resource.RLIMIT_AS, (limit if before[1] < 0 else min(limit, before[1]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def npy_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Read shape and type of the array in a `.npy` file; the file then stands behind its header."""
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)  # later versions are for structured arrays alone
    return shape, dtype
