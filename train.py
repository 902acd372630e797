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
from dataclasses import dataclass, field
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
    state = start_state(fold, checkpoint, options, words, device)
    train = load_data(fold.train, options, words, device, training=True)
    val = load_data(fold.val, options, words, device, training=False)
    progress, inputs, rows = state.progress, fingerprint(train, val), checkpoint["rows"] if checkpoint else []
    if checkpoint:
        check_inputs(checkpoint, inputs, fold.folder, force)
        keep_place(progress, checkpoint, train, options, inputs)
    check_alike("the checkpoint, captions or local features", (inputs, progress.steps, progress.batch))
    pairs, images = epoch_size(train, options.dataset)[1], len(fold.val.images)
    logger.info(f"fold {fold.number}: {pairs} pairs to train on, {images} images to validate on, into {fold.folder}")
    with (
        StopSignals() as signals,
        recorded(fold.folder, fold.names, options, rows, device) as log,
        Background(IN_BACKGROUND) as background,
    ):
        saver = Saver(fold.folder, state, options, words, inputs, log, background)

        def check() -> None:
            background.check()
            signals.check()

        def after_step() -> None:
            saver.save_if_due()
            check()

        with saved_when_stopped(saver, signals):
            while not largest(is_finished(options.optim, progress.epoch, log.rows)):  # the main process has the rows
                train_one_epoch(state, train, options, fold.number, log, after_step)
                if (progress.epoch + 1) % options.logs.eval_step == 0 or progress.epoch + 1 == options.optim.epochs:
                    saver.save_if_best(evaluate(state, val, options, log, background, check))
                progress.next_epoch()
                saver.save(LAST)
        if progress.epoch < options.optim.epochs:
            waited = f"no validation was better in {options.optim.early_stopping} epochs"
            logger.info(f"fold {fold.number} stops early, after epoch {progress.epoch - 1}: {waited}")


def start_state(
    fold: Fold, checkpoint: dict | None, options: Options, words: Sequence[str], device: torch.device
) -> TrainState:
    """Build everything that training changes, as it was when the checkpoint was written, or anew."""
    criterion = make_criterion(options.optim, device)
    model = prepare(start_model(fold, checkpoint, options, words), options, device)
    optimizer = make_optimizer(model, options.optim, criterion)
    average, scaler = make_average(model, options.optim.ema), make_scaler(options.optim, device)
    state = TrainState(model, criterion, optimizer, average, scaler)
    if checkpoint:
        state.load(checkpoint, fold.folder, device)
    return state


@dataclass
class Saver:
    """Write the checkpoints of a fold in the background; of several processes the main one does."""

    folder: Path
    state: TrainState
    options: Options
    words: Sequence[str]
    inputs: str
    log: RunLog | NoLog
    background: Background
    saved_at: float = field(default_factory=lambda: time.monotonic())

    def save(self, name: str) -> None:
        """Copy the state, and have the copy written as the BEST or the LAST checkpoint."""
        if not is_main():
            return
        if name == LAST:
            self.saved_at = time.monotonic()
            tree = self.state.for_resume(self.options, self.words, self.log.rows, self.inputs)
        else:
            tree = self.state.for_scoring(self.options, self.words)
        copied = snapshot(tree, next(self.state.model.parameters()).device)
        self.background.put(name, lambda: save_checkpoint(copied(), self.folder / name, keep_previous=name == LAST))

    def save_if_due(self) -> None:
        """Save the last checkpoint after so many steps or minutes (`logs.save_steps`, `logs.save_minutes`)."""
        steps, minutes = self.options.logs.save_steps, self.options.logs.save_minutes
        late = minutes and time.monotonic() - self.saved_at >= 60 * minutes
        if late or (steps and self.state.progress.steps % steps == 0):
            self.save(LAST)

    def save_if_best(self, rsum: float) -> None:
        """Save the best checkpoint if this sum of validation recalls is larger than every one before."""
        if rsum > self.state.progress.best_rsum:
            self.state.progress.best_rsum = rsum
            self.save(BEST)


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
def saved_when_stopped(saver: Saver, signals: StopSignals) -> Iterator[None]:
    """Save the last checkpoint where a signal stops the run, and say how to go on."""
    try:
        yield
    except Interrupted as stop:
        saver.save(LAST)
        saver.background.wait()
        wait_for_all()  # torchrun ends the others soon after the first that ends
        message = f"{stop}; saved in {saver.folder}: go on with the same command and --resume"
        raise Interrupted(stop.signum, message) from None
    except RuntimeError as error:  # the signal also went to the loader's workers, and ended a step half-way
        if not (signals.signum and worker_died(error)):
            raise
        message = f"stopped with its loader workers: go on from the last checkpoint in {saver.folder} with --resume"
        raise Interrupted(signals.signum, message) from None


if __name__ == "__main__":
    run_command(main)
