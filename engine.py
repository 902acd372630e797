"""One training step; the vectors of a split's images and captions; their similarities."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from data import Batch, Data, caption_batches, image_batches
from layers import build_model
from layers.cpu import reuse_memory
from layers.distributed import PartOfBatch, gather, in_turn, process_count, put_together, sum_gradients
from layers.loss import InfoNCE, TripletLoss
from layers.model import Model
from option.options import Optim, Options
from util.checkpoints import load_weights
from util.weights import load_starting_weights
from utils import InputError, memory_advice, not_installed

logger = logging.getLogger("galr")

IMAGE_BATCH = 32  # on a CPU, at most: larger ones take memory and are no faster
CAPTION_BATCH = 256  # captions are small: a large batch reads the hidden weights less often
SIMILARITY_BLOCK = 1 << 25  # similarities on the device at once


def make_model(options: Options, words: Sequence[str]) -> Model:
    """The model that the options describe, with random weights. Raises InputError where a part of it cannot be had."""
    try:
        with not_installed("the model of these options"):
            return build_model(options, words)
    except ValueError as error:
        raise InputError(str(error).splitlines()[0]) from None


def prepare(model: Model, options: Options, device: torch.device) -> Model:
    """Put the model on its device in the memory format and with the arithmetic that `options.optim` asks for.

    On a CPU the process keeps the memory that it frees from here on.
    """
    if device.type == "cpu":
        reuse_memory()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 is float32
    model = model.to(device, memory_format=torch.channels_last)
    if options.optim.compile:
        for backbone in model.backbones():
            backbone.compile()
    return model


def autocast(options: Options, device: torch.device) -> torch.autocast:
    """bf16 products where the options ask for them; float32 otherwise."""
    return torch.autocast(device.type, torch.bfloat16, enabled=options.optim.precision == "bf16")


# ---------------------------------------------------------------- training


def make_loss(options: Optim, device: torch.device) -> nn.Module:
    """The loss that the options ask for; a temperature that is learned is a parameter of it."""
    if options.loss == "infonce":
        return InfoNCE(options.temperature, options.learn_temperature).to(device)
    return TripletLoss(options.margin, options.max_violation)


def make_optimizer(model: Model, options: Optim, loss_of: nn.Module | None = None) -> torch.optim.AdamW:
    """Of the model and of what the loss learns: Adam, with decoupled decay where there is one, its update fused.

    `train_step` sets the rates: each group of parameters has a `factor`, what its rate is of `lr`. Vectors and numbers
    (biases, normalisation, the temperature) do not decay.
    """
    rates = {parameter: options.trunk_lr for backbone in model.backbones() for parameter in backbone.parameters()}
    rates |= {parameter: options.text_lr for text in model.transformers() for parameter in text.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in (*model.parameters(), *(loss_of.parameters() if loss_of else ())):
        if parameter.requires_grad:
            factor = (rates.get(parameter) or options.lr) / options.lr
            decay = options.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((factor, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": those, "factor": factor, "weight_decay": decay} for (factor, decay), those in groups.items()],
        betas=options.betas,
        fused=True,
    )


def make_average(model: Model, keep: float) -> AveragedModel | None:
    """A running average of the model's weights that keeps so much of itself at each step, less at first; None for 0."""

    def update(average: list[Tensor], weights: list[Tensor], steps: Tensor) -> None:
        torch._foreach_lerp_(average, weights, 1 - min(keep, (1 + steps.item()) / (10 + steps.item())))

    return AveragedModel(model, multi_avg_fn=update) if keep else None


def learning_rate(options: Optim, epoch: int, done: float = 0.0) -> float:
    """The rate of a step: epoch (from 0), and the part of it that is done with the step, in (0, 1].

    `step`: times `lr_decay_param` at the start of every epoch that ends an update period; `cosine`: from `lr` down to 0
    along half a wave, after the warm-up. In the first `warmup` epochs it rises in proportion to what is done.
    """
    if options.schedule == "step":
        rate = options.lr * options.lr_decay_param ** ((epoch + 1) // options.lr_update_epoch)
    else:
        part = max(epoch + done - options.warmup, 0) / (options.epochs - options.warmup)
        rate = options.lr * (1 + math.cos(math.pi * min(part, 1))) / 2
    return rate * min((epoch + done) / options.warmup, 1) if options.warmup else rate


def train_step(
    model: Model, batch: Batch, loss_of: nn.Module, optimizer: torch.optim.Optimizer, rate: float, options: Options
) -> Tensor:
    """Forward, backward and update -> the loss, which stays on the device: nothing here waits for it.

    Several processes compute the same loss, and sum their gradients of an N-th of it (layers/distributed.py).
    """
    learning = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1)  # runs of before there were factors have none
    with autocast(options, batch.images.device):
        loss = loss_of(batch_similarities(model, batch), batch.pairs)
    optimizer.zero_grad(set_to_none=True)
    (loss / process_count()).backward()
    sum_gradients(learning)
    if options.optim.grad_clip > 0:
        torch.nn.utils.clip_grad_norm_(learning, options.optim.grad_clip)
    optimizer.step()
    return loss.detach()


def batch_similarities(model: Model, batch: Batch) -> Tensor:
    """The similarity of every image with every caption of the whole batch, of which each process encodes its part."""
    images, captions = batch.of_images, batch.of_captions
    if not images.divided:
        return model(*batch.inputs)
    with PartOfBatch(images):
        image_vectors = model.encode_image(batch.images, batch.local_rep, batch.local_adj)
    with PartOfBatch(captions):
        text_vectors = model.encode_text(batch.token_ids, batch.lengths)
    return model.similarity(gather(image_vectors, images), gather(text_vectors, captions))


def bf16_gain(device: torch.device) -> float:
    """How many times as fast as float32 the device multiplies bf16 matrices, measured; below 1 float32 is faster.

    Flags do not tell: on a CPU AMX gives several times, AVX-512 bf16 twice or half; old GPUs emulate it.
    """
    size, wait = (4096, torch.cuda.synchronize) if device.type == "cuda" else (512, lambda: None)

    def seconds(dtype: torch.dtype) -> float:
        a = torch.zeros(size, size, dtype=dtype, device=device)
        runs = []
        for _ in range(6):
            wait()
            start = time.perf_counter()
            torch.mm(a, a)
            wait()
            runs.append(time.perf_counter() - start)
        return min(runs)

    return seconds(torch.float32) / seconds(torch.bfloat16)


# ---------------------------------------------------------------- evaluation


class Captions(NamedTuple):
    """The vectors (U, D) of distinct captions, and for each caption the row of its vector (M,)."""

    vectors: Tensor
    place: np.ndarray


def _nothing() -> None:
    """What is done before a batch where nothing can stop the work."""


@torch.no_grad()
def embed_images(model: Model, data: Data, options: Options, check: Callable[[], None] = _nothing) -> Tensor:
    """The vector of every image (N, D), on the device. `check` is called before each batch and may raise to stop."""
    model.eval()
    device, size = data.token_ids.device, options.dataset.batch_size_val
    size = min(size, IMAGE_BATCH) if device.type == "cpu" else size
    rows = torch.arange(len(data.paths)).split(size)
    with contextlib.ExitStack() as within:
        within.enter_context(memory_advice("lower dataset.batch_size_val (train.py: and go on with --resume)"))
        for backbone in [] if options.optim.compile else model.backbones():
            within.enter_context(backbone.fused(options.dataset.image_size))
        within.enter_context(autocast(options, device))
        batches = _checked(image_batches(data, size, in_turn()), len(rows), check)
        vectors = [model.encode_image(*batch) for batch in batches]
    return put_together(rows[in_turn()], vectors, len(data.paths), device)


@torch.no_grad()
def embed_captions(model: Model, token_ids: Tensor, options: Options, check: Callable[[], None] = _nothing) -> Captions:
    """The vectors of captions (M, T), 0 = padding; each distinct one is encoded once, for data sets repeat many."""
    model.eval()
    device = token_ids.device
    distinct, place = token_ids.unique(dim=0, return_inverse=True)
    places, vectors = [], []
    with autocast(options, device):
        batches = caption_batches(distinct, CAPTION_BATCH, in_turn())
        for rows, ids, lengths in _checked(batches, -(-len(distinct) // CAPTION_BATCH), check):
            places.append(rows)
            vectors.append(model.encode_text(ids, lengths))
    return Captions(put_together(places, vectors, len(distinct), device), place.cpu().numpy())


def _checked(batches: Iterator, total: int, check: Callable[[], None]) -> Iterator:
    """This process's batches of `total`. `check` comes before each, equally often in every process: they may agree."""
    for _ in range(-(-total // process_count())):
        check()
        yield from islice(batches, 1)


@torch.no_grad()
def similarities(model: Model, images: Tensor, captions: Captions, out: np.ndarray | None = None) -> np.ndarray:
    """The model's similarity of every image (N, D) with every caption -> (N, M) float32, written into `out` if given.

    Blocks of images go over the device, so the matrix is never there as a whole, nor twice in memory. Equal captions
    tie to the last bit, whatever the product did.
    """
    if out is None:
        out = np.empty((len(images), len(captions.place)), np.float32)
    step = max(1, SIMILARITY_BLOCK // len(captions.vectors))
    for start in range(0, len(images), step):
        block = model.similarity(images[start : start + step], captions.vectors).cpu().numpy()
        np.take(block, captions.place, axis=1, out=out[start : start + step])
    return out


def embed_split(
    model: Model, data: Data, options: Options, check: Callable[[], None] = _nothing
) -> tuple[Tensor, Captions]:
    """The vectors of a split, of which each process encodes its share; `check` as in `embed_images`."""
    return embed_images(model, data, options, check), embed_captions(model, data.token_ids, options, check)


def encode_split(model: Model, data: Data, options: Options) -> np.ndarray:
    """The similarities of a split, images x captions, float32."""
    return similarities(model, *embed_split(model, data, options))


# ---------------------------------------------------------------- models of checkpoints


def load_model(checkpoint: dict[str, Any], options: Options, words: Sequence[str], device: torch.device) -> Model:
    """The model of a checkpoint, ours or a published one, ready to encode.

    Raises InputError where it does not fit.
    """
    model = make_model(options, words)
    load_weights(model, checkpoint, words)
    warn_of_other_options(checkpoint, options)
    return prepare(model, options, device)


def untrained_model(options: Options, words: Sequence[str], device: torch.device) -> Model:
    """The model with the weights that it starts from, ready to encode. Raises InputError where they cannot be had."""
    torch.manual_seed(options.seed)
    model = make_model(options, words)
    load_starting_weights(model, options.model, words)
    return prepare(model, options, device)


def warn_of_other_options(checkpoint: dict[str, Any], options: Options) -> None:
    """Say where a checkpoint is scored in another way than it was trained, and no weight's shape shows it."""
    with contextlib.suppress(KeyError, TypeError, AttributeError):  # of a stranger's file, whatever it holds
        _warn_of_change(
            "model.fusion.gate",
            checkpoint["options"]["model"]["fusion"].get("gate", "released"),
            options.model.fusion.gate,
            {"paper", "released"},
        )
    for key in ("image_norm", "text_pooling"):
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            trained, now = checkpoint["options"]["model"][key], getattr(options.model, key)
            _warn_of_change(f"model.{key}", str(trained), str(now), {"True", "False", "last", "mean"})
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        trained, now = checkpoint["options"]["dataset"]["local_path"], options.local_path
        if options.model.reads_local and isinstance(trained, str) and (trained == "zeros") != (now == "zeros"):
            _warn_of_change("dataset.local_path", trained, now, {trained})


def _warn_of_change(key: str, trained: str, now: str, known: set[str]) -> None:
    if trained in known - {now}:
        logger.warning(
            "the checkpoint was trained with %s=%s, and is now scored with %s; --set %s=%s scores it as trained",
            *(key, trained, now, key, trained),
        )
