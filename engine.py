"""Train one epoch; encode a split once and return its similarity matrix."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data import DROPOUT, Data, caption_batches, image_batches, random_stream, train_batches
from layers.galr import GaLR, build_model, cosine
from layers.loss import TripletLoss
from layers.published import load_weights
from option.schema import Optim, Options
from utils import reuse_memory

IMAGE_BATCH = 32  # on a CPU, at most: larger ones take memory and are no faster
CAPTION_BATCH = 256  # captions are small: a large batch reads the hidden weights less often


class Step(NamedTuple):
    """One training step: the number of its batch in the epoch, its loss (on the device), its number of pairs."""

    number: int
    loss: Tensor
    pairs: int


def prepare(model: GaLR, options: Options, device: torch.device) -> GaLR:
    """Put the model on its device in the memory format and with the arithmetic that `options.optim` asks for.

    On a CPU the process keeps the memory that it frees from here on.
    """
    if device.type == "cpu":
        reuse_memory()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 is float32
    model = model.to(device, memory_format=torch.channels_last)
    if options.optim.compile:
        model.global_branch.trunk = torch.compile(model.global_branch.trunk)
    return model


def autocast(options: Options, device: torch.device) -> torch.autocast:
    """bf16 products where the options ask for them; float32 otherwise."""
    return torch.autocast(device.type, torch.bfloat16, enabled=options.optim.precision == "bf16")


def make_optimizer(model: GaLR) -> torch.optim.Adam:
    """Adam, its update fused into one pass. The rate is set at the start of every epoch."""
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], fused=True)


def learning_rate(options: Optim, epoch: int) -> float:
    """The rate of an epoch (from 0): times `lr_decay_param` at the start of every one that ends an update period."""
    return options.lr * options.lr_decay_param ** ((epoch + 1) // options.lr_update_epoch)


def train_epoch(
    model: GaLR, data: Data, options: Options, optimizer: torch.optim.Adam, fold: int, epoch: int, first: int = 0
) -> Iterator[Step]:
    """Train on the batches of an epoch from batch `first` on; yields after each step.

    The dropout of a step is seeded by its place, and nothing here waits for the device.
    """
    device = data.token_ids.device
    loss_of = TripletLoss(options.optim.margin, options.optim.max_violation)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(options.optim, epoch)
    model.train()
    for number, batch in enumerate(train_batches(data, options, fold, epoch, first), first):
        torch.manual_seed(int(random_stream(DROPOUT, options.seed, fold, epoch, number).integers(2**63)))
        with autocast(options, device):
            loss = loss_of(model(*batch))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if options.optim.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), options.optim.grad_clip)
        optimizer.step()
        yield Step(number, loss.detach(), len(batch.lengths))


@torch.no_grad()
def encode_split(model: GaLR, data: Data, options: Options, check: Callable[[], None] = lambda: None) -> np.ndarray:
    """Encode each image and each distinct caption once -> cosine similarities, images x captions, float32.

    `check` is called before each batch and may raise to stop.
    """
    model.eval()
    device = data.token_ids.device
    with autocast(options, device):
        images, size = [], options.dataset.batch_size_val
        for batch in image_batches(data, min(size, IMAGE_BATCH) if device.type == "cpu" else size):
            check()
            images.append(model.encode_image(*batch))
        images = torch.cat(images)
        distinct, place = data.token_ids.unique(dim=0, return_inverse=True)  # the data sets repeat many captions
        captions = images.new_empty(len(distinct), images.shape[1])
        for rows, token_ids, lengths in caption_batches(distinct, CAPTION_BATCH):
            check()
            captions[rows.to(device)] = model.encode_text(token_ids, lengths)
    sims = cosine(images, captions).cpu().numpy()
    return sims.take(place.cpu().numpy(), axis=1)  # equal captions tie to the last bit, whatever the product did


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


def warn_of_other_options(checkpoint: dict[str, Any], options: Options) -> None:
    """Say where a checkpoint is scored in another way than it was trained, and no weight's shape shows it."""
    with contextlib.suppress(KeyError, TypeError, AttributeError):  # of a stranger's file, whatever it holds
        trained = checkpoint["options"]["model"]["fusion"].get("gate", "released")
        if trained in {"paper", "released"} - {options.model.fusion.gate}:
            print(f"warning: the checkpoint was trained with model.fusion.gate={trained}, and is now scored with "
                  f"{options.model.fusion.gate}; --set model.fusion.gate={trained} scores it as trained")  # fmt: skip
        trained, now = checkpoint["options"]["dataset"]["local_path"], options.dataset.local_path
        if isinstance(trained, str) and (trained == "zeros") != (now == "zeros"):
            print(f"warning: the checkpoint was trained with dataset.local_path={trained}, and is now scored with "
                  f"{now}; --set dataset.local_path={trained} scores it as trained")  # fmt: skip


def load_model(checkpoint: dict[str, Any], options: Options, words: Sequence[str], device: torch.device) -> GaLR:
    """The model of a checkpoint, ours or a published one, ready to encode.

    Raises InputError where it does not fit.
    """
    warn_of_other_options(checkpoint, options)
    model = build_model(options, words, initialise=False)
    load_weights(model, checkpoint, words)
    return prepare(model, options, device)
