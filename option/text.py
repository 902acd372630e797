"""The block `model.seq2vec` of the option files: one section for each text encoder, chosen by `arch`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag, model_validator

from option.section import Count, Fraction, Name, Section


class Seq2Vec(Section):
    """The published encoder. `pretrained: false` starts from random weights of the free widths below."""

    arch: Literal["skipthoughts"] = "skipthoughts"
    type: Literal["BayesianUniSkip", "UniSkip", "BiSkip"] = "BayesianUniSkip"
    dir_st: Name = "seq2vec"
    dropout: Fraction = 0.25
    fixed_emb: bool = False
    pretrained: bool = True
    embedding_dim: Count = 620
    hidden_dim: Count = 2400

    @model_validator(mode="after")
    def _two_directions(self) -> Seq2Vec:
        if self.type == "BiSkip" and self.hidden_dim % 2:
            raise ValueError(f"model.seq2vec.hidden_dim ({self.hidden_dim}) must be even: BiSkip halves it")
        return self


class PlainGRU(Section):
    """A word embedding and a GRU with random weights; `hidden_dim` is of each direction."""

    arch: Literal["gru"]
    embedding_dim: Count = 300
    hidden_dim: Count = 512
    bidirectional: bool = False
    pooling: Literal["last", "mean", "max"] = "last"
    dropout: Fraction = 0.2


class Transformer(Section):
    """A transformer with its tokenizer. `path`: a folder, or a name at Hugging Face; `pretrained: false` starts from
    random weights."""

    arch: Literal["transformer"]
    path: Name
    pretrained: bool = True
    pooling: Literal["mean", "first", "max"] = "mean"
    dropout: Fraction = 0


ENCODERS: dict[str, type[Section]] = {"skipthoughts": Seq2Vec, "gru": PlainGRU, "transformer": Transformer}


def encoder_name(block: Any) -> str:
    """The `arch` of a block; a file that gives none means skip-thoughts."""
    name = block.get("arch", "skipthoughts") if isinstance(block, dict) else getattr(block, "arch", "skipthoughts")
    return name if isinstance(name, str) else ""


TextOptions = Annotated[
    Annotated[Seq2Vec, Tag("skipthoughts")]
    | Annotated[PlainGRU, Tag("gru")]
    | Annotated[Transformer, Tag("transformer")],
    Discriminator(encoder_name, "encoder_name", f"there are {', '.join(ENCODERS)}"),
]
