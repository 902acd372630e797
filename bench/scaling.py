"""How the time of ours grows: batch size, caption length, size of the data set, size of the gallery.

`exponent` is b of seconds ~ size^b, by least squares of the logarithms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from statistics import median

import numpy as np
import torch
from tqdm import tqdm

from bench.train import WORDS, made_up, new_model, seconds, settings, steps_of
from data import train_batches
from engine import autocast, encode_split, prepare
from util.transforms import resize_size

BATCHES = (25, 50, 100, 200)
CAPTIONS = (4, 8, 16, 32)  # words
DATA_SETS = (250, 500, 1000, 2000, 4000)  # images
GALLERIES = (56, 113, 226, 452)  # images, with five captions each


def scaling(device: torch.device, precision: str, overrides: tuple[str, ...] = ()) -> dict[str, dict]:
    """{table: {"sizes", "seconds", "exponent"}}: the median of three runs at each size."""
    options = settings(overrides, precision)
    model = prepare(new_model(options), options, device)

    def step(batch: int) -> Callable[[], object]:
        steps = steps_of(settings((*overrides, f"dataset.batch_size={batch}"), precision), device)
        return lambda: next(steps)

    def text(words: int) -> Callable[[], object]:
        token_ids = torch.randint(1, len(WORDS) + 1, (options.dataset.batch_size, words), device=device)
        encoder = model.text_encoder.train()

        def work() -> None:
            encoder.zero_grad()
            with autocast(options, device):
                encoder(token_ids).sum().backward()

        return work

    def batch(images: int) -> Callable[[], object]:
        side = resize_size(options.dataset.image_size)
        data = made_up(options, images, side, device)
        return lambda: list(islice(train_batches(data, options, 0, 0), 2))

    def gallery(images: int) -> Callable[[], object]:
        data = made_up(options, images, options.dataset.image_size, device)
        return lambda: encode_split(model, data, options)

    return {
        "training step, pairs of a batch": _grow(BATCHES, step, device),
        "text branch, forward and backward, words of a caption": _grow(CAPTIONS, text, device),
        "two training batches from memory, images of the data set": _grow(DATA_SETS, batch, device),
        "evaluation, images of the gallery with five captions each": _grow(GALLERIES, gallery, device),
    }


def _grow(sizes: Sequence[int], make: Callable[[int], Callable[[], object]], device: torch.device) -> dict:
    medians = []
    for size in tqdm(sizes, "scaling", disable=None):
        work = make(size)
        work()
        medians.append(median(seconds(work, device) for _ in range(3)))
    exponent = np.polyfit(np.log(sizes), np.log(medians), 1)[0]
    return {"sizes": list(sizes), "seconds": medians, "exponent": float(exponent)}


def table(results: dict[str, dict]) -> str:
    """The figures as text."""
    lines = []
    for name, of in results.items():
        pairs = zip(of["sizes"], of["seconds"], strict=True)
        lines += [f"{name}: exponent {of['exponent']:.2f}"] + [f"{size:>8} {took:9.4f} s" for size, took in pairs]
    return "\n".join(lines)
