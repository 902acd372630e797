"""Encode image files and sentences by a trained model, as vectors that its similarity compares."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import vocab
from layers.model import Model, cosine, l2norm
from option import Options
from util.images import open_image
from util.precision import autocast
from util.regions.local_features import LocalRules, sample
from util.transforms import normalise
from utils import InputError, some

LONGEST = 1000  # characters of a sentence
BATCH = 32  # images at a time


class Encoder(NamedTuple):
    """Hold a model that is ready to encode, its options, vocabulary, device, and its rules of local features.

    unit: its similarity is the cosine, and its vectors have unit length.
    """

    model: Model
    options: Options
    words: tuple[str, ...]
    device: torch.device
    rules: LocalRules
    unit: bool

    def images(self, paths: Sequence[str | os.PathLike]) -> np.ndarray:
        """Encode image files -> (N, D) float32, with local features as in training. Raises InputError."""
        size, truncated = self.options.dataset.image_size, self.options.dataset.truncated
        paths, vectors = [paths] if isinstance(paths, str | os.PathLike) else list(paths), []
        if not paths:
            raise InputError("there must be at least one image to encode, got none")
        for i in range(0, len(paths), BATCH):
            samples = [sample(open_image(path, truncated), size, self.rules) for path in paths[i : i + BATCH]]
            vectors.append(self.encode(*(np.stack(part) for part in zip(*samples, strict=True))))
        return np.concatenate(vectors)

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray, local_rep: np.ndarray, local_adj: np.ndarray) -> np.ndarray:
        """Encode (B, S, S, 3) uint8 and local features (B, 20, 20) -> (B, D) float32."""
        images, rep, adj = (torch.from_numpy(part).to(self.device) for part in (pixels, local_rep, local_adj))
        with autocast(self.options, self.device):
            return self._vectors(self.model.encode_image(normalise(images), rep, adj))

    @torch.inference_mode()
    def sentences(self, texts: Sequence[str]) -> np.ndarray:
        """Encode sentences -> (M, D) float32. Raises InputError for one that is empty or too long, and for none."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise InputError("there must be at least one sentence to encode, got none")
        for text in texts:
            check_sentence(text)
        token_ids, lengths = vocab.encode_captions(texts, self.options, self.words)
        with autocast(self.options, self.device):
            return self._vectors(self.model.encode_text(token_ids.to(self.device), lengths))

    @torch.inference_mode()
    def similarity(self, images: np.ndarray, sentences: np.ndarray) -> np.ndarray:
        """Compare the vectors of images (N, D) with those of sentences (M, D) -> (N, M) float32."""
        vectors = (torch.as_tensor(part, device=self.device) for part in (images, sentences))
        return self.model.similarity(*vectors).cpu().numpy()

    def unknown_words(self, text: str) -> list[str]:
        """Return the words of a sentence, other than stop words, that the model reads as `<unk>`.

        Raises InputError where the vocabulary has no word of the sentence.
        """
        if self.options.model.tokenizer != "vocabulary":  # a tokenizer of the model's own knows all
            return []
        words = list(dict.fromkeys(vocab.tokenize(text)))
        known = set(self.words) - {vocab.UNKNOWN}
        if self.words and not known.intersection(words):
            raise InputError(f"the model knows none of these words: {some(words)}; it was trained with {len(known)}")
        return [word for word in words if word not in known | vocab.STOP_WORDS]

    def _vectors(self, vectors: Tensor) -> np.ndarray:
        return (l2norm(vectors.float()) if self.unit else vectors.float()).cpu().numpy()


def check_sentence(text: str) -> None:
    """Raise InputError for a sentence that is empty or longer than any caption."""
    if not text.strip():
        raise InputError("the sentence is empty")
    if len(text) > LONGEST:
        raise InputError(f"a sentence must have at most {LONGEST} characters, got {len(text)} characters")


@torch.inference_mode()
def make_encoder(
    model: Model, options: Options, words: Sequence[str], device: torch.device, rules: LocalRules
) -> Encoder:
    """Build the encoder of a model that is loaded, on its device.

    Two images and sentences tell whether its similarity is the cosine, or a function of each pair, such as AMFMN's.
    """
    model, size = model.eval(), options.dataset.image_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, size, size, generator=generator).to(device)
    local = torch.rand(2, 20, 20, generator=generator).to(device)
    captions = torch.arange(1, 7, device=device).reshape(2, 3).clamp(max=max(1, len(words)))
    vectors = model.encode_image(images, local, local), model.encode_text(captions, torch.tensor([3, 3]))
    unit = torch.allclose(model.similarity(*vectors), cosine(*vectors), atol=1e-4)
    return Encoder(model, options, tuple(words), device, rules, unit)
