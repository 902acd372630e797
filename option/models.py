"""The block `model` of the option files: one section for each model, chosen by `model.name`.

In each, `pretrained` is imagenet, none, or the path of a ResNet-18 state dict.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Tag, model_validator

from option.section import Count, Fraction, Name, Section


class Multiscale(Section):
    multiscale_input_channel: Literal[3] = 3
    multiscale_output_channel: Literal[1] = 1


class Seq2Vec(Section):
    """Text encoder. `pretrained: false` starts from random weights of the free widths below."""

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


class Fusion(Section):
    """MIDF. `gate`: the paper's two weights, or the released code's single one (design section 5)."""

    gate: Literal["paper", "released"] = "released"
    dynamic_fusion_dim: Count = 512
    dynamic_fusion_drop: Fraction = 0.2
    mca_DROPOUT_R: Fraction = 0.1
    mca_HIDDEN_SIZE: Count = 512
    mca_FF_SIZE: Count = 1024
    mca_MULTI_HEAD: Count = 8
    mca_HIDDEN_SIZE_HEAD: Count = 64


class Embed(Section):
    embed_dim: Count = 512


class GaLROptions(Section):
    """The model of this project."""

    reads_local: ClassVar[bool] = True  # the local features of dataset.local_path
    name: Literal["GaLR"] = "GaLR"
    pretrained: Name = "imagenet"
    multiscale: Multiscale = Multiscale()
    seq2vec: Seq2Vec = Seq2Vec()
    fusion: Fusion = Fusion()
    embed: Embed = Embed()

    @model_validator(mode="after")
    def _widths_fit(self) -> GaLROptions:
        if self.fusion.mca_HIDDEN_SIZE != self.embed.embed_dim:
            raise ValueError(f"model.fusion.mca_HIDDEN_SIZE ({self.fusion.mca_HIDDEN_SIZE}) must equal "
                             f"model.embed.embed_dim ({self.embed.embed_dim})")  # fmt: skip
        if self.fusion.mca_MULTI_HEAD * self.fusion.mca_HIDDEN_SIZE_HEAD != self.fusion.mca_HIDDEN_SIZE:
            raise ValueError("model.fusion.mca_MULTI_HEAD times mca_HIDDEN_SIZE_HEAD must equal mca_HIDDEN_SIZE")
        return self


class CrossAttention(Section):
    """What the image's attention to a caption is (layers/amfmn.py)."""

    att_type: Literal["soft_att", "fusion_att", "similarity_att"] = "soft_att"


class AMFMNOptions(Section):
    """AMFMN, in one of its three forms."""

    reads_local: ClassVar[bool] = False
    name: Literal["AMFMN"]
    pretrained: Name = "imagenet"
    multiscale: Multiscale = Multiscale()
    cross_attention: CrossAttention = CrossAttention()
    seq2vec: Seq2Vec = Seq2Vec()
    embed: Embed = Embed()


class JointEmbed(Section):
    embed_dim: Count = 1024


class VSEPPOptions(Section):
    """VSE++. The rows that papers on remote sensing print are of `image_norm: False` and `text_pooling: mean`.

    `positions`: with `mean`, captions are padded to so many words; the longest of the data sets has 34.
    """

    reads_local: ClassVar[bool] = False
    name: Literal["VSE++"]
    pretrained: Name = "imagenet"
    word_dim: Count = 300
    image_norm: bool = True
    text_pooling: Literal["last", "mean"] = "last"
    positions: Count = 35
    embed: JointEmbed = JointEmbed()


MODELS: dict[str, type[Section]] = {"GaLR": GaLROptions, "AMFMN": AMFMNOptions, "VSE++": VSEPPOptions}


def model_name(block: Any) -> str:
    """The name in a `model` block; a file that gives none means GaLR."""
    name = block.get("name", "GaLR") if isinstance(block, dict) else getattr(block, "name", "GaLR")
    return name if isinstance(name, str) else ""


ModelOptions = Annotated[
    Annotated[GaLROptions, Tag("GaLR")] | Annotated[AMFMNOptions, Tag("AMFMN")] | Annotated[VSEPPOptions, Tag("VSE++")],
    Discriminator(model_name, "model_name", f"there are {', '.join(MODELS)}"),
]
