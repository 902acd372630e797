"""Time the test split of RSITMD: 452 images, 2260 captions -> their similarity matrix, in float32 and in bf16.

Pixels are random and stand decoded in memory on both sides. The baseline works through pairs of blocks, 70 images by
70 captions; one row of them is timed (the first 70 images with all captions) and scaled to all images.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from bench import Case, figures, rounds
from bench.train import baseline_of, emulates_bf16, made_up, settings, settled_model, wait
from engine import encode_split, prepare
from tests.reference import block_row, store
from util.transforms import normalise
from utils import RunError

IMAGES = 452
TOLERANCE = 1e-5  # of similarities, absolute


def our_evaluation(overrides: tuple[str, ...], images: int, precision: str, device: torch.device) -> Callable:
    """Return `encode_split`, every image and every caption once, warmed up; it returns the similarities."""
    options = settings(overrides, precision)
    data = made_up(options, images, options.dataset.image_size, device)
    model = prepare(settled_model(options, data), options, device)

    def work() -> np.ndarray:
        sims = encode_split(model, data, options)
        wait(device)
        return sims

    work()
    return work


def baseline_evaluation(overrides: tuple[str, ...], images: int, device: torch.device) -> Callable:
    """Return one row of the baseline's blocks; it returns seconds scaled to the whole split, and its similarities."""
    options = settings(overrides)
    data = made_up(options, images, options.dataset.image_size, torch.device("cpu"))
    model = baseline_of(settled_model(options, data), options).to(device).eval()
    size, caption_to_image = options.dataset.batch_size_val, data.split.image_of_caption

    @torch.no_grad()
    def work() -> tuple[float, np.ndarray]:
        start = time.perf_counter()
        local = (torch.from_numpy(part) for part in (data.local_rep, data.local_adj))
        pixels = normalise(data.pixels.pixels).contiguous()
        stored = store(pixels, *local, data.token_ids, data.lengths, caption_to_image)
        laid_out = time.perf_counter()
        sims = block_row(model, stored, np.searchsorted(caption_to_image, np.arange(min(size, images))), size, device)
        row = time.perf_counter() - laid_out
        return laid_out - start + row * images / len(sims), sims

    return work


def cases(
    device: torch.device, repeats: int = 3, overrides: tuple[str, ...] = (), images: int = IMAGES
) -> dict[str, Case | None]:
    """Return seconds for the whole split. Raises RunError if our float32 similarities are not the baseline's."""
    precisions = ["fp32"] if emulates_bf16(device) else ["fp32", "bf16"]
    sides = [(our_evaluation, overrides, images, precision, device) for precision in precisions]
    plain, *ours = rounds("eval", repeats, (baseline_evaluation, overrides, images, device), *sides)
    reference = plain[-1].answer[1]
    apart = float(np.abs(ours[0][-1].answer[: len(reference)] - reference).max())
    print(
        f"eval: similarities in float32 agree within {apart:.1e} over the first {len(reference)} of {images} images, "
        f"from which the baseline's time is scaled; they spread by {reference.std():.3f}"
    )
    if not apart <= TOLERANCE:
        raise RunError(f"our similarities are {apart:.1e} from the baseline's (limit {TOLERANCE})")
    results: dict[str, Case | None] = {"rsitmd_test": None, "rsitmd_test_bf16": None}
    for name, runs in zip(results, ours, strict=False):
        baseline = [run.answer[0] for run in plain]
        results[name] = figures([run.seconds for run in runs], baseline, runs[-1].peak_mib)
    return results
