"""VSE++ (Faghri et al., BMVC 2018): one vector for the image, one for the caption, compared by their product.

    v = l2norm(Linear(l2norm(mean of f4 over positions)))
    t = l2norm(state of a GRU at the last word)

f4 is ResNet-18's last feature map. It is trained with the hardest negatives alone (`optim.max_violation`).
Another backbone gives its own pooled vector (layers/backbone.py).

Behind the rows that papers on remote sensing print for VSE++ stands a variant of it: `image_norm: False` (v is not
normalised after the linear layer) and `text_pooling: mean` (t is the mean of the states at all positions, those of
padding too: the first `positions`, or as many as a longer caption has words).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from layers.backbone import make_backbone
from layers.gru import Float32GRU, pack_sequences
from layers.model import Model, l2norm, register

if TYPE_CHECKING:
    from option.options import VSEPPOptions


@register("VSE++")
class VSEPP(Model):
    """Images and captions -> vectors of one space. Local features are not read."""

    def __init__(self, options: VSEPPOptions, image_size: int, words: int) -> None:
        super().__init__()
        embed_dim = options.embed.embed_dim
        self.image_norm, self.text_pooling, self.positions = options.image_norm, options.text_pooling, options.positions
        self.trunk = make_backbone(options.trunk, image_size, options.trunk_norm)
        if options.trunk == "resnet18":
            self.trunk.net.fc = nn.Identity()  # not used, and not in published files either
        self.image_out = nn.Linear(self.trunk.width, embed_dim)
        self.embedding = nn.Embedding(words + 1, options.word_dim)  # row 0, padding, is a row like the others
        self.gru = Float32GRU(options.word_dim, embed_dim, batch_first=True)
        # as the authors start
        nn.init.xavier_uniform_(self.image_out.weight)
        nn.init.zeros_(self.image_out.bias)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def encode_image(self, images: Tensor, local_rep: Tensor | None = None, local_adj: Tensor | None = None) -> Tensor:
        v = self.image_out(l2norm(self.trunk(images).pooled.float())).float()
        return l2norm(v) if self.image_norm else v

    def encode_text(self, token_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        if self.text_pooling == "mean":
            return l2norm(self._mean_state(token_ids))
        if lengths is None:
            lengths = (token_ids != 0).sum(1)
        lengths = lengths.clamp(min=1).cpu()  # a caption without words is one padding word
        return l2norm(self.gru(pack_sequences(self.embedding(token_ids), lengths))[1][0].float())

    def _mean_state(self, token_ids: Tensor) -> Tensor:
        """Average the states of captions padded to `positions` words, or to their own length, whatever the batch."""
        token_ids = functional.pad(token_ids, (0, max(self.positions - token_ids.shape[1], 0)))
        states = self.gru(self.embedding(token_ids))[0].float()
        if states.shape[1] == self.positions:
            return states.mean(dim=1)
        averaged = (token_ids != 0).sum(1, keepdim=True).clamp(min=self.positions)
        within = torch.arange(states.shape[1], device=states.device) < averaged
        return (states * within[:, :, None]).sum(dim=1) / averaged

    def similarity(self, image_vectors: Tensor, text_vectors: Tensor) -> Tensor:
        """Return the products (N, M) of v (N, D) and t (M, D), in float32 whatever autocast says."""
        with torch.autocast(image_vectors.device.type, enabled=False):
            return image_vectors.float() @ text_vectors.float().T
