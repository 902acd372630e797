"""train.py, which meets a fault in the second process after some steps: faulty.py FAULT STEPS [arguments of train.py].

`full` is met by the process that writes. torchrun is the parent of both.
"""

from __future__ import annotations

import os
import resource
import signal
import sys

import torch

import engine
import train
from data import Batch
from utils import RunError, is_main, rank, run_command

FAULT, STEPS = sys.argv.pop(1), int(sys.argv.pop(1))
SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
step, real = 0, engine.train_step


def train_step(model: torch.nn.Module, batch: Batch, *arguments: object) -> torch.Tensor:
    global step
    step += 1
    if step == STEPS and rank() == 1:
        if FAULT in SIGNALS:
            os.kill(os.getppid(), SIGNALS[FAULT])
        elif FAULT == "one":
            os.kill(os.getpid(), signal.SIGTERM)
        elif FAULT == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        elif FAULT == "nan":
            batch.images[0] = torch.nan
        elif FAULT == "error":
            raise RunError("the second process met an error")
    if step == STEPS and FAULT == "full" and is_main():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
    return real(model, batch, *arguments)


engine.train_step = train_step
if __name__ == "__main__":
    run_command(train.main)
