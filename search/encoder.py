"""Choose the model of a search; its similarity must be a cosine."""

from __future__ import annotations

import os

import torch

from engine import load_model
from option import Options
from util.checkpoint import read_checkpoint
from util.encoder import Encoder, make_encoder
from util.regions.rules import LocalRules
from utils import InputError
from vocab import load_words


def load_encoder(
    options: Options,
    checkpoint: str | os.PathLike,
    device: torch.device,
    rules: LocalRules,
    words: tuple[str, ...] | None = None,
) -> Encoder:
    """Build the encoder of a checkpoint, ours or a published one; words: its vocabulary, else that of the options.

    Raises InputError where the files do not fit, and for a model whose similarity is no cosine.
    """
    state = read_checkpoint(checkpoint)
    words = tuple(words or state.get("words") or load_words(options))
    encoder = make_encoder(load_model(state, options, words, device), options, words, device, rules)
    if not encoder.unit:
        raise InputError(
            f"model.name {options.model.name}: its similarity is not a cosine but a function of each pair of "
            "image and sentence, so an index has no vectors to rank by; use a checkpoint of GaLR, VSE++ "
            "(image_norm: true) or CLIP, or score lists of images with test_single.py --sims"
        )
    return encoder
