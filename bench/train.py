"""A training step at the published sizes: batch 100, 256 pixels, captions as long as RSITMD's, full widths.

Ours is the loop of train.py around `engine.train_step`, augmentation included; the baseline is given its images ready.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import chain, count, cycle, islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import trange

import engine
from bench import Case, figures, measured
from bench.baseline import Baseline, train_step, triplet_loss
from data import Data, SameCaptions, Split, train_batches
from engine import learning_rate, make_loss, make_optimizer, prepare
from layers import build_model
from layers.loss import TripletLoss
from layers.published import to_published
from option import load_options
from option.options import Options
from util.pixels import MemoryPixels
from util.transforms import normalise, resize_size
from utils import ROOT, RunError

WORDS = [f"word{i}" for i in range(1349)]  # as many as the published vocabulary of RSITMD
# captions of RSITMD's train list with 0, 1, 2, ... words (vocab.tokenize)
LENGTHS = (0, 0, 0, 6, 505, 839, 1353, 2379, 2747, 2592, 2263, 2105, 1618, 1274, 977, 765, 620, 399, 331, 200, 127,
           106, 77, 57, 32, 21, 16, 8, 9, 4, 2, 1, 1, 0, 1)  # fmt: skip
TOLERANCE = 1e-3  # of gradient norms, relative
NOISE = 1e-6  # norms below are rounding noise
STEPS = 3  # of each process, after one to warm up


def settings(overrides: tuple[str, ...] = (), precision: str = "fp32") -> Options:
    """RSITMD's options, with random weights."""
    plain = ("model.pretrained=none", "model.seq2vec.pretrained=false", f"optim.precision={precision}")
    return load_options(ROOT / "option/RSITMD/RSITMD_GaLR.yaml", [*plain, *overrides])


def made_up(options: Options, images: int, side: int, device: torch.device, lengths: np.ndarray | None = None) -> Data:
    """Random local features and images of this side, smooth, so that they differ as real ones do; five captions each.

    Captions are as long as RSITMD's, or of the given lengths (5 * images,).
    """
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(images), 5)
    if lengths is None:
        lengths = rng.choice(len(LENGTHS), len(owner), p=np.array(LENGTHS) / sum(LENGTHS))
    token_ids = rng.integers(1, len(WORDS) + 1, (len(owner), lengths.max()))
    token_ids[np.arange(lengths.max()) >= lengths[:, None]] = 0
    colours = torch.from_numpy(rng.integers(0, 256, (images, 8, 8, 3), np.uint8)).permute(0, 3, 1, 2)
    pixels = functional.interpolate(colours, (side, side), mode="bilinear").permute(0, 2, 3, 1).to(device)
    local_rep, local_adj = (rng.random((images, 20, 20), np.float32) for _ in range(2))
    names = [f"{i}.jpg" for i in range(images)]
    return Data(
        Split(names, [""] * len(owner), owner),
        names,
        MemoryPixels(pixels),
        local_rep,
        (local_adj + local_adj.swapaxes(1, 2)) / 2,
        torch.from_numpy(token_ids).to(device),
        torch.from_numpy(lengths),
        torch.from_numpy(owner),
        SameCaptions(token_ids, owner),
    )


def train_data(options: Options, device: torch.device) -> Data:
    """Enough for ten batches."""
    return made_up(options, 2 * options.dataset.batch_size, resize_size(options.dataset.image_size), device)


def new_model(options: Options) -> nn.Module:
    """Ours, with the same random weights every time."""
    torch.manual_seed(0)
    return build_model(options, WORDS)


def settled_model(options: Options, data: Data) -> nn.Module:
    """Ours in evaluation mode, with the statistics of the data's first images in its batch normalisation."""
    model = new_model(options).train()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # plain averages
    side = options.dataset.image_size
    with torch.no_grad():
        model.global_branch(normalise(data.pixels.pixels[:16, :side, :side].cpu()))
    return model.eval()


def baseline_of(model: nn.Module, options: Options) -> Baseline:
    """The baseline with the very weights of ours, in full float32 on a GPU too."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    baseline = Baseline(options, len(WORDS))
    baseline.load_state_dict(to_published(model.state_dict()))
    return baseline


def wait(device: torch.device) -> None:
    """Until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of the work, until the device has done it."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def train_epoch(
    model: nn.Module, data: Data, options: Options, optimizer: torch.optim.Optimizer, epoch: int = 0
) -> Iterator[Tensor]:
    """The losses of an epoch's steps, taken as in train.py."""
    model.train()
    loss_of = make_loss(options.optim, data.token_ids.device)
    for batch in train_batches(data, options, 0, epoch):
        yield engine.train_step(model, batch, loss_of, optimizer, learning_rate(options.optim, epoch), options)


def steps_of(options: Options, device: torch.device) -> Iterator[Tensor]:
    """The training loop of a new model, epoch after epoch."""
    model = prepare(new_model(options), options, device)
    data, optimizer = train_data(options, device), make_optimizer(model, options.optim)
    return chain.from_iterable(train_epoch(model, data, options, optimizer, epoch) for epoch in count())


def our_step(overrides: tuple[str, ...], precision: str, device: torch.device) -> Callable[[], None]:
    """A step of `train_epoch`; warmed up by one."""
    steps = steps_of(settings(overrides, precision), device)

    def step() -> None:
        next(steps)
        wait(device)

    step()
    return step


def plain_batches(options: Options, device: torch.device) -> Iterator[list[Tensor]]:
    """The first batches that ours gets too, again and again, in the plain memory format."""
    batches = islice(train_batches(train_data(options, device), options, 0, 0), 4)
    return cycle([[batch.images.contiguous(), *batch.inputs[1:]] for batch in batches])


def baseline_step(overrides: tuple[str, ...], device: torch.device) -> Callable[[], None]:
    """The baseline's step; warmed up by one."""
    options = settings(overrides)
    model = baseline_of(new_model(options), options).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=options.optim.lr, foreach=False, fused=False)
    batches = plain_batches(options, device)

    def step() -> None:
        train_step(model, optimizer, next(batches), options.optim.margin)

    step()
    return step


def norms(gradients: dict[str, Tensor | None]) -> dict[str, float]:
    return {name: 0.0 if gradient is None else float(gradient.norm()) for name, gradient in gradients.items()}


def our_gradients(overrides: tuple[str, ...], device: torch.device) -> Callable[[], dict[str, float]]:
    """Norms of our float32 gradients of a batch, by published name; without dropout, statistics as they stand.

    With the statistics of the batch and random weights, gradients are so ill-conditioned that the baseline itself
    gives norms 10% apart in the two memory formats (docs/PERFORMANCE.md).
    """
    options = settings(overrides)
    data = train_data(options, device)
    model = prepare(settled_model(options, data), options, device)
    batch = next(train_batches(data, options, 0, 0))

    def work() -> dict[str, float]:
        TripletLoss(options.optim.margin)(model(*batch.inputs)).backward()
        gradients = {name: p.new_zeros(p.shape) if p.grad is None else p.grad for name, p in model.named_parameters()}
        return norms(to_published(gradients))

    return work


def baseline_gradients(overrides: tuple[str, ...], device: torch.device) -> Callable[[], dict[str, float]]:
    """Norms of the baseline's gradients of the same batch."""
    options = settings(overrides)
    model = baseline_of(settled_model(options, train_data(options, device)), options).to(device).eval()
    batch = next(plain_batches(options, device))

    def work() -> dict[str, float]:
        triplet_loss(model(*batch), options.optim.margin).backward()
        return norms({name: p.grad for name, p in model.named_parameters()})

    return work


def worst_gradient(ours: dict[str, float], baseline: dict[str, float]) -> tuple[str, float]:
    """The parameter whose gradient's norm differs most, relative to the baseline's; noise counts as equal."""
    assert ours.keys() == baseline.keys()
    apart = {
        name: abs(ours[name] - norm) / max(norm, NOISE)
        for name, norm in baseline.items()
        if max(norm, ours[name]) > NOISE
    }
    name = max(apart, key=apart.__getitem__)
    return name, apart[name]


def cases(device: torch.device, repeats: int = 3, overrides: tuple[str, ...] = ()) -> dict[str, Case]:
    """Seconds of a training step. Raises RunError where our float32 gradients are not the baseline's."""
    arguments = overrides, device
    name, apart = worst_gradient(*(measured(side, *arguments).answer for side in (our_gradients, baseline_gradients)))
    print(f"train: gradient norms in float32 agree within {apart:.1e} relative; the worst is {name}")
    if not apart <= TOLERANCE:
        raise RunError(f"the norm of the gradient of {name} is {apart:.1e} from the baseline's (limit {TOLERANCE})")
    sides = (our_step, overrides, "bf16", device), (our_step, overrides, "fp32", device), (baseline_step, *arguments)
    rounds = [
        [measured(*side, times=STEPS) for side in sides]
        for _ in trange(repeats, desc="train", unit="round", disable=None)
    ]
    low, full, plain = ([run.seconds for run in runs] for runs in zip(*rounds, strict=True))
    print(f"train: peak memory of the baseline {rounds[-1][2].peak_mib:.0f} MiB")
    return {
        "train.step_bf16": figures(low, plain, rounds[-1][0].peak_mib),
        "train.step_fp32": figures(full, plain, rounds[-1][1].peak_mib),
    }
