"""AMFMN, the asymmetric multimodal feature matching network (Yuan et al., IEEE TGRS 2022, arXiv 2204.09868).

Its visual vector v is GaLR's global branch, not normalised; its text vector t is GaLR's. The image attends to each
caption: F_ij is a vector of the pair, and the similarity

    S_ij = v_i . F_ij / max(|v_i| |F_ij|, 1e-8)

    soft_att         F = sigmoid(W v + b) * t
    fusion_att       F = sigmoid(W1 [v; t] + b1) * (W2 [v; t] + b2)
    similarity_att   F = sigmoid((W_v v + b_v) * t') * t'        t' = W_t t + b_t

The F of all pairs (N, M, D) are never in memory at once: `soft_att` is two matrix products, the others go a block of
pairs at a time, which the backward pass computes anew.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layers.backbone import make_backbone
from layers.cpu import on_cpu
from layers.global_branch import GlobalBranch
from layers.model import Model, register
from layers.text_encoder import make_text_encoder

if TYPE_CHECKING:
    from option.options import AMFMNOptions

CPU_BLOCK, GPU_BLOCK = 2**20, 2**25  # numbers of F at a time: what a CPU's cache holds; what keeps a GPU busy


class SoftAttention(nn.Module):
    """F_ij = g_i * t_j, so that v_i . F_ij = (v_i * g_i) . t_j and |F_ij|^2 = (g_i * g_i) . (t_j * t_j)."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(embed_dim, embed_dim)

    def forward(self, v: Tensor, t: Tensor) -> Tensor:
        """Return the similarities (N, M) of v (N, D) and t (M, D)."""
        gate = torch.sigmoid(self.gate(v))
        # a text vector can be zero: there the root is kept from an infinite slope
        length = ((gate * gate) @ (t * t).T).clamp(min=1e-30).sqrt()
        return _quotient((v * gate) @ t.T, _norm(v)[:, None], length)


class FusionAttention(nn.Module):
    """A layer of the concatenation [v; t] is the sum of one of v and one of t: each is computed once, not per pair."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.joint_gate = nn.Linear(2 * embed_dim, embed_dim)
        self.joint_value = nn.Linear(2 * embed_dim, embed_dim)

    def forward(self, v: Tensor, t: Tensor) -> Tensor:
        """Return the similarities (N, M) of v (N, D) and t (M, D)."""
        (gate_v, gate_t), (value_v, value_t) = (
            (v @ of_v.T + layer.bias, t @ of_t.T)
            for layer in (self.joint_gate, self.joint_value)
            for of_v, of_t in [layer.weight.chunk(2, dim=1)]
        )
        return _pairwise(self._block, (v, gate_v, value_v), (gate_t, value_t))

    @staticmethod
    def _block(v: Tensor, gate_v: Tensor, value_v: Tensor, gate_t: Tensor, value_t: Tensor) -> Tensor:
        return _similarity(v, (gate_v[:, None] + gate_t).sigmoid_() * (value_v[:, None] + value_t))


class SimilarityAttention(nn.Module):
    """The gate sees the elementwise product of the two vectors."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.visual = nn.Linear(embed_dim, embed_dim)
        self.text = nn.Linear(embed_dim, embed_dim)

    def forward(self, v: Tensor, t: Tensor) -> Tensor:
        """Return the similarities (N, M) of v (N, D) and t (M, D)."""
        return _pairwise(self._block, (v, self.visual(v)), (self.text(t),))

    @staticmethod
    def _block(v: Tensor, of_v: Tensor, of_t: Tensor) -> Tensor:
        return _similarity(v, (of_v[:, None] * of_t).sigmoid_() * of_t)


def _similarity(v: Tensor, f: Tensor) -> Tensor:
    """Return S (n, m) of v (n, D) and F (n, m, D)."""
    return _quotient(torch.bmm(f, v[:, :, None])[:, :, 0], _norm(v)[:, None], _norm(f))


def _quotient(product: Tensor, length_v: Tensor, length_f: Tensor) -> Tensor:
    return product / (length_v * length_f).clamp(min=1e-8)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1)


def _pairwise(block: Callable[..., Tensor], images: Sequence[Tensor], captions: Sequence[Tensor]) -> Tensor:
    """Return the similarities (N, M) of all pairs, a block of pairs at a time, which the backward pass computes anew.

    block: rows of images and rows of captions -> (n, m). images: tensors (N, D); captions: tensors (M, D).
    """
    pairs = max((CPU_BLOCK if on_cpu(images[0]) else GPU_BLOCK) // images[0].shape[1], 1)
    m = max(min(len(captions[0]), pairs), 1)
    run = functools.partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
    rows = [torch.cat([run(*v, *t) for t in _split(captions, m)], dim=1) for v in _split(images, pairs // m)]
    return torch.cat(rows)


def _split(tensors: Sequence[Tensor], rows: int) -> list[tuple[Tensor, ...]]:
    """Split tensors alike, into parts of so many rows."""
    return list(zip(*(x.split(rows) for x in tensors), strict=True))


ATTENTION = {"soft_att": SoftAttention, "fusion_att": FusionAttention, "similarity_att": SimilarityAttention}


@register("AMFMN")
class AMFMN(Model):
    """Compare images and captions by the attention of the image to the caption. Local features are not read."""

    def __init__(self, options: AMFMNOptions, image_size: int, words: int) -> None:
        super().__init__()
        embed_dim = options.embed.embed_dim
        trunk = make_backbone(options.trunk, image_size, options.trunk_norm)
        self.global_branch = GlobalBranch(trunk, image_size, embed_dim, normalise=False)
        self.text_encoder = make_text_encoder(options.seq2vec, words, embed_dim)
        self.attention = ATTENTION[options.cross_attention.att_type](embed_dim)
        self.unused_gate = nn.Linear(2 * embed_dim, embed_dim)  # nothing reads it, but published files carry it

    def encode_image(self, images: Tensor, local_rep: Tensor | None = None, local_adj: Tensor | None = None) -> Tensor:
        return self.global_branch(images)

    def similarity(self, image_vectors: Tensor, text_vectors: Tensor) -> Tensor:
        """Return S (N, M) of v (N, D) and t (M, D), in float32 whatever autocast says."""
        with torch.autocast(image_vectors.device.type, enabled=False):
            return self.attention(image_vectors.float(), text_vectors.float())
