"""NumPy files that hold a pickle, read without executing anything."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from utils import InputError


class Type:
    """Stands in for numpy.dtype: numbers and objects, nothing structured."""

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
    """Stands in for numpy.ndarray, whose own reader trusts the types and buffers of a pickle: a hostile one makes it
    take any bytes for the address of an object."""

    def __init__(self, *_: object) -> None:
        self.value: Any = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, data = state
        self.value = kind.array(data, shape, "F" if fortran else "C")


def scalar(kind: Type, data: Any) -> Any:
    """Stands in for the function that makes NumPy's scalars: a number, of Python's own types."""
    if kind.dtype.kind == "O":
        raise pickle.UnpicklingError("it holds a scalar that is no number")
    return kind.array(data, (), "C").item()


class ArraysOnly(pickle.Unpickler):
    """Admits NumPy arrays, scalars and types, by its own stand-ins; everything else that a pickle names is refused."""

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


def load_pickled_npy(path: Path) -> Any:
    """The object in a `.npy` file of no dimensions (`np.save` of a dict), read without executing anything.

    Arrays within it come as objects whose `value` is the array.
    """
    try:
        with path.open("rb") as file:
            shape, kind = npy_header(file)
            if shape != () or kind != np.dtype(object):
                raise ValueError(f"expected one pickled dict, found an array of shape {shape} and type {kind}")
            value = ArraysOnly(file, encoding="latin1").load()
            return value.value.item() if isinstance(value, Array) else value
    except InputError:
        raise
    except Exception as error:  # a hostile pickle can raise anything
        raise InputError(f"local features {path} were not read: {' '.join(str(error).split())[:200]}") from None


def npy_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array in a `.npy` file; the file then stands behind its header."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype
