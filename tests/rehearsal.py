"""The published run on RSITMD, rehearsed with files in their published form and size; prints what it took.

    python tests/rehearsal.py --out DIR --lists DIR/rsitmd_precomp [--full]

Not part of the test suite: --full writes 6 GB and needs a machine to itself for some minutes. The suite rehearses it in
small (tests/test_rehearsal.py).
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

TABLES = """
import resource, sys, time
from pathlib import Path
import vocab
from util.skipthoughts import read_dictionary, table_rows
import numpy as np
words = vocab.load("vocab/rsitmd_vocab.json").words
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
dictionary = read_dictionary(Path("seq2vec/dictionary.txt"))
row = {word: i for i, word in enumerate(dictionary)}
table_rows(Path("seq2vec/utable.npy"), np.array([row.get(word, row["UNK"]) for word in words]), (len(row), WIDTH))
seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(f"the tables: {seconds:.1f} s, {(peak - before) / 1024:.0f} MiB more than the {before / 1024:.0f} before")
"""


def tables(folder: Path, width: int) -> str:
    """Seconds and memory of the tables alone, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    code = TABLES.replace("WIDTH", str(width))
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()[-1]


def run(folder: Path, command: str) -> float:
    """Run the command, showing what it says -> seconds until its first training step."""
    start, first = time.perf_counter(), 0.0
    with subprocess.Popen(["bash", "-c", command], cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            seconds = time.perf_counter() - start
            if line.startswith("epoch 0 batch 1/"):
                first = seconds
            print(f"{seconds:7.1f} s  {line}", end="", flush=True)
    if process.returncode:
        sys.exit(f"the run ended with status {process.returncode}")
    return first


def main() -> None:
    from util.make_rehearsal import FULL, SMALL, command, make_rehearsal

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--lists", type=Path, required=True, help="folder of RSITMD's captions and lists")
    parser.add_argument("--full", action="store_true", help="in the real size")
    given = parser.parse_args()
    size = FULL if given.full else SMALL
    make_rehearsal(given.out, given.lists, size)
    first = run(given.out, f"{command(size)} logs.print_freq=1")
    whole = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    for kept in (given.out / "seq2vec").glob(".utable_rows_*"):
        kept.unlink()
    print(f"from nothing to the first training step: {first:.1f} s; largest process: {whole / 1024:.0f} MiB")
    for start in ("first", "second"):
        print(f"{start} start, {tables(given.out, size.embedding)}")


if __name__ == "__main__":
    main()
