"""Weight files: the one place where the model's starting weights are read.

ResNet-18: torchvision's ImageNet weights, or a state dict in a file. Text encoder: the published skip-thoughts folder
(Kiros et al. 2015).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
import torchvision
from torch import nn

from layers.gru import GRU
from layers.model import Model
from layers.published import mismatch
from layers.text_encoder import TextEncoder
from option.schema import GaLROptions, Seq2Vec
from util.errors import InputError
from util.files import existing_file, read_text
from util.torch_files import load_torch

logger = logging.getLogger("galr")

RESNET_URL = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
SKIPTHOUGHTS_URL = "http://www.cs.toronto.edu/~rkiros/models/"


def load_starting_weights(model: Model, options: GaLROptions, words: Sequence[str]) -> None:
    """Give a new model the weights that its options ask for; without any, its random ones stay.

    words: the vocabulary in index order from 1. Raises InputError where a file is missing, damaged or misshapen.
    """
    load_resnet(model.global_branch.resnet, options.pretrained)
    if options.seq2vec.pretrained:
        load_skipthoughts(model.text_encoder, options.seq2vec, words)


def load_resnet(resnet: nn.Module, pretrained: str) -> None:
    """`pretrained`: imagenet (downloaded once by torchvision), none, or the path of a ResNet-18 state dict.

    A file may lack the unused `fc`. Raises InputError where weights cannot be had or do not fit.
    """
    if pretrained == "none":
        return
    if pretrained == "imagenet":
        try:
            state = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True)
        except (URLError, OSError, RuntimeError) as error:
            raise InputError(
                f"the ImageNet weights of ResNet-18 cannot be downloaded ({error}); fetch {RESNET_URL} elsewhere and "
                "set model.pretrained to the file's path, or set model.pretrained to none"
            ) from None
    else:
        state = load_torch(pretrained, "ResNet-18 weights (model.pretrained)")
    fault = mismatch(state, {k: v for k, v in resnet.state_dict().items() if not k.startswith("fc.")}, ("fc.",))
    if fault:
        raise InputError(f"ResNet-18 weights (model.pretrained) {pretrained}: {fault}")
    resnet.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")}, strict=False)


def load_skipthoughts(encoder: TextEncoder, options: Seq2Vec, words: Sequence[str]) -> None:
    """Fill the text encoder from the folder `dir_st`: `u` files for UniSkip and BayesianUniSkip, `b` files for BiSkip.

    The table (2 GB) is memory-mapped and only the rows of `words` are read. Words that the dictionary lacks take the
    row of `UNK` and are counted on standard output. Raises InputError that names a missing, damaged or misshapen file.
    """
    folder, kind = Path(options.dir_st), "b" if options.type == "BiSkip" else "u"
    dictionary = _text_lines(folder / "dictionary.txt")
    table = _table(folder / f"{kind}table.npy", (len(dictionary), options.embedding_dim))
    row = {word: i for i, word in enumerate(dictionary)}
    if "UNK" not in row:
        raise InputError(f"skip-thoughts file {folder / 'dictionary.txt'}: the word UNK is missing")
    lacking = [word for word in words if word not in row]
    if lacking:
        logger.info(f"{len(lacking)} of {len(words)} words are not in the skip-thoughts dictionary and take UNK")
    arrays = _arrays(folder / ("bi_skip.npz" if kind == "b" else "uni_skip.npz"))
    rows = table[[row.get(word, row["UNK"]) for word in words]]
    if not np.isfinite(rows).all():
        raise InputError(f"skip-thoughts file {folder / f'{kind}table.npy'} holds more than finite numbers")
    with torch.no_grad():
        encoder.embedding.weight[1:] = torch.from_numpy(np.asarray(rows, dtype=np.float32))
        encoder.embedding.weight[0] = 0
        _fill(encoder.gru, arrays, "encoder_", folder)
        if encoder.gru_backward is not None:
            _fill(encoder.gru_backward, arrays, "encoder_r_", folder)


def _fill(gru: GRU, arrays: dict[str, np.ndarray], prefix: str, folder: Path) -> None:
    """skip-thoughts stores x W with reset and update gate side by side, and the candidate apart (`x`)."""
    size, hidden = gru.input_weight.shape[2], gru.input_weight.shape[1]
    shapes = {"W": (size, 2 * hidden), "Wx": (size, hidden), "U": (hidden, 2 * hidden), "Ux": (hidden, hidden),
              "b": (2 * hidden,), "bx": (hidden,)}  # fmt: skip
    a = {}
    for key, shape in shapes.items():
        array = arrays.get(prefix + key)
        if array is None or array.shape != shape:
            found = "is missing" if array is None else f"has shape {array.shape} instead of {shape}"
            raise InputError(f"skip-thoughts weights in {folder}: {prefix + key} {found}")
        if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
            raise InputError(f"skip-thoughts weights in {folder}: {prefix + key} holds more than finite numbers")
        a[key] = torch.from_numpy(array.astype(np.float32))
    gru.input_weight.copy_(torch.cat((a["W"], a["Wx"]), dim=1).T.reshape(3, hidden, size))
    gru.hidden_weight.copy_(torch.cat((a["U"], a["Ux"]), dim=1).T.reshape(3, hidden, hidden))
    gru.input_bias.copy_(torch.cat((a["b"], a["bx"])).reshape(3, hidden))


def _published(path: Path) -> Path:
    return existing_file(path, "skip-thoughts file", f"it is published at {SKIPTHOUGHTS_URL}{path.name}")


def _text_lines(path: Path) -> list[str]:
    return read_text(_published(path), "skip-thoughts file").split("\n")[:-1]


def _table(path: Path, shape: tuple[int, int]) -> np.ndarray:
    try:
        table = np.load(_published(path), mmap_mode="r", allow_pickle=False)
    except InputError:
        raise
    except Exception as error:  # NumPy raises errors of many kinds on damaged files
        raise _damaged(path, error) from None
    if table.shape != shape or not np.issubdtype(table.dtype, np.floating):
        raise InputError(
            f"skip-thoughts file {path}: shape {table.shape} instead of {shape}, the words of dictionary.txt and "
            f"embedding_dim; fetch both again from {SKIPTHOUGHTS_URL}"
        )
    return table


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(_published(path), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if name.startswith("encoder_")}
    except InputError:
        raise
    except Exception as error:  # as above
        raise _damaged(path, error) from None


def _damaged(path: str | os.PathLike, error: Exception) -> InputError:
    name = Path(path).name
    return InputError(f"skip-thoughts file {path} is damaged ({error}); fetch it again from {SKIPTHOUGHTS_URL}{name}")
