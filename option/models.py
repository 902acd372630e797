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
    """MIDF, or for comparison the `kind` in its place. `gate`: the paper's two dynamic weights, the released code's
    single one, or none."""

    kind: Literal["midf", "sum", "concatenation"] = "midf"
    gate: Literal["paper", "released", "none"] = "released"
    dynamic_fusion_dim: Count = 512
    dynamic_fusion_drop: Fraction = 0.2
    mca_DROPOUT_R: Fraction = 0.1
    mca_HIDDEN_SIZE: Count = 512
    mca_FF_SIZE: Count = 1024
    mca_MULTI_HEAD: Count = 8
    mca_HIDDEN_SIZE_HEAD: Count = 64


class Embed(Section):
    embed_dim: Count = 512


Tokenizer = Literal["vocabulary", "transformer", "clip"]


def _tokenizer_of(encoder: Section) -> Tokenizer:
    """What makes ids of captions: the words of dataset.vocab_path, or what a transformer comes with."""
    return "transformer" if encoder.arch == "transformer" else "vocabulary"


class CLIPSource(Section):
    """In open_clip's names. `weights`: a name, a file (OpenAI's, RemoteCLIP's, GeoRSCLIP's, open_clip's), or none."""

    arch: Name = "ViT-B-32-quickgelu"
    weights: Name = "openai"


class GaLROptions(Section):
    """The model of this project. `trunk: clip` sets its local branch and MIDF upon the CLIP of the block `clip`.

    `local_branch` and `mvsa`: False leaves these parts out, for comparison.
    """

    name: Literal["GaLR"] = "GaLR"
    trunk: Name = "resnet18"
    trunk_norm: Literal["batch", "frozen"] = "batch"
    pretrained: Name = "imagenet"
    local_branch: bool = True
    mvsa: bool = True
    multiscale: Multiscale = Multiscale()
    seq2vec: TextOptions = Seq2Vec()
    fusion: Fusion = Fusion()
    embed: Embed = Embed()
    clip: CLIPSource | None = None  # ViT-B/32 of OpenAI where `trunk: clip` says no more

    @model_validator(mode="before")
    @classmethod
    def _clip_by_default(cls, block: Any) -> Any:
        if isinstance(block, dict) and block.get("trunk") == "clip":
            return {"clip": CLIPSource()} | block
        return block

    @model_validator(mode="after")
    def _one_trunk(self) -> GaLROptions:
        if self.clip and self.trunk != "clip":
            raise ValueError(f"model.clip is of model.trunk clip, and that is {self.trunk}")
        if self.clip and not (self.local_branch and self.mvsa):
            raise ValueError(
                "model.trunk clip has no MVSA, and without the local branch it is model.name CLIP: leave "
                "out model.mvsa and model.local_branch"
            )
        if self.clip and (self.pretrained, self.trunk_norm, self.seq2vec) != ("imagenet", "batch", Seq2Vec()):
            raise ValueError(
                "model.trunk clip brings its weights (model.clip.weights) and its text tower: leave out "
                "model.pretrained, model.trunk_norm and model.seq2vec"
            )
        return self

    @model_validator(mode="after")
    def _widths_fit(self) -> GaLROptions:
        if not self.local_branch or self.fusion.kind != "midf":
            return self  # the widths of MIDF are not read
        if self.fusion.mca_HIDDEN_SIZE != self.embed.embed_dim:
            raise ValueError(
                f"model.fusion.mca_HIDDEN_SIZE ({self.fusion.mca_HIDDEN_SIZE}) must equal "
                f"model.embed.embed_dim ({self.embed.embed_dim})"
            )
        if self.fusion.mca_MULTI_HEAD * self.fusion.mca_HIDDEN_SIZE_HEAD != self.fusion.mca_HIDDEN_SIZE:
            raise ValueError("model.fusion.mca_MULTI_HEAD times mca_HIDDEN_SIZE_HEAD must equal mca_HIDDEN_SIZE")
        return self

    @property
    def reads_local(self) -> bool:
        """Whether the local features of dataset.local_path are read."""
        return self.local_branch

    @property
    def tokenizer(self) -> Tokenizer:
        """What makes ids of captions."""
        return "clip" if self.clip else _tokenizer_of(self.seq2vec)


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
    def tokenizer(self) -> Tokenizer:
        """What makes ids of captions."""
        return _tokenizer_of(self.seq2vec)


class JointEmbed(Section):
    embed_dim: Count = 1024


class VSEPPOptions(Section):
    """VSE++. The rows that papers on remote sensing print are of `image_norm: False` and `text_pooling: mean`.

    `positions`: with `mean`, captions are padded to so many words; the longest of the data sets has 34.
    """

    reads_local: ClassVar[bool] = False
    tokenizer: ClassVar[Tokenizer] = "vocabulary"
    name: Literal["VSE++"]
    trunk: Name = "resnet18"
    trunk_norm: Literal["batch", "frozen"] = "batch"
    pretrained: Name = "imagenet"
    word_dim: Count = 300
    image_norm: bool = True
    text_pooling: Literal["last", "mean"] = "last"
    positions: Count = 35
    embed: JointEmbed = JointEmbed()


class CLIPOptions(Section):
    """CLIP, scored as it comes or fine-tuned."""

    reads_local: ClassVar[bool] = False
    tokenizer: ClassVar[Tokenizer] = "clip"
    name: Literal["CLIP"]
    clip: CLIPSource = CLIPSource()


MODELS: dict[str, type[Section]] = {
    "GaLR": GaLROptions,
    "AMFMN": AMFMNOptions,
    "VSE++": VSEPPOptions,
    "CLIP": CLIPOptions,
}


def model_name(block: Any) -> str:
    """The name in a `model` block; a file that gives none means GaLR."""
    name = block.get("name", "GaLR") if isinstance(block, dict) else getattr(block, "name", "GaLR")
    return name if isinstance(name, str) else ""


ModelOptions = Annotated[
    Annotated[GaLROptions, Tag("GaLR")]
    | Annotated[AMFMNOptions, Tag("AMFMN")]
    | Annotated[VSEPPOptions, Tag("VSE++")]
    | Annotated[CLIPOptions, Tag("CLIP")],
    Discriminator(model_name, "model_name", f"there are {', '.join(MODELS)}"),
]
