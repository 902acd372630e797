"""The skip-thoughts tables as Python 2 pickled them: read once, kept for the next start, never executed."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import environment
from rehearsal import python_2_table

import util.skipthoughts
from util.skipthoughts import read_dictionary, table_rows
from utils import InputError

WIDTH = 620
FOUR = np.array([3, 0, 16, 3])


def pickled(path: Path, raw: bytes) -> Path:
    """Write a NumPy file of 17 rows with another pickle in it."""
    path.write_bytes(b"".join(python_2_table([], 17))[:128] + raw)
    return path


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((17, WIDTH)).astype(np.float32)


@pytest.fixture
def table(rows, tmp_path) -> Path:
    """Write the table as Python 2 saved it."""
    path = tmp_path / "utable.npy"
    path.write_bytes(b"".join(python_2_table(rows, 17)))
    return path


@pytest.fixture
def reads(monkeypatch) -> list[Path]:
    """Note the tables that are read as a whole, which takes a while."""
    seen, real = [], util.skipthoughts.load_pickled_npy

    def load(path: Path, *arguments) -> np.ndarray:
        seen.append(path)
        time.sleep(0.1)
        return real(path, *arguments)

    monkeypatch.setattr(util.skipthoughts, "load_pickled_npy", load)
    return seen


def four(table: Path, wanted: np.ndarray = FOUR) -> np.ndarray:
    return table_rows(table, wanted, (17, WIDTH))


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8"])
def test_rows_of_a_python_2_pickle_are_those_that_numpy_reads(kind, rows, tmp_path) -> None:
    path = tmp_path / "utable.npy"
    path.write_bytes(b"".join(python_2_table(rows, 17, kind)))
    careless = np.load(path, allow_pickle=True, encoding="latin1")
    assert [row.shape for row in careless[:2]] == [(WIDTH,), (1, WIDTH)]
    assert four(path).dtype == np.float32
    assert np.array_equal(four(path), np.stack([careless[i].reshape(WIDTH) for i in FOUR]).astype(np.float32))


def test_a_second_start_with_the_same_vocabulary_does_not_read_the_table_again(rows, table, reads) -> None:
    first = four(table)
    assert np.array_equal(four(table), first) and len(reads) == 1
    for other in (FOUR[::-1], FOUR[:3]):  # other vocabularies, one of the same size
        reads.clear()
        assert np.array_equal(four(table, other), rows[other]) and len(reads) == 1
    table.write_bytes(b"".join(python_2_table(-rows, 17)))
    os.utime(table, ns=(1, 1))  # another file
    assert np.array_equal(four(table), -first) and len(reads) == 2


def test_rows_that_were_kept_and_are_spoilt_are_read_again(rows, table) -> None:
    four(table)
    (kept,) = table.parent.glob(".utable_rows_*")
    for spoilt in (kept.read_bytes()[:50], b"", pickle.dumps(1)):
        kept.write_bytes(spoilt)
        assert np.array_equal(four(table), rows[FOUR])


def test_rows_of_a_folder_that_is_read_only_are_kept_in_pytorchs_cache(
    rows, table, tmp_path, monkeypatch, reads
) -> None:
    monkeypatch.setattr(os, "access", lambda folder, _: folder != tmp_path)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    four(table)
    assert len(list((tmp_path / "hub/galr").iterdir())) == 1 and not list(tmp_path.glob(".*"))
    assert np.array_equal(four(table), rows[FOUR]) and len(reads) == 1


def test_folds_that_start_together_read_the_table_once(rows, table, reads) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(four, [table] * 4))
    assert len(reads) == 1 and all(np.array_equal(one, rows[FOUR]) for one in found)


def test_a_table_that_does_not_fit_the_free_memory_is_refused_before_it_is_read(table, monkeypatch, reads) -> None:
    monkeypatch.setattr(util.skipthoughts, "free_main_memory", lambda: table.stat().st_size)
    with pytest.raises(InputError, match=r"utable\.npy .* GiB of memory to read, and 0\.0 are there"):
        four(table)
    assert not reads


def test_memory_to_read_a_table_is_the_tables_and_a_third(tmp_path) -> None:
    many, path = np.zeros((16000, WIDTH), np.float32), tmp_path / "utable.npy"
    path.write_bytes(b"".join(python_2_table(many, len(many))))
    tracemalloc.start()
    table_rows(path, FOUR, many.shape)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < util.skipthoughts.OVERHEAD * path.stat().st_size


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not say how much a process takes")
def test_a_pickle_that_would_unfold_beyond_the_limit_is_refused_and_the_limit_is_lifted(tmp_path) -> None:
    """In a process of its own: this one's heap may have room left from other tests."""
    path = pickled(tmp_path / "utable.npy", b"\x80\x02(" + b"}" * 8_000_000 + b"t.")
    program = f"""
import resource
from pathlib import Path

from util.pickles import load_pickled_npy

before = resource.getrlimit(resource.RLIMIT_AS)
try:
    load_pickled_npy(Path({str(path)!r}), "rows of", (17,), most=2**27)
finally:
    assert resource.getrlimit(resource.RLIMIT_AS) == before
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]  # nothing else was raised after it
    assert "InputError" in last and "it takes more than 0 GiB of memory" in last


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: raw[: len(raw) // 2], ""),
        (lambda raw: raw.replace(b"M\x6c\x02\x85", b"M\x6d\x02\x85"), "into shape (621,)"),
        (lambda raw: raw.replace(b"U\x02f4", b"U\x02i4"), "not 620 numbers"),
        (lambda raw: raw[:2] + b"(" * 10_000_000, ""),
        (lambda raw: raw[:2] + b"Nr\xff\xff\xff\x7f", "GiB of memory"),
        (lambda raw: pickle.dumps([np.zeros(WIDTH)] * 17, 3), "a pickled object array of shape (17,)"),
        (lambda raw: b"", ""),
    ],
    ids=["half", "too long", "whole numbers", "endless", "memo", "a list", "empty"],
)
def test_a_damaged_table_is_named(change, says, table) -> None:
    pickled(table, change(table.read_bytes()[128:]))
    with pytest.raises(InputError, match=r"utable\.npy") as error:
        four(table)
    assert says in str(error.value)


def test_the_dictionarys_lines_end_where_they_end(tmp_path) -> None:
    """White space at their ends is no part of a word, whether or not the last one ends; odd characters are none."""
    for text in ("a \nb\x85c\nUNK\n", "a\t\r\nb\x85c\r\nUNK"):
        (tmp_path / "dictionary.txt").write_bytes(text.encode())
        assert read_dictionary(tmp_path / "dictionary.txt") == ["a", "b\x85c", "UNK"]
