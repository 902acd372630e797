"""Text branch: word embedding, skip-thoughts GRU, linear layer (paper section III-C; released code).

t = relu(Linear(H, D)(state at the last real word))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from layers.gru import GRU, pack

if TYPE_CHECKING:
    from option.models import Seq2Vec


class TextEncoder(nn.Module):
    """`BayesianUniSkip`: Bayesian dropout in training; `UniSkip`: none; `BiSkip`: two directions of H / 2 each."""

    def __init__(self, options: Seq2Vec, words: int, embed_dim: int) -> None:
        super().__init__()
        hidden = options.hidden_dim
        self.embedding = nn.Embedding(words + 1, options.embedding_dim, padding_idx=0)
        self.embedding.weight.requires_grad_(not options.fixed_emb)
        if options.type == "BiSkip":
            self.gru = GRU(options.embedding_dim, hidden // 2)
            self.gru_backward = GRU(options.embedding_dim, hidden // 2)
        else:
            self.gru = GRU(options.embedding_dim, hidden, options.dropout if "Bayesian" in options.type else 0.0)
            self.gru_backward = None
        self.out = nn.Linear(hidden, embed_dim)
        for gru in filter(None, (self.gru, self.gru_backward)):
            gru.initialise()

    def sentence_vector(self, token_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """token_ids (B, T), 0 = padding after the last word; lengths (B,) -> the skip-thoughts vector (B, H)."""
        if lengths is None:
            lengths = (token_ids != 0).sum(1)
        lengths = lengths.clamp(min=1)  # a caption without words is one padding word
        states = [self._run(self.gru, token_ids, lengths, reverse=False)]
        if self.gru_backward is not None:
            states.append(self._run(self.gru_backward, token_ids, lengths, reverse=True))
        return torch.cat(states, dim=1)

    def _run(self, gru: GRU, token_ids: Tensor, lengths: Tensor, reverse: bool) -> Tensor:
        packing = pack(lengths, token_ids.shape[1], token_ids.device, reverse)
        return gru(self.embedding(token_ids.flatten()[packing.words]), packing)

    def forward(self, token_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """token_ids (B, T), lengths (B,) or None -> text vector (B, D), not normalised."""
        return torch.relu(self.out(self.sentence_vector(token_ids, lengths))).float()
