"""Numbers that are not finite end a run: the first is named, and nothing that they spoilt is saved."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from util.resume import Progress
from utils import RunError

DIVERGED = (
    "try a lower optim.lr or an optim.grad_clip, anew or with --resume --force from the last checkpoint, which is from "
    "before it"
)


def window_losses(progress: Progress) -> list[float]:
    """The losses since the last row; one wait for the device. Raises RunError at the first that is not finite."""
    losses = torch.stack(progress.window).tolist() if progress.window else []
    for i, loss in enumerate(losses):
        if not math.isfinite(loss):
            raise RunError(
                f"the loss of batch {progress.batch - len(losses) + i + 1} of epoch {progress.epoch} is {loss}; "
                f"{DIVERGED}"
            )
    return losses


def check_weights(weights: dict[str, Tensor], progress: Progress) -> None:
    """Raises RunError where a weight is not finite, so that such weights are never saved."""
    if not torch.stack([tensor.isfinite().all() for tensor in weights.values()]).all():
        raise RunError(f"the weights are not finite after step {progress.steps}; {DIVERGED}")


def check_similarities(sims: np.ndarray, progress: Progress) -> None:
    """Raises RunError where a similarity of a validation is not finite."""
    if not np.isfinite(sims).all():
        raise RunError(
            f"the similarities after epoch {progress.epoch} are not finite, so its last step spoilt the weights; "
            f"{DIVERGED}"
        )
