"""The training loop of the published RSITMD protocol: samples a second, share of the machine's peak, time of all of it.

    python -m bench --loop
    torchrun --nproc_per_node N -m bench --loop                 in N processes, of whose peaks the sum counts

Operations are counted in one step as they are dispatched (products and convolutions; 2 for a multiplication with its
addition). The peak is what one large matrix product reaches on this device in the same precision.
"""

from __future__ import annotations

from itertools import islice

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from bench.train import made_up, new_model, seconds, settings, steps_of
from engine import encode_split, prepare
from layers.distributed import parts_of, process_count
from option.options import Options
from utils import is_main

FOLDS, EPOCHS, PAIRS, VALIDATION = 3, 20, 17_160, 857  # of RSITMD; the last in images, of five captions each


def loop(device: torch.device, precision: str, overrides: tuple[str, ...] = (), validation: int = VALIDATION) -> dict:
    """{"processes", "gflop_per_sample", "peak_gflops", "batches": [{"pairs", "samples_per_second", "of_peak"}],
    "protocol_hours"}.

    `protocol_hours` follows from the first batch size's speed and one evaluation of `validation` images.
    """
    options = settings(overrides, precision)
    batch = options.dataset.batch_size
    sizes = (batch, 4 * batch, 16 * batch) if device.type == "cuda" else (batch,)
    with FlopCounterMode(display=False) as counter:
        next(steps_of(options, device))
    (mine,) = parts_of(batch)
    flop = counter.get_total_flops() / (mine.stop - mine.start)
    peak = peak_flops(device, precision) * process_count()
    rows = []
    for size in tqdm(sizes, "loop", disable=None if is_main() else True):
        speed = samples_per_second(settings((*overrides, f"dataset.batch_size={size}"), precision), device)
        rows.append({"pairs": size, "samples_per_second": speed, "of_peak": speed * flop / peak})
    model = prepare(new_model(options), options, device)
    images = made_up(options, validation, options.dataset.image_size, device)
    evaluation = seconds(lambda: encode_split(model, images, options), device)
    epoch = PAIRS / rows[0]["samples_per_second"] + evaluation
    return {
        "processes": process_count(),
        "gflop_per_sample": flop / 1e9,
        "peak_gflops": peak / 1e9,
        "batches": rows,
        "protocol_hours": FOLDS * EPOCHS * epoch / 3600,
    }


def samples_per_second(options: Options, device: torch.device) -> float:
    """Of the loop as a run has it: nothing waits for the device between steps."""
    steps, few = steps_of(options, device), 20 if device.type == "cuda" else 3
    next(steps)
    return few * options.dataset.batch_size / seconds(lambda: list(islice(steps, few)), device)


def peak_flops(device: torch.device, precision: str) -> float:
    """Operations a second of a large matrix product."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.ones(side, side, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    return 2 * side**3 / min(seconds(lambda: a @ a, device) for _ in range(5))


def table(results: dict) -> str:
    """The figures as text."""
    flop, peak, number = results["gflop_per_sample"], results["peak_gflops"], results["processes"]
    together = f"{number} processes; " if number > 1 else ""
    lines = [f"{together}{flop:.1f} GFLOP a sample; peak {peak:.0f} GFLOP/s"]
    lines += [
        f"batch {row['pairs']:>5}: {row['samples_per_second']:8.1f} samples/s, {row['of_peak']:.0%} of the peak"
        for row in results["batches"]
    ]
    hours = results["protocol_hours"]
    protocol = f"{FOLDS} folds x {EPOCHS} epochs x {PAIRS} pairs, validated after each epoch"
    return "\n".join([*lines, f"published RSITMD protocol ({protocol}): {hours:.2f} hours at the first batch size"])
