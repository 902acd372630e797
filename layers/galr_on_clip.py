"""GaLR upon CLIP (ours; `model.trunk: clip`): what the regions of an image tell is added to what CLIP sees.

v_g = l2norm(CLIP's image vector)        v_l = local branch(X, A)        v = v_g + s MIDF(v_g, v_l)
similarity = cosine(v, CLIP's text vector)

The scale s starts at 0, so that an untrained model scores as CLIP does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from layers.clip_network import CLIPNetwork
from layers.galr import GaLR
from layers.local_branch import LocalBranch
from layers.midf import make_fusion
from layers.model import Model, l2norm

if TYPE_CHECKING:
    from option.options import GaLROptions


class GaLROnCLIP(GaLR):
    """Images with their regions, and captions -> vectors of one space, compared by the cosine.

    Raises ValueError where `embed.embed_dim` is not the width of CLIP's vectors.
    """

    def __init__(self, options: GaLROptions, image_size: int, words: int) -> None:
        Model.__init__(self)
        self.clip = CLIPNetwork(options.clip.arch, options.clip.weights, image_size)
        if self.clip.width != options.embed.embed_dim:
            raise ValueError(
                f"model.embed.embed_dim is {options.embed.embed_dim}; the vectors of {options.clip.arch} "
                f"have {self.clip.width} numbers"
            )
        self.local_branch = LocalBranch(self.clip.width)
        self.midf = make_fusion(options.fusion, self.clip.width)
        self.scale = nn.Parameter(torch.zeros(()))

    def encode_image(self, images: Tensor, local_rep: Tensor, local_adj: Tensor) -> Tensor:
        """(B, 3, S, S), (B, 20, 20), (B, 20, 20) -> (B, D), not normalised."""
        v_g = l2norm(self.clip(images))
        with torch.autocast(images.device.type, enabled=False):
            return v_g + self.scale * self.midf(v_g, self.local_branch(local_rep, local_adj))

    def encode_text(self, token_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, T) int64 with 0 = padding -> (B, D), not normalised."""
        return self.clip.encode_text(token_ids)
