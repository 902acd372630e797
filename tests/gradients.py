"""The gradients of a batch, ours and those of the plain implementation, for test_bench.py and test_cuda.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.train import baseline_of, plain_batches, settings, settled_model, train_data
from data import train_batches
from engine import prepare
from layers.loss import TripletLoss
from layers.published import to_published
from tests.reference import triplet_loss

TOLERANCE = 1e-3  # of gradient norms, relative
NOISE = 1e-6  # norms below are rounding noise


def norms(gradients: dict[str, Tensor | None]) -> dict[str, float]:
    return {name: 0.0 if gradient is None else float(gradient.norm()) for name, gradient in gradients.items()}


def our_gradients(overrides: tuple[str, ...], device: torch.device) -> Callable[[], dict[str, float]]:
    """Return the norms of our float32 gradients of a batch, by published name, without dropout.

    Batch norm keeps its statistics: with those of the batch and random weights, gradients are so ill-conditioned that
    the baseline itself gives norms 10% apart in the two memory formats.
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
    """Return the norms of the baseline's gradients of the same batch."""
    options = settings(overrides)
    model = baseline_of(settled_model(options, train_data(options, device)), options).to(device).eval()
    batch = next(plain_batches(options, device))

    def work() -> dict[str, float]:
        triplet_loss(model(*batch), options.optim.margin).backward()
        return norms({name: p.grad for name, p in model.named_parameters()})

    return work


def worst_gradient(ours: dict[str, float], baseline: dict[str, float]) -> tuple[str, float]:
    """Return the parameter whose gradient norm differs most from the baseline's, relatively; noise counts as equal."""
    assert ours.keys() == baseline.keys()
    heard = {name: norm for name, norm in baseline.items() if max(norm, ours[name]) > NOISE}
    apart = {name: abs(ours[name] - norm) / max(norm, NOISE) for name, norm in heard.items()}
    name = max(apart, key=apart.__getitem__)
    return name, apart[name]
