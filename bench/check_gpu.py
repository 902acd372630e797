"""Check this project on a GPU that it has not seen, and write one Markdown file to attach to a report.

    python -m bench.check_gpu [--device cuda] [--out check_gpu.md] [--small]         (or bash exec/check_gpu.sh ...)

Sections: the machine; tests/test_cuda.py; speed and memory of each precision (python -m bench --loop); each precision
against float32; determinism; two processes, where there are two GPUs. A section that fails says why, and the next one
runs. `--small` takes tiny models, to rehearse all of it on a CPU.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from bench.eval import our_evaluation
from bench.loop import loop
from bench.train import new_model, settings, steps_of, train_data, train_epoch
from engine import make_optimizer, prepare
from postprocessing.tables import table
from util.device import nvidia_smi, pick_device
from util.precision import make_deterministic, set_arithmetic
from util.run_log import provenance
from utils import ROOT, Parser, check_writable_file, logger, one_line, run_command, write_text

PRECISIONS = {
    "fp32": (),
    "tf32": ("optim.tf32=true",),
    "bf16": ("optim.precision=bf16",),
    "fp16": ("optim.precision=fp16",),
}
SMALL = (
    "dataset.batch_size=8",
    "dataset.batch_size_val=3",
    "dataset.image_size=32",
    "model.seq2vec.hidden_dim=24",
    "model.seq2vec.embedding_dim=12",
)


def main() -> None:
    parser = Parser(prog="python -m bench.check_gpu", description="Check this project on a GPU; write a report.")
    parser.add_device()
    parser.add_argument("--out", default="check_gpu.md", help="file of the report (default: check_gpu.md)")
    parser.add_argument("--small", action="store_true", help="tiny models: a rehearsal")
    digest_help = "only print a digest of the weights after some steps, with optim.deterministic as given"
    parser.add_argument("--digest", choices=("true", "false"), help=digest_help)
    arguments = parser.parse_args()
    sizes = SMALL if arguments.small else ()
    if arguments.digest:
        print(digest(arguments.device, sizes, arguments.digest))
        return
    check_writable_file(Path(arguments.out))
    device = pick_device(arguments.device)
    sections = {
        "Machine": lambda: machine(device),
        "Tests": run_tests,
        "Speed and memory": lambda: speed(device, sizes, 4 if arguments.small else 857),
        "Precisions against float32": lambda: agreement(device, sizes, *((8, 3) if arguments.small else (200, 20))),
        "Determinism": lambda: determinism(device, arguments.small),
        "Two processes": lambda: two_processes(device, sizes),
    }
    write_text(arguments.out, "\n".join(report(sections)))
    logger.info(f"the report is in {arguments.out}: please attach it")


def report(sections: dict[str, Callable[[], str]]) -> Iterator[str]:
    """Yield the lines of the report; a section that fails is a line with its error."""
    yield f"# check_gpu, {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC\n"
    for name, run in sections.items():
        logger.info(f"check_gpu: {name}")
        yield f"## {name}\n"
        try:
            yield run()
        except Exception as error:  # whatever it is, the rest is worth having
            yield f"**failed**: {type(error).__name__}: {one_line(error, 1000)}"
        yield ""


def machine(device: torch.device) -> str:
    """Return packages, commit, machine, and what nvidia-smi says of the cards."""
    made_by = provenance(device)
    lines = [f"- {key}: {json.dumps(value)}" for key, value in made_by.items() if key != "command"]
    lines.append(f"- CUDA of PyTorch: {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    fields = ("name", "driver_version", "memory.total", "compute_cap", "clocks.max.sm", "power.limit")
    lines += [f"- card: {', '.join(map(' '.join, zip(fields, card, strict=False)))}" for card in nvidia_smi(*fields)]
    return "\n".join(lines)


def python(*words: str) -> subprocess.CompletedProcess:
    """Run Python in a process of its own, from the root of the project."""
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)


def run_tests() -> str:
    """Run the tests that need a GPU; return the end of what they say."""
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_cuda.py")
    return f"`pytest tests/test_cuda.py`, exit status {done.returncode}:\n\n```\n{done.stdout[-3000:].strip()}\n```"


def speed(device: torch.device, sizes: tuple[str, ...], validation: int) -> str:
    """Return a table of the loop in each precision, and the figures of all of it."""
    rows, results = [["precision", "pairs", "samples a second", "of the peak", "peak MiB", "protocol, hours"]], {}
    for name, changes in PRECISIONS.items():
        try:
            results[name] = found = loop(device, (*sizes, *changes), validation)
        except Exception as error:  # a card need not have every precision
            results[name] = f"failed: {type(error).__name__}: {error}"
            continue
        for at, row in enumerate(found["batches"]):
            hours = f"{found['protocol_hours']:.2f}" if at == 0 else ""
            numbers = f"{row['samples_per_second']:.1f}", f"{row['of_peak']:.0%}", f"{row['peak_mib']:.0f}"
            rows.append([name, str(row["pairs"]), *numbers, hours])
    return f"{table(rows)}\n\n```\n{json.dumps(results, indent=1)}\n```"


def agreement(device: torch.device, sizes: tuple[str, ...], images: int, steps: int) -> str:
    """Return how far similarities and losses are from those of float32 on this device, and float32 from the CPU's."""

    def similarities(changes: tuple[str, ...], place: torch.device) -> np.ndarray:
        changes = (*sizes, *changes)
        return our_evaluation(changes, images, settings(changes).optim.precision, place)()

    def losses(changes: tuple[str, ...]) -> np.ndarray:
        return torch.stack(list(islice(steps_of(settings((*sizes, *changes)), device), steps))).cpu().numpy()

    plain, plain_losses = similarities((), device), losses(())
    rows = [["", "largest difference of similarities", "of the first loss", f"of the loss after {steps} steps"]]
    rows.append(["float32 on the CPU", f"{np.abs(similarities((), torch.device('cpu')) - plain).max():.1e}", "", ""])
    for name, changes in PRECISIONS.items():
        apart = np.abs(similarities(changes, device) - plain).max()
        first, *_, last = np.abs(losses(changes) / plain_losses - 1)
        rows.append([name, f"{apart:.1e}", f"{first:.1e}", f"{last:.1e}"])
    set_arithmetic(settings().optim)  # as it was
    return f"{table(rows)}\n\nLosses are relative. float32 beside itself shows what the order of sums is worth here."


def digest(device: str, sizes: tuple[str, ...], deterministic: str) -> str:
    """Train an epoch of few steps and digest the weights."""
    options = settings((*sizes, f"optim.deterministic={deterministic}"))
    if options.optim.deterministic:
        make_deterministic()
    place = pick_device(device)
    model = prepare(new_model(options), options, place)
    list(train_epoch(model, train_data(options, place), options, make_optimizer(model, options.optim)))
    sha = hashlib.sha256()
    for tensor in model.state_dict().values():
        sha.update(tensor.cpu().numpy().tobytes())
    return f"digest {sha.hexdigest()}"


def determinism(device: torch.device, small: bool) -> str:
    """Return whether two equal runs give equal bits, with `optim.deterministic` and without; each a process."""
    rows = [["optim.deterministic", "two runs give the same bits"]]
    for wanted in ("true", "false"):
        words = ["-m", "bench.check_gpu", "--digest", wanted, "--device", str(device), *["--small"] * small]
        first, second = python(*words), python(*words)
        digests = [line for run in (first, second) for line in run.stdout.splitlines() if line.startswith("digest")]
        if len(digests) < 2:
            rows.append([wanted, f"failed: {' '.join((first.stderr + second.stderr)[-500:].split())}"])
        else:
            rows.append([wanted, "yes" if digests[0] == digests[1] else "no"])
    return table(rows)


def two_processes(device: torch.device, sizes: tuple[str, ...]) -> str:
    """Return the figures of the loop in two processes, on two GPUs or on the CPU."""
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        return "one GPU: left out"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "two.json")
        words = f"-m torch.distributed.run --standalone --nproc_per_node 2 -m bench --loop --device {device.type}"
        done = python(*words.split(), "--json", str(out), *(["--set", *sizes] if sizes else []))
        text = out.read_text() if out.is_file() else f"exit status {done.returncode}: {done.stderr[-2000:]}"
    return f"```\n{text.strip()}\n```"


if __name__ == "__main__":
    run_command(main)
