"""Bidirectional triplet loss (paper section III-D; released code).

    L = sum over i != j of  max(0, margin + s_ij - s_ii) + max(0, margin + s_ij - s_jj)

with `max_violation` only the largest term of each row (first part) and of each column (second part).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TripletLoss(nn.Module):
    """Pairs stand on the diagonal of the similarity matrix; a caption of the same image elsewhere is a negative too."""

    def __init__(self, margin: float = 0.2, max_violation: bool = False) -> None:
        super().__init__()
        self.margin, self.max_violation = margin, max_violation

    def forward(self, similarity: Tensor) -> Tensor:
        """similarity (B, B), images x captions -> scalar, a sum over the batch."""
        positive = similarity.diagonal()
        own = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
        captions = (self.margin + similarity - positive[:, None]).clamp(min=0).masked_fill(own, 0)
        images = (self.margin + similarity - positive[None, :]).clamp(min=0).masked_fill(own, 0)
        if self.max_violation:
            return captions.amax(dim=1).sum() + images.amax(dim=0).sum()
        return captions.sum() + images.sum()
