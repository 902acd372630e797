"""Define the schema of the option files: published keys, the keys added here, and what each may hold.

Every key added here has a default under which a published file keeps its meaning.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from utils import InputError, read_text, write_text

Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=4000, pattern=r"^[^\x00]+$")]


class Section(BaseModel):
    """A block of options: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


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


NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Optim(Section):
    """How a model is trained. Every key of ours is off by default."""

    epochs: Count = 20
    lr: Positive = 0.0002
    lr_decay_param: Positive = 0.7  # of the schedule `step`
    lr_update_epoch: Count = 20  # likewise
    grad_clip: NotNegative = 0  # largest norm of the gradient; 0: any
    max_violation: bool = False  # triplet: hardest negatives only
    margin: NotNegative = 0.2  # triplet
    resume: Literal[False] | Name = False  # a checkpoint to fine-tune from
    # ours
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    loss: Literal["triplet", "infonce"] = "triplet"
    temperature: Annotated[float, Field(ge=0.001, le=100)] = 0.07  # infonce
    learn_temperature: bool = True  # infonce: from `temperature` on, down to 0.01
    schedule: Literal["step", "cosine"] = "step"
    warmup: NotNegative = 0  # epochs, whole or not, in which the rate rises
    trunk_lr: Positive | None = None  # of the trunk; none: lr
    text_lr: Positive | None = None  # of a transformer that reads the captions; none: lr
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2, default=[0.9, 0.999])]  # of Adam
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0  # decoupled (AdamW); not of vectors
    ema: Fraction = 0  # score the running average of the weights, which keeps so much of itself at each step
    freeze: Annotated[list[Name], Field(default=[])]  # parts that stay as they start, such as trunk or midf

    @model_validator(mode="after")
    def _warmup_ends(self) -> Optim:
        if self.warmup >= self.epochs:
            raise ValueError(f"optim.warmup ({self.warmup:g} epochs) must be below optim.epochs ({self.epochs})")
        return self


logger = logging.getLogger("galr")

# Published keys that nothing reads: accepted, and named once as unused. Those of `model` stand in GaLR's files.
UNUSED = ("dataset.data_split",)
UNUSED_OF_GALR = (
    "model.cross_attention",
    "model.fusion.correct_local_",
    "model.fusion.supplement_global_",
    "model.global_local_weight",
    "global_local_weight",
    "cross_attention",
    "fusion.correct_local_",
    "fusion.supplement_global_",
)


class Dataset(Section):
    """`local_path`: HDF5, published .npy, or `zeros` (no local features: the ablation); a model without a local branch
    needs none. `vocab_path`: not needed by a text encoder with a tokenizer of its own.

    `augment`: rotations of 0-90 degrees, as published; quarter turns and mirror images; or these of crops of all sizes
    from `smallest_crop` of the area on, resized.
    `captions_per_image`: 0 for batches of pairs, as published; K for batches of `batch_size` images, each with K of its
    captions.
    `val_list`: a file that names the validation images, which are taken out of the train list; `{fold}` in its name
    stands for the fold's number. Absent: random folds.
    `truncated`: image files that are cut short are an error, or what is there is decoded.
    """

    datatype: Name
    data_path: Name
    image_path: Name
    vocab_path: Name = "none"
    local_path: Name = "zeros"
    batch_size: Annotated[int, Field(ge=2)] = 100
    batch_size_val: Count = 70
    workers: Annotated[int, Field(ge=0, le=64)] = 3
    image_size: Annotated[int, Field(ge=32, le=1024)] = 256
    cache: Literal["none", "ram", "h5"] = "ram"
    val_list: Name | None = None
    truncated: Literal["error", "allow"] = "error"
    augment: Literal["rotate", "flips", "crops"] = "rotate"
    smallest_crop: Annotated[float, Field(ge=0.01, le=1)] = 0.5
    captions_per_image: Annotated[int, Field(ge=0, le=1000)] = 0


class Logs(Section):
    """Validate every `eval_step` epochs, log every `print_freq` steps, save every `save_steps` (0: each epoch only).

    `matrices`: the folder of the similarity matrices that test.py leaves.
    """

    eval_step: Count = 1
    print_freq: Count = 10
    save_steps: Annotated[int, Field(ge=0)] = 0
    ckpt_save_path: Name = "checkpoint/"
    logger_name: Name = "logs/"
    matrices: Name = "postprocessing/file/"


class KFold(Section):
    """`shuffle`: nums independent shuffles, as released; `disjoint`: real folds. `seed`: of the split alone.

    `val_fraction` is of `shuffle`; a disjoint fold validates on 1 / nums of the images. Where `dataset.val_list` is one
    file, every fold has its split, and the folds are runs of other random weights and order.
    """

    experiment_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    nums: Count = 1
    current_num: Annotated[int, Field(ge=0)] = 0
    mode: Literal["shuffle", "disjoint"] = "shuffle"
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _folds(self) -> KFold:
        if self.current_num >= self.nums:
            raise ValueError(f"k_fold.current_num ({self.current_num}) must be below k_fold.nums ({self.nums})")
        if self.mode == "disjoint" and self.nums < 2:
            raise ValueError("k_fold.mode disjoint needs k_fold.nums of 2 or more")
        return self


class Options(Section):
    """All options of a run, by attribute: `options.optim.lr`."""

    model: ModelOptions = GaLROptions()
    dataset: Dataset
    optim: Optim = Optim()
    logs: Logs = Logs()
    k_fold: KFold
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="after")
    def _one_way_to_split(self) -> Options:
        if self.dataset.val_list and self.k_fold.mode == "disjoint":
            raise ValueError(
                "k_fold.mode disjoint splits at random, and dataset.val_list names the validation images: "
                "set one of them"
            )
        return self

    @model_validator(mode="after")
    def _needed_files(self) -> Options:
        if self.model.reads_local and "local_path" not in self.dataset.model_fields_set:
            raise ValueError("dataset.local_path is missing")
        if self.model.tokenizer == "vocabulary" and "vocab_path" not in self.dataset.model_fields_set:
            raise ValueError("dataset.vocab_path is missing")
        return self

    @model_validator(mode="after")
    def _image_size(self) -> Options:
        if self.model.tokenizer != "clip" and self.dataset.image_size % 32:
            raise ValueError(f"dataset.image_size ({self.dataset.image_size}) must be a multiple of 32")
        return self

    @model_validator(mode="after")
    def _pairs_of_triplets(self) -> Options:
        if self.dataset.captions_per_image and self.optim.loss == "triplet":
            raise ValueError("dataset.captions_per_image needs optim.loss infonce: triplets are made of pairs")
        return self

    @property
    def local_path(self) -> str:
        """Where the model's local features come from: `zeros` where it reads none."""
        return self.dataset.local_path if self.model.reads_local else "zeros"

    @property
    def run_folder(self) -> Path:
        """checkpoint/{experiment_name}: a folder for each fold, and the results."""
        return Path(self.logs.ckpt_save_path) / self.k_fold.experiment_name

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dicts, as in the YAML file with every default filled in."""
        return self.model_dump()


def load_options(path: str | os.PathLike, overrides: Sequence[str] = ()) -> Options:
    """Read a YAML option file, apply `key=value` overrides (`optim.lr=1e-4`), and check everything.

    Published keys that nothing reads are named once on standard output.
    Raises InputError, naming file and key, for anything that the schema does not admit.
    """
    tree = _read_yaml(path)
    for override in overrides:
        _override(tree, override)
    tree = _without_none(tree)
    name = model_name(tree.get("model", {}))
    if unused := _drop_unused(tree, UNUSED + (UNUSED_OF_GALR if name == "GaLR" else ())):
        logger.info(f"note: {path}: nothing reads {', '.join(unused)}")
    try:
        return Options(**tree)
    except ValidationError as error:
        raise InputError(_explain(error, name, path)) from None


def _read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    text = read_text(path, "option file", "the shipped ones are option/*/*.yaml")
    try:
        tree = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"option file {path}{where}: not YAML ({getattr(error, 'problem', error)})") from None
    except Exception as error:  # values that are not what they claim to be raise errors of many kinds
        raise InputError(f"option file {path}: not readable ({_short(str(error))})") from None
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise InputError(f"option file {path}: expected blocks such as model:, dataset:, optim:, k_fold:")
    return tree


class _UniqueKeyLoader(yaml.SafeLoader):
    """The safe loader, which also refuses a key that is given twice or is not a name, and aliases: a few lines of
    them can stand for a tree without end."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "an alias (*name); write the value out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not a name", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _override(tree: dict, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise InputError(f"--set {override}: expected KEY=VALUE, such as optim.lr=1e-4")
    *blocks, last = key.split(".")
    for block in blocks:
        tree = tree.setdefault(block, {})
        if not isinstance(tree, dict):
            raise InputError(f"--set {override}: {block} is a value, not a block of options")
    try:
        new = yaml.load(value, Loader=_UniqueKeyLoader)
    except Exception:  # as in _read_yaml
        raise InputError(f"--set {override}: the value is not YAML") from None
    if isinstance(tree.get(last), dict) and not isinstance(new, dict):
        raise InputError(f"--set {override}: {last} is a block of options, not a value")
    tree[last] = new


def _without_none(tree: dict) -> dict:
    """Drop keys whose value is nothing (`null`, or the string "None" of published files): the default holds."""
    kept = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            kept[key] = _without_none(value)
        elif key == "pretrained" and value == "None":  # no published key: a slip for `none`, and not the default
            kept[key] = "none"
        elif value is not None and value != "None":
            kept[key] = value
    return kept


def _drop_unused(tree: dict, unused: tuple[str, ...], prefix: str = "") -> list[str]:
    dropped = []
    for key in list(tree):
        name = prefix + key
        if name.startswith(unused):
            dropped.append(name)
            del tree[key]
        elif isinstance(tree[key], dict):
            dropped += _drop_unused(tree[key], unused, name + ".")
    return dropped


def _explain(error: ValidationError, model: str, path: str | os.PathLike) -> str:
    """One line for all faults of a file: unknown keys with the nearest known one, then values."""
    return f"option file {path}: " + "; ".join(_fault(fault, model) for fault in error.errors())


def _fault(fault: dict, model: str) -> str:
    """`model`: its name, which stands in the place of a fault within its block."""
    place = [str(part) for part in fault["loc"]]
    if place[:2] == ["model", model]:
        del place[1]
    encoder = place.pop(2) if place[:2] == ["model", "seq2vec"] and set(place[2:3]) & ENCODERS.keys() else ""
    name = ".".join(part for part in place if not part.startswith(("literal", "constrained-str")))
    if fault["type"] == "extra_forbidden":
        return _unknown(name, model, encoder)
    if fault["type"] == "encoder_name":
        return f"{name}.arch = {_short(repr(fault['input'].get('arch')))}: {fault['msg']}"
    if fault["type"] == "model_name":
        return f"model.name = {_short(repr(fault['input'].get('name')))}: {fault['msg']}"
    if fault["type"] == "missing":
        return f"{name} is missing"
    message = fault["msg"].removeprefix("Value error, ")
    if not name or fault["type"] == "value_error":
        return message
    try:
        return f"{name} = {_short(repr(fault['input']))}: {message}"
    except ValueError:  # a whole number of thousands of digits
        return f"{name}: {message}"


def _unknown(key: str, model: str, encoder: str) -> str:
    """What to say of a key that is none: whose it is, or the nearest one that is known."""
    known = [*_known_keys(Options), *(_known_keys(MODELS[model], "model.") if model in MODELS else ())]
    blocks, prefix, own = (ENCODERS, "model.seq2vec.", encoder) if encoder else (MODELS, "model.", model)
    owners = [name for name, section in blocks.items() if key in _known_keys(section, prefix)]
    if owners:
        return f"unknown key {key}: it belongs to {' and '.join(owners)}, not to {own}"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0)
    return f"unknown key {key}" + (f" (nearest known key: {near[0]})" if near else "")


def _short(text: str, most: int = 200) -> str:
    return text if len(text) <= most else text[:most] + "..."


def _known_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = ENCODERS.values() if name == "seq2vec" else [field.annotation]
        for block in inner:
            if isinstance(block, type) and issubclass(block, Section):
                yield from _known_keys(block, f"{prefix}{name}.")
        yield prefix + name


def save_options(options: Options, path: str | os.PathLike) -> None:
    """Write the options with all defaults filled in, as YAML."""
    write_text(path, yaml.safe_dump(options.to_dict(), sort_keys=False))
