"""Time the training loop of the published RSITMD protocol: samples a second, share of the peak, hours for all of it.

Operations are counted in one step as they are dispatched (products and convolutions; 2 for a multiply-add). The peak is
what one large matrix product reaches on this device in the same precision; of several processes the sum counts.
"""

from __future__ import annotations

from itertools import islice

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.train import emulates_bf16, made_up, new_model, seconds, settings, steps_of
from engine import encode_split, prepare
from layers.distributed import shards_of, world_size
from option import Options

FOLDS, EPOCHS, PAIRS, VALIDATION = 3, 20, 17_160, 857  # of RSITMD; the last in images, of five captions each


def loop(device: torch.device, overrides: tuple[str, ...] = (), validation: int = VALIDATION) -> dict:
    """Return {"processes", "precision", "gflop_per_sample", "peak_gflops", "batches": [...], "protocol_hours"}.

    Each batch size has "pairs", "samples_per_second" and "of_peak". `protocol_hours` follows from the first one's speed
    and one evaluation of `validation` images.
    """
    precision = "bf16" if device.type == "cuda" and not emulates_bf16(device) else "fp32"
    options = settings(overrides, precision)
    batch = options.dataset.batch_size
    with FlopCounterMode(display=False) as counter:
        next(steps_of(options, device))
    (mine,) = shards_of(batch)
    flop = counter.get_total_flops() / (mine.stop - mine.start)
    peak = peak_flops(device, precision) * world_size()
    rows = []
    for size in (batch, 4 * batch, 16 * batch) if device.type == "cuda" else (batch,):
        speed = samples_per_second(settings((*overrides, f"dataset.batch_size={size}"), precision), device)
        rows.append({"pairs": size, "samples_per_second": speed, "of_peak": speed * flop / peak})
    model = prepare(new_model(options), options, device)
    images = made_up(options, validation, options.dataset.image_size, device)
    epoch = PAIRS / rows[0]["samples_per_second"] + seconds(lambda: encode_split(model, images, options), device)
    return {
        "processes": world_size(),
        "precision": precision,
        "gflop_per_sample": flop / 1e9,
        "peak_gflops": peak / 1e9,
        "batches": rows,
        "protocol_hours": FOLDS * EPOCHS * epoch / 3600,
    }


def samples_per_second(options: Options, device: torch.device) -> float:
    """Time the loop as a run has it: nothing waits for the device between steps."""
    steps, few = steps_of(options, device), 20 if device.type == "cuda" else 3
    next(steps)
    return few * options.dataset.batch_size / seconds(lambda: list(islice(steps, few)), device)


def peak_flops(device: torch.device, precision: str) -> float:
    """Return the operations a second of a large matrix product."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.ones(side, side, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    return 2 * side**3 / min(seconds(lambda: a @ a, device) for _ in range(5))
