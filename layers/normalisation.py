"""Images come normalised by ImageNet's mean and deviation; a network that was trained with others converts them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet: red, green, blue


class Renormalise(nn.Module):
    """(B, 3, H, W) normalised by ImageNet's mean and deviation -> by the given ones. No weights, nothing is saved."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        mean, std, given_mean, given_std = (torch.tensor(x).view(3, 1, 1) for x in (mean, std, MEAN, STD))
        self.register_buffer("scale", given_std / std, persistent=False)
        self.register_buffer("shift", (given_mean - mean) / std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return torch.addcmul(self.shift, images, self.scale)
