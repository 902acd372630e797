"""Exact resume: how far a fold has come, what its checkpoints hold, and whether a run may go on from one."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from option.options import Options
from util.checkpoints import LAST, newest_checkpoint, previous
from utils import InputError, RunError, read_json

logger = logging.getLogger("galr")

# Options that may change on --resume: they move no number of the run.
FREE = {
    "dataset.workers",
    "dataset.cache",
    "dataset.image_path",
    "dataset.data_path",
    "dataset.vocab_path",
    "dataset.val_list",
    "dataset.truncated",
    "dataset.batch_size_val",
    "logs.save_steps",
    "logs.ckpt_save_path",
    "logs.logger_name",
    "logs.matrices",
    "k_fold.current_num",
    "model.seq2vec.dir_st",
}


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

    def losses(self) -> list[float]:
        """Return the losses of the window, after one wait for the device. Raise RunError if one is not finite."""
        losses = torch.stack(self.window).tolist() if self.window else []
        for batch, loss in enumerate(losses, self.batch - len(losses) + 1):
            if not math.isfinite(loss):
                raise RunError(f"the loss of batch {batch} of epoch {self.epoch} is {loss}; {DIVERGED}")
        return losses


@dataclass
class TrainState:
    """Everything that training changes; average: the EMA of the weights, if there is one."""

    model: nn.Module
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    average: nn.Module | None = None
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
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise InputError(f"the optimizer in {folder / LAST} does not fit this model ({error})") from None
        self.progress = Progress(**state["progress"])
        self.progress.window = list(torch.tensor(self.progress.window, device=device))


def refuse_existing(folder: Path) -> None:
    """Raise InputError where a fold to be trained anew holds a run."""
    last = folder / LAST
    if last.exists() or previous(last).exists():
        raise InputError(
            f"{folder} holds a run already: add --resume to go on with it, set another k_fold.experiment_name, or "
            "remove the folder"
        )


def earlier_state(folder: Path, names: dict[str, list[str]], options: Options, force: bool) -> dict[str, Any] | None:
    """Return the checkpoint to go on from, or None for a new fold. `names`: the images that train and validate.

    Raise InputError where options or images have changed, unless `force`.
    """
    last = folder / LAST
    state = newest_checkpoint(last)
    if state is None:
        logger.info("fold %s: nothing to resume, starting at the beginning", folder.name)
        return None
    if not resumable(state):
        raise InputError(
            f"checkpoint {last} has no progress to resume from; fine-tune from it with optim.resume={last}"
        )
    changed = changed_options(with_defaults(state["options"]), options.to_dict())
    if changed and not force:
        raise InputError(f"{folder} was made with other options: {'; '.join(changed)}; --force goes on nevertheless")
    if read_json(folder / "split.json", "split") != names and not force:
        raise InputError(
            f"the images of fold {folder.name} are not those of {folder / 'split.json'}: the lists in "
            "dataset.data_path have changed; --force goes on nevertheless"
        )
    return state


def check_inputs(state: dict[str, Any], inputs: str, folder: Path, force: bool) -> None:
    """Raise InputError where captions or local features are not those that the state was trained on."""
    if state.get("inputs", inputs) != inputs and not force:
        raise InputError(
            f"the captions or the local features of fold {folder.name} have changed since {folder / LAST} was "
            "written; --force goes on nevertheless"
        )


def resumable(state: dict[str, Any]) -> bool:
    """Tell whether a checkpoint holds what an exact resume needs, as `TrainState.for_resume` returns it."""
    kinds = {"epoch": int, "options": dict, "optimizer": dict, "progress": dict, "rows": list}
    if not all(isinstance(state.get(key), kind) for key, kind in kinds.items()):
        return False
    progress = {"epoch": int, "batch": int, "steps": int, "best_rsum": float, "window": list}
    return {key: type(value) for key, value in state["progress"].items()} == progress


def with_defaults(options: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults of today's keys to the options of an earlier run."""
    try:
        return Options.model_validate(options).to_dict()
    except ValidationError:
        return options


def changed_options(old: dict, new: dict, prefix: str = "") -> list[str]:
    """List the options that differ and move a number of the run, as `key: old -> new`; a run may be made longer."""
    changed = []
    for key in sorted(old.keys() | new.keys()):
        name, a, b = prefix + key, old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changed += changed_options(a, b, name + ".")
        elif a != b and name not in FREE and not _longer(name, a, b, new):
            changed.append(f"{name}: {a} -> {b}")
    return changed


def _longer(name: str, old: Any, new: Any, block: dict[str, Any]) -> bool:
    """Tell whether the change is more epochs, where the rate of those that are done does not depend on their number."""
    return name == "optim.epochs" and new > old and block.get("schedule", "step") == "step"


def warn_of_seen_images(fold: int, validated: Sequence[str], resume: str) -> None:
    """Warn where the checkpoint to fine-tune from was trained on images that this fold validates on."""
    path = Path(resume).with_name("split.json")
    before = read_json(path, "split") if path.is_file() else None
    names = before.get("train") if isinstance(before, dict) else None
    trained = {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()
    if seen := trained.intersection(validated):
        logger.warning(
            "%s was trained on %d of the %d images on which fold %d validates: its validation scores, and what is "
            "chosen by them, come out too good",
            *(resume, len(seen), len(validated), fold),
        )
