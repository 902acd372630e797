"""Define the block `model` of the option files: a class for each model, its values and its defaults."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=4000, pattern=r"^[^\x00]+$")]


class Section(BaseModel):
    """A block of options: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)


def _by_default(key: str, value: str) -> BeforeValidator:
    """Fill in the key that chooses between several blocks where a file leaves it out."""
    return BeforeValidator(lambda block: {key: value} | block if isinstance(block, dict) else block)


class Seq2Vec(Section):
    arch: Literal["skipthoughts"] = "skipthoughts"
    """Text encoder: skip-thoughts' GRU, as published."""
    type: Literal["BayesianUniSkip", "UniSkip", "BiSkip"] = "BayesianUniSkip"
    """Variant of the GRU."""
    dir_st: Name = "seq2vec"
    """Folder of the skip-thoughts files."""
    dropout: Fraction = 0.25
    """Dropout, one mask for all words of a caption."""
    fixed_emb: bool = False
    """Do not train the word embedding."""
    pretrained: bool = True
    """Load the files of `dir_st`; false: random weights."""
    embedding_dim: Count = 620
    """Width of the word embedding; 620 if pretrained."""
    hidden_dim: Count = 2400
    """Width of the GRU's state; 2400 if pretrained."""


class PlainGRU(Section):
    arch: Literal["gru"]
    """Text encoder: PyTorch's GRU."""
    embedding_dim: Count = 300
    """Width of the word embedding."""
    hidden_dim: Count = 512
    """Width of the GRU's state in each direction."""
    bidirectional: bool = False
    """Read captions in both directions."""
    pooling: Literal["last", "mean", "max"] = "last"
    """Caption vector from the states of the words."""
    dropout: Fraction = 0.2
    """Dropout on word embeddings and caption vectors."""


class Transformer(Section):
    arch: Literal["transformer"]
    """Text encoder: a transformer and its tokenizer."""
    path: Name
    """Folder of the transformer, or its name at Hugging Face."""
    pretrained: bool = True
    """Load its weights; false: random weights."""
    pooling: Literal["mean", "first", "max"] = "mean"
    """Caption vector from the states of the tokens."""
    dropout: Fraction = 0
    """Dropout on the caption vector."""


TextOptions = Annotated[
    Seq2Vec | PlainGRU | Transformer, Field(discriminator="arch"), _by_default("arch", "skipthoughts")
]


class Multiscale(Section):
    multiscale_input_channel: Literal[3] = 3
    """Channels of each scale of MVSA."""
    multiscale_output_channel: Literal[1] = 1
    """Channels of MVSA's mask."""


class Fusion(Section):
    kind: Literal["midf", "sum", "concatenation"] = "midf"
    """Fusion of global and local vector."""
    gate: Literal["paper", "released", "none"] = "released"
    """Dynamic weights: two (paper), one (released code), none."""
    dynamic_fusion_dim: Count = 512
    """Hidden width of the dynamic weights."""
    dynamic_fusion_drop: Fraction = 0.2
    """Dropout of the dynamic weights."""
    mca_DROPOUT_R: Fraction = 0.1
    """Dropout of MIDF's attention."""
    mca_HIDDEN_SIZE: Count = 512
    """Width of MIDF; equals `embed.embed_dim`."""
    mca_FF_SIZE: Count = 1024
    """Hidden width of MIDF's feed-forward layers."""
    mca_MULTI_HEAD: Count = 8
    """Number of attention heads."""
    mca_HIDDEN_SIZE_HEAD: Count = 64
    """Width of a head; heads times this is `mca_HIDDEN_SIZE`."""


class Embed(Section):
    embed_dim: Count = 512
    """Width of image and caption vectors."""


class JointEmbed(Section):
    embed_dim: Count = 1024
    """Width of image and caption vectors."""


class CrossAttention(Section):
    att_type: Literal["soft_att", "fusion_att", "similarity_att"] = "soft_att"
    """Form of AMFMN's attention of images to captions."""


class CLIPSource(Section):
    arch: Name = "ViT-B-32-quickgelu"
    """Architecture, a name of open_clip."""
    weights: Name = "openai"
    """Name of open_clip, a file, or `none`."""


class Model(Section):
    """A block `model`; what it leaves to other blocks follows from its keys."""

    @property
    def reads_local(self) -> bool:
        """Return whether the local features of dataset.local_path are read."""
        return getattr(self, "local_branch", False)

    @property
    def tokenizer(self) -> Literal["vocabulary", "transformer", "clip"]:
        """Return the kind of tokenizer that turns captions into ids."""
        if getattr(self, "clip", None):
            return "clip"
        return "transformer" if isinstance(getattr(self, "seq2vec", None), Transformer) else "vocabulary"


class Backbone(Model):
    """Keys of the models that have an image backbone."""

    name: str
    trunk: Name = "resnet18"
    """Backbone: `resnet18`, a name of timm, or `clip` (GaLR)."""
    trunk_norm: Literal["batch", "frozen"] = "batch"
    """Statistics of batch norm: of the batch, or as loaded."""
    pretrained: Name = "imagenet"
    """Backbone weights: `imagenet`, `none`, or a file."""


class GaLROptions(Backbone):
    """GaLR. `trunk: clip` sets its local branch and MIDF upon the CLIP of the block `clip`."""

    name: Literal["GaLR"] = "GaLR"
    """GaLR, as in a file that names no model."""
    local_branch: bool = True
    """Use the local branch and MIDF; false: an ablation."""
    mvsa: bool = True
    """Use multi-scale attention (MVSA); false: an ablation."""
    multiscale: Multiscale = Multiscale()
    seq2vec: TextOptions = Seq2Vec()
    fusion: Fusion = Fusion()
    embed: Embed = Embed()
    clip: CLIPSource | None = None

    @model_validator(mode="before")
    @classmethod
    def _clip_by_default(cls, block: Any) -> Any:
        return {"clip": CLIPSource()} | block if isinstance(block, dict) and block.get("trunk") == "clip" else block

    @model_validator(mode="after")
    def _parts_fit(self) -> GaLROptions:
        if self.clip and self.trunk != "clip":
            raise ValueError(f"model.clip needs model.trunk clip, got {self.trunk}")
        if self.clip and not (self.local_branch and self.mvsa):
            raise ValueError("model.trunk clip has no MVSA and needs the local branch: leave out both keys")
        if self.clip and (self.pretrained, self.trunk_norm, self.seq2vec) != ("imagenet", "batch", Seq2Vec()):
            raise ValueError(
                "model.trunk clip brings its weights and its text tower: leave out pretrained, trunk_norm and seq2vec"
            )
        fusion = self.fusion
        if not self.local_branch or fusion.kind != "midf":
            return self  # MIDF and its widths are not used
        if fusion.mca_HIDDEN_SIZE != self.embed.embed_dim:
            raise ValueError(f"model.fusion.mca_HIDDEN_SIZE must equal model.embed.embed_dim, {self.embed.embed_dim}")
        if fusion.mca_MULTI_HEAD * fusion.mca_HIDDEN_SIZE_HEAD != fusion.mca_HIDDEN_SIZE:
            raise ValueError("model.fusion.mca_MULTI_HEAD times mca_HIDDEN_SIZE_HEAD must equal mca_HIDDEN_SIZE")
        return self


class AMFMNOptions(Backbone):
    name: Literal["AMFMN"]
    """AMFMN."""
    multiscale: Multiscale = Multiscale()
    cross_attention: CrossAttention = CrossAttention()
    seq2vec: TextOptions = Seq2Vec()
    embed: Embed = Embed()


class VSEPPOptions(Backbone):
    """VSE++. The rows that papers on remote sensing print have `image_norm: False` and `text_pooling: mean`."""

    name: Literal["VSE++"]
    """VSE++."""
    word_dim: Count = 300
    """Width of the word embedding."""
    image_norm: bool = True
    """Normalise image vectors."""
    text_pooling: Literal["last", "mean"] = "last"
    """Caption vector: last state, or mean over `positions`."""
    positions: Count = 35
    """Length that captions are padded to for `mean`."""
    embed: JointEmbed = JointEmbed()


class CLIPOptions(Model):
    name: Literal["CLIP"]
    """CLIP, scored as it comes or fine-tuned."""
    clip: CLIPSource = CLIPSource()


ModelOptions = Annotated[
    GaLROptions | AMFMNOptions | VSEPPOptions | CLIPOptions, Field(discriminator="name"), _by_default("name", "GaLR")
]
