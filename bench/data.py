"""Time training images, ready for a step: from the cache in memory, and as the released loader makes them.

The images are those of UCM under GALR_TEST_DATA, otherwise made up. Seconds are for 100 samples.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from itertools import chain, count, cycle, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import util.images
from bench import Case, figures, rounds
from bench.train import made_up, settings, wait
from data import train_batches
from layers.cpu import reuse_memory
from tests.reference import loader
from util.pixels import MemoryPixels
from util.transforms import resize_size

SAMPLES = 2000


def image_files(folder: Path) -> list[str]:
    """Return 500 real images, or write 200 of the same size on disk into `folder`: smooth fields with noise."""
    if source := os.environ.get("GALR_TEST_DATA"):
        return sorted(str(path) for path in Path(source, "ucm_precomp/images").iterdir())[:500]
    rng = np.random.default_rng(0)
    for i in range(200):
        smooth = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((256, 256))
        noise = rng.integers(-20, 21, (256, 256, 3))
        pixels = np.clip(np.asarray(smooth).astype(int) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return sorted(str(path) for path in folder.glob("*.jpg"))


def our_loader(overrides: tuple[str, ...], paths: list[str], samples: int, device: torch.device) -> Callable[[], None]:
    """Return `train_batches` from memory, drawing `samples` samples, warmed up."""
    reuse_memory()
    options = settings(overrides)
    pixels = torch.from_numpy(util.images.load_pixels(paths, resize_size(options.dataset.image_size), 2)).to(device)
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
    """Return the released code's loader, drawing `samples` samples on the processor."""
    options = settings(overrides)
    batches = loader(list(islice(cycle(paths), samples)), options.dataset.image_size, options.dataset.batch_size)

    def work() -> None:
        for _ in batches:
            pass

    return work


def cases(
    device: torch.device, repeats: int = 3, overrides: tuple[str, ...] = (), samples: int = SAMPLES
) -> dict[str, Case]:
    """Return seconds for 100 samples."""
    with tempfile.TemporaryDirectory(prefix="galr-bench-") as folder:
        paths = image_files(Path(folder))
        sides = (our_loader, overrides, paths, samples, device), (baseline_loader, overrides, paths, samples)
        ours, plain = rounds("data", repeats, *sides)
    seconds, baseline = ([run.seconds * 100 / samples for run in runs] for runs in (ours, plain))
    return {"cached": figures(seconds, baseline, ours[-1].peak_mib)}
