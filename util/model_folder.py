"""A model as one folder: weights, options, vocabulary, and nothing that another file has to complete.

model.safetensors, options.yaml, vocab.json, README.md; local_rules.json where the model reads local features,
transformer/ (configuration and tokenizer) where a transformer reads the captions, and split.json, the names of its
train and validation images, where the run had one. A folder may come from a stranger: no file outside of it is opened,
and none runs anything.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator
from torch import Tensor

import vocab
from layers.drea import DreaOptions
from option import Options, load_options
from option.load import changed_tree
from util.regions.local_features import SHAPE, ZEROS, LocalRules, read_rules
from util.regions.proposals import ProposalOptions
from util.weights import check_finite
from utils import InputError, not_installed, one_line, read_as, read_json

WEIGHTS, OPTIONS, VOCABULARY, CARD = "model.safetensors", "options.yaml", "vocab.json", "README.md"
RULES, SPLIT = "local_rules.json", "split.json"
TRANSFORMER = "transformer"
FILES = (WEIGHTS, OPTIONS, VOCABULARY, CARD, RULES, SPLIT)
TOKENIZER = "tokenizer.json"
OF_TRANSFORMER = ("config.json", TOKENIZER, "tokenizer_config.json")
CODE = re.compile(r"auto_map|\w*_implementation\w*|quantization_config")  # keys that load other code
LARGEST_TEXT = 64 * 2**20  # bytes of a file that is not weights
TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.int64)
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
DATA = ("data_path", "image_path", "local_path")  # of `dataset`: relative paths, which name data, not the model


def find_folder(source: str | os.PathLike) -> Path:
    """Return the path of a model folder, or of one that is fetched from the Hugging Face hub by its name.

    Raise InputError if it cannot be had.
    """
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists() or path.parent.is_dir() or not HUB_NAME.fullmatch(str(source)):
        raise InputError(f"model folder {path} is not there, or no folder; python -m util.share makes one")
    with not_installed(f"the model {source} of the Hugging Face hub"):
        from huggingface_hub import snapshot_download
    try:
        return Path(snapshot_download(str(source), allow_patterns=[*FILES, f"{TRANSFORMER}/*"]))
    except Exception as error:  # of the network, or of the hub
        raise InputError(f"model {source}: no such folder here, and none from the hub ({one_line(error)})") from None


def file_of(folder: Path, name: str, advice: str = "") -> Path:
    """Return the path of a file of a model folder. Raise InputError if it is not there, or leads out of the folder."""
    path, root = folder / name, folder.resolve()
    if not path.is_file():
        raise InputError(f"model folder {folder}: no file {name}" + (f"; {advice}" if advice else ""))
    cache = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root  # of the hub: links into it
    target = path.resolve()
    if not (target.is_relative_to(root) or target.is_relative_to(cache)):
        raise InputError(f"model folder {folder}: {name} is a link that leads out of the folder")
    if name != WEIGHTS and path.stat().st_size > LARGEST_TEXT:
        raise InputError(f"model folder {folder}: {name} has more than {LARGEST_TEXT >> 20} MiB")
    return path


def split_file(folder: Path) -> Path:
    """Return the path of split.json in a fold's or a model folder. Raise InputError if it leads out of the latter."""
    path = folder / SPLIT
    return file_of(folder, SPLIT) if path.is_file() and (folder / WEIGHTS).is_file() else path


# ---------------------------------------------------------------- reading


def read_state(folder: str | os.PathLike) -> dict[str, Any]:
    """Return the content of a model folder in the form of a checkpoint. Raise InputError for a damaged folder."""
    folder = Path(folder)
    options = folder_options(folder)
    words = vocab.load_words(options)
    weights, about = _read_weights(folder)
    if about.get("vocabulary") != digest_of(words, folder if transformer_of(options.to_dict()) else None):
        raise InputError(f"model folder {folder}: vocabulary or tokenizer is not what the model was made with")
    return {"model": weights, "arch": options.model.name, "words": list(words), "options": options.to_dict()}


def folder_options(folder: str | os.PathLike, overrides: Sequence[str] = ()) -> Options:
    """Return the options of a model folder with `key=value` overrides. Raise InputError.

    Keys that name other files are replaced. Those that name data, which test_single.py alone reads, must lead below the
    current folder.
    """
    folder = Path(folder)
    path = file_of(folder, OPTIONS, "python -m util.share makes a model folder")
    tree, where = load_options(path).to_dict(), f"option file {path}"
    for key in DATA:
        name = PurePosixPath(tree["dataset"][key])
        if name.is_absolute() or ".." in name.parts:
            raise InputError(f"{where}: dataset.{key} must lead below the current folder, got {name}")
    if fault := not_shareable(tree):
        raise InputError(f"{where}: {fault}")
    tree = without_paths(tree)
    if tree["dataset"]["vocab_path"] != "none":
        tree["dataset"]["vocab_path"] = str(file_of(folder, VOCABULARY))
    if transformer_of(tree):
        tree["model"]["seq2vec"]["path"] = str(transformer_folder(folder))
    return changed_tree(tree, overrides, where)


def transformer_folder(folder: Path) -> Path:
    """Return the path of a model folder's text transformer. Raise InputError for files that are missing or not ours."""
    path = folder / TRANSFORMER
    files = [file_of(folder, f"{TRANSFORMER}/{name}") for name in OF_TRANSFORMER]
    if others := sorted({file.name for file in path.iterdir()} - {*OF_TRANSFORMER}):
        raise InputError(f"{path}: a model folder has no {others[0]} there")
    settings = [read_json(file, "settings") for file in files if file.name != TOKENIZER]
    if found := next(filter(CODE.fullmatch, _keys(settings)), None):
        raise InputError(f"{path}: the key {found} would load other code, and is not read")
    return path


def _keys(tree: Any) -> Iterator[str]:
    """Yield the keys of the objects in a JSON value, at any depth."""
    parts = [tree]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            yield from part
        parts += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()


def options_of(checkpoint: str, path_opt: str | None, overrides: Sequence[str]) -> Options:
    """Return the options of a command line: of the model folder that it names, else of its option file.

    Raise InputError if it names both, or neither.
    """
    if Path(checkpoint).is_dir():
        if path_opt:
            raise InputError(f"--path_opt {path_opt}: the model folder {checkpoint} has options; change them by --set")
        return folder_options(checkpoint, overrides)
    if not path_opt:
        raise InputError(f"--path_opt is missing: {checkpoint} is no model folder, and a checkpoint needs its options")
    return load_options(path_opt, overrides)


def weights_file(checkpoint: str | os.PathLike) -> Path:
    """Return the file of a checkpoint or of a model folder that holds the weights, by whose digest both are known."""
    path = Path(checkpoint)
    return file_of(path, WEIGHTS) if path.is_dir() else path


def folder_rules(folder: str | os.PathLike, options: Options) -> LocalRules:
    """Return the rules by which the model of a folder makes local features of new images. Raise InputError."""
    if not options.model.reads_local:
        return read_rules(ZEROS)
    path = file_of(Path(folder), RULES, "the model reads local features")
    return LocalRules.from_dict(read_as(_Rules, path, "rules of local features").model_dump(exclude_none=True))


def digest_of(words: Sequence[str], folder: Path | None = None) -> str:
    """Return the SHA-256 of a vocabulary, or of the tokenizer in a folder, by which a folder's weights know theirs."""
    content = "\n".join(words).encode("utf-8", "surrogatepass")
    if folder:
        content = (folder / TRANSFORMER / TOKENIZER).read_bytes()
    return hashlib.sha256(content).hexdigest()


def _read_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the weights, in float32, and what else the header says."""
    path = file_of(folder, WEIGHTS)
    where = f"weights {path}"
    with not_installed(where):
        from safetensors import safe_open
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except MemoryError:
        raise
    except Exception as error:  # safetensors raises errors of several kinds on damaged files
        raise InputError(f"{where}: a damaged file, or not of safetensors ({one_line(error)})") from None
    if "galr" not in about:
        raise InputError(f"{where}: not made by python -m util.share; its header does not say galr")
    if odd := [name for name, tensor in weights.items() if tensor.dtype not in TYPES]:
        raise InputError(f"{where}: {odd[0]} is of type {weights[odd[0]].dtype}; floats and counters are read")
    weights = {name: x.float() if x.is_floating_point() else x for name, x in weights.items()}
    check_finite(weights, where)
    return weights, about


Nine = Annotated[list[FiniteFloat], Field(min_length=9, max_length=9)]


class _Prototypes(BaseModel):
    centres: Annotated[list[Nine], Field(max_length=15)]
    mean: Nine
    deviation: Nine


class _Rules(BaseModel):
    """Describe local_rules.json: what `LocalRules.to_dict` gives."""

    model_config = ConfigDict(extra="forbid")
    source: Literal["zeros", "proposals", "detector"]
    drea: DreaOptions
    proposals: ProposalOptions | None = None
    prototypes: _Prototypes | None = None

    @model_validator(mode="after")
    def _bounded(self) -> _Rules:
        given = self.proposals, self.prototypes
        if (self.source == "proposals") != all(given) or self.drea.nodes != SHAPE[0]:
            raise ValueError(f"proposals need proposals and prototypes, and {SHAPE[0]} nodes")
        if self.proposals and not (
            8 <= self.proposals.side <= 4096
            and all(1 <= n <= 64 for n in self.proposals.shrink)
            and 0 <= self.proposals.sigma <= 20
        ):
            raise ValueError("side must be from 8 to 4096 pixels, shrink from 1 to 64, sigma from 0 to 20")
        return self


# ---------------------------------------------------------------- options without files


def not_shareable(tree: dict[str, Any]) -> str | None:
    """Return why a model of these options needs files that a model folder cannot hold; None if it needs none."""
    clip = tree["model"].get("clip") or {}
    if ":" in clip.get("arch", ""):
        return f"model.clip.arch must be a name of open_clip in a model folder, got {clip['arch']}"
    return None


def transformer_of(tree: dict[str, Any]) -> str | None:
    """Return the folder or name of the text transformer in these options; None if they have none."""
    return (tree["model"].get("seq2vec") or {}).get("path")


def without_paths(tree: dict[str, Any]) -> dict[str, Any]:
    """Return options of which no key names a file, but for those of data: the folder itself stands for the others."""
    model, dataset = dict(tree["model"]), dict(tree["dataset"])
    if model.get("pretrained", "imagenet") != "imagenet":
        model["pretrained"] = "none"
    if "dir_st" in model.get("seq2vec", {}):
        model["seq2vec"] = model["seq2vec"] | {"dir_st": "seq2vec"}
    if transformer_of(tree):
        model["seq2vec"] = model["seq2vec"] | {"path": TRANSFORMER}
    if "/" in (model.get("clip") or {}).get("weights", ""):
        model["clip"] = model["clip"] | {"weights": "none"}
    if dataset["vocab_path"] != "none":
        dataset["vocab_path"] = VOCABULARY
    reads_local = model.get("local_branch", False)
    dataset |= {"val_list": None, "local_path": dataset["local_path"] if reads_local else "zeros"}
    return tree | {"model": model, "dataset": dataset, "optim": tree["optim"] | {"resume": False}, "logs": {}}
