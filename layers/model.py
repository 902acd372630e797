"""The base of all models: two encoders and a similarity of their vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self, TypeVar

import torch
from torch import Tensor, nn

from layers.backbone import Backbone
from layers.text_encoder import TransformerEncoder

MODELS: dict[str, type[Model]] = {}  # by the name that `model.name` gives
M = TypeVar("M", bound="type[Model]")


def register(name: str) -> Callable[[M], M]:
    """Register a class of models under the name that `model.name` gives.

    It is built as `cls(options.model, image_size, number of words)`; its block of options is in option/options.py.
    """

    def add(model: M) -> M:
        MODELS[name] = model
        return model

    return add


class Model(nn.Module):
    """Images and captions -> vectors -> similarities.

    A model defines `encode_image`, a `text_encoder` (or `encode_text`), and `similarity` if that is not the cosine.
    frozen: parts that do not learn.
    """

    def __init__(self) -> None:
        super().__init__()
        self.frozen: list[nn.Module] = []

    def encode_image(self, images: Tensor, local_rep: Tensor, local_adj: Tensor) -> Tensor:
        """Encode (B, 3, S, S), (B, 20, 20), (B, 20, 20) -> (B, D), not normalised."""
        raise NotImplementedError

    def encode_text(self, token_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode (B, T) int64 with 0 = padding, (B,) number of words -> (B, D), not normalised."""
        return self.text_encoder(token_ids, lengths)

    def similarity(self, image_vectors: Tensor, text_vectors: Tensor) -> Tensor:
        """Compare (N, D), (M, D) -> (N, M) float32; by the cosine, unless a model defines another."""
        return cosine(image_vectors, text_vectors)

    def backbones(self) -> list[Backbone]:
        """Return the networks that may start from pretrained weights; mostly one."""
        return [module for module in self.modules() if isinstance(module, Backbone)]

    def transformers(self) -> list[nn.Module]:
        """Return the transformers that read captions; mostly none."""
        return [module.network for module in self.modules() if isinstance(module, TransformerEncoder)]

    def freeze(self, names: Sequence[str]) -> None:
        """Freeze parts: no weight of theirs learns, no statistic moves, nothing is dropped out.

        names: of modules, or ends of their paths (`trunk`, `text_encoder.embedding`). Raises ValueError for one that is
        not there.
        """
        for name in names:
            parts = [module for path, module in self.named_modules() if f".{path}".endswith(f".{name}")]
            if not parts:
                known = ", ".join(child for child, _ in self.named_children())
                raise ValueError(f"the model has no part {name}; its parts are {known}")
            for part in parts:
                part.requires_grad_(False)
            self.frozen += parts

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; frozen parts are always in the latter."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def forward(
        self, images: Tensor, local_rep: Tensor, local_adj: Tensor, token_ids: Tensor, lengths: Tensor | None = None
    ) -> Tensor:
        """Return the similarity of every image with every caption of the batch (B, B), float32."""
        return self.similarity(self.encode_image(images, local_rep, local_adj), self.encode_text(token_ids, lengths))


def l2norm(x: Tensor) -> Tensor:
    """Return x / (|x| + 1e-8) along the last dimension (released code)."""
    return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + 1e-8)


def cosine(images: Tensor, captions: Tensor) -> Tensor:
    """Return the cosine similarities (N, M) of (N, D) and (M, D), in float32 whatever autocast says."""
    with torch.autocast(images.device.type, enabled=False):
        return l2norm(images.float()) @ l2norm(captions.float()).T
