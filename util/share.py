"""Write a trained model as one folder that others can load: weights, options, vocabulary, and a card.

    python -m util.share --run checkpoint/NAME --fold 0 --out models/NAME

`engine.load_pretrained("models/NAME")` loads it; test_single.py and search.* take it in place of a checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import vocab
from option import Options, save_options
from option.load import check_options
from postprocessing.results import Results, load
from util import model_folder
from util.checkpoint import BEST, read_checkpoint
from util.model_card import Made, card, read_notes
from util.regions.local_features import read_rules
from util.weights import check_finite
from utils import (
    InputError,
    Parser,
    check_writable,
    flush,
    not_installed,
    read_as,
    read_json,
    run_command,
    write_json,
    write_text,
)

logger = logging.getLogger("galr")

TYPES = {"fp16": torch.float16, "fp32": torch.float32}


def main() -> None:
    parser = Parser(prog="python -m util.share", description="Write a trained model as one folder.")
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="DIR", help="folder of a run, such as checkpoint/NAME")
    add("--fold", type=int, default=0, help="fold whose best checkpoint is taken (default 0)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write, such as models/NAME")
    add("--dtype", choices=TYPES, default="fp16", help="of matrices; vectors stay fp32 (default fp16)")
    add("--card-notes", type=Path, metavar="FILE", help="Markdown for the card; metadata at its start replace ours")
    add("--replace", action="store_true", help="replace a model folder that is there")
    arguments = parser.parse_args()
    check_out(arguments.out, arguments.replace)
    notes = read_notes(arguments.card_notes) if arguments.card_notes else ({}, "")
    share(arguments.run, arguments.fold, arguments.out, arguments.dtype, notes)


def share(run: Path, fold: int, out: Path, dtype: str, notes: tuple[dict[str, Any], str]) -> None:
    """Write the best checkpoint of a fold as the folder `out`; notes: metadata and text for its card.

    Raise InputError for a checkpoint that is not there, or that a model folder cannot hold.
    """
    with not_installed("a model folder"):
        from safetensors.torch import save
    folder = run / str(fold)
    state = read_checkpoint(folder / BEST)
    trained = check_options(state.get("options", {}), f"options of the checkpoint {folder / BEST}")
    options = shared_options(trained)
    words = tuple(state.get("words") or vocab.load_words(trained))
    weights = {}
    for name, tensor in state["model"].items():
        matrix = tensor.is_floating_point() and tensor.ndim > 1  # vectors (norms, biases) are small
        weights[name] = tensor.to(TYPES[dtype] if matrix else tensor.dtype, copy=True).contiguous()
    check_finite(weights, f"the weights in {dtype} (--dtype fp32 holds larger numbers)")
    commit = None
    with contextlib.suppress(InputError, KeyError, IndexError, TypeError):  # not known
        commit = read_json(folder / "run.json", "record")["sessions"][-1]["commit"]
    split, results = folder / model_folder.SPLIT, run / "results.json"
    names = read_as(dict[str, list[str]], split, "split") if split.is_file() else {}
    scores = load(results, Results) if results.is_file() else None
    with whole_folder(out) as new:
        if transformer := model_folder.transformer_of(trained.to_dict()):
            save_transformer(transformer, new / model_folder.TRANSFORMER)
        digest = model_folder.digest_of(words, new if transformer else None)
        content = save(weights, {"galr": "1", "vocabulary": digest})
        (new / model_folder.WEIGHTS).write_bytes(content)
        flush(new / model_folder.WEIGHTS, os.O_RDWR)
        save_options(options, new / model_folder.OPTIONS)
        if options.model.tokenizer == "vocabulary":
            vocab.save(vocab.Vocabulary(words), new / model_folder.VOCABULARY)
        if options.model.reads_local:
            write_json(new / model_folder.RULES, read_rules(trained.local_path).to_dict())
        if names:
            write_json(new / model_folder.SPLIT, names)
        size = f"{len(content) / 2**20:.1f} MiB"
        made = Made(
            name=out.name,
            options=options,
            words=len(set(words) - {vocab.UNKNOWN}),
            fold=fold,
            epoch=state.get("epoch"),
            rsum=state.get("best_rsum"),
            commit=commit,
            split=names,
            results=scores,
            weights=f"{dtype}, {size}",
        )
        write_text(new / model_folder.CARD, card(made, *notes))
    logger.info(f"{out}: {size} of weights; read its README.md before you give it away")


def shared_options(options: Options) -> Options:
    """Return options of which no key names a file, and those of data lead below the current folder.

    Raise InputError for a model that needs other files.
    """
    tree = options.to_dict()
    if fault := model_folder.not_shareable(tree):
        raise InputError(fault)
    tree = model_folder.without_paths(tree)
    if options.model.tokenizer != "vocabulary":
        tree["dataset"]["vocab_path"] = "none"
    for key in model_folder.DATA:
        path = os.path.relpath(tree["dataset"][key])
        tree["dataset"][key] = Path(path).name if path.startswith("..") else path
    return check_options({key: value for key, value in tree.items() if value is not None}, "the options of the model")


def save_transformer(source: str, folder: Path) -> None:
    """Write the configuration and the tokenizer of a text transformer into a folder; its weights are in the model's.

    Raise InputError where the transformer is gone, or has no tokenizer that one file holds.
    """
    with not_installed("model.seq2vec.arch transformer"):
        from transformers import AutoConfig, AutoTokenizer
    try:
        for part in (AutoConfig, AutoTokenizer):
            part.from_pretrained(source, trust_remote_code=False).save_pretrained(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"model.seq2vec.path {source}: {str(error).splitlines()[0]}") from None
    for file in folder.iterdir():
        if file.name not in model_folder.OF_TRANSFORMER:
            file.unlink()
    model_folder.transformer_folder(folder.parent)


def check_out(out: Path, replace: bool) -> None:
    """Raise InputError for a folder that may not be written: of another kind, or there without `replace`."""
    if not out.name or (out.exists() and not out.is_dir()):
        raise InputError(f"--out {out} must be the name of a folder, such as models/NAME")
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    ours = {*model_folder.FILES, model_folder.TRANSFORMER}
    if names and not {model_folder.WEIGHTS, model_folder.OPTIONS} <= names <= ours:
        raise InputError(f"--out {out} is there and is no model folder; choose another name")
    if names and not replace:
        raise InputError(f"--out {out} holds a model; --replace writes over it")
    check_writable(out.absolute().parent, "--out")


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Give a folder beside `out`; with what is written there it takes the name `out` at the end, or not at all."""
    new, old = (out.with_name(f".{out.name}.{end}") for end in ("tmp", "old"))
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
            out.replace(old)
        new.replace(out)
        flush(out.parent, os.O_RDONLY)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


if __name__ == "__main__":
    run_command(main)
