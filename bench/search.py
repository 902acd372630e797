"""What search/ takes: the map of a large scene, a query over many vectors, the encoding of an index.

    python -m bench.search map    [--side 10000] [--published-side 1000]
    python -m bench.search query  [--vectors 100000 1000000] [--dim 512]
    python -m bench.search encode [--images 300]

Each work runs in a process of its own. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch
from PIL import Image

from bench import measured, peak_mib
from bench.train import WORDS, made_up, settings
from data import load_data
from engine import embed_images, prepare
from layers import build_model
from search.encoder import Encoder
from search.local import read_rules
from search.pictures import BATCH, Pictures, find_files, records_of
from search.rasters import RasterRules
from search.store import Mark, Record, open_index
from search.windows import MEDIAN, SCALES, selo_map, selo_windows
from utils import Parser, RunError, run_command

QUERIES = 10


def main() -> None:
    parser = Parser(prog="python -m bench.search", description="Measure what search/ takes.")
    what = parser.add_subparsers(dest="what", required=True)
    maps = what.add_parser("map", help="a scene's map from its windows' similarities, beside the published procedure")
    maps.add_argument("--side", type=int, default=10_000, help="of the scene, in pixels (default 10000)")
    maps.add_argument("--published-side", type=int, default=1000, help="of the published procedure's (default 1000)")
    query = what.add_parser("query", help="queries over random vectors, and whether the ranking is exact")
    query.add_argument("--vectors", type=int, nargs="+", default=[100_000, 1_000_000])
    query.add_argument("--dim", type=int, default=512)
    encode = what.add_parser("encode", help="images a second of an index, beside an evaluation's")
    encode.add_argument("--images", type=int, default=300)
    arguments = parser.parse_args()
    if arguments.what == "map":
        compare_maps(arguments.side, arguments.published_side)
    elif arguments.what == "query":
        for number in arguments.vectors:
            time_queries(number, arguments.dim)
    else:
        compare_encoding(arguments.images)


# ---------------------------------------------------------------- maps


def compare_maps(side: int, published_side: int) -> None:
    """Print the seconds and the peak memory of both; they must agree but for one grey level on 1% of the points."""
    ours = measured(make_map, side)
    small, plain = measured(make_map, published_side), measured(make_published_map, published_side)
    apart = np.abs(small.answer[0].astype(int) - plain.answer[0])
    if apart.max() > 1 or np.mean(apart > 0) > 0.01:
        raise RunError("the two maps differ")
    whole = plain.seconds * covered_pixels(side) / covered_pixels(published_side)
    grey, before = ours.answer
    print(f"map of {side} x {side} pixels, scales {SCALES}: {ours.seconds:.2f} s")
    print(
        f"  memory {ours.peak_mib - before:.0f} MiB beside the libraries', {grey.nbytes / 2**20:.0f} MiB of it the map"
    )
    print(
        f"published procedure at {published_side} x {published_side}: {plain.seconds:.1f} s, ours {small.seconds:.3f} s"
    )
    print(f"  by the pixels of its windows {whole:.0f} s at {side} x {side}, {whole / ours.seconds:.0f} times ours")


def covered_pixels(side: int) -> int:
    """The pixels that the windows of a scene cover, each window's counted."""
    windows = selo_windows(side, side)
    return int(((windows[:, 1] - windows[:, 0]) * (windows[:, 3] - windows[:, 2])).sum())


def _similarities(windows: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).normal(0.2, 0.1, len(windows))


def make_map(side: int) -> Callable[[], tuple[np.ndarray, float]]:
    """The map, and the memory that was taken before."""
    before = peak_mib()

    def work() -> tuple[np.ndarray, float]:
        windows = selo_windows(side, side)
        return selo_map(side, side, windows, _similarities(windows)), before

    return work


def make_published_map(side: int) -> Callable[[], tuple[np.ndarray, float]]:
    """The published procedure, written plainly: every window is added to every pixel under it, one by one."""
    before = peak_mib()

    def work() -> tuple[np.ndarray, float]:
        windows = selo_windows(side, side)
        total, count = np.zeros((side, side)), np.zeros((side, side))
        for (top, bottom, left, right), similarity in zip(windows.tolist(), _similarities(windows), strict=True):
            for row in range(top, bottom):
                for column in range(left, right):
                    total[row, column] += similarity
                    count[row, column] += 1
        value = total / count
        value -= value.min()
        return cv2.medianBlur((255 * (value / value.max())).astype(np.uint8), MEDIAN), before

    return work


# ---------------------------------------------------------------- queries


def time_queries(number: int, dim: int) -> None:
    """Print what writing, opening and asking take, and whether the answers are those of the exact ranking."""
    with tempfile.TemporaryDirectory() as folder:
        address = str(Path(folder) / "random.db")
        start = time.perf_counter()
        measured(make_random_index, address, number, dim)
        written = time.perf_counter() - start
        asked = measured(make_queries, address, number, dim)
    answers, seconds, before = asked.answer
    vectors, queries = _vectors(number, dim), _vectors(QUERIES, dim, seed=1)
    exact = [np.argsort(-(vectors @ query), kind="stable")[:20].tolist() for query in queries]
    same = sum(found == right for found, right in zip(answers, exact, strict=True))
    print(f"{number} vectors of {dim}: written in {written:.0f} s; opened and asked first in {seconds[0]:.1f} s")
    print(
        f"  then a query {1000 * median(seconds[1:]):.0f} ms; memory {asked.peak_mib - before:.0f} MiB beside libraries"
    )
    print(f"  {same} of {QUERIES} answers of 20 are those of the exact ranking")


def _vectors(number: int, dim: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((number, dim), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_random_index(address: str, number: int, dim: int) -> Callable[[], None]:
    def work() -> None:
        vectors = _vectors(number, dim)
        mark = Mark("", "", {}, [], {}, "", dim, [], None, 0)
        with open_index(address, create=True) as index:
            index.write_mark(mark)
            for i in range(0, number, 1000):
                part = vectors[i : i + 1000]
                index.put([Record(f"{i + j}", 0, 0, 0, 1, 0, 1, 1) for j in range(len(part))], part)
            index.complete(mark)

    return work


def make_queries(address: str, number: int, dim: int) -> Callable[[], tuple[list[list[int]], list[float], float]]:
    """The answers to queries, the seconds of each, the first with opening, and the memory that was taken before."""
    queries, before = _vectors(QUERIES, dim, seed=1), peak_mib()

    def work() -> tuple[list[list[int]], list[float], float]:
        answers, times = [], [time.perf_counter()]
        with open_index(address) as index:
            for query in queries:
                answers.append([int(hit.record.path) for hit in index.search(query, 20)])
                times.append(time.perf_counter())
        return answers, np.diff(times).tolist(), before

    return work


# ---------------------------------------------------------------- encoding


def compare_encoding(images: int) -> None:
    """Print images a second, from files to vectors, of an index and of an evaluation, at the published sizes."""
    with tempfile.TemporaryDirectory() as folder:
        pixels = made_up(settings(), images, 256, torch.device("cpu")).pixels.pixels.numpy()
        for i, image in enumerate(pixels):
            Image.fromarray(image.astype(np.uint8)).save(Path(folder) / f"{i}.jpg", quality=90)
        ours, theirs = measured(make_index_vectors, folder), measured(make_test_vectors, folder)
    if np.abs(ours.answer - theirs.answer).max() > 1e-4:
        raise RunError("the vectors of the two differ")
    print(
        f"{images} images of 256 x 256: index {images / ours.seconds:.1f} images/s, test.py's evaluation "
        f"{images / theirs.seconds:.1f} images/s, the same vectors"
    )


def _options(folder: str):
    return settings((f"dataset.image_path={folder}", "dataset.local_path=zeros"))


def _model(options):
    torch.manual_seed(0)
    return prepare(build_model(options, WORDS), options, torch.device("cpu")).eval()


def make_index_vectors(folder: str) -> Callable[[], np.ndarray]:
    options = _options(folder)
    encoder = Encoder(_model(options), options, tuple(WORDS), torch.device("cpu"))

    def work() -> np.ndarray:
        root, rules = Path(folder), read_rules("zeros")
        files, _ = find_files(root)
        records = [
            one for name, status in files.items() for one in records_of(root, name, status, [512], RasterRules())
        ]
        vectors = {}
        for part, samples in Pictures(root, records, 256, rules, RasterRules()).batches(BATCH, workers=0):
            encoded = encoder.images(*(np.stack(array) for array in zip(*samples, strict=True)))
            vectors |= zip((record.path for record in part), encoded, strict=True)
        return np.stack([vectors[f"{i}.jpg"] for i in range(len(vectors))])

    return work


def make_test_vectors(folder: str) -> Callable[[], np.ndarray]:
    options = _options(folder)
    model = _model(options)

    def work() -> np.ndarray:
        names = [f"{i}.jpg" for i in range(len(list(Path(folder).iterdir())))]
        split = made_up(options, len(names), 32, torch.device("cpu")).split._replace(images=names)
        split = split._replace(captions=["a plane"] * len(split.captions))
        data = load_data(split, options, [*WORDS[:-1], "<unk>"], torch.device("cpu"), training=False)
        return torch.nn.functional.normalize(embed_images(model, data, options)).numpy()

    return work


if __name__ == "__main__":
    run_command(main)
