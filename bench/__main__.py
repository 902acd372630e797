"""Measure GaLR beside a plain implementation in the same run: whole processes in turns, one at a time.

    python -m bench [--suite train,data,eval,rerank] [--device NAME] [--json FILE] [--repeats N]
    python -m bench --loop [--set optim.precision=fp16 ...]      torchrun --nproc_per_node N -m bench --loop alike

Nothing else should run on the machine meanwhile. GALR_TEST_DATA=DIR lets the data suite read DIR/ucm_precomp/images.
"""

from __future__ import annotations

import json
from pathlib import Path

import bench.data
import bench.eval
import bench.loop
import bench.rerank
import bench.train
from bench import Case
from layers.distributed import joined
from postprocessing.tables import table
from util.device import pick_device
from utils import InputError, Parser, check_writable_file, is_main, run_command, write_json

SUITES = {"train": bench.train, "data": bench.data, "eval": bench.eval, "rerank": bench.rerank}


def main() -> None:
    parser = Parser(prog="python -m bench", description="Measure GaLR beside a plain implementation.")
    names = ",".join(SUITES)
    parser.add_argument("--suite", default=names, help=f"suites, separated by commas (default: {names})")
    parser.add_device()
    parser.add_argument("--json", help="also write the figures to this file, {suite: {case: figures}}")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of each suite (default: 3)")
    loop = "instead: samples a second of the training loop, and hours of the published protocol on this machine"
    parser.add_argument("--loop", action="store_true", help=loop)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="with --loop: override options")
    arguments = parser.parse_args()
    suites = arguments.suite.split(",")
    if unknown := [suite for suite in suites if suite not in SUITES]:
        raise InputError(f"--suite {arguments.suite}: no suite {unknown[0]!r}; there are {', '.join(SUITES)}")
    if arguments.repeats < 1:
        raise InputError(f"--repeats must be an integer >= 1, got {arguments.repeats}")
    if arguments.json:
        check_writable_file(Path(arguments.json))
    device = pick_device(arguments.device)
    if arguments.loop:
        with joined(device):
            results = bench.loop.loop(device, tuple(arguments.set))
        text = json.dumps(results, indent=2)
    else:
        results = {suite: SUITES[suite].cases(device, arguments.repeats) for suite in suites}
        text = table(rows_of(results))
    if is_main():
        print(text)
        if arguments.json:
            write_json(arguments.json, results)


def rows_of(results: dict[str, dict[str, Case | None]]) -> list[list[str]]:
    """Return the figures as the rows of a table, the first one its head."""
    rows = [["case", "ours", "baseline", "ratio", "spread", "peak of ours"]]
    for suite, cases in results.items():
        for name, case in cases.items():
            if case is None:
                rows.append([f"{suite}.{name}", "emulated here", "", "", "", ""])
                continue
            times = f"{case['ours']:.4g} s", f"{case['baseline']:.4g} s", f"{case['ratio']:.1f}"
            rows.append([f"{suite}.{name}", *times, f"{case['spread']:.0%}", f"{case['peak_mib']:.0f} MiB"])
    return rows


if __name__ == "__main__":
    run_command(main)
