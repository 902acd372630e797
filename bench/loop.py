"""Time the training loop of the published RSITMD protocol: samples a second, share of the peak, hours for all of it.

Operations are counted in one step as they are dispatched (products and convolutions; 2 for a multiply-add). The peak is
what one large matrix product reaches on this device in the same precision; of several processes the sum counts.
"""

from __future__ import annotations

import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import peak_mib
from bench.train import WORDS, emulates_bf16, made_up, new_model, seconds, settings, steps_of, train_data, train_epoch
from engine import encode_split, make_criterion, make_optimizer, prepare
from layers.distributed import shards_of, world_size
from option import Options
from postprocessing.recall import query_ranks
from util.checkpoint import LAST, save_checkpoint
from util.precision import LOW
from util.train_state import TrainState, snapshot

FOLDS, EPOCHS, PAIRS, VALIDATION = 3, 20, 17_160, 857  # of RSITMD; the last in images, of five captions each


def loop(device: torch.device, overrides: tuple[str, ...] = (), validation: int = VALIDATION) -> dict:
    """Return {"processes", "precision", "gflop_per_sample", "peak_gflops", "batches": [...], "validation_seconds",
    "checkpoint", "protocol_hours"}.

    Each batch size that finds room has "pairs", "samples_per_second", "of_peak" and "peak_mib". `protocol_hours`
    follows from the first speed, one validation on `validation` images, and a best and a last checkpoint in every
    epoch. overrides: of the options; without `optim.precision` among them, bf16 on a GPU that has it.
    """
    precision = "bf16" if device.type == "cuda" and not emulates_bf16(device) else "fp32"
    options = settings(overrides, precision)
    precision = options.optim.precision
    batch = options.dataset.batch_size
    with FlopCounterMode(display=False) as counter:
        next(steps_of(options, device))
    (mine,) = shards_of(batch)
    flop = counter.get_total_flops() / (mine.stop - mine.start)
    peak = peak_flops(device, precision) * world_size()
    rows = []
    for size in (batch, 4 * batch, 16 * batch) if device.type == "cuda" else (batch,):
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            speed = samples_per_second(settings((*overrides, f"dataset.batch_size={size}"), precision), device)
        except torch.OutOfMemoryError:
            if not rows:
                raise
            break
        row = {"pairs": size, "samples_per_second": speed, "of_peak": speed * flop / peak, "peak_mib": peak_mib()}
        rows.append(row)
    model = prepare(new_model(options), options, device)
    images = made_up(options, validation, options.dataset.image_size, device)
    owner = images.split.image_of_caption
    validation_seconds = seconds(lambda: query_ranks(encode_split(model, images, options), owner).scores(), device)
    saved = checkpoint(options, device)
    epoch = PAIRS / rows[0]["samples_per_second"] + validation_seconds + saved["loop_waits_seconds"]
    return {
        "processes": world_size(),
        "precision": precision,
        "gflop_per_sample": flop / 1e9,
        "peak_gflops": peak / 1e9,
        "batches": rows,
        "validation_seconds": validation_seconds,
        "checkpoint": saved,
        "protocol_hours": FOLDS * EPOCHS * epoch / 3600,
    }


def samples_per_second(options: Options, device: torch.device) -> float:
    """Time the loop as a run has it: nothing waits for the device between steps."""
    steps, few = steps_of(options, device), 20 if device.type == "cuda" else 3
    next(steps)
    return few * options.dataset.batch_size / seconds(lambda: list(islice(steps, few)), device)


def checkpoint(options: Options, device: torch.device) -> dict[str, float]:
    """Time the checkpoints of an epoch, a best and a last one: {"mib", "loop_waits_seconds", "writing_seconds"}.

    Training stands still while they are copied; the last one (of this size) is written beside it.
    """
    model, criterion = prepare(new_model(options), options, device), make_criterion(options.optim, device)
    state = TrainState(model, criterion, make_optimizer(model, options.optim, criterion))
    next(train_epoch(model, train_data(options, device), options, state.optimizer, 0))

    def copies() -> list:
        trees = state.for_scoring(options, WORDS), state.for_resume(options, WORDS, [], "")
        return [snapshot(tree, device) for tree in trees]

    copies()  # the first time finds its memory
    waits = seconds(copies, device)
    with tempfile.TemporaryDirectory() as folder:
        path, tree = Path(folder, LAST), copies()[1]()
        start = time.perf_counter()
        save_checkpoint(tree, path)
        writing, mib = time.perf_counter() - start, path.stat().st_size / 2**20
    return {"mib": mib, "loop_waits_seconds": waits, "writing_seconds": writing}


def peak_flops(device: torch.device, precision: str) -> float:
    """Return the operations a second of a large matrix product."""
    side = 8192 if device.type == "cuda" else 256 if precision == "fp16" else 2048  # which processors emulate
    a = torch.ones(side, side, device=device, dtype=LOW.get(precision, torch.float32))
    return 2 * side**3 / min(seconds(lambda: a @ a, device) for _ in range(5))
