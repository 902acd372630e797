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
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # beside this folder, which is there as the script's own

from stand_ins import FULL, SMALL, command, make_rehearsal  # noqa: E402

TABLES = """
import time
from pathlib import Path
import numpy as np
import vocab
from stand_ins import FULL, SMALL
from util.skipthoughts import read_dictionary, table_rows

def peak():
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024

words = vocab.load("vocab/rsitmd_vocab.json").words
before, start = peak(), time.perf_counter()
row = {word: i for i, word in enumerate(read_dictionary(Path("seq2vec/dictionary.txt")))}
width = {size.dictionary: size.embedding for size in (SMALL, FULL)}[len(row)]
table_rows(Path("seq2vec/utable.npy"), np.array([row.get(word, row["UNK"]) for word in words]), (len(row), width))
print(f"{time.perf_counter() - start:.1f} s, {peak() - before:.0f} MiB more than the {before:.0f} of the libraries")
"""


def python(*arguments: str | Path, **options: Any) -> str:
    """Run Python in a process of its own -> the last line that it printed."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, **options)
    return done.stdout.splitlines()[-1]


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--lists", type=Path, required=True, help="folder of RSITMD's captions and lists")
    parser.add_argument("--full", action="store_true", help="in the real size")
    given = parser.parse_args()
    size = FULL if given.full else SMALL
    make_rehearsal(given.out, given.lists, size)
    first = run(given.out, f"{command(size)} logs.print_freq=1")
    whole = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"from nothing to the first training step: {first:.1f} s; largest process: {whole:.0f} MiB")
    for kept in (given.out / "seq2vec").glob(".utable_rows_*"):
        kept.unlink()
    for start in ("first", "second"):
        print(f"the tables at the {start} start: {python('-c', TABLES, cwd=given.out)}", flush=True)


if __name__ == "__main__":
    main()
