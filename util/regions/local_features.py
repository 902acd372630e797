"""Read local features: our HDF5 form, and the published pickled `.npy`, of which nothing is executed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from util.lists import match
from util.pickles import Array, load_pickled_npy
from utils import InputError, existing_file, some

SHAPE = (20, 20)
ADVICE = "make it with: python -m util.build_local (docs/data.md), or set dataset.local_path"


def load_local(path: str | os.PathLike, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return local_rep and local_adj of the named images, each (N, 20, 20) float32; zeros for the path `zeros`.

    Raise InputError for a damaged file, and for images whose features are missing, not finite or not 20 x 20.
    """
    if str(path) == "zeros":
        return np.zeros((len(names), *SHAPE), np.float32), np.zeros((len(names), *SHAPE), np.float32)
    path = existing_file(path, "local features", ADVICE)
    local_rep, local_adj = (_read_npy if path.suffix == ".npy" else _read_hdf5)(path, names)
    for what, array in (("local_rep", local_rep), ("local_adj", local_adj)):
        bad = [name for name, finite in zip(names, np.isfinite(array).all(axis=(1, 2)), strict=True) if not finite]
        if bad:
            raise InputError(f"local features {path}: {what} of {len(bad)} images is not finite: {some(bad)}")
    return local_rep, local_adj


def _read_hdf5(path: Path, names: Sequence[str]) -> tuple[np.ndarray, ...]:
    try:
        with h5py.File(path) as file:
            known = {name: row for row, name in enumerate(_dataset(path, file, "name").asstr()[:])}
            rows = [known[key] for key in _keys(path, names, known)]
            return tuple(_table(path, file, key, len(known))[rows] for key in ("local_rep", "local_adj"))
    except InputError:
        raise
    except Exception as error:  # h5py raises errors of many kinds on damaged files
        raise InputError(f"local features {path} cannot be read as HDF5 (docs/data.md): {error}") from None


def _table(path: Path, file: h5py.File, key: str, images: int) -> np.ndarray:
    stored = _dataset(path, file, key)
    if stored.shape != (images, *SHAPE) or stored.dtype.kind not in "fiu":
        raise InputError(f"local features {path}: {key} must be {images} x 20 x 20 numbers, got {stored}")
    return np.asarray(stored[:], np.float32)


def _dataset(path: Path, file: h5py.File, key: str) -> h5py.Dataset:
    """Return a data set whose values stand in this file. Raise InputError if HDF5 would fetch them elsewhere."""
    stored = file[key]
    if not isinstance(file.get(key, getlink=True), h5py.HardLink) or stored.external or stored.is_virtual:
        raise InputError(f"local features {path}: {key} takes its values from elsewhere; put them into the file")
    if stored.nbytes > 2000 * path.stat().st_size:  # packing saves a factor of 1032 at the very best
        raise InputError(f"local features {path}: {key} promises {stored.nbytes} bytes, more than the file can hold")
    return stored


def _read_npy(path: Path, names: Sequence[str]) -> tuple[np.ndarray, ...]:
    """Read the published dict {'local_rep': {stem + '.txt': 20 x 20 lists}, 'adj_matrix': {...}}."""
    tree = load_pickled_npy(path)
    arrays = []
    for what in ("local_rep", "adj_matrix"):
        table = tree.get(what) if isinstance(tree, dict) else None
        if not isinstance(table, dict):
            raise InputError(f"local features {path}: no table {what!r}; not the published form")
        keys = _keys(path, names, [key for key in table if isinstance(key, str)])
        try:
            arrays.append(np.array([_rows(path, key, table[key]) for key in keys], np.float32).reshape(-1, *SHAPE))
        except OverflowError:
            raise InputError(f"local features {path}: {what} holds an integer that is too large") from None
    return tuple(arrays)


def _rows(path: Path, key: str, table: Any) -> list[list[float]]:
    table = _listed(table)  # NumPy must not see it before it is checked: a list may hold itself many times over
    rows = [_listed(row) for row in table] if isinstance(table, list) else []
    sizes = [len(row) if isinstance(row, (list, tuple)) else 0 for row in rows]
    if sizes != [SHAPE[1]] * SHAPE[0] or any(type(value) not in (float, int) for row in rows for value in row):
        raise InputError(f"local features {path}: {key}: must be a table of 20 x 20 numbers")
    return rows


def _listed(value: Any) -> Any:
    value = value.value if isinstance(value, Array) else value
    return value.tolist() if isinstance(value, np.ndarray) else value


def _keys(path: Path, names: Sequence[str], known: Iterable[str]) -> list[str]:
    keys = match(names, known, f"local features {path}")
    absent = [name for name, key in zip(names, keys, strict=True) if key is None]
    if absent:
        raise InputError(
            f"local features {path}: {len(absent)} of {len(keys)} images have none: {some(absent)}; {ADVICE}"
        )
    return [key for key in keys if key is not None]
