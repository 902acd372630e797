"""MIDF: multi-level information dynamic fusion of the global and the local vector (released code).

Each vector is a sequence of length one, so that the softmax of its attention is over one key, and 1: an attention is
merge(drop(1) value(y)), whatever query and key are. Their projections are in published files only for completeness.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from option.options import Fusion


class Norm(nn.Module):
    """N(x) = a (x - mean) / (std + 1e-6) + b, with the unbiased standard deviation."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(size))
        self.b = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        std, mean = torch.std_mean(x, dim=-1, keepdim=True)
        return self.a * (x - mean) / (std + 1e-6) + self.b


class Attention(nn.Module):
    """Multi-head attention to a single vector y: merge of the values, each head kept or dropped as a whole."""

    def __init__(self, options: Fusion) -> None:
        super().__init__()
        size = options.mca_HIDDEN_SIZE
        self.heads, self.dropout = options.mca_MULTI_HEAD, options.mca_DROPOUT_R
        self.value, self.key, self.query, self.merge = (nn.Linear(size, size) for _ in range(4))

    def forward(self, y: Tensor) -> Tensor:
        value = self.value(y)
        if self.training:
            attention = functional.dropout(y.new_ones(len(y), self.heads, 1), self.dropout)
            value = (value.unflatten(1, (self.heads, -1)) * attention).flatten(1)
        return self.merge(value)


class FeedForward(nn.Module):
    """D - FF - D with ReLU and dropout."""

    def __init__(self, options: Fusion) -> None:
        super().__init__()
        self.inner = nn.Linear(options.mca_HIDDEN_SIZE, options.mca_FF_SIZE)
        self.outer = nn.Linear(options.mca_FF_SIZE, options.mca_HIDDEN_SIZE)
        self.drop = nn.Dropout(options.mca_DROPOUT_R)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.drop(torch.relu(self.inner(x))))


class SA(nn.Module):
    """Self-attention: x = N(x + drop(attention(x, x, x))), x = N(x + drop(feedforward(x)))."""

    def __init__(self, options: Fusion) -> None:
        super().__init__()
        self.attention = Attention(options)
        self.feedforward = FeedForward(options)
        self.norm1, self.norm2 = Norm(options.mca_HIDDEN_SIZE), Norm(options.mca_HIDDEN_SIZE)
        self.drop = nn.Dropout(options.mca_DROPOUT_R)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.drop(self.attention(x)))
        return self.norm2(x + self.drop(self.feedforward(x)))


class SGA(nn.Module):
    """Guided attention: a self step, then x = N(x + drop(attention(query x, key = value = y))), then feed-forward."""

    def __init__(self, options: Fusion) -> None:
        super().__init__()
        self.attention1, self.attention2 = Attention(options), Attention(options)
        self.feedforward = FeedForward(options)
        self.norm1, self.norm2, self.norm3 = (Norm(options.mca_HIDDEN_SIZE) for _ in range(3))
        self.drop = nn.Dropout(options.mca_DROPOUT_R)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.norm1(x + self.drop(self.attention1(x)))
        x = self.norm2(x + self.drop(self.attention2(y)))
        return self.norm3(x + self.drop(self.feedforward(x)))


class MIDF(nn.Module):
    """v_g (B, D), v_l (B, D) -> visual vector v (B, D), not normalised.

    v_g = SA_g(v_g)               v_l = SA_l(v_l)
    v_l = SGA_l(v_l; v_g)         v_g = SGA_g(v_g; v_l)
    v_g' = sigmoid(v_l) v_g       v_l' = v_g + v_l
    gamma = softmax(Linear(drop(sigmoid(Linear(v_g' + v_l')))))
    v = gamma_1 v_g' + gamma_2 v_l'          (gate: paper)
    v = gamma_1 v_g' + gamma_1 v_l'          (gate: released; gamma cancels in the cosine)
    v = v_g' + v_l'                          (gate: none; no dynamic weights)
    """

    def __init__(self, options: Fusion) -> None:
        super().__init__()
        self.gate = options.gate
        self.global_sa, self.local_sa = SA(options), SA(options)
        self.local_sga, self.global_sga = SGA(options), SGA(options)
        if self.gate != "none":
            self.gamma = nn.Sequential(
                nn.Linear(options.mca_HIDDEN_SIZE, options.dynamic_fusion_dim),
                nn.Sigmoid(),
                nn.Dropout(options.dynamic_fusion_drop),
                nn.Linear(options.dynamic_fusion_dim, 2),
            )

    def forward(self, v_g: Tensor, v_l: Tensor) -> Tensor:
        v_g, v_l = self.global_sa(v_g), self.local_sa(v_l)
        v_l = self.local_sga(v_l, v_g)
        v_g = self.global_sga(v_g, v_l)
        v_g, v_l = torch.sigmoid(v_l) * v_g, v_g + v_l
        if self.gate == "none":
            return v_g + v_l
        gamma_1, gamma_2 = self.gamma(v_g + v_l).softmax(dim=-1).split(1, dim=-1)
        return gamma_1 * v_g + (gamma_2 if self.gate == "paper" else gamma_1) * v_l


class Sum(nn.Module):
    """In place of MIDF: v = v_g + v_l."""

    def forward(self, v_g: Tensor, v_l: Tensor) -> Tensor:
        return v_g + v_l


class Concatenation(nn.Module):
    """In place of MIDF: v = Linear([v_g; v_l])."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.out = nn.Linear(2 * embed_dim, embed_dim)

    def forward(self, v_g: Tensor, v_l: Tensor) -> Tensor:
        return self.out(torch.cat((v_g, v_l), dim=1))


def make_fusion(options: Fusion, embed_dim: int) -> nn.Module:
    """Build what `options.kind` names to make one vector of the global and the local one."""
    if options.kind == "midf":
        return MIDF(options)
    return Sum() if options.kind == "sum" else Concatenation(embed_dim)
