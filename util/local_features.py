"""Local features from files: the HDF5 form, and the published pickled `.npy`, read without executing anything."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from util.names import match
from util.pickles import Array, load_pickled_npy
from utils import InputError, existing_file, some

SHAPE = (20, 20)
ADVICE = "make it with: python -m util.build_local (docs/REGIONS.md), or set dataset.local_path"


def load_local(path: str | os.PathLike, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Local features of the named images -> local_rep, local_adj, each (N, 20, 20) float32.

    `zeros` as path gives zeros. Raises InputError for a damaged file, for images without features (how many, the first
    five), and for features that are not finite or not 20 x 20.
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


READ_WITHIN = 60  # seconds


@functools.cache
def _try_hdf5(path: Path, bytes_and_time: tuple[int, int]) -> None:
    """On a damaged file the HDF5 library can loop for ever or crash: so a process of its own reads it first, once."""
    if "fork" not in multiprocessing.get_all_start_methods():
        return
    process = multiprocessing.get_context("fork").Process(target=_read_all, args=(path,))
    process.start()
    process.join(READ_WITHIN)
    if process.exitcode != 0:  # None: it is still at it
        process.kill()
        process.join()
        raise InputError(f"local features {path}: damaged; the HDF5 library cannot cope with it; {ADVICE}")


def _read_all(path: Path) -> None:
    with contextlib.suppress(Exception), h5py.File(path) as file:  # exceptions come again where they are reported
        for key in ("name", "local_rep", "local_adj"):
            _own(path, file, key)[:]


def _read_hdf5(path: Path, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    status = path.stat()
    _try_hdf5(path.absolute(), (status.st_size, status.st_mtime_ns))
    try:
        with h5py.File(path) as file:
            known = {name: row for row, name in enumerate(_own(path, file, "name").asstr()[:])}
            rows = [known[key] for key in _keys(path, names, known)]
            arrays = []
            for what in ("local_rep", "local_adj"):
                stored = _own(path, file, what)
                if stored.shape != (len(known), *SHAPE):
                    raise InputError(f"local features {path}: {what} has shape {stored.shape}, not (N, 20, 20)")
                if stored.dtype.kind not in "fiu":
                    raise InputError(f"local features {path}: {what} holds {stored.dtype}, not numbers")
                arrays.append(np.asarray(stored[:], np.float32)[rows])
            return arrays[0], arrays[1]
    except InputError:
        raise
    except BlockingIOError:
        raise InputError(f"local features {path}: another program has it open to write; try when it is done") from None
    except Exception as error:  # h5py raises errors of many kinds on damaged files
        if "unable to lock file" in str(error):
            raise InputError(
                f"local features {path}: its file system has no locks ({error}); set the environment variable "
                "HDF5_USE_FILE_LOCKING=FALSE"
            ) from None
        raise InputError(f"local features {path}: not the HDF5 form of docs/REGIONS.md, or damaged ({error})") from None


def _own(path: Path, file: h5py.File, key: str) -> h5py.Dataset:
    """A data set whose values stand in this very file. Raises InputError for one that HDF5 would fetch elsewhere."""
    stored = file[key]
    own = isinstance(file.get(key, getlink=True), h5py.HardLink) and not stored.external and not stored.is_virtual
    if not own:
        raise InputError(f"local features {path}: {key} takes its values from elsewhere; put them into the file")
    if stored.nbytes > 2000 * path.stat().st_size:  # packing saves a factor of 1032 at the very best
        raise InputError(f"local features {path}: {key} promises {stored.nbytes} bytes, more than the file can hold")
    return stored


def _read_npy(path: Path, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The published dict {'local_rep': {stem + '.txt': 20 x 20 lists}, 'adj_matrix': {...}}."""
    tree = load_pickled_npy(path)
    arrays = []
    for what in ("local_rep", "adj_matrix"):
        table = tree.get(what) if isinstance(tree, dict) else None
        if not isinstance(table, dict):
            raise InputError(f"local features {path}: no table {what!r}; not the published form")
        keys = _keys(path, names, [key for key in table if isinstance(key, str)])
        array = np.zeros((len(keys), *SHAPE), np.float32)
        for i, key in enumerate(keys):
            try:
                array[i] = _numbers(table[key])
            except (ValueError, TypeError, OverflowError) as error:
                raise InputError(f"local features {path}: {what} of {key}: {error}") from None
        arrays.append(array)
    return arrays[0], arrays[1]


def _numbers(table: Any) -> list | np.ndarray:
    """Nested lists of 20 x 20 numbers, or an array. Raises ValueError.

    Lists are looked at before NumPy is: one that holds itself many times over would keep it busy for ever.
    """
    if isinstance(table, Array):
        table = table.value
    rows = [row.value if isinstance(row, Array) else row for row in table] if isinstance(table, list) else table
    if isinstance(rows, np.ndarray):
        shape = rows.shape
    else:
        lengths = {len(row) for row in rows if isinstance(row, (list, tuple, np.ndarray))}
        shape = (len(rows), *lengths) if isinstance(rows, list) else ()
    if shape != SHAPE:
        raise ValueError(f"shape {shape}, not {SHAPE}")
    if any(type(value) not in (float, int) for row in rows if not isinstance(row, np.ndarray) for value in row):
        raise ValueError("not a table of numbers")
    return rows


def _keys(path: Path, names: Sequence[str], known: Iterable[str]) -> list[str]:
    """The file's key of each image. Raises InputError for images that have none."""
    keys = match(names, known, f"local features {path}")
    absent = [name for name, key in zip(names, keys, strict=True) if key is None]
    if absent:
        raise InputError(
            f"local features {path}: {len(absent)} of {len(keys)} images have none: {some(absent)}; {ADVICE}"
        )
    return [key for key in keys if key is not None]
