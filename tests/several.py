"""A few training steps, in however many processes there are: what they give is compared by test_processes.py.

    python tests/several.py OUT STEPS real|short float32|float64 OPTIONS [KEY=VALUE ...] [-- OPTIONS ...]

Here one process is the reference; torchrun, or `start` below, starts several. In float64 rounding is out of the way:
from random weights, gradients of float32 can differ by percents between one thread and two.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import chain, count, islice
from pathlib import Path
from typing import NamedTuple

import torch
from conftest import environment, shortened
from torch import Tensor

from data import Data, load_data, make_folds, random_stream, train_batches
from engine import embed_split, make_criterion, make_model, make_optimizer, prepare, train_step
from layers.distributed import joined, wait_for_all
from layers.model import Model
from option import Options, load_options
from utils import rank
from vocab import load_words


class Trained(NamedTuple):
    """What some steps of training and an evaluation gave."""

    losses: list[float]
    gradients: dict[str, Tensor]  # of the first step
    state: dict[str, Tensor]  # of the model after the last step
    encoded: tuple[int, int]  # images and distinct captions that this process encoded
    vectors: Tensor  # of all images


def train(path: str, overrides: list[str], steps: int, short: bool, precision: str = "float32") -> Trained:
    """Take the first steps of a run of these options, with dropout drawn as train.py does."""
    options, device = load_options(path, overrides), torch.device("cpu")
    words = load_words(options)
    (fold,) = make_folds(options, 0)
    torch.manual_seed(0)
    with shortened() if short else contextlib.nullcontext():
        model = prepare(make_model(options, words), options, device).to(getattr(torch, precision))
    data = load_data(fold.train, options, words, device, training=True)
    criterion = make_criterion(options.optim, device)
    optimizer = make_optimizer(model, options.optim, criterion)
    batches = chain.from_iterable(train_batches(data, options, 0, epoch) for epoch in count())
    model.train()
    losses, gradients = [], {}
    named = dict(chain(model.named_parameters(), criterion.named_parameters(prefix="loss")))
    for step, batch in enumerate(islice(batches, steps)):
        batch = batch._replace(
            **{name: getattr(batch, name).to(getattr(torch, precision)) for name in batch._fields[:3]}
        )
        torch.manual_seed(int(random_stream(3, 0, step).integers(2**63)))
        losses.append(float(train_step(model, batch, criterion, optimizer, options.optim.lr, options)))
        gradients = gradients or {name: p.grad.clone() for name, p in named.items() if p.grad is not None}
    state = {name: x.clone() for name, x in {**model.state_dict(), **criterion.state_dict(prefix="loss.")}.items()}
    images = load_data(fold.train, options, words, device, training=False)
    return Trained(losses, gradients, state, *evaluate(model, images, options))


def evaluate(model: Model, data: Data, options: Options) -> tuple[tuple[int, int], Tensor]:
    """Encode the images and captions -> how many of each this process encoded, and the vectors of all images."""
    counts = {"encode_image": 0, "encode_text": 0}

    def counted(name: str) -> Callable[..., Tensor]:
        real = getattr(model, name)

        def count(first: Tensor, *others: Tensor) -> Tensor:
            counts[name] += len(first)
            return real(first, *others)

        return count

    for name in counts:
        setattr(model, name, counted(name))
    vectors, _ = embed_split(model, data, options)
    return tuple(counts.values()), vectors


def start(number: int, words: list[str], folder: Path) -> list[subprocess.Popen]:
    """Start a Python command line in several processes, as torchrun does."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    own = {"WORLD_SIZE": str(number), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "t"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": folder}
    return [
        subprocess.Popen(
            [sys.executable, *words], **pipes, env=environment() | own | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(number)
    ]


if __name__ == "__main__":
    out, steps, trunk, precision, *cases = sys.argv[1:]
    if precision == "float64":
        torch.Tensor.float = torch.Tensor.double  # the models ask for no less than float32 in places
    with joined(torch.device("cpu")):
        for number, (path, *overrides) in enumerate(map(str.split, " ".join(cases).split(" -- "))):
            trained = train(path, overrides, int(steps), trunk == "short", precision)
            torch.save(tuple(trained), f"{out}.{number}.{rank()}")
        wait_for_all()
