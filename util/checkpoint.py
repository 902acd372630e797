"""Checkpoints of a run: what they hold, written atomically, read safely, and whether a run may go on from one."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from layers import models
from layers.published import is_published, load_published, load_state
from option.options import Options
from util.model_folder import SPLIT, read_state, split_file
from util.weights import check_finite, load_torch, weights_of
from utils import InputError, RunError, atomic, read_as, read_json

logger = logging.getLogger("galr")

# ---------------------------------------------------------------- files

BEST, LAST = "GaLR_best.pth.tar", "last.pth.tar"  # in a fold's folder


def save_checkpoint(state: dict[str, Any], path: Path, keep_previous: bool = False) -> None:
    """Write a checkpoint atomically; with `keep_previous` the one before it stays beside it as `NAME.previous`.

    Raise RunError if it cannot be written; what was there before is then still there.
    """
    try:
        with atomic(path, keep=previous(path) if keep_previous else None) as temporary:
            torch.save(state, temporary)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        free = shutil.disk_usage(path.parent).free / 2**20 if path.parent.is_dir() else 0
        reason = error.strerror if isinstance(error, OSError) else "PyTorch's write failed"
        raise RunError(
            f"the checkpoint {path} cannot be written ({reason}; {free:.0f} MiB free); the one before it is intact: "
            "make room and go on with --resume"
        ) from None


def previous(path: Path) -> Path:
    """Return the path of the checkpoint before this one."""
    return path.with_name(path.name + ".previous")


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint, ours, a published one or a model folder, without running anything in it. Raise InputError."""
    if Path(path).is_dir():
        return read_state(path)
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
    """Read the checkpoint at `path`; if it is missing or damaged, the one before it, with a warning; None without any.

    Raise InputError if all that are there are damaged.
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

    Raise InputError if the vocabulary or the weights do not fit.
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
    load = load_published if is_published(checkpoint["model"]) else load_state
    try:
        load(model, checkpoint["model"])
    except ValueError as error:
        raise InputError(f"the checkpoint's weights do not fit this model: {error}") from None


# ---------------------------------------------------------------- what they hold, and exact resume

# Options that may change on --resume: they move no number of the run.
FREE = set(
    "dataset.workers dataset.cache dataset.image_path dataset.data_path dataset.vocab_path dataset.val_list "
    "dataset.truncated dataset.batch_size_val optim.checkpointing optim.early_stopping logs.save_steps "
    "logs.save_minutes logs.ckpt_save_path logs.logger_name logs.matrices k_fold.current_num "
    "model.seq2vec.dir_st".split()
)


def refuse_existing(folder: Path) -> None:
    """Raise InputError if a fold to be trained anew holds a run."""
    last = folder / LAST
    if last.exists() or previous(last).exists() or (folder / BEST).exists():
        raise InputError(
            f"{folder} holds a run already: add --resume to go on with it, set another k_fold.experiment_name, or "
            "remove the folder"
        )


def earlier_state(folder: Path, names: dict[str, list[str]], options: Options, force: bool) -> dict[str, Any] | None:
    """Read the checkpoint to go on from; None for a new fold. `names`: the images that train and validate.

    Raise InputError if options or images have changed, unless `force`.
    """
    last = folder / LAST
    state = newest_checkpoint(last)
    if state is None and (folder / BEST).exists() and not _killed(folder):
        raise InputError(f"{folder} holds {BEST} and no {LAST} to go on from; remove the folder to train it anew")
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
    if read_json(folder / SPLIT, "split") != names and not force:
        raise InputError(
            f"the images of fold {folder.name} are not those of {folder / SPLIT}: the lists in "
            "dataset.data_path have changed; --force goes on nevertheless"
        )
    return state


def _killed(folder: Path) -> bool:
    """Return whether the run in a folder did not end in order; it may have had no time to write its last checkpoint."""
    path = folder / "run.json"
    record = read_json(path, "record") if path.is_file() else {}
    return isinstance(record, dict) and "ended" in record and record["ended"] is None


def check_inputs(state: dict[str, Any], inputs: str, folder: Path, force: bool) -> None:
    """Raise InputError if captions or local features are not those that the state was trained on."""
    if state.get("inputs", inputs) != inputs and not force:
        raise InputError(
            f"the captions or the local features of fold {folder.name} have changed since {folder / LAST} was "
            "written; --force goes on nevertheless"
        )


def resumable(state: dict[str, Any]) -> bool:
    """Check that a checkpoint holds what `util.train_state.TrainState.for_resume` gives."""
    kinds = {"epoch": int, "options": dict, "optimizer": dict, "progress": dict, "rows": list}
    if not all(isinstance(state.get(key), kind) for key, kind in kinds.items()):
        return False
    progress = {"epoch": int, "batch": int, "steps": int, "best_rsum": float, "window": list}
    return {key: type(value) for key, value in state["progress"].items()} == progress


def with_defaults(options: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults of keys that are newer than the run."""
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
        elif a != b and name not in FREE:
            # where the rate goes by steps, more epochs move no number of those that are done, nor do more folds
            longer = name == "optim.epochs" and b > a and new.get("schedule", "step") == "step"
            if not longer and not (name == "k_fold.nums" and new.get("mode") == "shuffle"):
                changed.append(f"{name}: {a} -> {b}")
    return changed


def warn_of_seen_images(fold: int, validated: Sequence[str], resume: str) -> None:
    """Warn if the checkpoint to fine-tune from was trained on images that this fold validates on."""
    folder = Path(resume) if Path(resume).is_dir() else Path(resume).parent
    path = split_file(folder)
    trained = read_as(dict[str, list[str]], path, "split").get("train", []) if path.is_file() else []
    if seen := set(trained).intersection(validated):
        logger.warning(
            f"{resume} was trained on {len(seen)} of the {len(validated)} images on which fold {fold} validates: its "
            "validation scores, and what is chosen by them, come out too good"
        )


# ---------------------------------------------------------------- options of checkpoints

# Options that no weight's shape shows; of two of clip.arch with the same shapes, one has QuickGELU.
SHAPELESS = (
    "model.fusion.gate model.image_norm model.text_pooling model.positions model.seq2vec.pooling model.trunk "
    "model.clip.arch dataset.local_path dataset.image_size"
).split()


def warn_of_other_options(checkpoint: dict[str, Any], options: Options) -> None:
    """Warn where a checkpoint is scored in another way than it was trained."""
    before, after = checkpoint.get("options"), options.to_dict()
    for key in SHAPELESS:
        trained, now = _option(before, key), _option(after, key)
        if key == "model.fusion.gate" and trained is None and isinstance(_option(before, "model.fusion"), dict):
            trained = "released"  # the meaning of a file without the key
        differs = type(trained) is type(now) and trained != now
        if key == "dataset.local_path":  # zeros, or any file
            differs = differs and options.model.reads_local and "zeros" in (trained, now)
        if differs:
            said = f"the checkpoint was trained with {key}={trained}, and is now scored with {now}"
            logger.warning(f"{said}; --set {key}={trained} scores it as trained")


def _option(tree: Any, key: str) -> Any:
    """Return an option of a tree, a stranger's perhaps, or None."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree
