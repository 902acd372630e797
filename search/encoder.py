"""A trained model as an encoder of pictures and sentences: unit vectors whose product is the model's similarity."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import vocab
from engine import autocast, load_model
from layers.model import Model, cosine, l2norm
from option.options import Options
from util.checkpoints import read_checkpoint
from util.transforms import normalise
from utils import InputError, some
from vocab import encode_captions, load_words

LONGEST = 1000  # characters of a sentence


class Encoder(NamedTuple):
    """A model, ready to encode, with its options, its vocabulary and its device."""

    model: Model
    options: Options
    words: tuple[str, ...]
    device: torch.device

    @torch.inference_mode()
    def images(self, pixels: np.ndarray, local_rep: np.ndarray, local_adj: np.ndarray) -> np.ndarray:
        """(B, S, S, 3) uint8 and local features (B, 20, 20) -> unit vectors (B, D) float32."""
        parts = (torch.from_numpy(part).to(self.device) for part in (pixels, local_rep, local_adj))
        with autocast(self.options, self.device):
            images, rep, adj = parts
            return _unit(self.model.encode_image(normalise(images), rep, adj))

    @torch.inference_mode()
    def sentences(self, texts: list[str]) -> np.ndarray:
        """Sentences -> unit vectors (N, D) float32. Raises InputError for one that is empty or too long."""
        for text in texts:
            check_sentence(text)
        token_ids, lengths = encode_captions(texts, self.options, self.words)
        with autocast(self.options, self.device):
            return _unit(self.model.encode_text(token_ids.to(self.device), lengths))

    def unknown_words(self, text: str) -> list[str]:
        """The words of a sentence that say something and that the vocabulary lacks: the model reads `<unk>` for each.

        Raises InputError where that is all that the sentence holds.
        """
        if self.options.model.tokenizer != "vocabulary":  # a tokenizer of the model's own knows all
            return []
        words = list(dict.fromkeys(vocab.tokenize(text)))
        known = set(self.words) - {vocab.UNKNOWN}
        if self.words and not known.intersection(words):
            raise InputError(f"the model knows none of these words: {some(words)}; it was trained with {len(known)}")
        return [word for word in words if word not in known | vocab.STOP_WORDS]


def check_sentence(text: str) -> None:
    """Raise InputError for a sentence that is empty or longer than any caption."""
    if not text.strip():
        raise InputError("the sentence is empty")
    if len(text) > LONGEST:
        raise InputError(f"the sentence has {len(text)} characters; at most {LONGEST} are read")


def load_encoder(
    options: Options, checkpoint: str | os.PathLike, device: torch.device, words: tuple[str, ...] | None = None
) -> Encoder:
    """The encoder of a checkpoint, ours or a published one; words: its vocabulary, else that of the options.

    Raises InputError where the files do not fit, and for a model whose similarity is no cosine.
    """
    state = read_checkpoint(checkpoint)
    words = tuple(words or state.get("words") or load_words(options))
    encoder = Encoder(load_model(state, options, words, device).eval(), options, words, device)
    _check_cosine(encoder)
    return encoder


@torch.inference_mode()
def _check_cosine(encoder: Encoder) -> None:
    """Raise InputError for a model whose similarity is a function of the pair: AMFMN's heads, say."""
    size, device = encoder.options.dataset.image_size, encoder.device
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, size, size, generator=generator).to(device)
    local = torch.rand(2, 20, 20, generator=generator).to(device)
    captions = torch.arange(1, 7, device=device).reshape(2, 3).clamp(max=max(1, len(encoder.words)))
    v = encoder.model.encode_image(images, local, local)
    t = encoder.model.encode_text(captions, torch.tensor([3, 3]))
    if not torch.allclose(encoder.model.similarity(v, t), cosine(v, t), atol=1e-4):
        name = encoder.options.model.name
        raise InputError(
            f"model.name {name}: its similarity is not the cosine of two vectors but a function of each pair of image "
            "and sentence, so an index has no vectors to rank by; use a checkpoint of GaLR, VSE++ (image_norm: true) "
            "or CLIP, or score lists of images with test_single.py --sims"
        )


def _unit(vectors: Tensor) -> np.ndarray:
    return l2norm(vectors.float()).cpu().numpy()
