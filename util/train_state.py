"""The state of a training run: everything that training changes, and what checkpoints hold of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from option.options import Optim, Options
from util.checkpoint import LAST
from utils import InputError, RunError

DIVERGED = (
    "try a lower optim.lr or an optim.grad_clip, anew or with --resume --force from the last checkpoint, which is from "
    "before it"
)


@dataclass
class Progress:
    """The progress of a fold: what an exact resume needs beside weights and optimizer.

    epoch: the one in progress, from 0; batch: how many of its batches are done; steps: done in all; best_rsum: the best
    sum of validation recalls; window: losses since the last row of the log, on the device.
    """

    epoch: int = 0
    batch: int = 0
    steps: int = 0
    best_rsum: float = -1.0
    window: list[Tensor] = field(default_factory=list)

    def count(self, loss: Tensor) -> None:
        """Count one more step."""
        self.batch, self.steps = self.batch + 1, self.steps + 1
        self.window.append(loss)

    def next_epoch(self) -> None:
        """Go to the start of the next epoch."""
        self.epoch, self.batch = self.epoch + 1, 0

    def losses(self, *others: Tensor) -> list[float]:
        """Return the losses of the window, and `others` after them, by one wait for the device.

        Raise RunError if a loss is not finite.
        """
        tensors = [*self.window, *others]
        numbers = torch.stack(tensors).tolist() if tensors else []
        for batch, loss in enumerate(numbers[: len(self.window)], self.batch - len(self.window) + 1):
            if not math.isfinite(loss):
                raise RunError(f"the loss of batch {batch} of epoch {self.epoch} is {loss}; {DIVERGED}")
        return numbers


def is_finished(options: Optim, epoch: int, rows: Sequence[dict[str, Any]]) -> bool:
    """Return whether `epoch` epochs are all, or the log's rows call for early stopping.

    That is where the last validation comes `early_stopping` epochs or more after the best (of equal ones, the first).
    """
    scored = [row for row in rows if "mr" in row]
    waited = scored[-1]["epoch"] - max(scored, key=lambda row: row["mr"])["epoch"] if scored else 0
    return epoch >= options.epochs or 0 < options.early_stopping <= waited


@dataclass
class TrainState:
    """Everything that training changes; average: the EMA of the weights, if there is one; scaler: of the loss."""

    model: nn.Module
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    average: nn.Module | None = None
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler(enabled=False))
    progress: Progress = field(default_factory=Progress)

    @property
    def scored(self) -> nn.Module:
        """Return the model that is validated and kept as the best: the average where there is one."""
        return self.average.module if self.average else self.model

    def for_scoring(self, options: Options, words: Sequence[str], model: nn.Module | None = None) -> dict[str, Any]:
        """Return the state dict of a best checkpoint: the published keys, and the words.

        Raise RunError where a loss or a weight is not finite, so that such weights are never saved.
        """
        progress, weights = self.progress, (model or self.scored).state_dict()
        progress.losses()
        if not torch.stack([tensor.isfinite().all() for tensor in weights.values()]).all():
            raise RunError(f"the weights are not finite after step {progress.steps}; {DIVERGED}")
        return {
            "epoch": progress.epoch,
            "arch": options.model.name,
            "model": weights,
            "best_rsum": progress.best_rsum,
            "options": options.to_dict(),
            "Eiters": progress.steps,
            "words": list(words),
        }

    def for_resume(self, options: Options, words: Sequence[str], rows: list, inputs: str) -> dict[str, Any]:
        """Return the state dict of a last checkpoint, for an exact resume.

        rows: of the log; inputs: the digest of what was trained on.
        """
        return self.for_scoring(options, words, self.model) | {
            "optimizer": self.optimizer.state_dict(),
            "loss": self.criterion.state_dict(),
            "average": self.average.state_dict() if self.average else {},
            "scaler": self.scaler.state_dict(),
            "progress": vars(self.progress) | {"window": self.progress.losses()},
            "rows": rows,
            "inputs": inputs,
        }

    def load(self, state: dict[str, Any], folder: Path, device: torch.device) -> None:
        """Go back to where a checkpoint was written, the weights apart. Raise InputError if it does not fit."""
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            self.criterion.load_state_dict(state.get("loss", {}))  # the first runs kept neither this nor an average
            if self.average:
                self.average.load_state_dict(state.get("average", {}))
            if scale := state.get("scaler"):
                self.scaler.load_state_dict(scale)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise InputError(f"the optimizer in {folder / LAST} does not fit this model ({error})") from None
        self.progress = Progress(**state["progress"])
        self.progress.window = list(torch.tensor(self.progress.window, device=device))


def snapshot(tree: dict[str, Any], device: torch.device) -> Callable[[], dict[str, Any]]:
    """Copy a state dict to the CPU, where training does not change it; return a function that waits for the copy.

    Copies from a GPU go to pinned memory behind the work that is queued there: the loop does not wait for them.
    """

    def copy(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda).copy_(
            tensor, non_blocking=tensor.is_cuda
        )

    copied = tree_map_only(Tensor, copy, tree)

    def wait() -> dict[str, Any]:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return copied

    return wait
