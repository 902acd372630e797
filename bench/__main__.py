"""Measure ours beside a plain baseline, in the same run: whole processes in turns, one at a time.

    python -m bench [--suite train,data,eval,rerank] [--device auto|cpu|cuda] [--json FILE] [--repeats N] [--full]
    python -m bench --scaling
    python -m bench --loop                 torchrun --nproc_per_node N -m bench --loop alike

Nothing else should run on the machine meanwhile. GALR_TEST_DATA=DIR lets the data suite read DIR/ucm_precomp/images.
"""

from __future__ import annotations

from pathlib import Path

import torch

import bench.data
import bench.eval
import bench.loop
import bench.rerank
import bench.scaling
import bench.train
from bench import Case
from layers.distributed import joined
from util.device import pick_device
from utils import InputError, Parser, check_writable_file, is_main, run_command, write_json

SUITES = ("train", "data", "eval", "rerank")


def main() -> None:
    parser = Parser(prog="python -m bench", description="Measure ours beside a plain baseline, processes in turns.")
    parser.add_argument(
        "--suite", default=",".join(SUITES), help=f"which ones, with commas (default {','.join(SUITES)})"
    )
    parser.add_device()
    parser.add_argument("--json", help="also write the figures to this file, {suite: {case: figures}}")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of each suite (default 3)")
    parser.add_argument("--full", action="store_true", help="eval: all of the baseline's blocks, once")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--scaling", action="store_true", help="instead: how the time of ours grows, with exponents")
    instead.add_argument(
        "--loop",
        action="store_true",
        help="instead: samples a second of the training loop, and how "
        "long the published protocol takes on this machine",
    )
    arguments = parser.parse_args()
    suites = arguments.suite.split(",")
    if unknown := [suite for suite in suites if suite not in SUITES]:
        raise InputError(f"--suite {arguments.suite}: no suite {unknown[0]!r}; there are {', '.join(SUITES)}")
    if arguments.repeats < 1:
        raise InputError(f"--repeats {arguments.repeats}: at least 1 is needed")
    if arguments.json:
        check_writable_file(Path(arguments.json))
    device = pick_device(arguments.device)
    precision = "bf16" if device.type == "cuda" else "fp32"
    if arguments.scaling:
        results = bench.scaling.scaling(device, precision)
        print(bench.scaling.table(results))
    elif arguments.loop:
        with joined(device):
            results = bench.loop.loop(device, precision)
        if is_main():
            print(bench.loop.table(results))
    else:
        results = {}
        for suite in suites:
            for name, case in measure(suite, device, arguments.repeats, arguments.full).items():
                group, _, part = name.partition(".")
                results.setdefault(group, {})[part] = case
        print(table(results))
    if arguments.json and is_main():
        write_json(arguments.json, results)


def measure(suite: str, device: torch.device, repeats: int, full: bool) -> dict[str, Case]:
    """The cases of one suite."""
    if suite == "train":
        return bench.train.cases(device, repeats)
    if suite == "data":
        return bench.data.cases(device, repeats)
    if suite == "eval":
        return bench.eval.cases(device, repeats, full=full)
    return bench.rerank.cases(rounds=repeats)


def table(results: dict[str, dict[str, Case]]) -> str:
    """The figures as aligned text."""
    rows = [("case", "ours", "baseline", "ratio", "spread", "peak of ours")]
    rows += [
        (
            f"{suite}.{name}",
            f"{case['ours']:.4g} s",
            f"{case['baseline']:.4g} s",
            f"{case['ratio']:.1f}",
            f"{case['spread']:.0%}",
            f"{case['peak_mib']:.0f} MiB",
        )
        for suite, cases in results.items()
        for name, case in cases.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *values in rows:
        lines.append(f"{name:<{widths[0]}}" + "".join(f"  {x:>{w}}" for x, w in zip(values, widths[1:], strict=True)))
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
