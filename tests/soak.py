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
    """Run the command in the forked process, with its output in a file."""
    os.chdir(folder)
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.argv = shlex.split(command)
    utils.run_command(importlib.import_module(sys.argv[0].removesuffix(".py")).main)


def finish(command: str, folder: Path) -> float:
    """Run a command to its end -> seconds."""
    began = time.monotonic()
    process = start(command, folder)
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


def kill(process: Process, fold: Path, rng: random.Random, writing: bool, span: float) -> tuple[bool, bool]:
    """Kill a run at a random moment -> whether it was still running, and whether it was writing a checkpoint.

    `span`: seconds from the run's sign of life (its run.json is written anew) to its end, roughly.
    """
    record = fold / "run.json"
    before = record.stat().st_mtime_ns if record.exists() else 0
    if not wait_for(process, lambda: record.exists() and record.stat().st_mtime_ns != before):
        return False, False
    deadline = time.monotonic() + rng.uniform(0, span)
    wait_for(process, lambda: time.monotonic() > deadline)
    half_written = [fold / ".last.pth.tar.tmp", fold / ".GaLR_best.pth.tar.tmp"]
    stale = {path: path.stat().st_mtime_ns for path in half_written if path.exists()}

    def in_writing() -> bool:
        return any(path.exists() and path.stat().st_mtime_ns != stale.get(path) for path in half_written)

    if writing and wait_for(process, in_writing):
        time.sleep(rng.uniform(0, 0.1))
    alive = process.is_alive()
    caught = in_writing()
    process.kill()
    process.join()
    return alive, alive and caught and any(path.exists() for path in half_written)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how many times to kill the run (default 50)")
    parser.add_argument("--epochs", type=int, default=24, help="of the run, four steps each (default 24)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        soak(arguments.folder or Path(temporary), arguments.kills, arguments.epochs, random.Random(arguments.seed))


def soak(folder: Path, kills: int, epochs: int, rng: random.Random) -> None:
    command = f"{TRAIN} optim.epochs={epochs} k_fold.experiment_name="
    folder.mkdir(parents=True, exist_ok=True)
    demo = Process(target=make_demo_folder, args=(folder,))
    demo.start()
    demo.join()
    for module in ("train", "test"):
        importlib.import_module(module)
    seconds = finish(f"{command}whole", folder)
    print(f"undisturbed: {seconds:.0f} s", flush=True)
    fold, done, in_writing, starts = folder / "checkpoint/broken/0", 0, 0, 0
    span = seconds / kills
    while done < kills:
        starts += 1
        alive, writing = kill(start(f"{command}broken", folder), fold, rng, done % 4 != 3, span)
        if not alive:
            sys.exit(f"the run ended after {done} kills: give more --epochs")
        done, in_writing = done + alive, in_writing + writing
        print(f"kill {done}" + (" while a checkpoint was being written" if writing else ""), flush=True)
    finish(f"{command}broken", folder)
    for name in ("whole", "broken"):
        finish(f"test.py --path_opt tiny.yaml --device cpu --set k_fold.experiment_name={name}", folder)
    found = differences(folder / "checkpoint/whole/0", fold)
    results = [json.loads((folder / f"checkpoint/{name}/results.json").read_text()) for name in ("whole", "broken")]
    for result in results:
        del result["experiment"]
    found += compare(*results, "results.json")
    print(f"{done} kills, {in_writing} of them while a checkpoint was being written; {len(found)} differences")
    for difference in found[:20]:
        print(difference)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
