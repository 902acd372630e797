"""What the models have in common: two encoders and a similarity of their vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Model(nn.Module):
    """Images and captions -> vectors -> similarities. A model defines its two encoders, and a similarity of its own
    where that is not the cosine.

    resnet: its trunk, which may start from weights of its own (`model.pretrained`) and is run by a method `trunk`.
    """

    resnet: nn.Module

    def encode_image(self, images: Tensor, local_rep: Tensor, local_adj: Tensor) -> Tensor:
        """(B, 3, S, S), (B, 20, 20), (B, 20, 20) -> (B, D), not normalised."""
        raise NotImplementedError

    def encode_text(self, token_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, T) int64 with 0 = padding, (B,) number of words -> (B, D), not normalised."""
        raise NotImplementedError

    def similarity(self, image_vectors: Tensor, text_vectors: Tensor) -> Tensor:
        """(N, D), (M, D) -> (N, M) float32; here the cosine."""
        return cosine(image_vectors, text_vectors)

    def compile_trunk(self) -> None:
        """Have PyTorch compile the part that takes nearly all of the time (`optim.compile`)."""
        for module in self.modules():
            if hasattr(module, "trunk"):
                module.trunk = torch.compile(module.trunk)

    def forward(
        self, images: Tensor, local_rep: Tensor, local_adj: Tensor, token_ids: Tensor, lengths: Tensor | None = None
    ) -> Tensor:
        """Similarity of every image with every caption of the batch (B, B), float32."""
        return self.similarity(self.encode_image(images, local_rep, local_adj), self.encode_text(token_ids, lengths))


def l2norm(x: Tensor) -> Tensor:
    """x / (|x| + 1e-8) along the last dimension (released code)."""
    return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + 1e-8)


def cosine(images: Tensor, captions: Tensor) -> Tensor:
    """(N, D), (M, D) -> cosine similarities (N, M), in float32 whatever autocast says."""
    with torch.autocast(images.device.type, enabled=False):
        return l2norm(images.float()) @ l2norm(captions.float()).T
