"""Build what learns; train an epoch; encode a split and compare its images with its captions."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from data import DROPOUT, Batch, Data, caption_batches, epoch_size, image_batches, random_stream, train_batches
from layers import build_model
from layers.cpu import reuse_memory
from layers.distributed import GlobalBatch, all_gather, gather, own_share, sum_gradients, world_size
from layers.loss import CRITERIA
from layers.model import Model
from option.options import Optim, Options
from util.checkpoint import load_weights, read_checkpoint, warn_of_other_options
from util.device import pick_device
from util.encoder import Encoder, make_encoder
from util.model_folder import find_folder, folder_options, folder_rules
from util.precision import autocast, set_arithmetic
from util.regions.local_features import DETECTOR
from util.run_log import NoLog, RunLog
from util.starting_weights import load_starting_weights
from util.train_state import TrainState
from utils import Bar, InputError, Meter, memory_advice, not_installed

logger = logging.getLogger("galr")

IMAGE_BATCH = 32  # at most, on a CPU: larger ones take memory and are no faster
CAPTION_BATCH = 256  # captions are small: a large batch reads the hidden weights less often
SIMILARITY_BLOCK = 1 << 25  # similarities on the device at once

# ---------------------------------------------------------------- model, criterion, optimizer


def make_model(options: Options, words: Sequence[str]) -> Model:
    """Build the model of the options with random weights. Raise InputError where a part of it cannot be had."""
    try:
        with not_installed("the model of these options"):
            return build_model(options, words)
    except ValueError as error:
        raise InputError(str(error).splitlines()[0]) from None


def untrained_model(options: Options, words: Sequence[str], device: torch.device) -> Model:
    """Build the model with the weights that it starts from. Raise InputError where they cannot be had."""
    torch.manual_seed(options.seed)
    model = make_model(options, words)
    load_starting_weights(model, options.model, words)
    return prepare(model, options, device)


def load_model(checkpoint: dict[str, Any], options: Options, words: Sequence[str], device: torch.device) -> Model:
    """Build the model of a checkpoint, ours or a published one. Raise InputError where it does not fit."""
    model = make_model(options, words)
    load_weights(model, checkpoint, words)
    warn_of_other_options(checkpoint, options)
    return prepare(model, options, device)


def load_pretrained(source: str | os.PathLike, device: str = "auto") -> Encoder:
    """Load a model folder, or one of the Hugging Face hub by its name, as an encoder of image files and sentences.

    device: auto, cpu or cuda. Raise InputError for a folder that is not there, damaged or not of python -m util.share.
    """
    folder, place = find_folder(source), pick_device(device)
    options, state = folder_options(folder), read_checkpoint(folder)
    rules = folder_rules(folder, options)
    if rules.source == DETECTOR:
        logger.warning(f"{folder} was trained with a detector's regions: images are encoded by their global part alone")
    return make_encoder(load_model(state, options, state["words"], place), options, state["words"], place, rules)


def prepare(model: Model, options: Options, device: torch.device) -> Model:
    """Move the model to its device, in the memory format and with the arithmetic of `options.optim`.

    On a CPU, keep the memory that the process frees from here on.
    """
    if device.type == "cpu":
        reuse_memory()
    set_arithmetic(options.optim)
    model = model.to(device, memory_format=torch.channels_last)
    try:
        for backbone in model.backbones() if options.optim.checkpointing else ():
            backbone.recompute()
    except ValueError as error:
        raise InputError(f"optim.checkpointing: {error}") from None
    if options.optim.compile:
        for backbone in model.backbones():
            backbone.compile()
    return model


def make_criterion(options: Optim, device: torch.device) -> nn.Module:
    """Build the criterion of the options; what it learns, such as a temperature, are its parameters."""
    if options.loss not in CRITERIA:
        raise InputError(f"optim.loss must be one of {', '.join(CRITERIA)}, got {options.loss}")
    return CRITERIA[options.loss](options).to(device)


def make_optimizer(model: Model, options: Optim, criterion: nn.Module | None = None) -> torch.optim.AdamW:
    """Build a fused AdamW over the parameters of the model and the criterion.

    `train_step` sets the rates: `lr` times the `factor` of each group. Vectors and numbers (biases, normalisation, the
    temperature) do not decay.
    """
    rates = {parameter: options.trunk_lr for backbone in model.backbones() for parameter in backbone.parameters()}
    rates |= {parameter: options.text_lr for text in model.transformers() for parameter in text.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in (*model.parameters(), *(criterion.parameters() if criterion else ())):
        if parameter.requires_grad:
            factor = (rates.get(parameter) or options.lr) / options.lr
            decay = options.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((factor, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": those, "factor": factor, "weight_decay": decay} for (factor, decay), those in groups.items()],
        betas=options.betas,
        fused=True,
    )


def learning_rate(options: Optim, epoch: int, done: float = 0.0) -> float:
    """Return the rate of a step in an epoch (from 0), of which `done` in (0, 1] is over with the step.

    `step` multiplies by `lr_decay_param` at the start of every epoch that ends an update period; `cosine` falls from
    `lr` to 0 along half a wave, after the warm-up. In the first `warmup` epochs the rate rises in proportion.

    >>> [learning_rate(Optim(lr=1.0, lr_decay_param=0.5, lr_update_epoch=2), epoch) for epoch in range(4)]
    [1.0, 0.5, 0.5, 0.25]
    """
    if options.schedule == "step":
        rate = options.lr * options.lr_decay_param ** ((epoch + 1) // options.lr_update_epoch)
    else:
        part = max(epoch + done - options.warmup, 0) / (options.epochs - options.warmup)
        rate = options.lr * (1 + math.cos(math.pi * min(part, 1))) / 2
    return rate * min((epoch + done) / options.warmup, 1) if options.warmup else rate


# ---------------------------------------------------------------- training


def train_one_epoch(
    state: TrainState,
    data: Data,
    options: Options,
    fold: int,
    log: RunLog | NoLog,
    after_step: Callable[[], None],
) -> None:
    """Train an epoch from where its progress stands; `after_step` is called after each step and may raise to stop."""
    model, progress, meter = state.model.train(), state.progress, Meter()
    batches, pairs = epoch_size(data, options.dataset)
    done, name = pairs * progress.batch // batches, f"fold {fold} epoch {progress.epoch}"
    with Bar(total=pairs, initial=done, unit="pair", desc=name) as bar:
        for batch in train_batches(data, options, fold, progress.epoch, progress.batch):
            # dropout is drawn from its place, so that a resumed run draws what an uninterrupted one does
            dropout = random_stream(DROPOUT, options.seed, fold, progress.epoch, progress.batch)
            torch.manual_seed(int(dropout.integers(2**63)))
            rate = learning_rate(options.optim, progress.epoch, (progress.batch + 1) / batches)
            loss = train_step(model, batch, state.criterion, state.optimizer, rate, options, state.scaler)
            progress.count(loss)
            if state.average:
                state.average.update_parameters(model)
            for counter in (bar, meter):
                counter.update(len(batch.pairs.image))
            if progress.batch % options.logs.print_freq == 0 or progress.batch == batches:
                window = len(progress.window)
                numbers = progress.losses(*state.criterion.shown)
                losses, shown = numbers[:window], numbers[window:]
                log.train_row(
                    {
                        "epoch": progress.epoch,
                        "batch": progress.batch,
                        "of": batches,
                        "step": progress.steps,
                        "loss": math.fsum(losses) / len(losses),
                        "lr": rate,
                        "samples_per_second": round(meter.read(), 1),
                        **state.criterion.logged(*shown),
                    }
                )
                progress.window.clear()
            after_step()


def train_step(
    model: Model,
    batch: Batch,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    rate: float,
    options: Options,
    scaler: torch.amp.GradScaler | None = None,
) -> Tensor:
    """Take a step and return the loss, which stays on the device: nothing here waits for it.

    scaler: of the loss, for fp16; where gradients overflow, it leaves the weights as they are. Several processes
    compute the same loss, and sum their gradients of an N-th of it (layers/distributed.py).
    """
    learning = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1)  # runs of before there were factors have none
    with autocast(options, batch.images.device):
        loss = criterion(batch_similarities(model, batch), batch.pairs)
    optimizer.zero_grad(set_to_none=True)
    scaler = scaler or torch.amp.GradScaler(enabled=False)
    scaler.scale(loss / world_size()).backward()
    sum_gradients(learning)
    if options.optim.grad_clip > 0:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(learning, options.optim.grad_clip)
    scaler.step(optimizer)
    scaler.update()
    return loss.detach()


def batch_similarities(model: Model, batch: Batch) -> Tensor:
    """Return the similarity of every image with every caption of the whole batch; each process encodes its part."""
    images, captions = batch.of_images, batch.of_captions
    if not images.divided:
        return model(*batch.inputs)
    with GlobalBatch(images):
        image_vectors = model.encode_image(batch.images, batch.local_rep, batch.local_adj)
    with GlobalBatch(captions):
        text_vectors = model.encode_text(batch.token_ids, batch.lengths)
    return model.similarity(gather(image_vectors, images), gather(text_vectors, captions))


# ---------------------------------------------------------------- evaluation


class Captions(NamedTuple):
    """The vectors (U, D) of distinct captions, and for each caption the row of its vector (M,)."""

    vectors: Tensor
    place: np.ndarray

    def all_vectors(self) -> np.ndarray:
        """Return the vector of every caption (M, D), float32, not normalised."""
        return self.vectors.float().cpu().numpy()[self.place]


def _nothing() -> None:
    """Do nothing (default for `check`)."""


@torch.no_grad()
def embed_images(model: Model, data: Data, options: Options, check: Callable[[], None] = _nothing) -> Tensor:
    """Encode every image -> (N, D), on the device. `check` is called before each batch and may raise to stop."""
    model.eval()
    device, size = data.token_ids.device, options.dataset.batch_size_val
    size = min(size, IMAGE_BATCH) if device.type == "cpu" else size
    rows = torch.arange(len(data.paths)).split(size)
    with contextlib.ExitStack() as within:
        within.enter_context(memory_advice("lower dataset.batch_size_val (train.py: and go on with --resume)"))
        for backbone in [] if options.optim.compile else model.backbones():
            within.enter_context(backbone.fused(options.dataset.image_size))
        within.enter_context(autocast(options, device))
        batches = _checked(image_batches(data, size), len(rows), check)
        vectors = [model.encode_image(*batch) for batch in batches]
    return all_gather(rows[own_share()], vectors, len(data.paths), device)


@torch.no_grad()
def embed_captions(model: Model, token_ids: Tensor, options: Options, check: Callable[[], None] = _nothing) -> Captions:
    """Encode captions (M, T), 0 = padding; each distinct one is encoded once, for data sets repeat many."""
    model.eval()
    device = token_ids.device
    distinct, place = token_ids.unique(dim=0, return_inverse=True)
    places, vectors = [], []
    with autocast(options, device):
        batches = caption_batches(distinct, CAPTION_BATCH)
        for rows, ids, lengths in _checked(batches, -(-len(distinct) // CAPTION_BATCH), check):
            places.append(rows)
            vectors.append(model.encode_text(ids, lengths))
    return Captions(all_gather(places, vectors, len(distinct), device), place.cpu().numpy())


def _checked(batches: Iterator, total: int, check: Callable[[], None]) -> Iterator:
    """Yield this process's batches of `total`. Every process calls `check` equally often, so that they can agree."""
    for _ in range(-(-total // world_size())):
        check()
        yield from islice(batches, 1)


@torch.no_grad()
def similarities(model: Model, images: Tensor, captions: Captions) -> np.ndarray:
    """Return the similarity of every image (N, D) with every caption, (N, M) float32.

    Blocks of images go over the device, so the matrix is never there as a whole, nor twice in memory. Equal captions
    tie to the last bit.
    """
    sims = np.empty((len(images), len(captions.place)), np.float32)
    step = max(1, SIMILARITY_BLOCK // len(captions.vectors))
    for start in range(0, len(images), step):
        block = model.similarity(images[start : start + step], captions.vectors).cpu().numpy()
        np.take(block, captions.place, axis=1, out=sims[start : start + step])
    return sims


def embed_split(
    model: Model, data: Data, options: Options, check: Callable[[], None] = _nothing
) -> tuple[Tensor, Captions]:
    """Encode the images and the captions of a split; each process encodes its share."""
    return embed_images(model, data, options, check), embed_captions(model, data.token_ids, options, check)


def encode_split(model: Model, data: Data, options: Options) -> np.ndarray:
    """Return the similarities of a split, images x captions, float32."""
    return similarities(model, *embed_split(model, data, options))
