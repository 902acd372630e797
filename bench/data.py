"""Training images, ready for a step: from the cache in memory, from the HDF5 cache, and as the released loader does.

The images are those of UCM under GALR_TEST_DATA, otherwise made up. Seconds are for 100 samples.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain, count, cycle, islice
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from tqdm import trange

import bench.train
import engine
import util.image_cache
import util.images
from bench import Case, figures, measured
from bench.baseline import loader
from bench.train import made_up, new_model, settings, train_data, wait
from data import train_batches
from layers.cpu import reuse_memory
from util.pixels import MemoryPixels
from util.transforms import resize_size

SAMPLES = 2000


def image_files(folder: Path) -> list[str]:
    """500 real images, or 200 made-up ones in `folder`: smooth fields with noise, of the real ones' size on disk."""
    if source := os.environ.get("GALR_TEST_DATA"):
        return sorted(str(path) for path in Path(source, "ucm_precomp/images").iterdir())[:500]
    rng = np.random.default_rng(0)
    for i in range(200):
        smooth = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((256, 256))
        noise = rng.integers(-20, 21, (256, 256, 3))
        pixels = np.clip(np.asarray(smooth).astype(int) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return sorted(str(path) for path in folder.glob("*.jpg"))


def our_loader(
    overrides: tuple[str, ...], paths: list[str], cache: Path | None, samples: int, device: torch.device
) -> Callable[[], None]:
    """`train_batches` from memory, or from an HDF5 cache of these images; draws `samples` samples."""
    reuse_memory()
    options = settings(overrides)
    size = resize_size(options.dataset.image_size)
    if cache is None:
        pixels = torch.from_numpy(util.images.load_pixels(paths, size, 2)).to(device)
    else:
        pixels = torch.from_numpy(util.image_cache.map_cache(cache, size))
    data = made_up(options, len(paths), 1, device)._replace(pixels=MemoryPixels(pixels))

    def work() -> None:
        drawn = 0
        for batch in chain.from_iterable(train_batches(data, options, 0, epoch) for epoch in count()):
            wait(device)
            drawn += len(batch.lengths)
            if drawn >= samples:
                break

    work()
    return work


def baseline_loader(overrides: tuple[str, ...], paths: list[str], samples: int) -> Callable[[], None]:
    """The released way, on the processor."""
    options = settings(overrides)
    again = [path for path, _ in zip(cycle(paths), range(samples), strict=False)]
    batches = loader(again, options.dataset.image_size, options.dataset.batch_size)

    def work() -> None:
        for _ in batches:
            pass

    return work


def our_wait(overrides: tuple[str, ...], steps: int, device: torch.device) -> Callable[[], float]:
    """The share of bf16 training steps, fed from the cache in memory, that passes in waiting for the next batch."""
    options = settings(overrides, "bf16")
    model = engine.prepare(new_model(options), options, device)
    data, optimizer = train_data(options, device), engine.make_optimizer(model, options.optim)
    waited = 0.0

    def watched(*arguments: Any) -> Iterator[Any]:
        nonlocal waited
        batches = train_batches(*arguments)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def work() -> float:
        nonlocal waited
        with mock.patch.object(bench.train, "train_batches", watched):
            epoch = bench.train.train_epoch(model, data, options, optimizer)
            next(epoch)  # warm
            wait(device)
            start, waited = time.perf_counter(), 0.0
            for _ in islice(epoch, steps):
                wait(device)
            return waited / (time.perf_counter() - start)

    return work


def cases(
    device: torch.device, repeats: int = 3, overrides: tuple[str, ...] = (), samples: int = SAMPLES
) -> dict[str, Case]:
    """Seconds per 100 samples."""
    share = measured(our_wait, overrides, 3, device).answer
    print(f"data: a training step in bf16 waits for its batch {share:.1%} of the time")
    rounds = []
    with tempfile.TemporaryDirectory(prefix="galr-bench-") as name:
        paths, cache = image_files(Path(name)), Path(name) / "images.h5"
        util.image_cache.build_cache(cache, paths, [resize_size(settings(overrides).dataset.image_size)], 2)
        sides = (
            (our_loader, overrides, paths, None, samples, device),
            (our_loader, overrides, paths, cache, samples, device),
            (baseline_loader, overrides, paths, samples),
        )
        for _ in trange(repeats, desc="data", unit="round", disable=None):
            rounds.append([measured(*side) for side in sides])
    memory, file, plain = ([run.seconds * 100 / samples for run in runs] for runs in zip(*rounds, strict=True))
    speeds = (f"{100 / median(side):.0f}" for side in (memory, file, plain))
    print("data: samples a second from memory {}, from HDF5 {}, baseline {}".format(*speeds))
    return {
        "data.cached": figures(memory, plain, rounds[-1][0].peak_mib),
        "data.h5": figures(file, plain, rounds[-1][1].peak_mib),
    }
