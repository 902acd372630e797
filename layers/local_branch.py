"""Local branch: a graph convolution over the regions that DREA keeps (the paper's local branch; released code).

X <- relu(W (A X)), three times        v_l = l2norm(Linear(flatten X))
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from layers.model import l2norm

NODES = FEATURES = 20


class LocalBranch(nn.Module):
    """Node features and adjacency -> v_l; layers without bias, widths 20-20-10-20."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        widths = (FEATURES, 20, 10, 20)
        self.graph = nn.ModuleList(nn.Linear(i, o, bias=False) for i, o in pairwise(widths))
        self.out = nn.Linear(NODES * widths[-1], embed_dim)

    def forward(self, local_rep: Tensor, local_adj: Tensor) -> Tensor:
        """Encode local_rep X (B, 20, 20), local_adj A (B, 20, 20) -> v_l (B, D), of unit length."""
        x = local_rep
        for layer in self.graph:
            x = torch.relu(layer(local_adj @ x))
        return l2norm(self.out(x.flatten(1)).float())
