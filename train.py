"""Train a model on k folds.

    python train.py --path_opt option/RSITMD/RSITMD_GaLR.yaml [--set optim.lr=1e-4 ...] [--fold K] [--resume]

Each fold leaves checkpoint/{experiment_name}/{fold}/: best and last checkpoint, split, options, log.
`torchrun --nproc_per_node N train.py ...` is the same run in N processes (docs/SCALING.md); the first of them writes.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data import (
    DROPOUT,
    WEIGHTS,
    Data,
    Fold,
    batch_count,
    load_data,
    make_folds,
    pair_count,
    random_stream,
    train_batches,
)
from engine import (
    bf16_gain,
    embed_split,
    learning_rate,
    make_average,
    make_loss,
    make_model,
    make_optimizer,
    prepare,
    similarities,
    train_step,
)
from layers.distributed import check_alike, joined, wait_for_all
from layers.model import Model
from option import Options, load_options
from postprocessing.drawing import retrieval_grid
from postprocessing.recall import chance, query_ranks
from util.checkpoints import BEST, LAST, load_weights, read_checkpoint, save_checkpoint
from util.device import pick_device
from util.finite import check_similarities, check_weights, window_losses
from util.resume import (
    Learner,
    Progress,
    check_inputs,
    content_for_resume,
    content_for_scoring,
    digest,
    earlier_state,
    refuse_existing,
    restore,
    warn_of_seen_images,
)
from util.run_log import StopSignals, only_writer, recorded
from util.weights import load_starting_weights
from utils import (
    Bar,
    InputError,
    Interrupted,
    Meter,
    Parser,
    check_writable,
    is_main,
    run_command,
    same_options,
    worker_died,
)
from vocab import load_words

logger = logging.getLogger("galr")


def main() -> None:
    arguments = parse()
    options = load_options(arguments.path_opt, arguments.set)
    device = pick_device(arguments.device)
    with joined(device):
        train_folds(arguments, options, device)


def train_folds(arguments: argparse.Namespace, options: Options, device: torch.device) -> None:
    """Train the folds that the command line asks for, one after the other."""
    if options.optim.precision == "bf16" and (gain := bf16_gain(device)) < 1:
        logger.info("note: bf16 has %.2f times the speed of float32 here: start runs with optim.precision=fp32", gain)
    words = load_words(options)
    folds = make_folds(options, arguments.fold)
    for key in ("ckpt_save_path", "logger_name"):
        check_writable(Path(getattr(options.logs, key)) / options.k_fold.experiment_name, f"logs.{key}")
    if is_main() and not arguments.resume:
        for fold in folds:
            refuse_existing(fold.folder)
    for fold in folds:
        with only_writer(fold.folder):
            state = None
            if arguments.resume:
                state = earlier_state(fold.folder, fold.names, options, arguments.force)
            elif is_main():
                refuse_existing(fold.folder)  # once more: another run may have held the lock until now
            if state and state["epoch"] >= options.optim.epochs:
                logger.info("fold %d is finished: skipped", fold.number)
            else:
                train_fold(fold, state, options, words, device, arguments.force)
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
    fold: Fold, state: dict | None, options: Options, words: Sequence[str], device: torch.device, force: bool
) -> None:
    """Train one fold from its state to its end; best and last checkpoint, log and history are left in its folder.

    Raises InputError where captions or local features are not those that the state was trained on, unless `force`.
    """
    model = prepare(start_model(fold, state, options, words), options, device)
    train = load_data(fold.train, options, words, device, training=True)
    val = load_data(fold.val, options, words, device, training=False)
    loss_of, average = make_loss(options.optim, device), make_average(model, options.optim.ema)
    learner = Learner(make_optimizer(model, options.optim, loss_of), loss_of, average)
    inputs, progress, rows = fingerprint(train, val), Progress(), []
    if state:
        check_inputs(state, inputs, fold.folder, force)
        progress, rows = restore(state, learner, fold.folder, device), state["rows"]
    check_alike("the checkpoint, captions or local features", (inputs, progress.steps, progress.batch))
    scored = average.module if average else model
    batches = batch_count(train, options.dataset)
    pairs = pair_count(train, options.dataset)
    logger.info(
        "fold %d: %d pairs to train on, %d images to validate on, into %s",
        fold.number,
        pairs,
        len(val.paths),
        fold.folder,
    )

    with StopSignals() as signals, recorded(fold.folder, fold.names, options, rows, device) as log:

        def save(name: str) -> None:
            losses = window_losses(progress)
            content = content_for_scoring(scored if name == BEST else model, progress, options, words)
            check_weights(content["model"], progress)
            if name == LAST:
                content |= content_for_resume(learner, progress, losses, log.rows, inputs)
            if is_main():
                save_checkpoint(content, fold.folder / name, keep_previous=name == LAST)

        with saved_when_stopped(save, signals, fold.folder):
            while progress.epoch < options.optim.epochs:
                # train
                meter = Meter()
                model.train()
                with pair_bar(fold, progress, pairs, batches) as bar:
                    for batch in train_batches(train, options, fold.number, progress.epoch, progress.batch):
                        seed_dropout(options.seed, fold.number, progress)
                        rate = learning_rate(options.optim, progress.epoch, (progress.batch + 1) / batches)
                        progress.count(train_step(model, batch, loss_of, learner.optimizer, rate, options))
                        if average:
                            average.update_parameters(model)
                        for counter in (bar, meter):
                            counter.update(len(batch.pairs.image))
                        if progress.batch % options.logs.print_freq == 0 or progress.batch == batches:
                            log.train_row(train_row(progress, batches, rate, meter.read(), loss_of))
                            progress.window.clear()
                        if options.logs.save_steps and progress.steps % options.logs.save_steps == 0:
                            save(LAST)
                        signals.check()

                # evaluate
                if (progress.epoch + 1) % options.logs.eval_step == 0 or progress.epoch + 1 == options.optim.epochs:
                    vectors = embed_split(scored, val, options, signals.check)
                    if is_main():
                        sims, split = similarities(scored, *vectors), val.split
                        row = validation_row(sims, val, progress)
                        log.val_row(row, retrieval_grid(sims, val.paths, split.captions, split.image_of_caption))
                        if 6 * row["mr"] > progress.best_rsum:
                            progress.best_rsum = 6 * row["mr"]
                            save(BEST)

                # save
                progress.next_epoch()
                save(LAST)


def start_model(fold: Fold, state: dict | None, options: Options, words: Sequence[str]) -> Model:
    """A model with the weights to start from: of the checkpoint, of `optim.resume`, or new ones.

    Raises InputError where weights are missing or do not fit.
    """
    torch.manual_seed(int(random_stream(WEIGHTS, options.seed, fold.number).integers(2**63)))
    model, resume = make_model(options, words), options.optim.resume
    if state:
        load_weights(model, state, words)
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


def fingerprint(*splits: Data) -> str:
    """A digest of the captions and local features that a fold trains and validates on."""
    return digest(
        *(
            array
            for data in splits
            for array in (data.token_ids.cpu().numpy(), data.image_of_caption.numpy(), data.local_rep, data.local_adj)
        )
    )


def seed_dropout(seed: int, fold: int, progress: Progress) -> None:
    """The dropout of a step is drawn from its place, so that a resumed run draws what an uninterrupted one does."""
    torch.manual_seed(int(random_stream(DROPOUT, seed, fold, progress.epoch, progress.batch).integers(2**63)))


def pair_bar(fold: Fold, progress: Progress, pairs: int, batches: int) -> Bar:
    """The progress bar of an epoch, from about where it stands."""
    done, name = pairs * progress.batch // batches, f"fold {fold.number} epoch {progress.epoch}"
    return Bar(total=pairs, initial=done, unit="pair", desc=name)


def train_row(progress: Progress, batches: int, rate: float, speed: float, loss_of: torch.nn.Module) -> dict[str, Any]:
    """The log's row on the batches since the last one. Raises RunError at a loss that is not finite."""
    losses = window_losses(progress)
    mean = math.fsum(losses) / len(losses)
    return {
        "epoch": progress.epoch,
        "batch": progress.batch,
        "of": batches,
        "step": progress.steps,
        "loss": mean,
        "lr": rate,
        "samples_per_second": round(speed, 1),
        **loss_of.logged(),
    }


def validation_row(sims: np.ndarray, data: Data, progress: Progress) -> dict[str, Any]:
    """The log's row on a validation. Raises RunError where similarities are not finite."""
    check_similarities(sims, progress)
    owner = data.split.image_of_caption
    found = query_ranks(sims, owner)
    i2t, t2i, mr = found.scores()
    return {
        "epoch": progress.epoch,
        "step": progress.steps,
        "images": len(sims),
        "captions": sims.shape[1],
        "chance": chance(owner, len(sims)).mr,
        "i2t": i2t._asdict(),
        "t2i": t2i._asdict(),
        "mr": mr,
        "mr_random": found.scores("random").mr,
    }


@contextlib.contextmanager
def saved_when_stopped(save: Callable[[str], None], signals: StopSignals, folder: Path) -> Iterator[None]:
    """A signal that stops the run within it has the last checkpoint saved, and is reported as Interrupted."""
    try:
        yield
    except Interrupted as stop:
        save(LAST)
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
