"""train.py in two processes, each with a pretended GPU of its own; gloo stands for nccl.

    python tests/pretended_processes.py FOLDER PRECISION

The processes are started by several.start; each writes what it found to faults.RANK.json.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist
from matplotlib.figure import Figure
from pretend_gpu import PretendGPU
from tiny import shortened

import train
import util.precision
from utils import exit_status

if __name__ == "__main__":
    os.chdir(sys.argv[1])
    rank, backends, init = int(os.environ["RANK"]), [], dist.init_process_group
    dist.init_process_group = lambda backend, **options: (backends.append(backend), init("gloo", **options))
    gpu = PretendGPU(index=rank, cards=2)
    train.train_one_epoch = gpu.wrapped(train.train_one_epoch, "training")
    train.retrieval_grid, util.precision.gain = lambda *_: Figure(), lambda *_: 2.0
    settings = "optim.epochs=1 logs.save_steps=0 logs.print_freq=1"
    sys.argv = [*f"train.py --path_opt tiny.yaml --device cuda --set {settings}".split(), *sys.argv[2:]]
    with shortened(), gpu:
        status = exit_status(train.main)
    kernels = {name: n for (_, name, _), n in gpu.found("kernel", "training").items()}
    faults = [list(event) for event in (*gpu.found("mixed"), *gpu.found("wait", "training"))]
    found = {"status": status, "backends": backends, "faults": faults, "kernels": kernels}
    Path(f"faults.{rank}.json").write_text(json.dumps(found))
