"""Score a model's semantic localisation on annotated scenes, such as AIR-SLT: Rsu, Rda, Ras, Rmi.

    python -m search.evaluate [--model FOLDER] --annotations anno.json --images DIR

The annotations are a list of queries: `caption`, `jpg_name` (the scene), `points` (a list of regions, each a polygon of
[x, y] in pixels).
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field, FiniteFloat

from search.encoder import load_encoder
from search.localise import encode_scene
from search.metrics import SeloScores, discrete_attention, region_mask, selo_scores
from search.pictures import add_model, add_scene_options, check_scene_options, given_regions, picture_size, read_options
from search.rasters import RasterRules
from util.device import pick_device
from util.encoder import LONGEST
from utils import Entry, InputError, Parser, check_writable_file, read_as, run_command, write_json

logger = logging.getLogger("galr")


class Annotation(Entry):
    """Describe a query as the file has it."""

    caption: Annotated[str, Field(min_length=1, max_length=LONGEST)]
    jpg_name: Annotated[str, Field(min_length=1)]
    points: Annotated[
        list[Annotated[list[Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]], Field(min_length=3)]],
        Field(min_length=1),
    ]


class Query(NamedTuple):
    """Hold a sentence, and the polygons (n, 2) of x, y in pixels that it means."""

    caption: str
    regions: list[np.ndarray]


def main() -> None:
    arguments = _parse()
    options, local, rules = read_options(arguments)
    queries = read_annotations(arguments.annotations)
    paths = {name: find_scene(arguments.images, name) for name in queries}
    encoder = load_encoder(options, arguments.resume, pick_device(arguments.device), local)
    check_regions(queries, paths, rules)
    names = {path.name: path for path in paths.values()}
    regions = given_regions(arguments, list(names), lambda name: picture_size(names[name], rules)) or {}
    rows, scores, flat = [], [], []
    for name, of_scene in queries.items():
        path = paths[name]
        scene = encode_scene(encoder, path, rules, arguments.scales, arguments.workers, regions.get(path.name))
        level = np.ones((scene.height, scene.width), np.float32)
        for query, sentence in zip(of_scene, encoder.sentences([one.caption for one in of_scene]), strict=True):
            scores.append(selo_scores(scene.map_of(sentence) / np.float32(255), query.regions))
            flat.append(selo_scores(level, query.regions))
            rows.append({"scene": name, "caption": query.caption} | scores[-1]._asdict())
    mean, of_flat = mean_scores(scores), mean_scores(flat)
    print(table({"this model": mean, "a flat map": of_flat}, len(rows), len(queries)))
    if arguments.json:
        write_json(arguments.json, {"mean": mean._asdict(), "flat": of_flat._asdict(), "queries": rows})
        logger.info(f"written: {arguments.json}")


def read_annotations(path: Path) -> dict[str, list[Query]]:
    """Read the queries of each scene. Raises InputError that names the entry at fault, from 1."""
    queries: dict[str, list[Query]] = {}
    for one in read_as(list[Annotation], path, "annotations"):
        regions = [np.array(region) for region in one.points]
        queries.setdefault(one.jpg_name, []).append(Query(one.caption.strip(), regions))
    if not queries:
        raise InputError(f"annotations {path} hold no query")
    return queries


def find_scene(folder: Path, name: str) -> Path:
    """Return the file of a scene: of this name, else the only one of its stem. Raises InputError."""
    if Path(name).name != name:
        raise InputError(f"scene {name!r} of the annotations is no plain file name")
    if (folder / name).is_file():
        return folder / name
    stem = Path(name).stem
    found = sorted(path for path in folder.glob("*") if path.stem == stem and path.is_file())
    if len(found) == 1:
        return found[0]
    raise InputError(f"scene {name} is not in {folder}" + (f"; which of {len(found)} files is it?" if found else ""))


def check_regions(queries: dict[str, list[Query]], paths: dict[str, Path], rules: RasterRules) -> None:
    """Raise InputError, before any work, for a scene that cannot be opened and a region that lies outside of it."""
    for name, of_scene in queries.items():
        width, height = picture_size(paths[name], rules)
        for query in of_scene:
            try:
                region_mask((height, width), query.regions)
                discrete_attention(np.zeros((0, 2)), query.regions)
            except ValueError as error:
                raise InputError(f"scene {name}, query {query.caption!r}: {error}") from None


def mean_scores(scores: list[SeloScores]) -> SeloScores:
    """Return the mean of each score."""
    return SeloScores(*np.mean(scores, axis=0).tolist())


def table(rows: dict[str, SeloScores], queries: int, scenes: int) -> str:
    """Return a Markdown table in the order that papers print; Ras: lower is better."""
    lines = [f"| {queries} queries, {scenes} scenes | Rsu | Rda | Ras | Rmi |", "|---|---|---|---|---|"]
    for name, score in rows.items():
        values = (score.rsu, score.rda, score.ras, score.rmi)
        lines.append(f"| {name} | " + " | ".join(f"{value:.4f}" for value in values) + " |")
    return "\n".join(lines)


def _parse() -> argparse.Namespace:
    parser = Parser(prog="python -m search.evaluate", description="Score semantic localisation on annotated scenes.")
    add_model(parser)
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE", help="anno.json in the AIR-SLT form")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the scenes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores of every query")
    add_scene_options(parser)
    arguments = parser.parse_args()
    check_scene_options(arguments)
    if not arguments.images.is_dir():
        raise InputError(f"image folder {arguments.images} is not there")
    if arguments.json:
        check_writable_file(arguments.json)
    return arguments


if __name__ == "__main__":
    run_command(main)
