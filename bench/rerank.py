"""Recall and multivariate rerank at RSICD's size (1093 images, 5465 captions, k = 30), both directions, in seconds.

The baseline does what the released code does, in plain NumPy: one query after the other, a full sort of its
similarities, and for each candidate a full sort of all queries to find its position when searching back.

    python -m bench.rerank              the cases
    python -m bench.rerank --scaling    growing sizes and the exponent with which time grows
"""

from __future__ import annotations

import json
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench import Case, figures, measured
from postprocessing.recall import image_of_caption, recall
from postprocessing.rerank import multivariate, rerank_recall
from utils import Parser, RunError, run_command

K, W_SIMILARITY, W_REVERSE, XI = 30, 0.3, 1.1, 0.05
PER_IMAGE = 5


def similarities(images: int, rows: slice = slice(None), seed: int = 0) -> np.ndarray:
    """Rows of a matrix like those of a trained model, float32: each caption leans to its image, cosines around 0.3."""
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((images, 64), np.float32)
    caption = np.repeat(image, PER_IMAGE, axis=0) + 2.5 * rng.standard_normal((images * PER_IMAGE, 64), np.float32)
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    caption /= np.linalg.norm(caption, axis=1, keepdims=True)
    return 0.3 + 0.4 * (image[rows] @ caption.T)


def plain_multivariate(sims: np.ndarray) -> np.ndarray:
    """The rerank of the rows of `sims` as the released code goes about it; zero outside the candidates."""
    scores = np.zeros(sims.shape)
    columns = np.ascontiguousarray(sims.T)  # the layout that is kind to it
    share = sims / sims.sum(axis=0)
    fading = np.exp(-XI * np.arange(1, K + 1))
    for i, row in enumerate(sims):
        candidates = np.argsort(row)[::-1][:K]
        back = [np.where(np.argsort(columns[j])[::-1] == i)[0][0] for j in candidates]
        place = np.argsort(np.argsort(back, kind="stable"))
        scores[i, candidates] = fading + W_SIMILARITY * share[i, candidates] + W_REVERSE * fading[place]
    return scores


def plain_recall(sims: np.ndarray) -> tuple[list[float], list[float]]:
    """R@1, 5, 10 of both directions as the released code goes about it: each query's answers sorted and searched."""
    i2t = np.empty(len(sims))
    for i, row in enumerate(sims):
        order = np.argsort(row)[::-1]
        i2t[i] = min(np.where(order == caption)[0][0] for caption in range(PER_IMAGE * i, PER_IMAGE * (i + 1)))
    t2i = np.array([np.where(np.argsort(column)[::-1] == j // PER_IMAGE)[0][0] for j, column in enumerate(sims.T)])
    return tuple([100 * np.mean(ranks < k) for k in (1, 5, 10)] for ranks in (i2t, t2i))


def our_rerank(images: int) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    sims = similarities(images)
    return lambda: (multivariate(sims, K, W_SIMILARITY, W_REVERSE), multivariate(sims.T, K, W_SIMILARITY, W_REVERSE))


def baseline_rerank(images: int) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    sims = similarities(images)
    return lambda: (plain_multivariate(sims), plain_multivariate(np.ascontiguousarray(sims.T)))


def our_recall(images: int) -> Callable[[], tuple]:
    sims = similarities(images)
    owner = image_of_caption(*sims.shape)
    return lambda: recall(sims, owner)


def baseline_recall(images: int) -> Callable[[], tuple]:
    sims = similarities(images)
    return lambda: plain_recall(sims)


def _agree_on_rerank(ours: tuple, plain: tuple) -> None:
    for one, other in zip(ours, plain, strict=True):
        # equal float32 similarities, whose order the plain sort leaves open, may swap a candidate here and there
        differ = (np.abs(one - other) > 1e-5) & (other != 0)
        if differ.sum() > 1e-3 * np.count_nonzero(other):
            raise RunError(f"{differ.sum()} reranked candidates differ from the baseline's")


def _agree_on_recall(ours: tuple, plain: tuple) -> None:
    for one, other in zip(tuple(ours)[:2], plain, strict=True):
        if not np.allclose([one["r1"], one["r5"], one["r10"]], other, atol=0.1):
            raise RunError(f"recalls {one} are not the baseline's {other}")


def cases(images: int = 1093, rounds: int = 3) -> dict[str, Case]:
    """Seconds of ours and of the baseline; peak_mib is what NumPy allocates in ours beside the matrix, the returned one
    included. All of it runs on the processor. Raises RunError where the two do not agree.
    """
    return {
        "rerank.rsicd": _compare(our_rerank, baseline_rerank, _agree_on_rerank, images, rounds),
        "recall.rsicd": _compare(our_recall, baseline_recall, _agree_on_recall, images, rounds),
    }


def _compare(ours: Callable, baseline: Callable, agree: Callable, images: int, rounds: int) -> Case:
    turns = [(measured(ours, images), measured(baseline, images)) for _ in range(rounds)]
    for one, other in turns:
        agree(one.answer, other.answer)
    peak = measured(_peak_of, ours, images).answer
    return figures(*([side.seconds for side in sides] for sides in zip(*turns, strict=True)), peak=peak)


def _peak_of(make: Callable, images: int) -> Callable[[], float]:
    work = make(images)
    return lambda: _peak_mib(work)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    answer = work()
    return time.perf_counter() - start, answer


def _peak_mib(work: Callable[[], object]) -> float:
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def scaling(sizes: tuple[int, ...] = (625, 1250, 2500, 5000, 10000), rounds: int = 3) -> dict:
    """Recall after the rerank of both directions, from a memory-mapped float32 file, for growing galleries.

    {"rows": [{"images", "captions", "recall", "rerank", "peak_mib"}], "exponent"}: best seconds of the rounds (each
    includes the recall before), and the exponent b of seconds ~ images^b, of which 2 is the growth of the matrix.
    """
    rows = [_scaling_row(images, rounds) for images in sizes]
    logs = np.log([[row["images"], row["rerank"]] for row in rows])
    return {"rows": rows, "exponent": float(np.polyfit(*logs.T, 1)[0])}


def _scaling_row(images: int, rounds: int) -> dict[str, float]:
    captions = PER_IMAGE * images
    owner = image_of_caption(images, captions)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sims.npy"
        matrix = np.lib.format.open_memmap(path, "w+", np.float32, (images, captions))
        for start in range(0, images, 1000):
            matrix[start : start + 1000] = similarities(images, slice(start, start + 1000))
        matrix.flush()
        sims = np.load(path, mmap_mode="r")
        return {
            "images": images,
            "captions": captions,
            "recall": min(_timed(lambda: recall(sims, owner))[0] for _ in range(rounds)),
            "rerank": min(_timed(lambda: rerank_recall(sims, owner))[0] for _ in range(rounds)),
            "peak_mib": _peak_mib(lambda: rerank_recall(sims, owner)),
        }


def main() -> None:
    """Time recall and rerank beside a plain implementation."""
    parser = Parser(prog="python -m bench.rerank", description=main.__doc__)
    parser.add_argument("--scaling", action="store_true", help="growing sizes instead, up to 10,000 x 50,000 (2 GB)")
    args = parser.parse_args()
    print(json.dumps(scaling() if args.scaling else cases(), indent=2))


if __name__ == "__main__":
    run_command(main)
