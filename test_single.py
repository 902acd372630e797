"""Score one checkpoint, ours or a published one, on one split.

python test_single.py --path_opt option/RSITMD/RSITMD_GaLR.yaml --resume checkpoint/RSITMD_GaLR/0/GaLR_best.pth.tar
python test_single.py --resume models/NAME --set dataset.data_path=LISTS dataset.image_path=IMAGES
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from data import load_data, read_split, validation_split
from engine import embed_split, load_model, similarities, untrained_model
from postprocessing.classes import class_of_images
from postprocessing.figures import retrieval_grid, save_figure
from postprocessing.matrices import Gallery, Matrix, save_array
from postprocessing.recall import query_ranks
from postprocessing.results import Results
from postprocessing.tables import markdown
from test import add_classes, describe, fold_score
from util.checkpoint import read_checkpoint
from util.device import pick_device
from util.model_folder import options_of
from utils import InputError, Parser, check_writable_file, run_command
from vocab import load_words

logger = logging.getLogger("galr")


def _parse() -> argparse.Namespace:
    parser = Parser(prog="test_single.py", description="Score one checkpoint on one split.")
    parser.add_options(required=False)
    add = parser.add_argument
    add("--resume", required=True, metavar="CKPT", help="checkpoint or model folder; none: the untrained model")
    add("--split", choices=["test", "val"], default="test", help="val: of the checkpoint's split.json")
    add("--sims", type=Path, metavar="OUT.npy", help="write the similarity matrix, images x captions")
    add("--caption-vectors", type=Path, metavar="OUT.npy", help="write the vectors of the captions, captions x D")
    add("--figure", type=Path, metavar="OUT.png", help="write a retrieval grid")
    add_classes(parser)
    parser.add_device()
    arguments = parser.parse_args()
    for path in filter(None, (arguments.sims, arguments.caption_vectors, arguments.figure)):
        check_writable_file(path)
    for option, path in (("--sims", arguments.sims), ("--caption-vectors", arguments.caption_vectors)):
        if path and path.suffix != ".npy":
            raise InputError(f"{option} {path}: the name must end in .npy")
    return arguments


def main() -> None:
    arguments = _parse()
    options = options_of(arguments.resume, arguments.path_opt, arguments.set)
    device = pick_device(arguments.device)
    words = load_words(options)
    if arguments.resume == "none":
        model = untrained_model(options, words, device)
    else:
        model = load_model(read_checkpoint(arguments.resume), options, words, device)
    path = Path(arguments.resume).absolute()
    folder = path if path.is_dir() else path.parent
    test = arguments.split == "test"
    split = read_split(options.dataset.data_path, "test") if test else validation_split(folder, options)
    classes = class_of_images(split.images, arguments.classes) if arguments.classes else None
    data = load_data(split, options, words, device, training=False)
    images, captions = embed_split(model, data, options)
    sims = similarities(model, images, captions)
    fold = int(folder.name) if folder.name.isdigit() else 0  # our runs have a folder for each fold
    score = fold_score(fold, query_ranks(sims, split.image_of_caption), split, arguments.split, classes)
    logger.info(describe(arguments.split, data))
    about = {"experiment": options.k_fold.experiment_name, "dataset": options.dataset.datatype}
    logger.info(markdown(Results.of([score], **about, lists=Path(options.dataset.data_path).name)))
    if arguments.sims:
        written = Matrix(sims, split.image_of_caption, Gallery(data.paths, split.captions)).save(arguments.sims)
        logger.info(f"written: {', '.join(map(str, written))}")
    if arguments.caption_vectors:
        save_array(arguments.caption_vectors, captions.all_vectors())
        logger.info(f"written: {arguments.caption_vectors}")
    if arguments.figure:
        save_figure(retrieval_grid(sims, data.paths, split.captions, split.image_of_caption), arguments.figure)
        logger.info(f"written: {arguments.figure}")


if __name__ == "__main__":
    run_command(main)
