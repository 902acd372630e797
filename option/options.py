"""Define the keys of the option files, their values and their defaults: a class for each block.

Each key has its type, its default (... if it is needed) and what it does; `python -m option` prints them as the table
of docs/training.md. With the defaults a published file keeps its meaning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
CountOrOff = Annotated[int, Field(ge=0)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=4000, pattern=r"^[^\x00]+$")]
Betas = Annotated[list[Fraction], Field(min_length=2, max_length=2)]
RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


def key(default: Any, meaning: str) -> Any:
    """Return the field of a key."""
    return Field(default, description=meaning)


class Section(BaseModel):
    """A block of options: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


# ---------------------------------------------------------------- model


def _by_default(key: str, value: str) -> BeforeValidator:
    """Fill in the key that chooses between several blocks where a file leaves it out."""
    return BeforeValidator(lambda block: {key: value} | block if isinstance(block, dict) else block)


class Seq2Vec(Section):
    arch: Literal["skipthoughts"] = key("skipthoughts", "Text encoder: skip-thoughts' GRU, as published.")
    type: Literal["BayesianUniSkip", "UniSkip", "BiSkip"] = key("BayesianUniSkip", "Variant of the GRU.")
    dir_st: Name = key("seq2vec", "Folder of the skip-thoughts files.")
    dropout: Fraction = key(0.25, "Dropout, one mask for all words of a caption.")
    fixed_emb: bool = key(False, "Do not train the word embedding.")
    pretrained: bool = key(True, "Load the files of `dir_st`; false: random weights.")
    embedding_dim: Count = key(620, "Width of the word embedding; 620 if pretrained.")
    hidden_dim: Count = key(2400, "Width of the GRU's state; 2400 if pretrained.")


class PlainGRU(Section):
    arch: Literal["gru"] = key(..., "Text encoder: PyTorch's GRU.")
    embedding_dim: Count = key(300, "Width of the word embedding.")
    hidden_dim: Count = key(512, "Width of the GRU's state in each direction.")
    bidirectional: bool = key(False, "Read captions in both directions.")
    pooling: Literal["last", "mean", "max"] = key("last", "Caption vector from the states of the words.")
    dropout: Fraction = key(0.2, "Dropout on word embeddings and caption vectors.")


class Transformer(Section):
    arch: Literal["transformer"] = key(..., "Text encoder: a transformer and its tokenizer.")
    path: Name = key(..., "Folder of the transformer, or its name at Hugging Face.")
    pretrained: bool = key(True, "Load its weights; false: random weights.")
    pooling: Literal["mean", "first", "max"] = key("mean", "Caption vector from the states of the tokens.")
    dropout: Fraction = key(0, "Dropout on the caption vector.")


class FrozenTransformer(Transformer):
    arch: Literal["frozen_transformer"] = key(..., "Text encoder: a GRU and a transformer that does not learn.")
    embedding_dim: Count = key(300, "Width of the GRU's embedding of tokens.")
    hidden_dim: Count = key(256, "Width of the GRU's state in each direction.")
    gru_dropout: Fraction = key(0.4, "Dropout on token embeddings and GRU vectors.")


TextOptions = Annotated[
    Seq2Vec | PlainGRU | Transformer | FrozenTransformer,
    Field(discriminator="arch"),
    _by_default("arch", "skipthoughts"),
]


class Multiscale(Section):
    multiscale_input_channel: Literal[3] = key(3, "Channels of each scale of MVSA.")
    multiscale_output_channel: Literal[1] = key(1, "Channels of MVSA's mask.")


class Fusion(Section):
    kind: Literal["midf", "sum", "concatenation"] = key("midf", "Fusion of global and local vector.")
    gate: Literal["paper", "released", "none"] = key("released", "Dynamic weights: two (paper), one (released), none.")
    dynamic_fusion_dim: Count = key(512, "Hidden width of the dynamic weights.")
    dynamic_fusion_drop: Fraction = key(0.2, "Dropout of the dynamic weights.")
    mca_DROPOUT_R: Fraction = key(0.1, "Dropout of MIDF's attention.")
    mca_HIDDEN_SIZE: Count = key(512, "Width of MIDF; equals `embed.embed_dim`.")
    mca_FF_SIZE: Count = key(1024, "Hidden width of MIDF's feed-forward layers.")
    mca_MULTI_HEAD: Count = key(8, "Number of attention heads.")
    mca_HIDDEN_SIZE_HEAD: Count = key(64, "Width of a head; heads times this is `mca_HIDDEN_SIZE`.")


class Embed(Section):
    embed_dim: Count = key(512, "Width of image and caption vectors.")


class JointEmbed(Section):
    embed_dim: Count = key(1024, "Width of image and caption vectors.")


class CrossAttention(Section):
    att_type: Literal["soft_att", "fusion_att", "similarity_att"] = key("soft_att", "Form of AMFMN's attention.")


class CLIPSource(Section):
    arch: Name = key("ViT-B-32-quickgelu", "Architecture, a name of open_clip.")
    weights: Name = key("openai", "Name of open_clip, a file, or `none`.")


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
    trunk: Name = key("resnet18", "Backbone: `resnet18`, a name of timm, or `clip` (GaLR).")
    trunk_norm: Literal["batch", "frozen"] = key("batch", "Statistics of batch norm: of the batch, or as loaded.")
    pretrained: Name = key("imagenet", "Backbone weights: `imagenet`, `none`, or a file.")


class GaLROptions(Backbone):
    """GaLR. `trunk: clip` sets its local branch and MIDF upon the CLIP of the block `clip`."""

    name: Literal["GaLR"] = key("GaLR", "GaLR, as in a file that names no model.")
    local_branch: bool = key(True, "Use the local branch and MIDF; false: an ablation.")
    mvsa: bool = key(True, "Use multi-scale attention (MVSA); false: an ablation.")
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
            raise ValueError("model.trunk clip brings its weights and text: leave out pretrained, trunk_norm, seq2vec")
        fusion = self.fusion
        if not self.local_branch or fusion.kind != "midf":
            return self  # MIDF and its widths are not used
        if fusion.mca_HIDDEN_SIZE != self.embed.embed_dim:
            raise ValueError(f"model.fusion.mca_HIDDEN_SIZE must equal model.embed.embed_dim, {self.embed.embed_dim}")
        if fusion.mca_MULTI_HEAD * fusion.mca_HIDDEN_SIZE_HEAD != fusion.mca_HIDDEN_SIZE:
            raise ValueError("model.fusion.mca_MULTI_HEAD times mca_HIDDEN_SIZE_HEAD must equal mca_HIDDEN_SIZE")
        return self


class AMFMNOptions(Backbone):
    name: Literal["AMFMN"] = key(..., "AMFMN.")
    multiscale: Multiscale = Multiscale()
    cross_attention: CrossAttention = CrossAttention()
    seq2vec: TextOptions = Seq2Vec()
    embed: Embed = Embed()


class VSEPPOptions(Backbone):
    """VSE++. The rows that papers on remote sensing print have `image_norm: False` and `text_pooling: mean`."""

    name: Literal["VSE++"] = key(..., "VSE++.")
    word_dim: Count = key(300, "Width of the word embedding.")
    image_norm: bool = key(True, "Normalise image vectors.")
    text_pooling: Literal["last", "mean"] = key("last", "Caption vector: last state, or mean over `positions`.")
    positions: Count = key(35, "Length that captions are padded to for `mean`.")
    embed: JointEmbed = JointEmbed()


class CLIPOptions(Model):
    name: Literal["CLIP"] = key(..., "CLIP, scored as it comes or fine-tuned.")
    clip: CLIPSource = CLIPSource()


ModelOptions = Annotated[
    GaLROptions | AMFMNOptions | VSEPPOptions | CLIPOptions, Field(discriminator="name"), _by_default("name", "GaLR")
]


# ---------------------------------------------------------------- the other blocks

Cache = Annotated[Literal["none", "ram", "disk"], BeforeValidator(lambda value: "disk" if value == "h5" else value)]


class Dataset(Section):
    datatype: Name = key(..., "Name of the data set, for tables and published rows.")
    data_path: Name = key(..., "Folder of the lists: `train_caps.txt` and so on.")
    image_path: Name = key(..., "Folder of the images.")
    vocab_path: Name = key("none", "Vocabulary; needed unless the tokenizer is the model's.")
    local_path: Name = key("zeros", "Local features (.h5, .npy); `zeros`: none. GaLR needs it.")
    batch_size: Annotated[int, Field(ge=2)] = key(100, "Pairs a batch; images with `captions_per_image`.")
    batch_size_val: Count = key(70, "Images or captions a batch in evaluation.")
    workers: Annotated[int, Field(ge=0, le=64)] = key(3, "Processes that decode images.")
    image_size: Annotated[int, Field(ge=32, le=1024)] = key(256, "Side of the images in pixels, a multiple of 32.")
    cache: Cache = key("ram", "Keep decoded images in memory or in a file on disk.")
    val_list: Name | None = key(None, "File of validation images, `{fold}` in its name; or random.")
    truncated: Literal["error", "allow"] = key("error", "Truncated image files: raise an error or decode the rest.")
    augment: Literal["rotate", "flips", "crops"] = key(
        "rotate", "0-90 degrees; quarter turns, mirrors; these of crops."
    )
    smallest_crop: Annotated[float, Field(ge=0.01, le=1)] = key(0.5, "Smallest area of `crops`, a share of the image.")
    captions_per_image: Annotated[int, Field(ge=0, le=1000)] = key(
        0, "0: batches of pairs; K: images, K captions each."
    )


class Optim(Section):
    epochs: Count = key(20, "Number of epochs.")
    early_stopping: CountOrOff = key(0, "Stop after so many epochs without a better mR; 0: off.")
    lr: Positive = key(0.0002, "Learning rate of Adam.")
    lr_decay_param: Positive = key(0.7, "Factor on the rate, schedule `step`.")
    lr_update_epoch: Count = key(20, "Epochs between two factors, schedule `step`.")
    grad_clip: NotNegative = key(0, "Largest norm of the gradient; 0: no clipping.")
    max_violation: bool = key(False, "Triplet loss over the hardest negatives alone.")
    margin: NotNegative = key(0.2, "Margin of the triplet loss.")
    resume: Literal[False] | Name = key(False, "Checkpoint to fine-tune from.")
    precision: Literal["fp32", "bf16", "fp16"] = key("fp32", "Precision of training and evaluation; fp16: older GPUs.")
    tf32: bool = key(False, "Let NVIDIA GPUs multiply float32 in TF32.")
    deterministic: bool = key(False, "Deterministic kernels: equal bits on a GPU, slower.")
    checkpointing: bool = key(False, "Save memory: compute the backbone's activations twice.")
    compile: bool = key(False, "Compile the model with torch.compile.")
    loss: Name = key("triplet", "Criterion of layers/loss.py: `triplet` or `infonce`.")
    temperature: Annotated[float, Field(ge=0.001, le=100)] = key(0.07, "Temperature of InfoNCE.")
    learn_temperature: bool = key(True, "Train the temperature, down to 0.01.")
    schedule: Literal["step", "cosine"] = key("step", "Schedule of the learning rate.")
    warmup: NotNegative = key(0, "Epochs in which the rate rises, 0.4 for example.")
    trunk_lr: Positive | None = key(None, "Learning rate of the backbone; none: `lr`.")
    text_lr: Positive | None = key(None, "Learning rate of a text transformer; none: `lr`.")
    betas: Betas = key([0.9, 0.999], "Betas of Adam.")
    weight_decay: Annotated[float, Field(ge=0, le=10)] = key(0, "Decoupled weight decay (AdamW) of matrices.")
    ema: Fraction = key(0, "Decay of the averaged weights that are scored; 0: none.")
    freeze: list[Name] = key([], "Modules that are not trained, such as `midf`.")


class Logs(Section):
    eval_step: Count = key(1, "Epochs between two validations.")
    print_freq: Count = key(10, "Steps between two lines of the log.")
    save_steps: CountOrOff = key(0, "Steps between two checkpoints within an epoch; 0: off.")
    save_minutes: NotNegative = key(10, "Minutes between two checkpoints within an epoch; 0: off.")
    ckpt_save_path: Name = key("checkpoint/", "Folder of the runs: checkpoints and results.")
    logger_name: Name = key("logs/", "Folder of TensorBoard's logs.")
    matrices: Name = key("postprocessing/file/", "Folder of the similarity matrices.")


class KFold(Section):
    experiment_name: RunName = key(..., "Name of the run, and of its folder.")
    nums: Count = key(1, "Number of folds.")
    current_num: CountOrOff = key(0, "First fold to train.")
    mode: Literal["shuffle", "disjoint"] = key("shuffle", "Independent splits, as released, or real folds.")
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = key(0.2, "Share of images that validate, mode `shuffle`.")
    seed: CountOrOff = key(0, "Seed of the splits.")


class Options(Section):
    """All options of a run, by attribute: `options.optim.lr`."""

    model: ModelOptions = GaLROptions()
    dataset: Dataset
    optim: Optim = Optim()
    logs: Logs = Logs()
    k_fold: KFold
    seed: Annotated[int, Field(ge=0, lt=2**31)] = key(0, "Seed of weights, order, augmentation and dropout.")

    @model_validator(mode="after")
    def _keys_fit(self) -> Options:
        dataset, optim, k_fold, tokenizer = self.dataset, self.optim, self.k_fold, self.model.tokenizer
        encoder = getattr(self.model, "seq2vec", None)
        if isinstance(encoder, Seq2Vec) and encoder.type == "BiSkip" and encoder.hidden_dim % 2:
            raise ValueError(f"model.seq2vec.hidden_dim must be even for BiSkip, got {encoder.hidden_dim}")
        if self.model.reads_local and "local_path" not in dataset.model_fields_set:
            raise ValueError("dataset.local_path is missing")
        if tokenizer == "vocabulary" and "vocab_path" not in dataset.model_fields_set:
            raise ValueError("dataset.vocab_path is missing")
        if tokenizer != "clip" and dataset.image_size % 32:
            raise ValueError(f"dataset.image_size must be a multiple of 32, got {dataset.image_size}")
        if dataset.captions_per_image and optim.loss == "triplet":
            raise ValueError("dataset.captions_per_image needs optim.loss infonce: triplets are made of pairs")
        if optim.checkpointing and optim.compile:
            raise ValueError("optim.checkpointing and optim.compile do not go together: leave out one")
        if optim.warmup >= optim.epochs:
            raise ValueError(f"optim.warmup ({optim.warmup:g} epochs) must be below optim.epochs ({optim.epochs})")
        if k_fold.current_num >= k_fold.nums:
            raise ValueError(f"k_fold.current_num ({k_fold.current_num}) must be below k_fold.nums ({k_fold.nums})")
        if k_fold.mode == "disjoint" and k_fold.nums < 2:
            raise ValueError("k_fold.mode disjoint needs k_fold.nums of 2 or more")
        if k_fold.mode == "disjoint" and dataset.val_list:
            raise ValueError("k_fold.mode disjoint splits at random: leave out it or dataset.val_list")
        return self

    @property
    def local_path(self) -> str:
        """Return the source of the model's local features, `zeros` if it reads none."""
        return self.dataset.local_path if self.model.reads_local else "zeros"

    @property
    def run_folder(self) -> Path:
        """Return checkpoint/{experiment_name}: a folder for each fold, and the results."""
        return Path(self.logs.ckpt_save_path) / self.k_fold.experiment_name

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested dicts, with every default filled in."""
        return self.model_dump()
