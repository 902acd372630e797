"""Train GaLR on k folds.

    python train.py --path_opt option/RSITMD/RSITMD_GaLR.yaml [--set optim.lr=1e-4 ...] [--fold K] [--resume]

Each fold leaves checkpoint/{experiment_name}/{fold}/: best and last checkpoint, split, options, log.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import vocab
from data import WEIGHTS, Data, Split, batch_count, fold_rows, load_data, random_stream, read_split, subset
from engine import bf16_gain, encode_split, learning_rate, make_optimizer, prepare, train_epoch
from layers.galr import GaLR, build_model
from layers.published import load_weights
from option.schema import Options, load_options, save_options
from postprocessing.recall import chance, recall
from postprocessing.sheet import retrieval_sheet
from utils import (
    BEST,
    LAST,
    InputError,
    Interrupted,
    Parser,
    RunError,
    RunLog,
    StopSignals,
    check_writable,
    disk_full,
    newest_checkpoint,
    now,
    only_writer,
    pick_device,
    previous,
    provenance,
    read_checkpoint,
    read_json,
    run_command,
    same_options,
    save_checkpoint,
    worker_died,
    write_json,
)

# Options that may change on --resume: they move no number of the run.
FREE = {"dataset.workers", "dataset.cache", "dataset.image_path", "dataset.data_path", "dataset.vocab_path",
        "dataset.batch_size_val", "logs.save_steps", "logs.ckpt_save_path", "logs.logger_name",
        "k_fold.current_num", "model.seq2vec.dir_st"}  # fmt: skip

DIVERGED = (
    "try a lower optim.lr or an optim.grad_clip, anew or with --resume --force from the last checkpoint, which is from "
    "before it"
)


class Fold(NamedTuple):
    """One fold of a run: its number, its folder, its two splits."""

    number: int
    folder: Path
    train: Split
    val: Split


@dataclass
class Progress:
    """How far a fold has come: what, beside weights and optimiser, an exact resume needs.

    epoch: the one in progress, from 0; batch: how many of its batches are done; steps: done in all; best_rsum: the best
    sum of validation recalls; window: losses since the last row of the log, on the device.
    """

    epoch: int = 0
    batch: int = 0
    steps: int = 0
    best_rsum: float = -1.0
    window: list[Tensor] = field(default_factory=list)


def main() -> None:
    parser = Parser(prog="train.py", description="Train GaLR on k folds.")
    parser.add_options()
    parser.add_argument("--fold", type=int, help="train this fold only (default: all)")
    parser.add_argument("--resume", action="store_true", help="go on where the run stopped; finished folds are skipped")
    parser.add_argument("--force", action="store_true", help="with --resume: go on though options have changed")
    parser.add_device()
    arguments = parser.parse_args()
    options = load_options(arguments.path_opt, arguments.set)
    device = pick_device(arguments.device)
    if options.optim.precision == "bf16" and (gain := bf16_gain(device)) < 1:
        print(f"note: bf16 has {gain:.2f} times the speed of float32 here: start runs with optim.precision=fp32")
    words = vocab.load(options.dataset.vocab_path).words
    folds = make_folds(options, arguments.fold)
    for key in ("ckpt_save_path", "logger_name"):
        check_writable(Path(getattr(options.logs, key)) / options.k_fold.experiment_name, f"logs.{key}")
    if not arguments.resume:
        refuse_existing(folds)
    for fold in folds:
        with only_writer(fold.folder):
            if arguments.resume:
                state = earlier_state(fold, options, arguments.force)
            else:
                refuse_existing([fold])  # once more: another run may have held the lock until now
                state = None
            if state and state["epoch"] >= options.optim.epochs:
                print(f"fold {fold.number} is finished: skipped")
            else:
                train_fold(fold, state, options, words, device, arguments.force)
    print(f"trained; next: python test.py {same_options(arguments)}")


def make_folds(options: Options, only: int | None) -> list[Fold]:
    """The folds to train. Raises InputError where a list is wrong or a fold would be empty."""
    k_fold = options.k_fold
    if only is not None and not 0 <= only < k_fold.nums:
        raise InputError(f"--fold {only}: k_fold.nums is {k_fold.nums}, so folds go from 0 to {k_fold.nums - 1}")
    split = read_split(options.dataset.data_path, "train")
    folds = []
    for number in range(k_fold.current_num, k_fold.nums) if only is None else [only]:
        train, val = fold_rows(len(split.images), k_fold, number)
        pairs = int(np.isin(split.image_of_caption, train).sum())
        if options.dataset.image_size == 32 and pairs % options.dataset.batch_size == 1:  # f4 is one pixel a channel
            raise InputError(
                f"fold {number} of {pairs} pairs ends in a batch of one, of which batch normalisation cannot learn at "
                "dataset.image_size 32; change dataset.batch_size"
            )
        folds.append(Fold(number, options.run_folder / str(number), subset(split, train), subset(split, val)))
    return folds


def refuse_existing(folds: Sequence[Fold]) -> None:
    """Raises InputError where a fold to be trained anew holds a run."""
    for fold in folds:
        last = fold.folder / LAST
        if last.exists() or previous(last).exists():
            raise InputError(
                f"{fold.folder} holds a run already: add --resume to go on with it, set another "
                "k_fold.experiment_name, or remove the folder"
            )


def earlier_state(fold: Fold, options: Options, force: bool) -> dict[str, Any] | None:
    """The checkpoint to go on from, or None for a new fold.

    Raises InputError where options or images have changed, unless `force`.
    """
    last = fold.folder / LAST
    state = newest_checkpoint(last)
    if state is None:
        print(f"fold {fold.number}: nothing to resume, starting at the beginning")
        return None
    if not resumable(state):
        raise InputError(
            f"checkpoint {last} has no progress to resume from; fine-tune from it with optim.resume={last}"
        )
    changed = changed_options(state["options"], options.to_dict())
    if changed and not force:
        raise InputError(
            f"{fold.folder} was made with other options: {'; '.join(changed)}; --force goes on nevertheless"
        )
    if read_json(fold.folder / "split.json", "split") != split_names(fold) and not force:
        raise InputError(
            f"the images of fold {fold.number} are not those of {fold.folder / 'split.json'}: the lists in "
            "dataset.data_path have changed; --force goes on nevertheless"
        )
    return state


def resumable(state: dict[str, Any]) -> bool:
    """Whether a checkpoint holds what `checkpoint` writes, and so what an exact resume needs."""
    kinds = {"epoch": int, "options": dict, "optimizer": dict, "progress": dict, "rows": list}
    if not all(isinstance(state.get(key), kind) for key, kind in kinds.items()):
        return False
    progress = {"epoch": int, "batch": int, "steps": int, "best_rsum": float, "window": list}
    return {key: type(value) for key, value in state["progress"].items()} == progress


def changed_options(old: dict, new: dict, prefix: str = "") -> list[str]:
    """The options that differ and move a number of the run, as `key: old -> new`."""
    changed = []
    for key in sorted(old.keys() | new.keys()):
        name, a, b = prefix + key, old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changed += changed_options(a, b, name + ".")
        elif a != b and name not in FREE:
            changed.append(f"{name}: {a} -> {b}")
    return changed


def split_names(fold: Fold) -> dict[str, list[str]]:
    """What split.json holds: the names of the images that train and validate."""
    return {"train": fold.train.images, "val": fold.val.images}


def start_model(fold: Fold, state: dict | None, options: Options, words: Sequence[str]) -> GaLR:
    """A model with the weights to start from: of the checkpoint, of `optim.resume`, or new ones.

    Raises InputError where weights are missing or do not fit.
    """
    torch.manual_seed(int(random_stream(WEIGHTS, options.seed, fold.number).integers(2**63)))
    resume = options.optim.resume
    model = build_model(options, words, initialise=not (state or resume))
    if resume and not state:
        warn_of_seen_images(fold, resume)
    if state or resume:
        load_weights(model, state or read_checkpoint(resume), words)
    return model


def warn_of_seen_images(fold: Fold, resume: str) -> None:
    """Say where the checkpoint to fine-tune from was trained on images that this fold validates on."""
    path = Path(resume).with_name("split.json")
    before = read_json(path, "split") if path.is_file() else None
    names = before.get("train") if isinstance(before, dict) else None
    trained = {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()
    if seen := trained.intersection(fold.val.images):
        print(
            f"warning: {resume} was trained on {len(seen)} of the {len(fold.val.images)} images on which fold "
            f"{fold.number} validates: its validation scores, and what is chosen by them, come out too good"
        )


def fingerprint(*splits: Data) -> str:
    """A digest of the captions and local features that a fold trains and validates on."""
    digest = hashlib.sha256()
    for data in splits:
        for array in (data.token_ids.cpu().numpy(), data.image_of_caption.numpy(), data.local_rep, data.local_adj):
            digest.update(repr(array.shape).encode() + array.tobytes())
    return digest.hexdigest()


def train_fold(
    fold: Fold, state: dict | None, options: Options, words: Sequence[str], device: torch.device, force: bool
) -> None:
    """Train one fold from its state to its end; best and last checkpoint, log and history are left in its folder.

    Raises InputError where captions or local features are not those that the state was trained on, unless `force`.
    """
    model = prepare(start_model(fold, state, options, words), options, device)
    train = load_data(fold.train, options, words, device, training=True)
    val = load_data(fold.val, options, words, device, training=False)
    inputs, optimizer, progress, rows = fingerprint(train, val), make_optimizer(model), Progress(), []
    if state:
        if state.get("inputs", inputs) != inputs and not force:
            raise InputError(
                f"the captions or the local features of fold {fold.number} have changed since {fold.folder / LAST} was "
                "written; --force goes on nevertheless"
            )
        progress, rows = restore(state, optimizer, fold, device), state["rows"]
    print(f"fold {fold.number}: {len(train.lengths)} pairs to train on, {len(val.paths)} images to validate on, "
          f"into {fold.folder}")  # fmt: skip

    with StopSignals() as signals, recorded(fold, options, rows, device) as log:

        def save(name: str) -> None:
            content = checkpoint(model, optimizer, progress, log.rows, options, words) | {"inputs": inputs}
            save_checkpoint(content, fold.folder / name, keep_previous=name == LAST)

        try:
            while progress.epoch < options.optim.epochs:
                for _ in train_steps(model, train, options, optimizer, fold.number, progress, log):
                    if options.logs.save_steps and progress.steps % options.logs.save_steps == 0:
                        save(LAST)
                    signals.check()
                if (progress.epoch + 1) % options.logs.eval_step == 0 or progress.epoch + 1 == options.optim.epochs:
                    rsum = validate(model, val, options, progress, log, signals)
                    if rsum > progress.best_rsum:
                        progress.best_rsum = rsum
                        save(BEST)
                progress.epoch, progress.batch = progress.epoch + 1, 0
                save(LAST)
        except Interrupted as stop:
            save(LAST)
            message = f"{stop}; saved in {fold.folder}: go on with the same command and --resume"
            raise Interrupted(stop.signum, message) from None
        except RuntimeError as error:  # the signal also went to the loader's workers, and ended a step half-way
            if not (signals.signum and worker_died(error)):
                raise
            message = f"stopped with its loader workers: go on from the last checkpoint in {fold.folder} with --resume"
            raise Interrupted(signals.signum, message) from None


def restore(state: dict[str, Any], optimizer: torch.optim.Adam, fold: Fold, device: torch.device) -> Progress:
    """Put the optimiser where the state left it -> how far the fold had come. Raises InputError if it does not fit."""
    try:
        optimizer.load_state_dict(state["optimizer"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"the optimiser in {fold.folder / LAST} does not fit this model ({error})") from None
    progress = Progress(**state["progress"])
    progress.window = list(torch.tensor(progress.window, device=device))
    return progress


@contextlib.contextmanager
def recorded(fold: Fold, options: Options, rows: list[dict[str, Any]], device: torch.device) -> Iterator[RunLog]:
    """The log of a fold, and its run.json, ended in any case. On a full disk that fails too: the first error counts."""
    record = start_record(fold, options, device)
    board = Path(options.logs.logger_name) / fold.folder.relative_to(options.run_folder.parent)

    def end() -> None:
        write_json(fold.folder / "run.json", record | {"ended": now()})
        log.close()

    log = RunLog(fold.folder, board, rows)
    try:
        yield log
    except BaseException as error:
        with contextlib.suppress(OSError):
            end()
        if disk_full(error):
            reason = os.strerror(error.errno)
            raise RunError(f"the log of {fold.folder}: {reason}; make room and go on with --resume") from None
        raise
    end()


def checkpoint(
    model: GaLR, optimizer: torch.optim.Adam, progress: Progress, rows: list, options: Options, words: Sequence[str]
) -> dict[str, Any]:
    """The published keys, and what an exact resume needs. Raises RunError where a loss or a weight is not finite."""
    losses, weights = window_losses(progress), model.state_dict()
    if not torch.stack([tensor.isfinite().all() for tensor in weights.values()]).all():
        raise RunError(f"the weights are not finite after step {progress.steps}; {DIVERGED}")
    return {
        "epoch": progress.epoch,
        "arch": "GaLR",
        "model": weights,
        "best_rsum": progress.best_rsum,
        "options": options.to_dict(),
        "Eiters": progress.steps,
        "words": list(words),
        "optimizer": optimizer.state_dict(),
        "progress": vars(progress) | {"window": losses},
        "rows": rows,
    }


def start_record(fold: Fold, options: Options, device: torch.device) -> dict[str, Any]:
    """Write what makes this fold: options.yaml, split.json, and run.json, which keeps the sessions before."""
    path = fold.folder / "run.json"
    before = read_json(path, "record") if path.exists() else {}
    if not isinstance(before, dict) or not isinstance(before.get("sessions", []), list):
        raise InputError(f"record {path}: not as train.py writes it; remove it to go on")
    sessions = [*before.get("sessions", []), provenance(device)]
    save_options(options, fold.folder / "options.yaml")
    write_json(fold.folder / "split.json", split_names(fold))
    record = {"seed": options.seed, "started": before.get("started", now()), "ended": None, "sessions": sessions}
    write_json(path, record)
    return record


def train_steps(
    model: GaLR, data: Data, options: Options, optimizer: torch.optim.Adam, fold: int, progress: Progress, log: RunLog
) -> Iterator[None]:
    """Train from where the epoch stands to its end, with a row of the log every `print_freq` batches; yields each step.

    Losses stay on the device between rows. Raises RunError at the first that is not finite.
    """
    batches = batch_count(data, options.dataset.batch_size)
    done = min(progress.batch * options.dataset.batch_size, len(data.lengths))
    bar = tqdm(
        total=len(data.lengths), initial=done, unit="pair", disable=None, desc=f"fold {fold} epoch {progress.epoch}"
    )
    started, pairs = time.perf_counter(), 0
    with bar:
        for step in train_epoch(model, data, options, optimizer, fold, progress.epoch, progress.batch):
            progress.batch, progress.steps = step.number + 1, progress.steps + 1
            progress.window.append(step.loss)
            pairs += step.pairs
            bar.update(step.pairs)
            if progress.batch % options.logs.print_freq == 0 or progress.batch == batches:
                losses = window_losses(progress)
                speed = pairs / (time.perf_counter() - started)
                rate, mean = learning_rate(options.optim, progress.epoch), math.fsum(losses) / len(losses)
                log.train_row({"epoch": progress.epoch, "batch": progress.batch, "of": batches, "step": progress.steps,
                               "loss": mean, "lr": rate, "samples_per_second": round(speed, 1)})  # fmt: skip
                progress.window.clear()
                started, pairs = time.perf_counter(), 0
            yield


def window_losses(progress: Progress) -> list[float]:
    """The losses since the last row; one wait for the device. Raises RunError at the first that is not finite."""
    losses = torch.stack(progress.window).tolist() if progress.window else []
    for i, loss in enumerate(losses):
        if not math.isfinite(loss):
            raise RunError(
                f"the loss of batch {progress.batch - len(losses) + i + 1} of epoch {progress.epoch} is {loss}; "
                f"{DIVERGED}"
            )
    return losses


def validate(model: GaLR, data: Data, options: Options, progress: Progress, log: RunLog, signals: StopSignals) -> float:
    """Score the validation images, log it, and return the sum of the six recalls."""
    sims = encode_split(model, data, options, signals.check)
    if not np.isfinite(sims).all():
        raise RunError(
            f"the similarities after epoch {progress.epoch} are not finite, so its last step spoilt the weights; "
            f"{DIVERGED}"
        )
    owner = data.split.image_of_caption
    i2t, t2i, mr = recall(sims, owner)
    sheet = retrieval_sheet(sims, data.paths, data.split.captions, owner)
    log.val_row({"epoch": progress.epoch, "step": progress.steps, "images": len(sims), "captions": sims.shape[1],
                 "chance": chance(owner, len(sims))[2], "i2t": i2t, "t2i": t2i, "mr": mr}, sheet)  # fmt: skip
    return 6 * mr


if __name__ == "__main__":
    run_command(main)
