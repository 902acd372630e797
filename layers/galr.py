"""GaLR: the whole model (paper Fig. 2).

v_g = global branch(image)      v_l = local branch(X, A)      v = MIDF(v_g, v_l)      t = text encoder(caption)
similarity = cosine(v, t)

Without the local branch (`local_branch: False`), v = v_g; `fusion.kind` puts a sum or a concatenation in MIDF's place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from layers.backbone import make_backbone
from layers.global_branch import GlobalBranch
from layers.local_branch import LocalBranch
from layers.midf import make_fusion
from layers.model import Model, register
from layers.text_encoder import make_text_encoder

if TYPE_CHECKING:
    from option.options import GaLROptions


@register("GaLR")
class GaLR(Model):
    """Images with their regions, and captions -> vectors of one space, compared by the cosine."""

    def __init__(self, options: GaLROptions, image_size: int, words: int) -> None:
        super().__init__()
        embed_dim = options.embed.embed_dim
        trunk = make_backbone(options.trunk, image_size, options.trunk_norm)
        self.global_branch = GlobalBranch(trunk, image_size, embed_dim, masked=options.mvsa)
        self.local_branch = LocalBranch(embed_dim) if options.local_branch else None
        self.midf = make_fusion(options.fusion, embed_dim) if options.local_branch else None
        self.text_encoder = make_text_encoder(options.seq2vec, words, embed_dim)

    def encode_image(self, images: Tensor, local_rep: Tensor, local_adj: Tensor) -> Tensor:
        v_g = self.global_branch(images)
        if self.local_branch is None:
            return v_g
        with torch.autocast(images.device.type, enabled=False):  # small: float32 costs nothing here
            return self.midf(v_g, self.local_branch(local_rep, local_adj))
