"""A data set of twenty pictures that seeded NumPy draws: no generator of the project can change it.

Each picture has a colour and a grain, which its five captions name; the captions of a picture differ in one word.
"""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
from PIL import Image
from torch import Tensor

COLOURS = {"red": (200, 60, 50), "green": (60, 170, 70), "blue": (50, 80, 200), "sand": (210, 190, 130)}
GRAINS = {"smooth": 1, "fine": 2, "coarse": 8, "blocky": 16, "striped": 0}
WORDINGS = ("a {} {} field", "the {} {} land", "one {} {} area", "some {} {} ground", "this {} {} scene")
SIDE = 64

OPTIONS = """\
model:
    pretrained: none
    seq2vec: {pretrained: False, embedding_dim: 16, hidden_dim: 32}
    fusion: {gate: paper, dynamic_fusion_dim: 32, mca_HIDDEN_SIZE: 64, mca_FF_SIZE: 64, mca_MULTI_HEAD: 2,
             mca_HIDDEN_SIZE_HEAD: 32}
    embed: {embed_dim: 64}
dataset:
    datatype: drawn
    data_path: data
    image_path: data/images
    vocab_path: vocab.json
    local_path: data/local.h5
    image_size: 64
    batch_size: 8
    workers: 0
optim: {epochs: 2, lr: 0.0005}
logs: {print_freq: 1, ckpt_save_path: checkpoint, logger_name: logs}
k_fold: {experiment_name: drawn, val_fraction: 0.25}
"""


def draw(folder: Path) -> None:
    """Write pictures, lists, vocabulary, local features and drawn.yaml into `folder`."""
    rng = np.random.default_rng(24)
    images = folder / "data" / "images"
    images.mkdir(parents=True)
    names, captions = [], []
    for colour, rgb in COLOURS.items():
        for grain, size in GRAINS.items():
            name = f"{colour}_{grain}.png"
            Image.fromarray(picture(rng, rgb, size)).save(images / name)
            names.append(name)
            captions += [wording.format(grain, colour) for wording in WORDINGS]
    (folder / "data" / "train_filename.txt").write_text("\n".join(names) + "\n")
    (folder / "data" / "train_caps.txt").write_text("\n".join(captions) + "\n")
    words = {word: i for i, word in enumerate(dict.fromkeys(" ".join(captions).split()), 1)}
    words["<unk>"] = len(words) + 1
    tree = {"word2idx": words, "idx2word": {str(i): word for word, i in words.items()}, "idx": len(words) + 1}
    (folder / "vocab.json").write_text(json.dumps(tree))
    with h5py.File(folder / "data" / "local.h5", "w") as file:
        file["name"] = [name.removesuffix(".png") for name in names]
        local_rep = rng.uniform(0, 1, (len(names), 20, 20)).astype(np.float32)
        local_rep[:, 0, 0] = np.arange(len(names)) / len(names)  # see `image_rows`
        file["local_rep"] = local_rep
        file["local_adj"] = np.tile(np.eye(20, dtype=np.float32), (len(names), 1, 1))
    (folder / "drawn.yaml").write_text(OPTIONS)


def picture(rng: np.random.Generator, rgb: tuple[int, int, int], grain: int) -> np.ndarray:
    """Return a picture (70, 70, 3) of a colour with noise in squares of `grain` pixels, or in stripes for 0."""
    shape = (70, 1) if grain == 0 else (-(-70 // grain),) * 2
    noise = rng.normal(0, 40, (*shape, 1))
    noise = np.repeat(noise, 70, 1) if grain == 0 else np.repeat(np.repeat(noise, grain, 0), grain, 1)[:70, :70]
    return (np.array(rgb) + noise).clip(0, 255).astype(np.uint8)


def image_rows(local_rep: Tensor) -> list[int]:
    """Return the row in the list of each image of a batch, which its local features (B, 20, 20) carry."""
    return (20 * local_rep[:, 0, 0]).round().int().tolist()


def same_pictures(folder: Path) -> None:
    """Replace every picture by the first one, whose corners differ."""
    first, *others = sorted((folder / "data" / "images").iterdir())
    for path in others:
        path.write_bytes(first.read_bytes())
