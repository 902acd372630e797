"""GaLR: the whole model, and how it is built from options (paper Fig. 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from layers.global_branch import GlobalBranch, l2norm
from layers.local_branch import LocalBranch
from layers.midf import MIDF
from layers.text_encoder import TextEncoder
from layers.weights import load_resnet, load_skipthoughts
from option.schema import Options


class GaLR(nn.Module):
    """Images with their regions, and captions -> embeddings of one space, compared by the cosine."""

    def __init__(self, options: Options, words: int) -> None:
        super().__init__()
        embed_dim = options.model.embed.embed_dim
        self.global_branch = GlobalBranch(options.dataset.image_size, embed_dim)
        self.local_branch = LocalBranch(embed_dim)
        self.midf = MIDF(options.model.fusion)
        self.text_encoder = TextEncoder(options.model.seq2vec, words, embed_dim)

    def encode_image(self, images: Tensor, local_rep: Tensor, local_adj: Tensor) -> Tensor:
        """(B, 3, S, S), (B, 20, 20), (B, 20, 20) -> (B, D), not normalised."""
        v_g = self.global_branch(images)
        with torch.autocast(images.device.type, enabled=False):  # small: float32 costs nothing here
            return self.midf(v_g, self.local_branch(local_rep, local_adj))

    def encode_text(self, token_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, T) int64 with 0 = padding, (B,) number of words -> (B, D), not normalised."""
        return self.text_encoder(token_ids, lengths)

    def forward(
        self, images: Tensor, local_rep: Tensor, local_adj: Tensor, token_ids: Tensor, lengths: Tensor | None = None
    ) -> Tensor:
        """Cosine similarity of every image with every caption of the batch (B, B), float32."""
        return cosine(self.encode_image(images, local_rep, local_adj), self.encode_text(token_ids, lengths))


def cosine(images: Tensor, captions: Tensor) -> Tensor:
    """(N, D), (M, D) -> cosine similarities (N, M), in float32 whatever autocast says."""
    with torch.autocast(images.device.type, enabled=False):
        return l2norm(images.float()) @ l2norm(captions.float()).T


def build_model(options: Options, vocab_words: Sequence[str], initialise: bool = True) -> GaLR:
    """Build GaLR for a vocabulary (words in index order from 1).

    With `initialise`, weights come from where the options say: ImageNet or a file for ResNet-18, skip-thoughts files
    or random values for the text encoder. Without, they are left for a checkpoint to fill.
    Raises InputError where a weight file is missing, damaged or of another shape.
    """
    model = GaLR(options, len(vocab_words))
    if initialise:
        load_resnet(model.global_branch.resnet, options.model.pretrained)
        if options.model.seq2vec.pretrained:
            load_skipthoughts(model.text_encoder, options.model.seq2vec, vocab_words)
        else:
            for gru in filter(None, (model.text_encoder.gru, model.text_encoder.gru_backward)):
                gru.initialise()
    return model
