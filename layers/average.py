"""The running average (EMA) of a model's weights, which is scored in their place."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class Average(AveragedModel):
    """Keep an EMA of the weights with decay `keep` (warmed up), and a copy of the buffers.

    PyTorch's own update reads its count of steps from the weights' device, so that every step would wait for a GPU.
    """

    def __init__(self, model: nn.Module, keep: float) -> None:
        super().__init__(model)
        self.keep = keep

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Follow the weights after a step; the first step's are copied."""
        done = int(self.n_averaged)  # on the CPU, unlike the weights
        share = 1 - min(self.keep, (1 + done) / (10 + done)) if done else 1.0
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), share)
        for own, its in zip(self.module.buffers(), model.buffers(), strict=True):
            own.copy_(its)
        self.n_averaged += 1


def make_average(model: nn.Module, keep: float) -> Average | None:
    """Return the EMA with decay `keep`, or None if `keep` is 0."""
    return Average(model, keep) if keep else None
