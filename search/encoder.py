"""Encode pictures and sentences by a trained model as unit vectors, whose product is the model's similarity."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from PIL import Image
from torch import Tensor

import vocab
from engine import autocast, load_model
from layers.drea import DreaOptions, Regions, denoise, enhanced_adjacency
from layers.model import Model, cosine, l2norm
from option import Options
from util.checkpoint import read_checkpoint
from util.images import square
from util.regions.local_features import ADVICE, SHAPE
from util.regions.proposals import ProposalOptions, Prototypes, classify, propose
from util.transforms import normalise
from utils import InputError, existing_file, some
from vocab import encode_captions, load_words

LONGEST = 1000  # characters of a sentence
Sample = tuple[np.ndarray, np.ndarray, np.ndarray]  # (S, S, 3) uint8, local_rep and local_adj (20, 20) float32
ZEROS, PROPOSALS, DETECTOR = "zeros", "proposals", "detector"


class Encoder(NamedTuple):
    """Hold a model that is ready to encode, its options, its vocabulary and its device."""

    model: Model
    options: Options
    words: tuple[str, ...]
    device: torch.device

    @torch.inference_mode()
    def images(self, pixels: np.ndarray, local_rep: np.ndarray, local_adj: np.ndarray) -> np.ndarray:
        """Encode (B, S, S, 3) uint8 and local features (B, 20, 20) as unit vectors (B, D) float32."""
        images, rep, adj = (torch.from_numpy(part).to(self.device) for part in (pixels, local_rep, local_adj))
        with autocast(self.options, self.device):
            return _unit(self.model.encode_image(normalise(images), rep, adj))

    @torch.inference_mode()
    def sentences(self, texts: list[str]) -> np.ndarray:
        """Encode sentences as unit vectors (N, D) float32. Raises InputError for one that is empty or too long."""
        for text in texts:
            check_sentence(text)
        token_ids, lengths = encode_captions(texts, self.options, self.words)
        with autocast(self.options, self.device):
            return _unit(self.model.encode_text(token_ids.to(self.device), lengths))

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


def check_sentence(text: str) -> None:
    """Raise InputError for a sentence that is empty or longer than any caption."""
    if not text.strip():
        raise InputError("the sentence is empty")
    if len(text) > LONGEST:
        raise InputError(f"a sentence must have at most {LONGEST} characters, got {len(text)} characters")


def load_encoder(
    options: Options, checkpoint: str | os.PathLike, device: torch.device, words: tuple[str, ...] | None = None
) -> Encoder:
    """Build the encoder of a checkpoint, ours or a published one; words: its vocabulary, else that of the options.

    Raises InputError where the files do not fit, and for a model whose similarity is no cosine.
    """
    state = read_checkpoint(checkpoint)
    words = tuple(words or state.get("words") or load_words(options))
    encoder = Encoder(load_model(state, options, words, device).eval(), options, words, device)
    _check_cosine(encoder)
    return encoder


@torch.inference_mode()
def _check_cosine(encoder: Encoder) -> None:
    """Raise InputError for a model whose similarity is a function of the pair, such as AMFMN's."""
    size, device = encoder.options.dataset.image_size, encoder.device
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, size, size, generator=generator).to(device)
    local = torch.rand(2, 20, 20, generator=generator).to(device)
    captions = torch.arange(1, 7, device=device).reshape(2, 3).clamp(max=max(1, len(encoder.words)))
    v = encoder.model.encode_image(images, local, local)
    t = encoder.model.encode_text(captions, torch.tensor([3, 3]))
    if not torch.allclose(encoder.model.similarity(v, t), cosine(v, t), atol=1e-4):
        raise InputError(
            f"model.name {encoder.options.model.name}: its similarity is not a cosine but a function of each pair of "
            "image and sentence, so an index has no vectors to rank by; use a checkpoint of GaLR, VSE++ "
            "(image_norm: true) or CLIP, or score lists of images with test_single.py --sims"
        )


def _unit(vectors: Tensor) -> np.ndarray:
    return l2norm(vectors.float()).cpu().numpy()


# ---------------------------------------------------------------- what the model takes of a new image


@dataclass(frozen=True)
class LocalRules:
    """Make local features of new images as those of the training were made.

    source: `zeros` (none), `proposals` (the rules and prototypes that follow, of the train images), or `detector` (its
    regions have to be given; an image without any gets zeros).
    """

    source: str
    drea: DreaOptions
    proposals: ProposalOptions | None = None
    prototypes: Prototypes | None = None

    def features(self, image: Image.Image, regions: Regions | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return local_rep and local_adj (20, 20) float32 of an image, from a detector's regions if they are given."""
        if self.source == ZEROS:
            return np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
        if regions is None and self.source == PROPOSALS:
            regions = classify(propose(image, self.proposals), self.prototypes)
        found = denoise(Regions.empty() if regions is None else regions, self.drea)
        return found.nodes, enhanced_adjacency(found.nodes, found.multiplicity, self.drea)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that are the same before and after JSON."""
        table = asdict(self)
        if self.source == PROPOSALS:
            table["proposals"]["shrink"] = list(self.proposals.shrink)
            table["prototypes"] = {name: part.tolist() for name, part in self.prototypes._asdict().items()}
        return table

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> LocalRules:
        """Build the rules that `to_dict` gave."""
        if table["source"] != PROPOSALS:
            return cls(table["source"], DreaOptions(**table["drea"]))
        proposals = ProposalOptions(**table["proposals"] | {"shrink": tuple(table["proposals"]["shrink"])})
        prototypes = Prototypes(**{name: np.array(part) for name, part in table["prototypes"].items()})
        return cls(PROPOSALS, DreaOptions(**table["drea"]), proposals, prototypes)


def read_rules(path: str | Path) -> LocalRules:
    """Read the rules of `dataset.local_path`; a published `.npy` names none, for a detector made it.

    Raises InputError for a file that is missing, damaged, or does not say how it was made.
    """
    if str(path) == ZEROS:
        return LocalRules(ZEROS, DreaOptions())
    path = existing_file(path, "local features", ADVICE)
    if path.suffix == ".npy":
        return LocalRules(DETECTOR, DreaOptions())
    try:
        with h5py.File(path) as file:
            plain = (np.ndarray, np.generic)
            attributes = {key: one.tolist() if isinstance(one, plain) else one for key, one in file.attrs.items()}
    except Exception as error:  # h5py raises errors of many kinds on damaged files
        raise InputError(f"local features {path}: not the HDF5 form of docs/data.md, or damaged ({error})") from None
    try:
        drea = _group(attributes, "drea", DreaOptions)
        if attributes.get("source") != PROPOSALS:
            return LocalRules(DETECTOR, DreaOptions(**drea))
        proposals = _group(attributes, "proposals", ProposalOptions)
        proposals["shrink"] = [int(number) for number in proposals["shrink"]]
        prototypes = {name: attributes[f"prototypes.{name}"] for name in Prototypes._fields}
        return LocalRules.from_dict(
            {"source": PROPOSALS, "drea": drea, "proposals": proposals, "prototypes": prototypes}
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"local features {path}: its attributes do not say how they were made ({error}); make it anew with "
            "python -m util.build_local"
        ) from None


def _group(attributes: dict[str, Any], prefix: str, kind: type) -> dict[str, Any]:
    """Return the attributes `prefix.NAME` that are fields of the dataclass."""
    names = [field.name for field in fields(kind)]
    return {name: attributes[f"{prefix}.{name}"] for name in names if f"{prefix}.{name}" in attributes}


def sample(image: Image.Image, size: int, rules: LocalRules, regions: Regions | None = None) -> Sample:
    """Resize a picture of any size to a square as in training, and make its local features."""
    return square(image, size), *rules.features(image, regions)
