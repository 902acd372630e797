"""Count the launches of a training step on the pretended GPU of the tests, by part: python -m docs.notes.count_launches

Batches of 100 pairs with captions as long as RSITMD's, full widths; images of 64 pixels: their size changes no count.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import torch

from bench.train import made_up, new_model, settings
from data import train_batches
from engine import make_criterion, make_optimizer, prepare, train_step
from util.pixels import MemoryPixels
from util.transforms import resize_size
from utils import ROOT

sys.path.insert(0, str(ROOT / "tests"))
from pretend_gpu import PretendGPU

STEPS, SIDE = 4, 64


def count(precision: str) -> Counter[str]:
    """Return launches a step by part, after a first step; what has no part is the backward pass."""
    options, gpu = settings((f"dataset.image_size={SIDE}",), precision), PretendGPU()
    with gpu:
        model = prepare(new_model(options), options, gpu.device).train()
        data = made_up(options, 200, resize_size(SIDE), torch.device("cpu"))
        pixels = MemoryPixels(data.pixels.pixels.to(gpu.device))
        data = data._replace(token_ids=data.token_ids.to(gpu.device), pixels=pixels)
        criterion = make_criterion(options.optim, gpu.device)
        optimizer = make_optimizer(model, options.optim, criterion)
        branch = model.global_branch
        parts: dict[str, Any] = {"backbone": branch.trunk, "MVSA": branch.mvsa, "local branch": model.local_branch}
        parts |= {"MIDF": model.midf, "text": model.text_encoder, "loss": criterion}
        for name, module in parts.items():
            module.forward = gpu.wrapped(module.forward, name)
        optimizer.step = gpu.wrapped(optimizer.step, "Adam")
        step = gpu.wrapped(train_step, "backward and similarity")
        gpu.phase = "batch"
        for number, batch in enumerate(train_batches(data, options, 0, 0)):
            if number == 1:
                gpu.events.clear()
            if number == STEPS + 1:
                break
            step(model, batch, criterion, optimizer, 1e-4, options)
    launches: Counter[str] = Counter()
    for (phase, _, _), number in gpu.found("kernel").items():
        launches[phase] += number
    return launches


if __name__ == "__main__":
    for precision in ("fp32", "bf16"):
        found = count(precision)
        print(precision, f"{sum(found.values()) / STEPS:.0f} a step:")
        print("  ", ", ".join(f"{name} {number / STEPS:.0f}" for name, number in sorted(found.items())))
