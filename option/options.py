"""Define the keys of the option files, their values and their defaults.

The line under a key says what it does; `python -m option` prints them as the table of docs/training.md. With the
defaults a published file keeps its meaning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from option.models import Count, Fraction, GaLROptions, ModelOptions, Name, NotNegative, Positive, Section, Seq2Vec


class Dataset(Section):
    datatype: Name
    """Name of the data set, for tables and published rows."""
    data_path: Name
    """Folder of the lists: `train_caps.txt` and so on."""
    image_path: Name
    """Folder of the images."""
    vocab_path: Name = "none"
    """Vocabulary; needed unless the tokenizer is the model's."""
    local_path: Name = "zeros"
    """Local features (.h5, .npy); `zeros`: none. GaLR needs it."""
    batch_size: Annotated[int, Field(ge=2)] = 100
    """Pairs a batch; images with `captions_per_image`."""
    batch_size_val: Count = 70
    """Images or captions a batch in evaluation."""
    workers: Annotated[int, Field(ge=0, le=64)] = 3
    """Processes that decode images."""
    image_size: Annotated[int, Field(ge=32, le=1024)] = 256
    """Side of the images in pixels, a multiple of 32."""
    cache: Annotated[
        Literal["none", "ram", "disk"], BeforeValidator(lambda value: "disk" if value == "h5" else value)
    ] = "ram"
    """Keep decoded images in memory or in a file on disk."""
    val_list: Name | None = None
    """File of validation images, `{fold}` in its name; or random."""
    truncated: Literal["error", "allow"] = "error"
    """Truncated image files: raise an error or decode the rest."""
    augment: Literal["rotate", "flips", "crops"] = "rotate"
    """0-90 degrees; quarter turns and mirrors; these of crops."""
    smallest_crop: Annotated[float, Field(ge=0.01, le=1)] = 0.5
    """Smallest area of `crops`, as a share of the image."""
    captions_per_image: Annotated[int, Field(ge=0, le=1000)] = 0
    """0: batches of pairs; K: images with K captions each."""


class Optim(Section):
    epochs: Count = 20
    """Number of epochs."""
    early_stopping: Annotated[int, Field(ge=0)] = 0
    """Stop after so many epochs without a better mR; 0: off."""
    lr: Positive = 0.0002
    """Learning rate of Adam."""
    lr_decay_param: Positive = 0.7
    """Factor on the rate, schedule `step`."""
    lr_update_epoch: Count = 20
    """Epochs between two factors, schedule `step`."""
    grad_clip: NotNegative = 0
    """Largest norm of the gradient; 0: no clipping."""
    max_violation: bool = False
    """Triplet loss over the hardest negatives alone."""
    margin: NotNegative = 0.2
    """Margin of the triplet loss."""
    resume: Literal[False] | Name = False
    """Checkpoint to fine-tune from."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of training and evaluation; fp16: older GPUs."""
    tf32: bool = False
    """Let NVIDIA GPUs multiply float32 in TF32."""
    deterministic: bool = False
    """Deterministic kernels: equal bits on a GPU, slower."""
    checkpointing: bool = False
    """Save memory: compute the backbone's activations twice."""
    compile: bool = False
    """Compile the model with torch.compile."""
    loss: Name = "triplet"
    """Criterion of layers/loss.py: `triplet` or `infonce`."""
    temperature: Annotated[float, Field(ge=0.001, le=100)] = 0.07
    """Temperature of InfoNCE."""
    learn_temperature: bool = True
    """Train the temperature, down to 0.01."""
    schedule: Literal["step", "cosine"] = "step"
    """Schedule of the learning rate."""
    warmup: NotNegative = 0
    """Epochs in which the rate rises, 0.4 for example."""
    trunk_lr: Positive | None = None
    """Learning rate of the backbone; none: `lr`."""
    text_lr: Positive | None = None
    """Learning rate of a text transformer; none: `lr`."""
    betas: list[Fraction] = Field([0.9, 0.999], min_length=2, max_length=2)
    """Betas of Adam."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0
    """Decoupled weight decay (AdamW) of matrices."""
    ema: Fraction = 0
    """Decay of the averaged weights that are scored; 0: none."""
    freeze: list[Name] = Field([])
    """Modules that are not trained, such as `midf`."""


class Logs(Section):
    eval_step: Count = 1
    """Epochs between two validations."""
    print_freq: Count = 10
    """Steps between two lines of the log."""
    save_steps: Annotated[int, Field(ge=0)] = 0
    """Steps between two checkpoints within an epoch; 0: off."""
    save_minutes: NotNegative = 10
    """Minutes between two checkpoints within an epoch; 0: off."""
    ckpt_save_path: Name = "checkpoint/"
    """Folder of the runs: checkpoints and results."""
    logger_name: Name = "logs/"
    """Folder of TensorBoard's logs."""
    matrices: Name = "postprocessing/file/"
    """Folder of the similarity matrices."""


class KFold(Section):
    experiment_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the run, and of its folder."""
    nums: Count = 1
    """Number of folds."""
    current_num: Annotated[int, Field(ge=0)] = 0
    """First fold to train."""
    mode: Literal["shuffle", "disjoint"] = "shuffle"
    """Independent splits, as released, or real folds."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of images that validate, mode `shuffle`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the splits."""


class Options(Section):
    """All options of a run, by attribute: `options.optim.lr`."""

    model: ModelOptions = GaLROptions()
    dataset: Dataset
    optim: Optim = Optim()
    logs: Logs = Logs()
    k_fold: KFold
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of weights, order, augmentation and dropout."""

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
