"""Measure kinds of index of Milvus Lite: time to build and to ask, memory, and recall against the exact ranking.

    python -m docs.notes.search_time --rows 200000

The vectors lie around centres, a hundred around each. A query is one of them with noise, its cosine with that one near
0.4, as a sentence's with its picture. Each kind is built and asked in a process of its own; prints a table.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from bench import measured
from search.store import FLAT, ROWS, SCAN, Mark, Record, open_index, vector_index

CHUNK, QUERIES, TOP = 2000, 20, 20
KINDS = {  # the index, and the parameters of a query
    "FLAT": (FLAT, {}),
    "IVF_FLAT, 1 list": (SCAN, {}),
    "IVF_FLAT, 16 of 128 lists": (SCAN | {"params": {"params": {"nlist": 128}}}, {"nprobe": 16}),
    "HNSW, M 16, ef 64": (FLAT | {"index_type": "HNSW"}, {"ef": 64}),
}


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def chunks(rows: int, dim: int) -> Iterator[np.ndarray]:
    """Yield unit vectors (at most CHUNK, dim) float32, the same at every call."""
    centres = unit(np.random.default_rng(0).standard_normal((rows // 100 + 1, dim), np.float32))
    for start in range(0, rows, CHUNK):
        rng, number = np.random.default_rng([1, start]), min(CHUNK, rows - start)
        noise = 0.04 * rng.standard_normal((number, dim), np.float32)
        yield unit(centres[rng.integers(len(centres), size=number)] + noise)


def write(path: str, rows: int, dim: int) -> None:
    with open_index(path, create=True) as index:
        mark = Mark("m", "0" * 64, {"model": {}}, ["plane"], {}, "images", dim, [512], None, 2.0)
        index.write_mark(mark)
        for i, chunk in enumerate(chunks(rows, dim)):
            index.put([Record(f"{CHUNK * i + j}.png", 1, 1, 0, 8, 0, 8, 1) for j in range(len(chunk))], chunk)
        index.complete(mark)


def build(path: str, kind: str) -> None:
    with open_index(path) as index:
        index.client.release_collection(ROWS)
        index.client.drop_index(ROWS, "vector")
        index.client.create_index(ROWS, vector_index(KINDS[kind][0]))
        index.client.load_collection(ROWS)


def ask(path: str, kind: str, rows: int, dim: int) -> tuple[float, float]:
    """Return the median time of a query in seconds, and the mean share of the exact ranking's rows that it finds."""
    noise = np.random.default_rng(2).standard_normal((QUERIES, dim), np.float32)
    asked = unit(next(chunks(rows, dim))[:QUERIES] + 0.1 * noise)
    scores = np.concatenate([asked @ chunk.T for chunk in chunks(rows, dim)], axis=1)
    seconds, shares = [], []
    with open_index(path) as index:
        for vector, best in zip(asked, np.argsort(-scores, axis=1)[:, :TOP], strict=True):
            start = time.perf_counter()
            how = {"limit": TOP, "search_params": {"params": KINDS[kind][1]}, "output_fields": ["path"]}
            [hits] = index.client.search(ROWS, [vector], **how)
            seconds.append(time.perf_counter() - start)
            found = {int(hit["entity"]["path"].removesuffix(".png")) for hit in hits}
            shares.append(len(found.intersection(best.tolist())) / TOP)
    return float(np.median(seconds)), float(np.mean(shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    arguments = parser.parse_args()
    size = arguments.rows, arguments.dim
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "i.db")
        written = measured(partial, write, path, *size)
        print(f"{size[0]} vectors of {size[1]} numbers, written in {written.seconds:.0f} s\n")
        print("| index | built in s | query ms | recall@20 | GiB |\n|---|---|---|---|---|")
        for kind in arguments.kinds:
            built, asked = measured(partial, build, path, kind), measured(partial, ask, path, kind, *size)
            median, recall = asked.answer
            gib = asked.peak_mib / 1024
            print(f"| {kind} | {built.seconds:.1f} | {1000 * median:.0f} | {recall:.3f} | {gib:.1f} |", flush=True)


if __name__ == "__main__":
    main()
