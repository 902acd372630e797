"""Score a model's semantic localisation on annotated scenes, such as AIR-SLT: Rsu, Rda, Ras, Rmi.

    python -m search.evaluate [--model FOLDER] --annotations anno.json --images DIR

The annotations are a list of queries: `caption`, `jpg_name` (the scene), `points` (a list of regions, each a polygon of
[x, y] in pixels).
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, FiniteFloat, StringConstraints

from search.encoder import add_model_and_scenes, read_model
from search.localise import encode_scene
from search.metrics import SeloScores, selo_scores
from search.pictures import given_regions, picture_size
from util.encoder import LONGEST
from util.lists import safe_paths
from utils import Entry, InputError, Parser, check_writable_file, read_as, run_command, write_json

logger = logging.getLogger("galr")


class Query(Entry):
    """Describe a sentence and the polygons that it means, as the file has them."""

    caption: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=LONGEST)]
    jpg_name: Annotated[str, Field(min_length=1)]
    points: Annotated[
        list[Annotated[list[Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]], Field(min_length=3)]],
        Field(min_length=1),
    ]

    def score(self, p: np.ndarray) -> SeloScores:
        """Score a map p (H, W) in [0, 1]. Raises InputError for a region that lies outside of it."""
        try:
            return selo_scores(p, [np.array(region) for region in self.points])
        except ValueError as error:
            raise InputError(f"scene {self.jpg_name}, query {self.caption!r}: {error}") from None


def main() -> None:
    arguments = _parse()
    queries = read_annotations(arguments.annotations)
    paths = dict(zip(queries, map(Path, safe_paths(arguments.images, list(queries))), strict=True))
    encoder, rules = read_model(arguments)
    regions = given_regions(arguments, {path.name: path for path in paths.values()}, rules)
    flat = []  # before any work, for it finds regions that lie outside
    for name, of_scene in queries.items():
        width, height = picture_size(paths[name], rules)
        flat += [query.score(np.ones((height, width), np.float32)) for query in of_scene]
    rows, scores = [], []
    for name, of_scene in queries.items():
        seen = regions and regions[paths[name].name]
        scene = encode_scene(encoder, paths[name], rules, arguments.scales, arguments.workers, seen)
        for query, sentence in zip(of_scene, encoder.sentences([one.caption for one in of_scene]), strict=True):
            scores.append(query.score(scene.map_of(sentence) / np.float32(255)))
            rows.append({"scene": name, "caption": query.caption} | scores[-1]._asdict())
    mean, of_flat = (SeloScores(*np.mean(part, axis=0).tolist()) for part in (scores, flat))
    print(f"| {len(rows)} queries, {len(queries)} scenes | Rsu | Rda | Ras | Rmi |\n|---|---|---|---|---|")
    for name, score in (("this model", mean), ("a flat map", of_flat)):
        print(f"| {name} | {score.rsu:.4f} | {score.rda:.4f} | {score.ras:.4f} | {score.rmi:.4f} |")
    if arguments.json:
        write_json(arguments.json, {"mean": mean._asdict(), "flat": of_flat._asdict(), "queries": rows})
        logger.info(f"written: {arguments.json}")


def read_annotations(path: Path) -> dict[str, list[Query]]:
    """Read the queries of each scene. Raises InputError that names the entry at fault, from 1."""
    queries: dict[str, list[Query]] = {}
    for query in read_as(list[Query], path, "annotations"):
        queries.setdefault(query.jpg_name, []).append(query)
    if not queries:
        raise InputError(f"annotations {path} hold no query")
    return queries


def _parse() -> argparse.Namespace:
    parser = Parser(prog="python -m search.evaluate", description="Score semantic localisation on annotated scenes.")
    add_model_and_scenes(parser)
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE", help="anno.json in the AIR-SLT form")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the scenes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores of every query")
    arguments = parser.parse_args()
    if arguments.json:
        check_writable_file(arguments.json)
    return arguments


if __name__ == "__main__":
    run_command(main)
