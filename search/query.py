"""Ask an index: which pictures show what a sentence says, or look like an image.

python -m search.query --index INDEX.db (--text "..." | --image FILE) [--top 20] [--json]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError

from option.options import Options
from search.answers import Answer, fold_duplicates, to_table
from search.encoder import Encoder, check_sentence, load_encoder
from search.local import DETECTOR, LocalRules
from search.pictures import sample
from search.rasters import SUFFIXES, RasterRules, open_scene
from search.store import Index, Mark, open_index, read_mark
from util.device import pick_device
from util.images import open_image
from utils import InputError, Parser, existing_file, run_command

logger = logging.getLogger("galr")

OVERVIEW = 1024  # pixels: to what a scene is reduced when it is itself the query


def main() -> None:
    arguments = _parse()
    if arguments.json:
        logger.setLevel(logging.WARNING)  # nothing but JSON on standard output
    image = open_query(arguments.image) if arguments.image else None
    with open_index(arguments.index) as index:
        mark = read_mark(index)
        encoder = encoder_of(mark, arguments.resume, pick_device(arguments.device))
        if image is None:
            note_unknown_words(encoder, arguments.text)
            vector = encoder.sentences([arguments.text])[0]
        else:
            vector = image_vector(encoder, mark, image)
        answers = ask(index, vector, arguments.top, arguments.folder, arguments.bbox, arguments.fold)
    if arguments.json:
        print(json.dumps(to_table(answers), indent=2, ensure_ascii=False))
    else:
        print("\n".join(str(answer) for answer in answers) or "nothing found")


def ask(
    index: Index,
    vector: np.ndarray,
    top: int,
    folder: str = "",
    bbox: Sequence[float] | None = None,
    fold: float | None = None,
) -> list[Answer]:
    """The best `top` answers to a vector (D,); `folder` and `bbox` as in `Index.search`.

    fold: what has at least this cosine with a better answer goes under that one.
    """
    wanted = top
    while True:
        hits = index.search(vector, wanted, folder, bbox)
        answers = fold_duplicates(hits, fold)
        if len(answers) >= top or len(hits) < wanted:
            return answers[:top]
        wanted *= 2


def encoder_of(mark: Mark, resume: str | None, device: torch.device) -> Encoder:
    """The encoder that made an index; resume: where its checkpoint is now, if it has moved.

    Raises InputError where that file is not there, or is another.
    """
    path = existing_file(resume or mark.checkpoint, "checkpoint", "--resume FILE says where it is now")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != mark.sha256:
            raise InputError(f"checkpoint {path} is not the one that made this index; --resume FILE names that one")
    try:
        options = Options(**mark.options)
    except ValidationError as error:
        raise InputError(f"the options of this index do not fit this version ({error.errors()[0]['msg']})") from None
    return load_encoder(options, path, device, tuple(mark.words))


def image_vector(encoder: Encoder, mark: Mark, image: Image.Image) -> np.ndarray:
    """The unit vector (D,) of a picture, with local features as far as the index's rules can make them."""
    rules = LocalRules.from_dict(mark.rules)
    if rules.source == DETECTOR:
        logger.info("note: a detector's regions are not known for this picture: its global part alone is compared")
    one = sample(image, encoder.options.dataset.image_size, rules)
    return encoder.images(*(np.stack([part]) for part in one))[0]


def open_query(path: str) -> Image.Image:
    """A picture to ask with; a raster as a whole, reduced. Raises InputError."""
    if Path(path).suffix.lower() in SUFFIXES:
        with open_scene(path, RasterRules()) as scene:
            return scene.overview(OVERVIEW)
    return open_image(path)


def note_unknown_words(encoder: Encoder, text: str) -> None:
    """Say which words of a sentence the model does not know. Raises InputError where it knows none."""
    if unknown := encoder.unknown_words(text):
        logger.info(f"note: the model does not know: {', '.join(unknown)}")


def _parse() -> argparse.Namespace:
    parser = Parser(prog="python -m search.query", description="Ask an index of pictures.")
    parser.add_argument("--index", required=True, help="a folder NAME.db, or the address of a Milvus server")
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("--text", help="a sentence: what the picture shows")
    query.add_argument("--image", metavar="FILE", help="a picture: what it looks like")
    parser.add_argument("--top", type=int, default=20, help="how many answers (default 20)")
    parser.add_argument("--json", action="store_true", help="print JSON: rank, score, path, window, place")
    parser.add_argument("--folder", default="", help="only pictures in this folder of the index")
    parser.add_argument(
        "--bbox",
        nargs=4,
        type=float,
        metavar=("WEST", "SOUTH", "EAST", "NORTH"),
        help="only pictures whose file says that they meet these bounds, in degrees",
    )
    parser.add_argument(
        "--fold",
        type=float,
        metavar="COSINE",
        help="put what is this similar to a better answer under it, such as 0.98",
    )
    parser.add_argument("--resume", metavar="CKPT", help="where the index's checkpoint is now, if it has moved")
    parser.add_device()
    arguments = parser.parse_args()
    if not 1 <= arguments.top <= 10_000:
        raise InputError(f"--top {arguments.top}: from 1 to 10000")
    if arguments.fold is not None and not 0 < arguments.fold <= 1:
        raise InputError(f"--fold {arguments.fold:g}: a cosine above 0, up to 1")
    if arguments.bbox:
        check_bbox(arguments.bbox)
    if arguments.text is not None:
        check_sentence(arguments.text)
    return arguments


def check_bbox(bbox: Sequence[float]) -> None:
    """Raise InputError for bounds that are none."""
    west, south, east, north = bbox
    if not (-180 <= west <= east <= 180 and -90 <= south <= north <= 90):
        raise InputError(f"bounds {west:g} {south:g} {east:g} {north:g}: west, south, east, north in degrees")


if __name__ == "__main__":
    run_command(main)
