"""The soak: a run killed with SIGKILL at many random moments, and resumed each time, must end like one left alone.

    python tests/soak.py --kills 50

Trains the tiny demonstration set of the tests twice, each command in a process of its own (forked from this one, which
has imported PyTorch and done nothing else, so that a start takes no seconds): once undisturbed, once killed over and
over. Every fourth kill comes at a random moment after training could have begun, the others wait for a checkpoint to be
half-written by the thread. Then test.py scores both, and weights, optimiser, rows of the log, history.json and
results.json must be equal: bit for bit, times and speeds apart. Exit status 1 where they are not.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import random
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from conftest import make_demo_folder

import utils

Process = multiprocessing.get_context("fork").Process

TRAIN = "train.py --path_opt tiny.yaml --device cpu --resume --set logs.save_steps=2"
SPEED = "samples_per_second"


def differences(one: Path, other: Path) -> list[str]:
    """Return what differs between two folders of a fold: weights, optimiser, progress, rows, history (not speeds)."""
    import torch

    found = []
    for name in ("last.pth.tar", "GaLR_best.pth.tar"):
        states = [torch.load(folder / name, weights_only=True) for folder in (one, other)]
        for state in states:
            del state["options"]["logs"], state["options"]["k_fold"]["experiment_name"]
        found += compare(*states, name)
    histories = [json.loads((folder / "history.json").read_text()) for folder in (one, other)]
    found += compare(*histories, "history.json")
    logs = [[line.split(" lr ")[0] for line in (folder / "log.txt").open()] for folder in (one, other)]
    return found + compare(*logs, "log.txt")


def compare(one: Any, other: Any, where: str) -> list[str]:
    """Places where two trees of containers, tensors and values differ by a single bit; speeds apart."""
    import torch

    if type(one) is not type(other):
        return [f"{where}: {type(one).__name__} and {type(other).__name__}"]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{where}: keys {sorted(map(str, one.keys() ^ other.keys()))}"]
        return [d for key in one if key != SPEED for d in compare(one[key], other[key], f"{where}: {key}")]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [f"{where}: {len(one)} and {len(other)} entries"]
        return [d for i, pair in enumerate(zip(one, other, strict=True)) for d in compare(*pair, f"{where}: {i}")]
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if same else [f"{where}: {str(one)[:60]} and {str(other)[:60]}"]


def start(command: str, folder: Path) -> Process:
    process = Process(target=run, args=(command, folder))
    process.start()
    return process


def run(command: str, folder: Path) -> None:
    """Run a command in this process, which ends with it; its output goes to output.txt."""
    os.chdir(folder)
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.argv = shlex.split(command)
    utils.run_command(importlib.import_module(sys.argv[0].removesuffix(".py")).main)


def finish(command: str, folder: Path) -> float:
    """Run a command to its end -> seconds."""
    began, process = time.monotonic(), start(command, folder)
    process.join()
    if process.exitcode:
        sys.exit(f"{command} ended with status {process.exitcode}; see {folder}/output.txt")
    return time.monotonic() - began


def wait_for(process: Process, ready: Any) -> bool:
    """Return whether `ready()` came true before the process ended."""
    while process.is_alive():
        if ready():
            return True
        time.sleep(0.001)
    return False


def times(*paths: Path) -> dict[Path, int]:
    """Return the time stamps of the files that are there."""
    found = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found[path] = path.stat().st_mtime_ns
    return found


def kill(process: Process, fold: Path, rng: random.Random, writing: bool, span: float) -> bool:
    """Kill a run within `span` seconds of its sign of life -> whether it was writing a checkpoint.

    writing: wait for that. The sign of life is a new run.json.
    """
    record, before = fold / "run.json", times(fold / "run.json")
    alive = wait_for(process, lambda: record.exists() and times(record) != before)
    moment = time.monotonic() + rng.uniform(0, span)
    wait_for(process, lambda: time.monotonic() > moment)
    half_written = [fold / f".{name}.pth.tar.tmp" for name in ("last", "GaLR_best")]
    stale = times(*half_written)
    if writing and wait_for(process, lambda: not times(*half_written).items() <= stale.items()):
        time.sleep(rng.uniform(0, 0.1))
    if not (alive and process.is_alive()):
        sys.exit("the run ended before its last kill: give more --epochs")
    process.kill()
    process.join()
    return not times(*half_written).items() <= stale.items()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how many times to kill the run (default 50)")
    parser.add_argument("--epochs", type=int, default=24, help="of the run, four steps each (default 24)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        soak(Path(temporary), arguments.kills, arguments.epochs, random.Random(arguments.seed))


def soak(folder: Path, kills: int, epochs: int, rng: random.Random) -> None:
    demo = Process(target=make_demo_folder, args=(folder,))
    demo.start()
    demo.join()
    for module in ("train", "test"):
        importlib.import_module(module)
    command = f"{TRAIN} optim.epochs={epochs} k_fold.experiment_name="
    seconds = finish(f"{command}whole", folder)
    print(f"undisturbed: {seconds:.0f} s", flush=True)
    fold, in_writing = folder / "checkpoint/broken/0", 0
    for number in range(kills):
        in_writing += kill(start(f"{command}broken", folder), fold, rng, number % 4 != 3, seconds / kills)
        print(f"{number + 1} kills, {in_writing} of them while a checkpoint was being written", flush=True)
    finish(f"{command}broken", folder)
    results = []
    for name in ("whole", "broken"):
        finish(f"test.py --path_opt tiny.yaml --device cpu --set k_fold.experiment_name={name}", folder)
        results.append(json.loads((folder / f"checkpoint/{name}/results.json").read_text()) | {"experiment": ""})
    found = differences(folder / "checkpoint/whole/0", fold) + compare(*results, "results.json")
    print(f"{len(found)} differences", *found[:20], sep="\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
