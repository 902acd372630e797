"""The weights that a new model starts from.

Trunk: util/trunk_weights.py, or util/clip_weights.py. Text encoder: the skip-thoughts folder (util/skipthoughts.py), or
a transformer's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from layers.clip import CLIPNetwork
from layers.model import Model
from layers.text_encoder import TransformerEncoder
from option.options import ModelOptions, Seq2Vec, Transformer
from util.clip_weights import load_clip
from util.skipthoughts import load_skipthoughts
from util.trunk_weights import load_trunk
from utils import InputError


def load_starting_weights(model: Model, options: ModelOptions, words: Sequence[str]) -> None:
    """Give a new model the weights that its options ask for; without any, its random ones stay.

    words: the vocabulary in index order from 1. Raises InputError where a file is missing, damaged or misshapen.
    """
    for trunk in model.backbones():
        if isinstance(trunk, CLIPNetwork):
            load_clip(trunk, options.clip)
        else:
            load_trunk(trunk, options.pretrained)
    text = getattr(options, "seq2vec", None) if options.tokenizer != "clip" else None
    if isinstance(text, Seq2Vec) and text.pretrained:
        load_skipthoughts(model.text_encoder, text, words)
    elif isinstance(text, Transformer) and text.pretrained:
        load_transformer(model.text_encoder, text)


def load_transformer(encoder: TransformerEncoder, options: Transformer) -> None:
    """Fill a transformer from its folder or from Hugging Face. Raises InputError where weights cannot be had."""
    from transformers import AutoModel

    try:
        network = AutoModel.from_pretrained(options.path, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"model.seq2vec.path {options.path}: no weights there ({reason})") from None
    encoder.network.load_state_dict(network.state_dict())
