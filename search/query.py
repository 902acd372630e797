"""Ask an index for the pictures that show what a sentence says, that look like an image, or both.

python -m search.query --index INDEX.db [--text "..."] [--image FILE] [--top 20] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import logging
from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from typing import Any

import numpy as np
import torch

from option import Options
from search.encoder import digest_of, load_encoder, note_unknown_words
from search.rasters import RasterRules, open_scene
from search.store import NOWHERE, Hit, Index, Mark, open_index, quoted
from util.device import pick_device
from util.encoder import Encoder, check_sentence
from util.regions.local_features import DETECTOR, LocalRules, sample
from utils import InputError, Parser, checked, run_command

logger = logging.getLogger("galr")

OVERVIEW = 1024  # pixels: the longer side of a scene that is itself the query


def main() -> None:
    arguments = _parse()
    if arguments.json:
        logger.setLevel(logging.WARNING)  # nothing but JSON on standard output
    with open_index(arguments.index) as index:
        encoder = encoder_of(index.mark, arguments.resume, pick_device(arguments.device))
        if arguments.text is not None:
            note_unknown_words(encoder, arguments.text)
        vector = question_vector(encoder, index.mark, arguments.text, arguments.image)
        answers = ask(index, vector, arguments.top, arguments.within, arguments.fold)
    if arguments.json:
        print(json.dumps(to_table(answers), indent=2))
        return
    lines = [f"{rank:4d}  {hit.score:.4f}  {hit}" for rank, hit in enumerate(answers, start=1)]
    print("\n".join(lines) or "nothing found")


def ask(index: Index, vector: np.ndarray, top: int, within: str = "", fold: float | None = None) -> list[Hit]:
    """Return the best `top` answers to a vector (D,) that meet a filter (`narrowed`); fold: as in `hide_duplicates`."""
    wanted = top
    while True:
        hits = index.search(vector, wanted, within)
        answers = hide_duplicates(hits, fold)
        if len(answers) >= top or len(hits) < wanted:
            return answers[:top]
        wanted *= 2


def hide_duplicates(hits: Sequence[Hit], least: float | None) -> list[Hit]:
    """Put each hit that has at least the cosine `least` with better ones under the best such, and return the others."""
    if least is None:
        return list(hits)
    kept: list[Hit] = []
    for hit in hits:
        cosines = np.stack([other.vector for other in kept]) @ hit.vector if kept else np.zeros(0)
        if (cosines >= least).any():
            kept[np.argmax(cosines >= least)].duplicates.append(hit.record)
        else:
            kept.append(hit._replace(duplicates=[]))
    return kept


# ---------------------------------------------------------------- what narrows a search


def narrowed(folder: str = "", bbox: Sequence[float | str] | None = None, since: str = "", until: str = "") -> str:
    """Return the filter of Milvus that narrows a search; what is empty does not.

    folder: only paths in it. bbox: only what meets west, south, east, north in degrees; west > east where they cross
    the meridian of 180 degrees. since, until: only files with a time stamp from these days (2024-12-31), both included.
    Raises InputError for numbers that are no bounds, and for what is no day.

    >>> narrowed("far/")
    'path >= "far/" and path < "far0"'
    """
    conditions = []
    if name := folder.strip("/"):
        conditions += [f"path >= {quoted(name + '/')}", f"path < {quoted(name + '0')}"]  # 0 comes after /
    if bbox:
        west, south, east, north = _bounds(bbox)
        east += 360 * (west > east)
        turns = (f"(west <= {east + turn} and east >= {west + turn})" for turn in (-360, 0, 360))
        conditions += [f"({' or '.join(turns)})", f"south <= {north}", f"north >= {south}", f"west < {NOWHERE}"]
    if since:
        conditions.append(f"mtime_ns >= {_nanoseconds(since)}")
    if until:
        conditions.append(f"mtime_ns < {_nanoseconds(until, days=1)}")
    return " and ".join(conditions)


def _bounds(bbox: Sequence[float | str]) -> list[float]:
    with contextlib.suppress(ValueError):
        west, south, east, north = map(float, bbox)
        if -180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= north <= 90:
            return [west, south, east, north]
    raise InputError(f"bounds must be west, south, east, north in degrees, got {' '.join(map(str, bbox))}")


def _nanoseconds(day: str, days: int = 0) -> int:
    """Return the time stamp at which a day begins here, or so many days later."""
    with contextlib.suppress(ValueError, OverflowError):
        start = datetime.combine(date.fromisoformat(day) + timedelta(days), time())
        if 1677 < start.year < 2262:  # as far as 64 bits reach
            return int(start.timestamp()) * 10**9
    raise InputError(f"a day must be written as 2024-12-31, got {day}")


def encoder_of(mark: Mark, resume: str | None, device: torch.device) -> Encoder:
    """Return the encoder that made an index; resume: the path of its checkpoint now, if it has moved.

    Raises InputError where that file is not there, or is another.
    """
    path = resume or mark.checkpoint
    if digest_of(path) != mark.sha256:
        raise InputError(f"checkpoint {path} is not the one that made this index; --model names that one")
    options = checked(Options, mark.options, "the options of this index")
    return load_encoder(options, path, device, LocalRules.from_dict(mark.rules), mark.words)


def question_vector(encoder: Encoder, mark: Mark, text: str | None, image: str | None) -> np.ndarray:
    """Return the unit vector (D,) of a sentence, of a picture, or of both: the middle of theirs.

    Raises InputError for a sentence that is empty, and for a file that cannot be read.
    """
    vector = np.float32(0)
    if text or not image:
        vector = encoder.sentences([text or ""])[0]
    if image:
        with open_scene(image, raster_rules_of(mark)) as scene:
            picture = scene.overview(OVERVIEW)
        if encoder.rules.source == DETECTOR:
            logger.info("note: a detector's regions are not known for this picture: its global part alone is compared")
        one = sample(picture, encoder.options.dataset.image_size, encoder.rules)
        vector = vector + encoder.encode(*(np.stack([part]) for part in one))[0]
    return vector / np.linalg.norm(vector)


def add_index(parser: Parser) -> None:
    """Add --index, --device, and --model with its other name --resume."""
    parser.add_argument("--index", required=True, help="a folder NAME.db, or the address of a Milvus server")
    moved = "where the index's model folder or checkpoint is now, if it has moved"
    parser.add_argument("--model", "--resume", dest="resume", metavar="FOLDER|CKPT", help=moved)
    parser.add_device()


def raster_rules_of(mark: Mark) -> RasterRules:
    """Return the rules by which an index read its files."""
    bands = tuple(mark.bands) if mark.bands else None
    return RasterRules(bands, mark.stretch, mark.options["dataset"].get("truncated", "error"))


# ---------------------------------------------------------------- answers as JSON, CSV and GeoJSON


def to_table(answers: Sequence[Hit]) -> list[dict[str, Any]]:
    """Return rows for JSON. window: top, bottom, left, right in pixels. place: bounds in degrees, or null."""
    return [
        {
            "rank": rank,
            "score": round(hit.score, 6),
            "path": hit.record.path,
            "window": list(hit.record.window),
            "place": hit.record.place,
            "folded": list(map(str, hit.duplicates)),
        }
        for rank, hit in enumerate(answers, start=1)
    ]


def to_csv(answers: Sequence[Hit]) -> str:
    """Return rank, score, path, window and place, with a head line.

    A blank before a path keeps spreadsheets from taking it for a formula by its first character.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["rank", "score", "path", "top", "bottom", "left", "right", "west", "south", "east", "north"])
    for row in to_table(answers):
        path = " " * row["path"].startswith(tuple("=+-@\t\r")) + row["path"]
        writer.writerow([row["rank"], f"{row['score']:.6f}", path, *row["window"], *(row["place"] or [""] * 4)])
    return text.getvalue()


def to_geojson(answers: Sequence[Hit]) -> dict[str, Any]:
    """Return a feature for each answer: its bounds (WGS 84), or no geometry if its file does not say where it lies."""
    features = []
    for row, hit in zip(to_table(answers), answers, strict=True):
        west, south, east, north = hit.record[-4:]
        ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
        geometry = {"type": "Polygon", "coordinates": [ring]} if row["place"] else None
        features.append({"type": "Feature", "geometry": geometry, "properties": row})
    return {"type": "FeatureCollection", "features": features}


def _parse() -> argparse.Namespace:
    parser = Parser(prog="python -m search.query", description="Ask an index of pictures.")
    add_index(parser)
    parser.add_argument("--text", help="a sentence: what the picture shows")
    parser.add_argument("--image", metavar="FILE", help="a picture: what it looks like; with --text, both count alike")
    parser.add_argument("--top", type=int, default=20, help="number of answers (default 20)")
    parser.add_argument("--json", action="store_true", help="print JSON: rank, score, path, window, place")
    parser.add_argument("--folder", default="", help="only pictures in this folder of the index")
    bounds = "WEST", "SOUTH", "EAST", "NORTH"
    text = "only pictures whose file says that they meet these bounds, in degrees (WEST > EAST crosses 180)"
    parser.add_argument("--bbox", nargs=4, type=float, metavar=bounds, help=text)
    parser.add_argument("--since", default="", metavar="DAY", help="only files of this day (2024-12-31) or later")
    parser.add_argument("--until", default="", metavar="DAY", help="only files of this day or before")
    text = "hide what is this similar to a better answer, such as 0.98"
    parser.add_argument("--fold", type=float, metavar="COSINE", help=text)
    arguments = parser.parse_args()
    if not 1 <= arguments.top <= 10_000:
        raise InputError(f"--top must be from 1 to 10000, got {arguments.top}")
    if arguments.fold is not None and not 0 < arguments.fold <= 1:
        raise InputError(f"--fold must be a cosine above 0, at most 1, got {arguments.fold:g}")
    if arguments.text is None and arguments.image is None:
        raise InputError("--text or --image is missing (see python -m search.query --help)")
    arguments.within = narrowed(arguments.folder, arguments.bbox, arguments.since, arguments.until)
    if arguments.text is not None:
        check_sentence(arguments.text)
    return arguments


if __name__ == "__main__":
    run_command(main)
