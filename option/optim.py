"""The block `optim` of the option files: loss, optimiser, schedule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from option.section import Count, Fraction, Name, Positive, Section

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
