"""The models: batches -> image and text vectors -> similarity. One model a file; PyTorch alone.

Every model is built from its own block of options (`options.model`), the image size and the number of words, and has

    encode_image(images, local_rep, local_adj)   (B, 3, S, S), (B, 20, 20), (B, 20, 20) -> (B, D)
    encode_text(token_ids, lengths)              (B, T) int64 with 0 = padding, (B,) -> (B, D)
    similarity(image_vectors, text_vectors)      (N, D), (M, D) -> (N, M) float32
    forward(...)                                 the similarity of a batch (B, B)
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layers.model import Model
    from option.options import Options

MODELS = {  # model.name: module, class
    "GaLR": ("layers.galr", "GaLR"),
    "AMFMN": ("layers.amfmn", "AMFMN"),
    "VSE++": ("layers.vsepp", "VSEPP"),
    "CLIP": ("layers.clip", "CLIP"),
}
__all__ = ["AMFMN", "CLIP", "MODELS", "VSEPP", "GaLR", "build_model"]


def build_model(options: Options, vocab_words: Sequence[str]) -> Model:
    """The model that `options.model.name` names, for a vocabulary (words in index order from 1), with random weights.

    `util.weights.load_starting_weights` gives it the weights that the options ask for.
    """
    module, name = MODELS[options.model.name]
    if options.model.name == "GaLR" and options.model.clip:
        module, name = "layers.galr_on_clip", "GaLROnCLIP"
    model = getattr(importlib.import_module(module), name)
    return model(options.model, options.dataset.image_size, len(vocab_words))


def __getattr__(name: str) -> Any:
    """Load a model on first use, so that `layers.drea`, which is NumPy alone, does not wait for PyTorch."""
    for module, of_model in MODELS.values():
        if name == of_model:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
