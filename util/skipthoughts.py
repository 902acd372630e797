"""The published skip-thoughts folder (Kiros et al. 2015): word table and GRU weights of the text encoder."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from layers.gru import GRU
from layers.text_encoder import TextEncoder
from option.options import Seq2Vec
from util.device import free_main_memory
from util.pickles import GIB, load_pickled_npy, npy_header
from utils import InputError, atomic, one_at_a_time, read_text

logger = logging.getLogger("galr")

MOST = 6 * GIB  # of memory, while the published table is read
OVERHEAD = 1.3  # memory that a table takes, to its size on disk
URL = "http://www.cs.toronto.edu/~rkiros/models/"
FILES = {"u": ("dictionary.txt", "utable.npy", "uni_skip.npz"), "b": ("dictionary.txt", "btable.npy", "bi_skip.npz")}


def load_skipthoughts(encoder: TextEncoder, options: Seq2Vec, words: Sequence[str]) -> None:
    """Fill the text encoder from the folder `dir_st`: `u` files for UniSkip and BayesianUniSkip, `b` files for BiSkip.

    Words that the dictionary lacks take the row of `UNK` and are counted on standard output. Raises InputError that
    names missing, damaged or misshapen files.
    """
    folder = Path(options.dir_st)
    files = [folder / name for name in FILES["b" if options.type == "BiSkip" else "u"]]
    if absent := [path.name for path in files if not path.is_file()]:
        raise InputError(
            f"skip-thoughts folder (model.seq2vec.dir_st) {folder}: {', '.join(absent)} not there, which "
            f"{options.type} needs; published at {URL}, or set model.seq2vec.pretrained to false"
        )
    dictionary = read_dictionary(files[0])
    row = {word: i for i, word in enumerate(dictionary)}
    if "UNK" not in row:
        raise InputError(
            f"skip-thoughts file {files[0]}: UNK is missing, so these are not the words of dictionary.txt as it is "
            f"published; fetch it again from {URL}"
        )
    if lacking := [word for word in words if word not in row]:
        logger.info(f"{len(lacking)} of {len(words)} words are not in the skip-thoughts dictionary and take UNK")
    wanted = np.array([row.get(word, row["UNK"]) for word in words])
    table = table_rows(files[1], wanted, (len(dictionary), options.embedding_dim))
    with _reading(files[2]), np.load(files[2], allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files if name.startswith("encoder_")}
    with torch.no_grad():
        encoder.embedding.weight[1:] = torch.from_numpy(table)
        encoder.embedding.weight[0] = 0
        _fill(encoder.gru, arrays, "encoder_", files[2])
        if encoder.gru_backward is not None:
            _fill(encoder.gru_backward, arrays, "encoder_r_", files[2])


def read_dictionary(path: Path) -> list[str]:
    """Read the word of each row of the tables; white space at line ends is no part of it."""
    return [line.strip() for line in read_text(path, "skip-thoughts file").removesuffix("\n").split("\n")]


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise InputError that names the file, for whatever a damaged one raises inside."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"skip-thoughts file {path} is damaged ({error}); fetch it again from {URL}{path.name}"
        ) from None


# ---------------------------------------------------------------- the word table


def table_rows(path: Path, wanted: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Read the wanted rows (their numbers, from 0) of a word table of this shape -> (len(wanted), shape[1]) float32.

    A table of numbers is memory-mapped. The published form, a pickled array of rows, is read once into at most 6 GiB of
    memory, and the rows are kept for the next start. Raises InputError for a damaged or misshapen file.
    """
    with _reading(path), path.open("rb") as file:
        found, kind = npy_header(file)
    if found != (shape[:1] if kind.hasobject else shape):
        raise InputError(
            f"skip-thoughts file {path}: shape {found} instead of {shape}, the words of dictionary.txt and "
            f"embedding_dim; fetch both again from {URL}"
        )
    if kind.hasobject:
        rows = _kept_rows(path, wanted, shape)
    else:
        with _reading(path):
            rows = np.load(path, mmap_mode="r", allow_pickle=False)[wanted].astype(np.float32)
    if kind.kind not in "fO" or not np.isfinite(rows).all():
        raise InputError(f"skip-thoughts file {path} holds more than finite numbers")
    return rows


def _kept_rows(path: Path, wanted: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the rows that an earlier start kept, beside the table or in PyTorch's cache; or read and keep them."""
    status = path.stat()
    mark = f"{path.name} {status.st_size} {status.st_mtime_ns}".encode() + wanted.astype(np.int64).tobytes()
    folder = path.parent if os.access(path.parent, os.W_OK | os.X_OK) else Path(torch.hub.get_dir()) / "galr"
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f".{path.stem}_rows_{hashlib.sha256(mark).hexdigest()[:32]}.npy"
    with one_at_a_time(place):  # folds that start together
        with contextlib.suppress(Exception):  # none, or damaged, of which NumPy raises errors of many kinds
            rows = np.load(place, allow_pickle=False)
            if rows.dtype == np.float32 and rows.shape == (len(wanted), shape[1]):
                return rows
        rows = _pickled_rows(path, wanted, shape)
        with atomic(place) as temporary, temporary.open("wb") as file:
            np.save(file, rows)
    logger.info(f"the vocabulary's rows of {path.name} are kept in {place} for the next start")
    return rows


def _pickled_rows(path: Path, wanted: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Read the whole table, and return the wanted rows."""
    needed, there = path.stat().st_size * OVERHEAD, min(MOST, free_main_memory())
    if needed > there:
        raise InputError(
            f"skip-thoughts file {path} takes about {needed / GIB:.1f} GiB of memory to read, and {there / GIB:.1f} "
            "are there; start once on a larger machine, which keeps the vocabulary's rows beside it, or save it as a "
            "plain float32 array"
        )
    logger.info(f"reading {path.name}, once, into {needed / GIB:.1f} GiB of memory")
    with _reading(path):
        table = load_pickled_npy(path, "rows of", shape[:1], MOST)
        rows = [getattr(table[i], "value", None) for i in wanted]
        for row in rows:
            fits = isinstance(row, np.ndarray) and row.dtype.kind == "f" and row.shape in ((shape[1],), (1, shape[1]))
            if not fits:
                raise ValueError(f"a row is not {shape[1]} numbers: {getattr(row, 'shape', type(row).__name__)}")
    return np.array([row.reshape(-1) for row in rows], np.float32)


# ---------------------------------------------------------------- the GRU


def gru_shapes(size: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays: reset and update gate side by side, and the candidate apart (`x`)."""
    return {
        "W": (size, 2 * hidden),
        "Wx": (size, hidden),
        "U": (hidden, 2 * hidden),
        "Ux": (hidden, hidden),
        "b": (2 * hidden,),
        "bx": (hidden,),
    }


def _fill(gru: GRU, arrays: dict[str, np.ndarray], prefix: str, path: Path) -> None:
    size, hidden = gru.input_weight.shape[2], gru.input_weight.shape[1]
    a = {}
    for key, shape in gru_shapes(size, hidden).items():
        array = arrays.get(prefix + key)
        if array is None or array.shape != shape:
            found = "missing" if array is None else f"of shape {array.shape} instead of {shape}"
            raise InputError(f"skip-thoughts file {path}: {prefix + key} is {found}")
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise InputError(f"skip-thoughts file {path}: {prefix + key} holds more than finite numbers")
        a[key] = torch.from_numpy(array.astype(np.float32))
    gru.input_weight.copy_(torch.cat((a["W"], a["Wx"]), dim=1).T.reshape(3, hidden, size))
    gru.hidden_weight.copy_(torch.cat((a["U"], a["Ux"]), dim=1).T.reshape(3, hidden, hidden))
    gru.input_bias.copy_(torch.cat((a["b"], a["bx"])).reshape(3, hidden))
