"""Checkpoints of a run: written atomically, read without running anything in them."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layers import models
from layers.published import is_published, load_published, load_state
from util.weights import check_finite, load_torch, weights_of
from utils import InputError, RunError, atomic, worker_died

logger = logging.getLogger("galr")

EARLIER = "global_branch.resnet.", "global_branch.trunk.net."  # a name in our first checkpoints, and its name now
BEST, LAST = "GaLR_best.pth.tar", "last.pth.tar"  # in a fold's folder


def save_checkpoint(state: dict[str, Any], path: Path, keep_previous: bool = False) -> None:
    """Write a checkpoint atomically; with `keep_previous` the one before it stays beside it as `NAME.previous`.

    Raises RunError where it cannot be written; what was there before is then still there.
    """

    try:
        with atomic(path, keep=previous(path) if keep_previous else None) as temporary:
            torch.save(state, temporary)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        if worker_died(error):
            raise
        free = shutil.disk_usage(path.parent).free / 2**20 if path.parent.is_dir() else 0
        reason = error.strerror if isinstance(error, OSError) else "PyTorch's write failed"
        raise RunError(
            f"the checkpoint {path} cannot be written ({reason}; {free:.0f} MiB free); the one before it is intact: "
            "make room and go on with --resume"
        ) from None


def previous(path: Path) -> Path:
    """Where the checkpoint before this one is kept."""
    return path.with_name(path.name + ".previous")


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint, ours or a published one, without running anything in it. Raises InputError."""

    state = load_torch(path, "checkpoint")
    weights = weights_of(state["model"], keys=()) if isinstance(state, dict) and "model" in state else None
    if weights is None:
        raise InputError(f"checkpoint {path} holds no table 'model' of weights")
    state["model"] = weights
    if not isinstance(state.get("words", []), list):
        raise InputError(f"checkpoint {path}: its words are no list")
    check_finite(weights, f"checkpoint {path}")
    return state


def newest_checkpoint(path: Path) -> dict[str, Any] | None:
    """The checkpoint at `path`; where it is missing or damaged, the one before it, saying so; None if there is none.

    Raises InputError where checkpoints are there and all are damaged.
    """
    faults = []
    for candidate in (path, previous(path)):
        if not candidate.is_file():
            continue
        try:
            state = read_checkpoint(candidate)
        except InputError as error:
            faults.append(str(error))
            continue
        if candidate != path:
            why = faults[0] if faults else f"{path} is not there"
            logger.warning(f"{why}; going on from the checkpoint before, {candidate}")
        return state
    if faults:
        raise InputError(f"no usable checkpoint in {path.parent}: {faults[0]}; remove the folder to start anew")
    return None


def load_weights(model: nn.Module, checkpoint: dict[str, Any], words: Sequence[str]) -> None:
    """Load the weights of a checkpoint, ours or a published one, made with this vocabulary.

    Raises InputError where the vocabulary or the weights do not fit.
    """
    made_with = checkpoint.get("words")
    if made_with is not None and list(made_with) != list(words):
        raise InputError(
            f"the vocabulary does not match the checkpoint: {len(words)} words against {len(made_with)} that it was "
            "trained with; set dataset.vocab_path to the file that the run used"
        )
    made_of = str(checkpoint.get("arch"))
    if made_of in models() and not isinstance(model, models()[made_of]):
        raise InputError(f"the checkpoint is of the model {made_of}, and the option file names another in model.name")
    weights = checkpoint["model"]
    if any(name.startswith(EARLIER[0]) for name in weights):
        weights = {name.replace(*EARLIER): tensor for name, tensor in weights.items()}
    load = load_published if is_published(weights) else load_state
    try:
        load(model, weights)
    except ValueError as error:
        raise InputError(f"the checkpoint's weights do not fit this model: {error}") from None
