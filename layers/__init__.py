"""The models: batches -> image and text vectors -> similarity. One model a file; PyTorch alone.

Every model is built from its own block of options (`options.model`), the image size and the number of words, and has

    encode_image(images, local_rep, local_adj)   (B, 3, S, S), (B, 20, 20), (B, 20, 20) -> (B, D)
    encode_text(token_ids, lengths)              (B, T) int64 with 0 = padding, (B,) -> (B, D)
    similarity(image_vectors, text_vectors)      (N, D), (M, D) -> (N, M) float32
    forward(...)                                 the similarity of a batch (B, B)

PyTorch is imported on the first use of a model, so that `layers.drea`, which is NumPy alone, does not wait for it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layers.model import Model
    from option.options import Options

__all__ = ["build_model", "models"]


def models() -> dict[str, type[Model]]:
    """Return the class of every model by its name: import the files of this folder, in which they register."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)
    return importlib.import_module("layers.model").MODELS


def build_model(options: Options, vocab_words: Sequence[str]) -> Model:
    """Build the model that `options.model.name` names, for a vocabulary (words in index order from 1).

    Its weights are random; `util.starting_weights.load_starting_weights` gives it those that the options ask for.

    >>> import torch
    >>> from option import load_options
    >>> options = load_options("option/UCM/UCM_VSEPP.yaml", ["model.word_dim=4", "model.embed.embed_dim=8"])
    >>> model = build_model(options, ["a", "harbor", "with", "ships"])
    >>> model.encode_text(torch.tensor([[1, 2], [4, 0]])).shape
    torch.Size([2, 8])
    """
    name = options.model.name
    if name == "GaLR" and options.model.clip:
        name = "GaLR on CLIP"
    return models()[name](options.model, options.dataset.image_size, len(vocab_words))
