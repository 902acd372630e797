"""Several models, several seeds, one table: means, deviations, and of every pair whether its difference is shown.

    python -m postprocessing.compare UCM GaLR AMFMN --seeds 5

reads the runs UCM_GaLR_s0 to UCM_AMFMN_s4 as `exec/compare.sh` leaves them: results.json for the folds, and the test
matrices with their galleries. Writes compare.md, compare.json and intervals.png.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from postprocessing.comparison import Comparison, Model, differences, interval_figure, markdown, score_model, terminal
from postprocessing.matrices import gallery_file, load, load_gallery
from postprocessing.recall import Standings, standings
from postprocessing.results import Results
from postprocessing.results import load as load_file
from postprocessing.style import save_figure
from postprocessing.tables import gallery_of
from utils import Bar, InputError, Parser, check_writable, run_command, write_json, write_text

logger = logging.getLogger("galr")


class Run(NamedTuple):
    """One seed of a model: its results, the split that it was scored on, and where the split's queries stand in each
    fold."""

    name: str
    results: Results
    images: list[str]  # their file names
    captions: list[str]
    image_of_caption: np.ndarray
    standings: list[Standings]

    def check_comparable(self, other: Run) -> None:
        """Raises InputError where the other run has another split or other folds."""
        for what in ("images", "captions"):
            if getattr(self, what) != getattr(other, what):
                raise InputError(f"{self.name} and {other.name} were scored on different {what}; take the same split")
        if not np.array_equal(self.image_of_caption, other.image_of_caption):
            raise InputError(f"in {self.name} and {other.name} captions belong to different images")
        mine, theirs = ([fold.fold for fold in run.results.folds] for run in (self, other))
        if mine != theirs:
            raise InputError(f"{self.name} has the folds {mine}, {other.name} has {theirs}; score the same of both")


def read_run(name: str, runs: Path, matrices: Path) -> Run:
    """Raises InputError where something of a run is missing, damaged, or not of one scoring."""
    results = load_file(runs / name / "results.json", Results, "train and score it: exec/compare.sh does")
    first, found = None, []
    for fold in results.folds:
        file = matrices / f"{name}_{fold.fold}.npy"
        (sims, owner), (images, captions) = load(file), load_gallery(gallery_file(file))
        found.append(standings(sims, owner))
        if sims.shape != (len(images), len(captions)) or abs(found[-1].scores().mr - fold.mr) > 1e-6:
            raise InputError(f"{file} is not what {runs / name}/results.json was made from; run test.py for it again")
        run = Run(name, results, [Path(image).name for image in images], captions, owner, found)
        first = first or run
        first.check_comparable(run)
    return first


def read_models(dataset: str, names: Sequence[str], seeds: int, runs: Path, matrices: Path) -> dict[str, list[Run]]:
    """The runs of each model, a seed each. Raises InputError where they do not compare."""
    models: dict[str, list[Run]] = {name: [] for name in names}
    for model, seed in Bar(list(itertools.product(names, range(seeds))), desc="compare", unit="run"):
        run = read_run(f"{dataset}_{model}_s{seed}", runs, matrices)
        models[model].append(run)
        models[names[0]][0].check_comparable(run)
    return models


def main() -> None:
    """Compare models over seeds: means, deviations, and for every pair the intervals of the difference of mR."""
    parser = Parser(prog="python -m postprocessing.compare", description=main.__doc__)
    add = parser.add_argument
    add("dataset", help="as in the names of the runs, {dataset}_{model}_s{seed}")
    add("models", nargs="+", help="as in the names of the runs")
    add("--seeds", type=int, default=1, help="how many of each model, from 0 (%(default)s)")
    add("--level", type=float, default=0.95, help="of the intervals (%(default)s)")
    add("--runs", default="checkpoint", metavar="DIR", help="where the runs are (%(default)s)")
    add("--matrices", default="postprocessing/file", metavar="DIR", help="where test.py left them (%(default)s)")
    add("--out", metavar="DIR", help="where the tables and the figure go (RUNS/{dataset}_compare)")
    args = parser.parse_args()
    if args.seeds < 1 or not 0 < args.level < 1:
        raise InputError("--seeds is a whole number from 1 on, --level lies between 0 and 1")
    if len(set(args.models)) < len(args.models):
        raise InputError("a model is named twice")
    out = Path(args.out or Path(args.runs) / f"{args.dataset}_compare")
    check_writable(out, "the folder of the comparison")
    models = read_models(args.dataset, args.models, args.seeds, Path(args.runs), Path(args.matrices))
    first = models[args.models[0]][0]
    found = [Model(name, [run.standings for run in runs]) for name, runs in models.items()]
    comparison = Comparison(
        dataset=first.results.dataset,
        gallery=gallery_of(first.results.folds, first.results.lists),
        seeds=args.seeds,
        folds=len(first.results.folds),
        level=args.level,
        scores=[score_model(model) for model in found],
        differences=differences(found, first.image_of_caption, args.level),
    )
    text = terminal(comparison)
    write_text(out / "compare.md", markdown(comparison))
    write_json(out / "compare.json", comparison.model_dump())
    print(text, end="")
    if len(models) > 1:
        save_figure(interval_figure(comparison), out / "intervals.png")
    logger.info(f"{out}/compare.md, .json" + (", intervals.png" if len(models) > 1 else ""))


if __name__ == "__main__":
    run_command(main)
