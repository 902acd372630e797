"""The published skip-thoughts folder (Kiros et al. 2015): word table and GRU weights of the text encoder."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Sequence
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
    folder, kind = Path(options.dir_st), "b" if options.type == "BiSkip" else "u"
    dictionary_path, table_path, weights_path = (folder / name for name in FILES[kind])
    check_present(folder, kind, options.type)
    dictionary = read_dictionary(dictionary_path)
    row = {word: i for i, word in enumerate(dictionary)}
    if "UNK" not in row:
        raise InputError(
            f"skip-thoughts file {dictionary_path}: UNK is missing, so these are not the words of dictionary.txt as it "
            f"is published; fetch it again from {URL}"
        )
    lacking = [word for word in words if word not in row]
    if lacking:
        logger.info(f"{len(lacking)} of {len(words)} words are not in the skip-thoughts dictionary and take UNK")
    wanted = np.array([row.get(word, row["UNK"]) for word in words])
    table = table_rows(table_path, wanted, (len(dictionary), options.embedding_dim))
    arrays = _arrays(weights_path)
    with torch.no_grad():
        encoder.embedding.weight[1:] = torch.from_numpy(table)
        encoder.embedding.weight[0] = 0
        _fill(encoder.gru, arrays, "encoder_", folder)
        if encoder.gru_backward is not None:
            _fill(encoder.gru_backward, arrays, "encoder_r_", folder)


def check_present(folder: Path, kind: str, encoder: str) -> None:
    """Raise InputError if a file that this encoder needs is missing; it names all five that are missing."""
    absent = {k: [name for name in names if not (folder / name).is_file()] for k, names in FILES.items()}
    if not absent[kind]:
        return
    other = [name for name in absent["b" if kind == "u" else "u"] if name not in absent[kind]]
    raise InputError(
        f"skip-thoughts folder (model.seq2vec.dir_st) {folder}: {', '.join(absent[kind])} "
        f"{'is' if len(absent[kind]) == 1 else 'are'} not there, which {encoder} needs"
        + (f" ({', '.join(other)} neither, which {'BiSkip' if kind == 'u' else 'UniSkip'} would need)" if other else "")
        + f"; they are published at {URL}, or set model.seq2vec.pretrained to false"
    )


def read_dictionary(path: Path) -> list[str]:
    """Read the word of each row of the tables; white space at line ends is no part of it."""
    return [line.strip() for line in read_text(path, "skip-thoughts file").removesuffix("\n").split("\n")]


# ---------------------------------------------------------------- the word table


def table_rows(path: Path, wanted: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Read the wanted rows (their numbers, from 0) of a word table of this shape -> (len(wanted), shape[1]) float32.

    A table of numbers is memory-mapped. The published form, a pickled array of rows, is read once into at most 6 GiB of
    memory, and the rows are kept for the next start. Raises InputError for a damaged or misshapen file.
    """
    try:
        with path.open("rb") as file:
            found, kind = npy_header(file)
    except Exception as error:  # NumPy raises errors of many kinds on damaged files
        raise _damaged(path, error) from None
    if found != (shape[:1] if kind.hasobject else shape) or not (kind.hasobject or kind.kind == "f"):
        raise InputError(
            f"skip-thoughts file {path}: shape {found} instead of {shape}, the words of dictionary.txt and "
            f"embedding_dim; fetch both again from {URL}"
        )
    rows = _kept_rows(path, wanted, shape) if kind.hasobject else _plain_rows(path, wanted)
    if not np.isfinite(rows).all():
        raise InputError(f"skip-thoughts file {path} holds more than finite numbers")
    return rows


def _plain_rows(path: Path, wanted: np.ndarray) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)[wanted].astype(np.float32)
    except Exception as error:  # as above: the file is shorter than its header says
        raise _damaged(path, error) from None


def _kept_rows(path: Path, wanted: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the rows that an earlier start kept, beside the table or in PyTorch's cache; or read and keep them."""
    status = path.stat()
    mark = f"{path.name} {status.st_size} {status.st_mtime_ns}".encode() + wanted.astype(np.int64).tobytes()
    name = f"{path.stem}_rows_{hashlib.sha256(mark).hexdigest()[:32]}.npy"
    places = [path.with_name(f".{name}"), Path(torch.hub.get_dir()) / "galr" / name]

    def kept() -> np.ndarray | None:
        for place in places:
            with contextlib.suppress(Exception):  # none, or damaged, of which NumPy raises errors of many kinds
                rows = np.load(place, allow_pickle=False)
                if rows.dtype == np.float32 and rows.shape == (len(wanted), shape[1]):
                    return rows
        return None

    if (rows := kept()) is not None:
        return rows
    place = next((place for place in places if _can_hold_files(place.parent)), None)
    if place is None:
        logger.warning(f"the vocabulary's rows of {path.name} cannot be kept: every start reads the whole of it")
        return _pickled_rows(path, wanted, shape)
    with one_at_a_time(place):  # folds that start together
        if (rows := kept()) is None:
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
    try:
        table = load_pickled_npy(path, "rows of", shape[:1], MOST)
    except InputError as error:
        raise _damaged(path, error) from None
    rows = [getattr(table[i], "value", None) for i in wanted]
    for row in rows:
        fits = isinstance(row, np.ndarray) and row.dtype.kind == "f" and row.shape in ((shape[1],), (1, shape[1]))
        if not fits:
            raise _damaged(path, f"a row is not {shape[1]} numbers: {getattr(row, 'shape', type(row).__name__)}")
    return np.array([row.reshape(-1) for row in rows], np.float32)


def _can_hold_files(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


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


def _fill(gru: GRU, arrays: dict[str, np.ndarray], prefix: str, folder: Path) -> None:
    size, hidden = gru.input_weight.shape[2], gru.input_weight.shape[1]
    a = {}
    for key, shape in gru_shapes(size, hidden).items():
        array = arrays.get(prefix + key)
        if array is None or array.shape != shape:
            found = "is missing" if array is None else f"has shape {array.shape} instead of {shape}"
            raise InputError(f"skip-thoughts weights in {folder}: {prefix + key} {found}")
        if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
            raise InputError(f"skip-thoughts weights in {folder}: {prefix + key} holds more than finite numbers")
        a[key] = torch.from_numpy(array.astype(np.float32))
    gru.input_weight.copy_(torch.cat((a["W"], a["Wx"]), dim=1).T.reshape(3, hidden, size))
    gru.hidden_weight.copy_(torch.cat((a["U"], a["Ux"]), dim=1).T.reshape(3, hidden, hidden))
    gru.input_bias.copy_(torch.cat((a["b"], a["bx"])).reshape(3, hidden))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if name.startswith("encoder_")}
    except Exception as error:  # NumPy raises errors of many kinds on damaged files
        raise _damaged(path, error) from None


def _damaged(path: Path, error: object) -> InputError:
    return InputError(f"skip-thoughts file {path} is damaged ({error}); fetch it again from {URL}{path.name}")
