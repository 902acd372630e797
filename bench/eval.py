"""The test split of RSITMD: 452 images, 2260 captions -> their similarity matrix, in float32 and in bf16.

Pixels are random and stand decoded in memory on both sides. The baseline works through pairs of blocks, 70 images by
70 captions; by default one row of them is timed (the first 70 images with all captions) and scaled to the number of
images, in full with `full`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from tqdm import tqdm, trange

from bench import Case, figures, measured
from bench.baseline import block_row, store
from bench.train import baseline_of, made_up, settings, settled_model, wait
from data import Data
from engine import encode_split, prepare
from option.options import Options
from util.transforms import normalise
from utils import RunError

IMAGES = 452
TOLERANCE = 1e-5  # of similarities, absolute


def split_data(options: Options, images: int, device: torch.device) -> Data:
    return made_up(options, images, options.dataset.image_size, device)


def our_evaluation(overrides: tuple[str, ...], images: int, precision: str, device: torch.device) -> Callable:
    """`encode_split`: every image and every caption once; warmed up by one. Returns the similarities."""
    options = settings(overrides, precision)
    data = split_data(options, images, device)
    model = prepare(settled_model(options, data), options, device)

    def work() -> np.ndarray:
        sims = encode_split(model, data, options)
        wait(device)
        return sims

    work()
    return work


def baseline_evaluation(overrides: tuple[str, ...], images: int, full: bool, device: torch.device) -> Callable:
    """All pairs of blocks, or one row of them. Returns seconds for the whole split, and the similarities done."""
    options = settings(overrides)
    data = split_data(options, images, torch.device("cpu"))
    model = baseline_of(settled_model(options, data), options).to(device).eval()
    size = options.dataset.batch_size_val
    owner = data.image_of_caption.numpy()
    blocks = [np.searchsorted(owner, np.arange(i, min(i + size, images))) for i in range(0, images, size)]

    @torch.no_grad()
    def work() -> tuple[float, np.ndarray]:
        start = time.perf_counter()
        pixels = normalise(data.pixels.pixels).contiguous()
        local = (torch.from_numpy(part) for part in (data.local_rep, data.local_adj))
        stored = store(pixels, *local, data.token_ids, data.lengths, owner)
        laid_out = time.perf_counter()
        done = blocks if full else blocks[:1]
        rows = [block_row(model, stored, block, size, device) for block in tqdm(done, "baseline", disable=None)]
        blocks_took = time.perf_counter() - laid_out
        encoded = sum(len(block) for block in done)
        return laid_out - start + blocks_took * images / encoded, np.concatenate(rows)

    return work


def cases(
    device: torch.device,
    repeats: int = 3,
    overrides: tuple[str, ...] = (),
    images: int = IMAGES,
    full: bool = False,
) -> dict[str, Case]:
    """Seconds for the whole split; with `full` the baseline is timed in the first round only.

    Raises RunError where our float32 similarities are not the baseline's.
    """
    rounds = []
    for _ in trange(repeats, desc="eval", unit="round", disable=None):
        ours, low = (measured(our_evaluation, overrides, images, kind, device) for kind in ("fp32", "bf16"))
        plain = rounds[0][2] if full and rounds else measured(baseline_evaluation, overrides, images, full, device)
        rounds.append((ours, low, plain))
    ours, low, plain = rounds[-1]
    reference = plain.answer[1]
    apart, low_apart = (float(np.abs(run.answer[: len(reference)] - reference).max()) for run in (ours, low))
    print(
        f"eval: similarities agree within {apart:.1e} in float32 ({low_apart:.1e} in bf16) over {len(reference)} of "
        f"{images} images, whose similarities spread by {reference.std():.3f}"
    )
    print(f"eval: peak memory of the baseline {plain.peak_mib:.0f} MiB")
    if not full:
        print(f"eval: the baseline is extrapolated from the first {len(reference)} of {images} images (--full: all)")
    if not apart <= TOLERANCE:
        raise RunError(f"our similarities are {apart:.1e} from the baseline's (limit {TOLERANCE})")
    baseline_seconds = [run.answer[0] for *_, run in rounds]
    return {
        "eval.rsitmd_test": figures([run.seconds for run, *_ in rounds], baseline_seconds, ours.peak_mib),
        "eval.rsitmd_test_bf16": figures([run.seconds for _, run, _ in rounds], baseline_seconds, low.peak_mib),
    }
