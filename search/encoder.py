"""Name a model and the rules of scenes on a command line, load it, and encode pictures and windows by it."""

from __future__ import annotations

import argparse
import hashlib
import logging
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from engine import load_model
from layers.drea import Regions
from option import Options
from search.pictures import Pictures, leave_signals
from search.rasters import RasterRules
from search.store import Record
from search.windows import SCALES
from util.checkpoint import read_checkpoint
from util.device import pick_device
from util.encoder import Encoder, make_encoder
from util.model_folder import folder_rules, options_of, weights_file
from util.regions.local_features import DETECTOR, LocalRules, read_rules
from util.regions.readers import add_detector_options, add_truncated
from utils import ROOT, Bar, InputError, Parser, existing_file
from vocab import load_words

logger = logging.getLogger("galr")

BATCH = 32  # pictures at a time
BOX = ROOT / "models" / "rs_lite"  # the model that comes with the code
WORTH_WORKERS = 200  # pictures; for fewer, loader processes take longer to start than they save


def add_model_and_scenes(parser: Parser, scales: Sequence[int] = SCALES) -> None:
    """Add what names the model, and what cuts, reads and encodes scenes; scales: the default of --scales, in pixels."""
    parser.add_options(required=False)
    text = "model folder, or checkpoint (with --path_opt); default: models/rs_lite"
    parser.add_argument("--model", "--resume", dest="resume", metavar="FOLDER|CKPT", help=text)
    default = " ".join(map(str, scales))
    text = f"sides of the windows that scenes are cut into (default {default})"
    parser.add_argument("--scales", nargs="+", type=int, default=list(scales), metavar="PIXELS", help=text)
    parser.add_argument("--bands", nargs=3, type=int, metavar="N", help="bands for red, green and blue, from 1")
    text = "of more than 8 bits: this percentile is black, 100 - it white (default 2)"
    parser.add_argument("--stretch", type=float, default=2.0, metavar="PERCENT", help=text)
    add_truncated(parser)
    parser.add_argument("--regions", help="a detector's files for the images, or the word none: no regions")
    add_detector_options(parser)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="loader processes (default: one per core)")
    parser.add_device()


def read_model(arguments: argparse.Namespace) -> tuple[Encoder, RasterRules]:
    """Load the model that a command line names, else the one in the box, and the rules by which it reads scenes.

    Raises InputError where there is no model, where it needs a detector's regions, and for values that cannot be.
    """
    if min(arguments.scales) < 16:
        raise InputError(f"--scales must be at least 16 pixels, got {min(arguments.scales)}")
    if not 0 <= arguments.stretch < 50:
        raise InputError(f"--stretch must be a percentile from 0, below 50, got {arguments.stretch:g}")
    if arguments.resume is None:
        if arguments.path_opt or not BOX.is_dir():
            why = "--path_opt without --resume" if arguments.path_opt else f"{BOX} is not there"
            raise InputError(f"no model: {why}; give --model FOLDER, or --path_opt FILE --resume CKPT")
        arguments.resume = str(BOX)
    cut = ["dataset.truncated=allow"] if arguments.truncated == "allow" else []
    options = options_of(arguments.resume, arguments.path_opt, [*arguments.set, *cut])
    is_folder = Path(arguments.resume).is_dir()
    local = folder_rules(arguments.resume, options) if is_folder else read_rules(options.local_path)
    if local.source == DETECTOR and not arguments.regions:
        raise InputError(
            "the model was trained with a detector's regions; give those of the new images with --regions DIR|FILE, "
            "or --regions none for the global part alone"
        )
    bands = tuple(arguments.bands) if arguments.bands else None
    rules = RasterRules(bands, arguments.stretch, options.dataset.truncated)
    return load_encoder(options, arguments.resume, pick_device(arguments.device), local), rules


def load_encoder(
    options: Options,
    checkpoint: str | os.PathLike,
    device: torch.device,
    rules: LocalRules,
    words: Sequence[str] | None = None,
) -> Encoder:
    """Build the encoder of a checkpoint, ours or a published one; words: its vocabulary, else that of the options.

    Raises InputError where the files do not fit, and for a model whose similarity is no cosine.
    """
    state = read_checkpoint(checkpoint)
    words = tuple(words or state.get("words") or load_words(options))
    encoder = make_encoder(load_model(state, options, words, device), options, words, device, rules)
    if not encoder.unit:
        raise InputError(
            f"model.name {options.model.name}: its similarity is a function of each pair, not a cosine, and gives no "
            "vectors to rank; use GaLR, VSE++ (image_norm: true) or CLIP, or score lists with test_single.py --sims"
        )
    return encoder


def digest_of(checkpoint: str | os.PathLike) -> str:
    """Return the SHA-256 of the weights of a checkpoint or model folder, by which an index knows it."""
    with existing_file(weights_file(checkpoint), "checkpoint", "--model says where it is now").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def note_unknown_words(encoder: Encoder, text: str) -> None:
    """Name the words of a sentence that the model does not know. Raises InputError where it knows none."""
    if unknown := encoder.unknown_words(text):
        logger.info(f"note: the model does not know: {', '.join(unknown)}")


def encode_records(
    encoder: Encoder,
    root: Path,
    records: Sequence[Record],
    rules: RasterRules,
    workers: int,
    regions: dict[str, Regions] | None = None,
) -> Iterator[tuple[list[Record], np.ndarray, dict[str, str]]]:
    """Encode the pictures and windows of records in their order, and draw a progress bar.

    Yields for each batch the records that could be read, their vectors (n, D), and the faults of the others by path.
    """
    pictures = Pictures(root, records, encoder.options.dataset.image_size, encoder.rules, rules, regions)
    how = {}
    if len(records) >= WORTH_WORKERS and workers > 0:  # not forked from here: Milvus Lite has threads in this process
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload([Pictures.__module__])  # imported once, not by each worker
        how = {"num_workers": workers, "multiprocessing_context": server, "worker_init_fn": leave_signals}
    with Bar(total=len(records), desc="encoding", unit="picture") as bar:
        for pairs in DataLoader(pictures, batch_size=BATCH, collate_fn=list, **how):
            faults = {record.path: str(one) for record, one in pairs if isinstance(one, InputError)}
            good = [(record, one) for record, one in pairs if not isinstance(one, InputError)]
            vectors = np.zeros((0, 0), np.float32)
            if good:
                vectors = encoder.encode(*map(np.stack, zip(*(one for _, one in good), strict=True)))
            yield [record for record, _ in good], vectors, faults
            bar.update(len(pairs))
