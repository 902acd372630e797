"""Ways to spoil a working folder with the tiny demonstration set, for tests of what the commands say about it."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from PIL import Image

TRAIN = "train.py --path_opt tiny.yaml"
TEST = "test.py --path_opt tiny.yaml"
SINGLE = "test_single.py --path_opt tiny.yaml --resume checkpoint/tiny/0/GaLR_best.pth.tar"
VOCAB = "vocab.py --data_path data --data_name demo_precomp --out new.json"
DEMO = "-m util.make_demo --out new"
LOCAL = "-m util.build_local --data_path data --image_path data/images --regions data/boxes --out new.h5"
DETECT = "-m util.detect --image_path data/images --weights weights.pth --out new"
CONVERT = "-m util.convert_captions --out new"
CACHE = "-m util.cache_images --path_opt tiny.yaml"
RERANK = "-m postprocessing.rerank --sims sims.npy"
FIGURES = "-m postprocessing.figures --run run"


class Bad(NamedTuple):
    """Hold what is wrong, the command line, a word that the message must contain, and what spoils the folder."""

    what: str
    command: str
    tells: str
    spoil: Callable[[Path], object] = lambda folder: None


# ---------------------------------------------------------------- ways to spoil a folder


def write(name: str, content: bytes | str) -> Callable[[Path], object]:
    raw = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(raw)


def add(name: str, content: bytes | str) -> Callable[[Path], object]:
    raw = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + raw)


def change(name: str, old: str, new: str) -> Callable[[Path], object]:
    """Replace the first match of a regular expression in a text file."""

    def spoil(folder: Path) -> None:
        text, count = re.subn(old, new, (folder / name).read_text(), count=1, flags=re.MULTILINE)
        assert count == 1
        (folder / name).write_text(text)

    return spoil


def cut(name: str, keep: float = 0.5) -> Callable[[Path], object]:
    """Keep the first part of a file."""

    def spoil(folder: Path) -> None:
        raw = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / name).write_bytes(raw[: int(len(raw) * keep)])

    return spoil


def flip(name: str) -> Callable[[Path], object]:
    """Turn over the bits of a byte in the middle of a file."""

    def spoil(folder: Path) -> None:
        raw = bytearray((folder / name).read_bytes())
        raw[len(raw) // 2] ^= 0xFF
        (folder / name).unlink()
        (folder / name).write_bytes(raw)

    return spoil


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def first_image(folder: Path) -> Path:
    return folder / "data/images" / (folder / "data/train_filename.txt").read_text().split()[0]


def image(content: bytes) -> Callable[[Path], object]:
    """Give the first train image another content."""
    return lambda folder: first_image(folder).write_bytes(content)


def no_image(put: Callable[[Path], object] = lambda path: None) -> Callable[[Path], object]:
    """Take the first train image away, and put something else in its place."""

    def spoil(folder: Path) -> None:
        path = first_image(folder)
        path.unlink()
        put(path)

    return spoil


def named(name: str) -> Callable[[Path], object]:
    """Give the first train image another name in the list."""
    return change("data/train_filename.txt", r"\A.*$", name)


def link_out(folder: Path) -> None:
    (folder.parent / "outside.png").write_bytes(first_image(folder).read_bytes())
    first_image(folder).unlink()
    first_image(folder).symlink_to(folder.parent / "outside.png")


def link_folder_out(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    first_image(folder).rename(folder.parent / "elsewhere/a.png")
    (folder / "data/images/sub").symlink_to(folder.parent / "elsewhere")
    named("sub/a.png")(folder)


def bomb() -> bytes:
    """A PNG of a few bytes that promises 100 000 x 100 000 pixels."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)), (b"IEND", b""))
    )


def deep_image() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((64, 64), np.uint16)).save(file, "PNG")
    return file.getvalue()


def features(key: str, spoil: Callable[[np.ndarray], np.ndarray | None]) -> Callable[[Path], object]:
    """Change an array of the local features; None takes it away."""

    def change(folder: Path) -> None:
        with h5py.File(folder / "data/local.h5", "a") as file:
            array = spoil(file[key][:])
            del file[key]
            if array is not None:
                file[key] = array

    return change


def not_finite(array: np.ndarray) -> np.ndarray:
    array[3, 4, 5] = np.nan
    return array


def published(tree: object) -> Callable[[Path], object]:
    return lambda folder: np.save(folder / "data/local.npy", np.array(tree, object))


def vocabulary(word2idx: object) -> Callable[[Path], object]:
    return write("vocab.json", json.dumps({"word2idx": word2idx, "idx2word": {}, "idx": 1}))


def sims(array: object, images: object = None) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        np.save(folder / "sims.npy", np.asarray(array))
        if images is not None:
            np.save(folder / "sims_images.npy", np.asarray(images))

    return spoil


def saved(name: str, state: object) -> Callable[[Path], object]:
    """A file of torch.save."""

    def spoil(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, folder / name)

    return spoil


def both(*spoils: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [spoil(folder) for spoil in spoils]


BEST = "checkpoint/tiny/0/GaLR_best.pth.tar"
LAST = "checkpoint/tiny/0/last.pth.tar"
SPLIT = "checkpoint/tiny/0/split.json"


def trained(folder: Path) -> None:
    """Pretend that a fold has been trained: link the checkpoint of the session (conftest.checkpoint)."""
    (folder / BEST).parent.mkdir(parents=True)
    made = Path(os.environ["GALR_TEST_CHECKPOINT"])
    os.link(made, folder / BEST)
    os.link(made, folder / LAST)
    (folder / BEST).with_name("split.json").write_bytes(made.with_name("split.json").read_bytes())


def weights(change: Callable[[dict], object]) -> Callable[[Path], object]:
    """A trained fold whose checkpoints hold something else."""

    def spoil(folder: Path) -> None:
        trained(folder)
        state = torch.load(folder / BEST, weights_only=True)
        change(state)
        for name in (BEST, LAST):
            (folder / name).unlink()
            torch.save(state, folder / name)

    return spoil


SIMS = np.arange(12, dtype=np.float32).reshape(3, 4)
LINE = "1 1 9 1 9 9 1 9 plane 0\n"
