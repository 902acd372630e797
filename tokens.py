"""Captions -> token ids, by the tokenizer that belongs to the model's text encoder.

Most encoders take the words of a vocabulary (vocab.py); a transformer comes with a tokenizer of its own. In all of them
0 is padding, and only that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import vocab
from option.options import Options
from utils import InputError, not_installed

LONGEST = 512  # tokens of a caption, where a tokenizer names no limit


def load_words(options: Options) -> tuple[str, ...]:
    """The words of the vocabulary; none where the model has a tokenizer of its own. Raises InputError."""
    return vocab.load(options.dataset.vocab_path).words if options.model.tokenizer == "vocabulary" else ()


def encode_captions(captions: Sequence[str], options: Options, words: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Captions -> token_ids (M, T) with 0 = padding, lengths (M,). words: as `load_words` gives them.

    Raises InputError where a tokenizer cannot be had.
    """
    distinct = list(dict.fromkeys(captions))  # the data sets repeat many
    known = dict(zip(distinct, _tokenizer(options, words)(distinct), strict=True))
    lengths = torch.tensor([len(known[caption]) for caption in captions])
    token_ids = torch.zeros(len(captions), int(lengths.max()), dtype=torch.int64)
    for i, caption in enumerate(captions):
        token_ids[i, : lengths[i]] = torch.tensor(known[caption])
    return token_ids, lengths


def _tokenizer(options: Options, words: Sequence[str]) -> Callable[[list[str]], list[list[int]]]:
    """What turns captions into their ids, from 1."""
    if options.model.tokenizer == "clip":
        return _open_clip(options.model.clip.arch)
    if options.model.tokenizer == "transformer":
        return _hugging_face(options.model.seq2vec.path)
    index = vocab.Vocabulary(tuple(words)).index
    return lambda captions: [vocab.encode(caption, index) for caption in captions]


def _open_clip(arch: str) -> Callable[[list[str]], list[list[int]]]:
    """The tokenizer of a CLIP, its ids plus one. What it fills rows up with is left away where that is zeros behind the
    end-of-text token, as OpenAI's does; other tokenizers' rows are kept whole."""
    with not_installed("model.clip"):
        import open_clip
    try:
        tokenizer = open_clip.get_tokenizer(arch.replace("/", "-") if ":" not in arch else arch)
    except Exception as error:  # of a folder, of the hub
        raise InputError(f"model.clip.arch {arch}: no tokenizer ({str(error).splitlines()[0]})") from None
    ends = isinstance(tokenizer, open_clip.SimpleTokenizer)

    def encode(captions: list[str]) -> list[list[int]]:
        rows = tokenizer(captions).numpy()
        lengths = [row.nonzero()[0][-1] + 1 if ends else len(row) for row in rows]
        return [(row[:length] + 1).tolist() for row, length in zip(rows, lengths, strict=True)]

    return encode


def _hugging_face(path: str) -> Callable[[list[str]], list[list[int]]]:
    """A transformer's tokenizer, its ids plus one: 0 may be one of its tokens."""
    with not_installed("model.seq2vec.arch transformer"):
        from transformers import AutoTokenizer
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise InputError(f"model.seq2vec.path {path}: no tokenizer there ({str(error).splitlines()[0]})") from None
    longest = min(tokenizer.model_max_length, LONGEST)
    return lambda captions: [
        [token + 1 for token in tokens]
        for tokens in tokenizer(captions, truncation=True, max_length=longest)["input_ids"]
    ]
