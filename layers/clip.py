"""CLIP (Radford et al. 2021): two towers that were trained on pairs from the web, or on remote sensing since.

    similarity = cosine(image tower(image), text tower(caption))

It may be scored as it comes, and fine-tuned (`optim.loss: infonce`). Local features are not read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from layers.clip_network import CLIPNetwork
from layers.model import Model

if TYPE_CHECKING:
    from option.options import CLIPOptions


class CLIP(Model):
    """Images and captions -> vectors of one space, compared by the cosine."""

    def __init__(self, options: CLIPOptions, image_size: int, words: int) -> None:
        super().__init__()
        self.clip = CLIPNetwork(options.clip.arch, options.clip.weights, image_size)

    def encode_image(self, images: Tensor, local_rep: Tensor | None = None, local_adj: Tensor | None = None) -> Tensor:
        """(B, 3, S, S) -> (B, D), not normalised."""
        return self.clip(images)

    def encode_text(self, token_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, T) int64 with 0 = padding -> (B, D), not normalised."""
        return self.clip.encode_text(token_ids)
