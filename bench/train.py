"""Time a training step at the published sizes: batch 100, 256 pixels, captions as long as RSITMD's, full widths.

Ours is the loop of train.py around `engine.train_step`, augmentation included; the baseline gets its images ready.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import chain, count, cycle, islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import engine
from bench import Case, figures, rounds
from data import Data, SameCaptions, Split, train_batches
from engine import learning_rate, make_criterion, make_optimizer, prepare
from layers import build_model
from layers.published import to_published
from option import Options, load_options
from tests.reference import Baseline, train_step
from util.pixels import MemoryPixels
from util.precision import gain, make_scaler
from util.transforms import normalise, resize_size
from utils import ROOT

WORDS = [f"word{i}" for i in range(1349)]  # as many as in the published vocabulary of RSITMD
# Captions of RSITMD's train list with 0, 1, 2, ... words (vocab.tokenize).
LENGTHS = [0, 0, 0, 6, 505, 839, 1353, 2379, 2747, 2592, 2263, 2105, 1618, 1274, 977, 765, 620, 399, 331, 200, 127, 106]
LENGTHS += [77, 57, 32, 21, 16, 8, 9, 4, 2, 1, 1, 0, 1]
STEPS = 3  # of each process, after one to warm up
EMULATED = 0.25  # speed of bf16 products over float32 products below which a processor emulates them


def emulates_bf16(device: torch.device) -> bool:
    """Return whether bf16 is emulated: a step can then take minutes. A small product tells."""
    return gain("bf16", device) < EMULATED


def settings(overrides: tuple[str, ...] = (), precision: str = "fp32") -> Options:
    """Return RSITMD's options, with random weights."""
    plain = ("model.pretrained=none", "model.seq2vec.pretrained=false", f"optim.precision={precision}")
    return load_options(ROOT / "option/RSITMD/RSITMD_GaLR.yaml", [*plain, *overrides])


def made_up(options: Options, images: int, side: int, device: torch.device) -> Data:
    """Return random local features, captions as long as RSITMD's, five an image, and images of this side.

    The images are smooth, so that they differ as real ones do.
    """
    rng = np.random.default_rng(0)
    caption_to_image = np.repeat(np.arange(images), 5)
    lengths = rng.choice(len(LENGTHS), len(caption_to_image), p=np.array(LENGTHS) / sum(LENGTHS))
    token_ids = rng.integers(1, len(WORDS) + 1, (len(caption_to_image), lengths.max()))
    token_ids[np.arange(lengths.max()) >= lengths[:, None]] = 0
    colours = torch.from_numpy(rng.integers(0, 256, (images, 8, 8, 3), np.uint8)).permute(0, 3, 1, 2)
    pixels = functional.interpolate(colours, (side, side), mode="bilinear").permute(0, 2, 3, 1).to(device)
    local_rep, local_adj = (rng.random((images, 20, 20), np.float32) for _ in range(2))
    names = [f"{i}.jpg" for i in range(images)]
    return Data(
        split=Split(names, [""] * len(caption_to_image), caption_to_image),
        paths=names,
        pixels=MemoryPixels(pixels),
        local_rep=local_rep,
        local_adj=(local_adj + local_adj.swapaxes(1, 2)) / 2,
        token_ids=torch.from_numpy(token_ids).to(device),
        lengths=torch.from_numpy(lengths),
        same=SameCaptions(token_ids, caption_to_image),
    )


def train_data(options: Options, device: torch.device) -> Data:
    """Return enough data for ten batches."""
    return made_up(options, 2 * options.dataset.batch_size, resize_size(options.dataset.image_size), device)


def new_model(options: Options) -> nn.Module:
    """Build our model, with the same random weights every time."""
    torch.manual_seed(0)
    return build_model(options, WORDS)


def settled_model(options: Options, data: Data) -> nn.Module:
    """Build our model in evaluation mode, its batch norm holding the statistics of the data's first images."""
    model = new_model(options).train()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # plain averages
    side = options.dataset.image_size
    with torch.no_grad():
        model.global_branch(normalise(data.pixels.pixels[:16, :side, :side].cpu()))
    return model.eval()


def baseline_of(model: nn.Module, options: Options) -> Baseline:
    """Build the baseline with the weights of our model, in full float32 on a GPU too."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    baseline = Baseline(options, len(WORDS))
    baseline.load_state_dict(to_published(model.state_dict()))
    return baseline


def wait(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time the work until the device has done it."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def train_epoch(
    model: nn.Module, data: Data, options: Options, optimizer: torch.optim.Optimizer, epoch: int = 0
) -> Iterator[Tensor]:
    """Yield the losses of an epoch's steps, taken as in train.py."""
    model.train()
    device, rate = data.token_ids.device, learning_rate(options.optim, epoch)
    criterion, scaler = make_criterion(options.optim, device), make_scaler(options.optim, device)
    for batch in train_batches(data, options, 0, epoch):
        yield engine.train_step(model, batch, criterion, optimizer, rate, options, scaler)


def steps_of(options: Options, device: torch.device) -> Iterator[Tensor]:
    """Train a new model, epoch after epoch, and yield the losses of its steps."""
    model = prepare(new_model(options), options, device)
    data, optimizer = train_data(options, device), make_optimizer(model, options.optim)
    return chain.from_iterable(train_epoch(model, data, options, optimizer, epoch) for epoch in count())


def our_step(overrides: tuple[str, ...], precision: str, device: torch.device) -> Callable[[], None]:
    """Return one step of `train_epoch`, warmed up."""
    steps = steps_of(settings(overrides, precision), device)

    def step() -> None:
        next(steps)
        wait(device)

    step()
    return step


def plain_batches(options: Options, device: torch.device) -> Iterator[list[Tensor]]:
    """Yield the first batches of ours again and again, in the plain memory format."""
    batches = islice(train_batches(train_data(options, device), options, 0, 0), 4)
    return cycle([[batch.images.contiguous(), *batch.inputs[1:]] for batch in batches])


def baseline_step(overrides: tuple[str, ...], device: torch.device) -> Callable[[], None]:
    """Return one step of the baseline, warmed up."""
    options = settings(overrides)
    model = baseline_of(new_model(options), options).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=options.optim.lr, foreach=False, fused=False)
    batches = plain_batches(options, device)

    def step() -> None:
        train_step(model, optimizer, next(batches), options.optim.margin)

    step()
    return step


def cases(device: torch.device, repeats: int = 3, overrides: tuple[str, ...] = ()) -> dict[str, Case | None]:
    """Return seconds of a training step; tests hold both sides to the same gradients."""
    precisions = ["fp32"] if emulates_bf16(device) else ["fp32", "bf16"]
    sides = [(our_step, overrides, precision, device) for precision in precisions]
    plain, *ours = rounds("train", repeats, (baseline_step, overrides, device), *sides, times=STEPS)
    results: dict[str, Case | None] = {"step_bf16": None}
    for precision, runs in zip(precisions, ours, strict=True):
        times = ([run.seconds for run in side] for side in (runs, plain))
        results[f"step_{precision}"] = figures(*times, peak=runs[-1].peak_mib)
    return results
