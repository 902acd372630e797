"""Train a model on k folds.

    python train.py --path_opt option/RSITMD/RSITMD_GaLR.yaml [--set optim.lr=1e-4 ...] [--fold K] [--resume]

Each fold leaves checkpoint/{experiment_name}/{fold}/: best and last checkpoint, split, options, log.
`torchrun --nproc_per_node N train.py ...` is the same run in N processes (docs/scaling.md); the first of them writes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from data import WEIGHTS, Data, Fold, epoch_size, load_data, make_folds, random_stream
from engine import (
    embed_split,
    make_criterion,
    make_model,
    make_optimizer,
    prepare,
    similarities,
    train_one_epoch,
)
from layers.average import make_average
from layers.distributed import check_alike, joined, largest, wait_for_all
from layers.model import Model
from option import Options, load_options
from postprocessing.figures import retrieval_grid
from postprocessing.recall import chance, query_ranks
from util.background import Background
from util.checkpoint import (
    BEST,
    LAST,
    check_inputs,
    earlier_state,
    load_weights,
    read_checkpoint,
    refuse_existing,
    save_checkpoint,
    warn_of_seen_images,
    with_defaults,
)
from util.device import pick_device
from util.precision import advise, make_deterministic, make_scaler
from util.run_log import NoLog, RunLog, StopSignals, only_writer, recorded
from util.starting_weights import load_starting_weights
from util.train_state import DIVERGED, Progress, TrainState, is_finished, snapshot
from utils import (
    InputError,
    Interrupted,
    Parser,
    RunError,
    check_writable,
    is_main,
    run_command,
    same_options,
    worker_died,
)
from vocab import load_words

logger = logging.getLogger("galr")

PICTURE = "val/retrievals"  # of each validation, for TensorBoard
IN_BACKGROUND = (BEST, LAST, PICTURE)  # a last checkpoint names the best score: that best one is on disk before it


def main() -> None:
    arguments = parse()
    options = load_options(arguments.path_opt, arguments.set)
    if options.optim.deterministic:
        make_deterministic()
    device = pick_device(arguments.device)
    with joined(device):
        train_folds(arguments, options, device)


def train_folds(arguments: argparse.Namespace, options: Options, device: torch.device) -> None:
    """Train the folds that the command line asks for, one after the other."""
    advise(options.optim, device)
    words = load_words(options)
    folds = make_folds(options, arguments.fold)
    for key in ("ckpt_save_path", "logger_name"):
        check_writable(Path(getattr(options.logs, key)) / options.k_fold.experiment_name, f"logs.{key}")
    if is_main() and not arguments.resume:
        for fold in folds:
            refuse_existing(fold.folder)
    for fold in folds:
        with only_writer(fold.folder):
            checkpoint = None
            if arguments.resume:
                checkpoint = earlier_state(fold.folder, fold.names, options, arguments.force)
            elif is_main():
                refuse_existing(fold.folder)  # once more: another run may have held the lock until now
            if checkpoint and is_finished(options.optim, checkpoint["epoch"], checkpoint["rows"]):
                logger.info("fold %d is finished: skipped", fold.number)
            else:
                train_fold(fold, checkpoint, options, words, device, arguments.force)
    logger.info("trained; next: python test.py %s", same_options(arguments))


def parse() -> argparse.Namespace:
    parser = Parser(prog="train.py", description="Train a model on k folds.")
    parser.add_options()
    parser.add_argument("--fold", type=int, help="train this fold only (default: all)")
    parser.add_argument("--resume", action="store_true", help="go on where the run stopped; finished folds are skipped")
    parser.add_argument("--force", action="store_true", help="with --resume: go on though options have changed")
    parser.add_device()
    return parser.parse_args()


def train_fold(
    fold: Fold, checkpoint: dict | None, options: Options, words: Sequence[str], device: torch.device, force: bool
) -> None:
    """Train a fold from its checkpoint, or anew, to its end; leave checkpoints, log and history in its folder."""
    criterion = make_criterion(options.optim, device)
    model = prepare(start_model(fold, checkpoint, options, words), options, device)
    train = load_data(fold.train, options, words, device, training=True)
    val = load_data(fold.val, options, words, device, training=False)
    optimizer = make_optimizer(model, options.optim, criterion)
    average, scaler = make_average(model, options.optim.ema), make_scaler(options.optim, device)
    state = TrainState(model, criterion, optimizer, average, scaler)
    inputs, rows = fingerprint(train, val), []
    if checkpoint:
        check_inputs(checkpoint, inputs, fold.folder, force)
        state.load(checkpoint, fold.folder, device)
        keep_place(state.progress, checkpoint, train, options, inputs)
        rows = checkpoint["rows"]
    progress = state.progress
    check_alike("the checkpoint, captions or local features", (inputs, progress.steps, progress.batch))
    pairs, images = epoch_size(train, options.dataset)[1], len(fold.val.images)
    logger.info(f"fold {fold.number}: {pairs} pairs to train on, {images} images to validate on, into {fold.folder}")

    with (
        StopSignals() as signals,
        recorded(fold.folder, fold.names, options, rows, device) as log,
        Background(IN_BACKGROUND) as background,
    ):
        saved_at = time.monotonic()

        def save(name: str) -> None:
            nonlocal saved_at
            if not is_main():
                return
            last = name == LAST
            saved_at = time.monotonic() if last else saved_at
            tree = state.for_resume(options, words, log.rows, inputs) if last else state.for_scoring(options, words)
            copied, path = snapshot(tree, device), fold.folder / name
            background.put(name, lambda: save_checkpoint(copied(), path, keep_previous=last))

        def after_step() -> None:
            steps, minutes = options.logs.save_steps, options.logs.save_minutes
            late = minutes and time.monotonic() - saved_at >= 60 * minutes
            if late or (steps and progress.steps % steps == 0):
                save(LAST)
            check()

        def check() -> None:
            background.check()
            signals.check()

        with saved_when_stopped(save, background, signals, fold.folder):
            while not largest(is_finished(options.optim, progress.epoch, log.rows)):  # the main process has the rows
                train_one_epoch(state, train, options, fold.number, log, after_step)
                if (progress.epoch + 1) % options.logs.eval_step == 0 or progress.epoch + 1 == options.optim.epochs:
                    rsum = evaluate(state, val, options, log, background, check)
                    if rsum > progress.best_rsum:  # of equal epochs the first is kept
                        progress.best_rsum = rsum
                        save(BEST)
                progress.next_epoch()
                save(LAST)
            if progress.epoch < options.optim.epochs:
                waited = f"no validation was better in {options.optim.early_stopping} epochs"
                logger.info(f"fold {fold.number} stops early, after epoch {progress.epoch - 1}: {waited}")


def start_model(fold: Fold, checkpoint: dict | None, options: Options, words: Sequence[str]) -> Model:
    """Build a model with the weights to start from: of the checkpoint, of `optim.resume`, or new ones.

    Raise InputError where weights are missing or do not fit.
    """
    torch.manual_seed(int(random_stream(WEIGHTS, options.seed, fold.number).integers(2**63)))
    model, resume = make_model(options, words), options.optim.resume
    if checkpoint:
        load_weights(model, checkpoint, words)
    elif resume:
        warn_of_seen_images(fold.number, fold.val.images, resume)
        load_weights(model, read_checkpoint(resume), words)
    else:
        load_starting_weights(model, options.model, words)
    try:
        model.freeze(options.optim.freeze)
    except ValueError as error:
        raise InputError(f"optim.freeze: {error}") from None
    return model


def keep_place(progress: Progress, checkpoint: dict, data: Data, options: Options, inputs: str) -> None:
    """Keep the place in an epoch whose batches have changed (--force): no pair comes twice, none is left out.

    Where no new batch begins there, or the pairs come in another order, the epoch begins anew, and the log says so.
    """
    before = Options.model_validate(with_defaults(checkpoint["options"]))
    new, old = options.dataset, before.dataset
    same_order = (before.seed, old.captions_per_image) == (options.seed, new.captions_per_image)
    same_order = same_order and checkpoint.get("inputs", inputs) == inputs
    if not progress.batch or (same_order and old.batch_size == new.batch_size):
        return
    batches, batches_before = (epoch_size(data, one)[0] for one in (new, old))
    begun, rest = divmod(progress.batch * old.batch_size, new.batch_size)
    progress.window.clear()
    if same_order and progress.batch == batches_before:
        progress.batch = batches
    elif same_order and not rest:
        progress.batch = begun
        logger.info(f"epoch {progress.epoch} goes on at batch {begun + 1} of {batches} of the new size")
    else:
        progress.batch = 0
        logger.warning(f"epoch {progress.epoch} begins anew: its batches are others than those it was stopped in")


def fingerprint(*splits: Data) -> str:
    """Return a digest of the captions and local features that a fold trains and validates on."""
    digest = hashlib.sha256()
    for data in splits:
        for array in (data.token_ids.cpu().numpy(), data.split.image_of_caption, data.local_rep, data.local_adj):
            digest.update(repr(array.shape).encode() + array.tobytes())
    return digest.hexdigest()


def evaluate(
    state: TrainState,
    val: Data,
    options: Options,
    log: RunLog | NoLog,
    background: Background,
    check: Callable[[], None],
) -> float:
    """Validate, log it, have some retrievals drawn, and return the sum of the six recalls (-1 beside the main process).

    Ties count against the query here. Raise RunError where similarities are not finite.
    """
    vectors = embed_split(state.scored, val, options, check)
    if not is_main():
        return -1.0
    progress, caption_to_image = state.progress, val.split.image_of_caption
    sims = similarities(state.scored, *vectors)
    if not np.isfinite(sims).all():
        what = f"the similarities after epoch {progress.epoch} are not finite, so its last step spoilt the weights"
        raise RunError(f"{what}; {DIVERGED}")
    found = query_ranks(sims, caption_to_image)
    i2t, t2i, mr = found.scores()
    row = {
        "epoch": progress.epoch,
        "step": progress.steps,
        "images": len(sims),
        "captions": sims.shape[1],
        "chance": chance(caption_to_image, len(sims)).mr,
        "i2t": i2t._asdict(),
        "t2i": t2i._asdict(),
        "mr": mr,
        "mr_random": found.scores("random").mr,
    }
    log.val_row(row)
    drawn, step = (sims, val.paths, val.split.captions, caption_to_image), progress.steps
    background.put(PICTURE, lambda: log.picture(PICTURE, retrieval_grid(*drawn), step))
    return 6 * mr


@contextlib.contextmanager
def saved_when_stopped(
    save: Callable[[str], None], background: Background, signals: StopSignals, folder: Path
) -> Iterator[None]:
    """Save the last checkpoint where a signal stops the run, and say how to go on."""
    try:
        yield
    except Interrupted as stop:
        save(LAST)
        background.wait()
        wait_for_all()  # torchrun ends the others soon after the first that ends
        message = f"{stop}; saved in {folder}: go on with the same command and --resume"
        raise Interrupted(stop.signum, message) from None
    except RuntimeError as error:  # the signal also went to the loader's workers, and ended a step half-way
        if not (signals.signum and worker_died(error)):
            raise
        message = f"stopped with its loader workers: go on from the last checkpoint in {folder} with --resume"
        raise Interrupted(signals.signum, message) from None


if __name__ == "__main__":
    run_command(main)
