"""The block `model` of the option files: one section for each model, chosen by `model.name`.

In each, `trunk` is resnet18, as published, or the name of a model of timm; `pretrained` is imagenet, none, or the path
of the trunk's state dict; `trunk_norm: frozen` has batch normalisation go by the statistics that come with it.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Tag, model_validator

from option.section import Count, Fraction, Name, Section
from option.text import Seq2Vec, TextOptions


class Multiscale(Section):
    multiscale_input_channel: Literal[3] = 3
    multiscale_output_channel: Literal[1] = 1


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
    trunk: Name = "resnet18"
    trunk_norm: Literal["batch", "frozen"] = "batch"
    pretrained: Name = "imagenet"
    multiscale: Multiscale = Multiscale()
    seq2vec: TextOptions = Seq2Vec()
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

    @property
    def reads_vocabulary(self) -> bool:
        """Whether captions become ids by the words of dataset.vocab_path, and not by a tokenizer of the model's own."""
        return self.seq2vec.arch != "transformer"


class CrossAttention(Section):
    """What the image's attention to a caption is (layers/amfmn.py)."""

    att_type: Literal["soft_att", "fusion_att", "similarity_att"] = "soft_att"


class AMFMNOptions(Section):
    """AMFMN, in one of its three forms."""

    reads_local: ClassVar[bool] = False
    name: Literal["AMFMN"]
    trunk: Name = "resnet18"
    trunk_norm: Literal["batch", "frozen"] = "batch"
    pretrained: Name = "imagenet"
    multiscale: Multiscale = Multiscale()
    cross_attention: CrossAttention = CrossAttention()
    seq2vec: TextOptions = Seq2Vec()
    embed: Embed = Embed()

    @property
    def reads_vocabulary(self) -> bool:
        """Whether captions become ids by the words of dataset.vocab_path, and not by a tokenizer of the model's own."""
        return self.seq2vec.arch != "transformer"


class JointEmbed(Section):
    embed_dim: Count = 1024


class VSEPPOptions(Section):
    """VSE++. The rows that papers on remote sensing print are of `image_norm: False` and `text_pooling: mean`.

    `positions`: with `mean`, captions are padded to so many words; the longest of the data sets has 34.
    """

    reads_local: ClassVar[bool] = False
    reads_vocabulary: ClassVar[bool] = True
    name: Literal["VSE++"]
    trunk: Name = "resnet18"
    trunk_norm: Literal["batch", "frozen"] = "batch"
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
